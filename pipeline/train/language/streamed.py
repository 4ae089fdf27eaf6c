"""What a stream needs of language: embeddings of its frames, by the image head of the very model
that encodes them, and texts that somebody asks for, through the tower that the run was trained
with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipeline.config.cache_spec import choice
from pipeline.datasets.manifest.targets import CAPTIONS, CHOICES, QUESTION, QUESTION_VALID, Arrays
from pipeline.errors import BadInput, count_text
from pipeline.models.encoders.tower.files import JSON_FILES, WEIGHT_FILES, model_folder
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, Query, TaskPlugin, WantedTexts
from pipeline.models.text.contract import TextPlugin, make_text
from pipeline.models.text.parts.image_head import ImageHead
from pipeline.train.compatibility import require_same_tower
from pipeline.train.run import Run


def head_of_stream(
    encoder: Mapping[str, Any], task: TaskPlugin, device: torch.device
) -> ImageHead | None:
    """The image head of the model that an encoder's table names, whose identity has been compared
    with that of the run's; None where the task sees no embeddings of frames."""
    if FRAME_EMBEDDINGS not in task.example_texts(1):
        return None
    named = SimpleNamespace(model=encoder["model"], revision=encoder.get("revision"))
    folder = model_folder(named, JSON_FILES + WEIGHT_FILES)
    assert isinstance(folder, Path)
    return ImageHead(named.model, folder, device)


def embedding_of_frame(
    head: ImageHead, special_1SD: torch.Tensor, patches: Mapping[int, torch.Tensor]
) -> Query:
    """The embedding of one frame, as the index of a cache keeps it."""
    read = special_1SD[:, 0] if head.reads_cls else patches[head.last_layer]
    return {FRAME_EMBEDDINGS: head(read).half().float()}


def tower_of_stream(
    run: Run, encoder: Mapping[str, Any], task: TaskPlugin, device: torch.device
) -> TextPlugin:
    """The text tower that a run was trained with. `encoder` is the table of its encoder, of whose
    model it is the text half unless the recipe names another. Raises BadInput where the task reads
    no texts, or the tower is another."""
    wanted = task.wanted_texts
    if wanted is None or not (task.asked_in_words or task.asks == QUESTION):
        raise BadInput(
            f"a run of {run.recipe.task.name} is asked nothing in words", "leave --ask out"
        )
    table = {"name": "image_text", "model": encoder.get("model")}
    if encoder.get("revision") is not None:
        table["revision"] = encoder["revision"]
    tower = make_text(wanted.tower or choice("text", table), device)
    require_same_tower(run, tower.identity)
    return tower


def asked_texts(
    tower: TextPlugin, task: TaskPlugin, texts: Sequence[str], choices: Sequence[str]
) -> tuple[Arrays, str]:
    """Texts as truth of a window, and what is to be said of those that were cut, or "". They are
    captions, (K, E), or the one question of a task that is told a question, with its choices, as
    texts that are kept have it. Raises BadInput where these do not go together."""
    is_question = task.asks == QUESTION
    _require_askable(task, texts, choices)
    said = tower([*texts, *choices])
    cut = ""
    if said.cut:
        cut = (
            f"{count_text(said.cut, 'text')} longer than {tower.most_tokens} tokens: the end was "
            "left out"
        )
    pooled_KE = said.pooled_ND.float().cpu().numpy()
    if not is_question:
        return {CAPTIONS: pooled_KE}, cut
    tokens_LD = said.tokens_NLD[0, said.mask_NL[0]].half().float().cpu().numpy()
    return {
        QUESTION: tokens_LD,
        QUESTION_VALID: np.ones(len(tokens_LD), bool),
        "label": np.array(-1, np.int64),
        "is_answered": np.array(False),
        CHOICES: pooled_KE[1:],
        "choice": np.array(-1, np.int64),
    }, cut


def _require_askable(task: TaskPlugin, texts: Sequence[str], choices: Sequence[str]) -> None:
    """Raises BadInput where a task cannot be asked so."""
    is_question = task.asks == QUESTION
    if is_question and len(texts) > 1:
        raise BadInput(f"a stream answers one question, found {len(texts)}", "ask one at a time")
    wants_choices = is_question and (task.wanted_texts or WantedTexts(None)).choices
    if wants_choices and len(choices) < 2:
        raise BadInput(
            f"this run chooses among answers, found {count_text(len(choices), 'choice')}",
            '--choice TEXT for each, as --choice "a dog" --choice "a cat"',
        )
    if choices and not wants_choices:
        what = "answers from its own labels" if is_question else "compares with texts"
        raise BadInput(
            f"this run {what}, and chooses among none",
            "leave --choice out" if is_question else "--ask TEXT for each instead",
        )
