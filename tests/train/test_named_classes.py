"""Classes that are known by their names: zero-shot classification, and what training makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.image_text import LONGEST, whole_model
from support.spoken import WIDTH, spoken_cache
from support.training import recipe
from torch.nn import functional
from transformers import AutoTokenizer

from pipeline.cache.cache import Cache
from pipeline.errors import BadInput
from pipeline.models.tasks.classify import Task
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, STREAMING, WINDOW, make_task
from pipeline.train.evaluate import evaluate
from pipeline.train.language.frame_embeddings import FrameEmbeddings, image_head_of
from pipeline.train.loop import train
from pipeline.train.run import load_model
from pipeline.train.setup import RunContext

CPU = torch.device("cpu")
PROMPTS = ("a {}.", "{}!")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return spoken_cache(tmp_path_factory.mktemp("spoken"))


def by_name(steps: int = 0, **task: Any) -> Any:
    table = {"name": "classify", "prompts": PROMPTS, "width": WIDTH} | task
    return recipe(
        task=table, windows={"frames": 4, "fps": None, "every": 1}, training={"steps": steps}
    )


def own_classes(folder: Path, labels: tuple[str, ...]) -> torch.Tensor:
    """The classes by the whole model of transformers, without stillframe."""
    model, tokenizer = whole_model(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for label in labels:
        texts = [prompt.replace("{}", label.replace("_", " ")) for prompt in PROMPTS]
        with torch.no_grad():
            said = model.get_text_features(
                **tokenizer(
                    texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
                )
            )
        rows.append(functional.normalize(said.pooler_output, dim=1).mean(0))
    return functional.normalize(torch.stack(rows), dim=1)


def test_before_training_logits_are_clips_own(cache: Cache, tmp_path: Path) -> None:
    run = train(by_name(), cache, tmp_path / "run")
    model, task = load_model(run, cache.shape)
    assert isinstance(task, Task) and task.named is not None
    class_KE = own_classes(cache.path.parents[1] / "clip", task.labels)
    torch.testing.assert_close(task.named.class_KE, class_KE, atol=1e-6, rtol=0)
    context = RunContext.of(cache, device=CPU)
    windows = context.windows("val", run.recipe, task, model.layers)
    batch = next(windows.evaluation(4))
    device_batch = windows.on_device(batch, CPU)
    source = FrameEmbeddings(cache, image_head_of(cache, None, CPU), CPU)
    frames = []
    for clip, ref in zip(batch.clip_index, windows.order.evaluation(), strict=False):
        video = windows.clip(clip).video_id
        rows_T = windows.index.locate(ref).rows_T - cache.locations[video].start
        frames.append(source.of_video(video)[rows_T])
    frames_BTE = np.stack(frames)
    # An index keeps 16 bits of each number; these are whole.
    device_batch.targets[FRAME_EMBEDDINGS] = torch.from_numpy(frames_BTE)
    mean_BE = functional.normalize(torch.from_numpy(frames_BTE.mean(1)), dim=1)
    for answer in model.answers(device_batch, task).values():
        np.testing.assert_allclose(answer, 100 * mean_BE @ class_KE.T, atol=1e-4, rtol=0)


def test_a_run_of_no_steps_scores_as_the_mean_of_frames(cache: Cache, tmp_path: Path) -> None:
    scored = evaluate(train(by_name(), cache, tmp_path / "run"), cache)
    of_frames = scored.baselines["mean_of_frames"].metrics
    assert list(of_frames) == ["top-1", "top-5"]
    assert scored.forms[STREAMING] == scored.forms[WINDOW] == of_frames
    assert list(scored.baselines) == ["trivial", "mean_of_frames"], "it looks at no layer"


def test_training_learns_a_readout_and_the_scale_and_leaves_classes(
    cache: Cache, tmp_path: Path
) -> None:
    begun = train(by_name(), cache, tmp_path / "begun").tensors("last")
    done = train(by_name(6, temperature=0.05), cache, tmp_path / "done").tensors("last")
    assert torch.equal(begun["task.named.class_KE"], done["task.named.class_KE"])
    assert done["task.named.log_scale"].item() == pytest.approx(np.log(20), abs=0.5)
    assert done["task.named.log_scale"].item() != pytest.approx(np.log(20), abs=1e-6)
    weights = "model.readouts.streaming.classifier.weight"
    assert not begun[weights].any() and done[weights].any()


def test_classes_follow_their_labels() -> None:
    task = make_task(by_name(width=3), ("b", "a", "c"))
    own_ND = torch.eye(3).repeat_interleave(2, 0)
    task.take_texts(own_ND.numpy())
    weights = task.reorder(dict(task.state_dict()), (2, 0, 1))
    assert torch.equal(weights["named.class_KE"], torch.eye(3)[[2, 0, 1]])
    readout = {"classifier.weight": torch.randn(3, 5)}
    assert torch.equal(
        task.reorder(readout, (2, 0, 1))["classifier.weight"], readout["classifier.weight"]
    )


def test_a_name_is_read_as_words() -> None:
    task = make_task(by_name(), ("Arm_wrestling", "{}"))
    assert task.wanted_texts is not None
    assert task.wanted_texts.own == ("a Arm wrestling.", "Arm wrestling!", "a {}.", "{}!")


def test_what_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted \{\} once, .*, found 'a video'"):
        by_name(prompts=("a video",))
    with pytest.raises(
        BadInput, match="task.width is 512, and embeddings of texts are 24 wide"
    ) as error:
        train(by_name(width=512), cache, tmp_path / "run")
    assert error.value.hint == "task.width = 24"
