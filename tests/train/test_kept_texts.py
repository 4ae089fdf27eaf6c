"""Embeddings of texts that are made once and kept: they are the tower's, and are made anew where
they are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.image_text import LONGEST, save_image_text

from pipeline import timing
from pipeline.config.cache_spec import choice
from pipeline.errors import BadInput
from pipeline.models.text.contract import TextPlugin, make_text
from pipeline.train.language import kept_texts as module
from pipeline.train.language.kept_texts import KeptTexts, TextPlaces
from pipeline.train.language.places import places

TEXTS = ("a dog jumps", "cat", "red hen", "A", "dog")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_image_text("clip", tmp_path_factory.mktemp("clip"))


def tower_of(model: Path, **table: Any) -> TextPlugin:
    return make_text(
        choice("text", {"name": "image_text", "model": str(model), **table}), torch.device("cpu")
    )


@pytest.fixture(scope="module")
def tower(model: Path) -> TextPlugin:
    return tower_of(model)


def at(*folders: Path, texts: Sequence[str] = TEXTS, tokens: int = 0) -> TextPlaces:
    return TextPlaces(texts=texts, folders=folders, name="mine", with_tokens=tokens)


def opened(where: TextPlaces, tower: TextPlugin, said: list[str]) -> KeptTexts:
    """What is kept, or made now; `said` takes what is said of it."""
    return where.find(tower.identity) or where.make(tower, said.append)


@pytest.mark.parametrize("tokens", [5, 3, 0])
def test_what_is_kept_is_what_the_tower_says(
    tokens: int, tower: TextPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, whose texts are padded to other lengths."""
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    said: list[str] = []
    kept = opened(at(tmp_path / ".texts", tokens=tokens), tower, said)
    expected = tower(TEXTS)
    order = [3, 0, 0]
    picked = kept.pooled([TEXTS[number] for number in order])
    np.testing.assert_allclose(picked, expected.pooled_ND[order], atol=1e-6)
    assert picked.dtype == np.float32 and kept.pooled_ND.shape == (5, tower.width)
    (place,) = (tmp_path / ".texts").iterdir()
    assert place.name.startswith("mine-") and said[0].startswith(f"texts: {place}, 5 texts, ")
    assert kept.tokens_MD.shape == (int(expected.mask_NL[:tokens].sum()), tower.token_width)
    for number, text in enumerate(TEXTS[:tokens]):
        own_LD = expected.tokens_NLD[number][expected.mask_NL[number]]
        assert kept.tokens(text).shape == own_LD.shape
        np.testing.assert_allclose(kept.tokens(text), own_LD, atol=2e-3, rtol=2e-3)


def test_the_second_call_maps_the_same_bytes(tower: TextPlugin, tmp_path: Path) -> None:
    said: list[str] = []
    first = opened(at(tmp_path, tokens=5), tower, said)
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")}
    second = opened(at(tmp_path, tokens=5), tower, said)
    assert len(said) == 1 and isinstance(second.pooled_ND, np.memmap)
    assert np.array_equal(first.pooled_ND, second.pooled_ND)
    assert np.array_equal(first.tokens_MD, second.tokens_MD)
    now = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")}
    assert now == files


@pytest.mark.parametrize("name", ["pooled.f32", "tokens.f16", "starts.i64", "texts.json"])
@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_damaged_file_is_made_anew(
    name: str, damage: str, tower: TextPlugin, tmp_path: Path
) -> None:
    said: list[str] = []
    where = at(tmp_path, tokens=5)
    before_ND = np.array(opened(where, tower, said).pooled_ND)
    (file,) = tmp_path.rglob(name)
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-4])
    assert where.find(tower.identity) is None
    again = opened(where, tower, said)
    assert len(said) == 2 and file.read_bytes() == whole
    assert np.array_equal(again.pooled_ND, before_ND)


def test_other_texts_another_template_and_tokens_have_keys_of_their_own(
    model: Path, tower: TextPlugin, tmp_path: Path
) -> None:
    said: list[str] = []
    opened(at(tmp_path), tower, said)
    photo = tower_of(model, template="my {}")
    for where, other in (
        (at(tmp_path, texts=TEXTS[::-1]), tower),
        (at(tmp_path), photo),
        (at(tmp_path, tokens=5), tower),
    ):
        assert where.find(other.identity) is None
        opened(where, other, said)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == len(said) == 4
    found = at(tmp_path).find(photo.identity)
    assert found is not None
    np.testing.assert_allclose(found.pooled_ND, photo(TEXTS).pooled_ND, atol=1e-6)


def test_where_nothing_can_be_written_the_users_own_folder_is_used(
    tower: TextPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".texts").write_text("a file")
    folders = places(tmp_path / "data" / "mine", ".texts")
    assert folders == [tmp_path / "data" / ".texts", tmp_path / "home" / "stillframe_texts"]
    said: list[str] = []
    kept = opened(at(*folders), tower, said)
    assert kept.pooled_ND.shape == (5, tower.width)
    assert said[0].startswith(f"no embeddings of texts can be written into {folders[0]}: ")
    assert said[1].startswith(f"texts: {folders[1]}{os.sep}mine-") and len(said) == 2
    assert at(*folders).find(tower.identity) is not None
    folders[1].rename(tmp_path / "gone")
    folders[1].write_text("a file")
    with pytest.raises(BadInput) as caught:
        opened(at(*folders), tower, said)
    assert caught.value.message == (
        f"embeddings of texts can be kept in none of {folders[0]}, {folders[1]}"
    )
    assert "XDG_CACHE_HOME names another folder" in caught.value.hint


def test_long_work_says_how_far_it_is(
    tower: TextPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(timing, "SPOKEN_EVERY_S", 0.0)
    said: list[str] = []
    opened(at(tmp_path), tower, said)
    assert said[:-1] == ["texts embedded: 2 of 5", "texts embedded: 4 of 5"]


def test_texts_that_are_cut_are_counted(tower: TextPlugin, tmp_path: Path) -> None:
    said: list[str] = []
    kept = opened(at(tmp_path, texts=("dog", "word " * LONGEST, "cat " * 20)), tower, said)
    assert kept.header.cut == 2
    assert said[1] == f"2 texts longer than {LONGEST} tokens: the end was left out"
