"""Embeddings of texts, which are made once and kept beside the manifest that the texts are from.

They lie in `.texts/NAME-KEY/`: `pooled.f32`, float32 (N, E), one vector of unit length for each
text; where tokens are asked for, `tokens.f16`, float16 (M, D), those of the first texts one after
the other, and `starts.i64`, int64 (K + 1,), where each of these begins. `texts.json` is written
last and says what they are. The key is a hash over the texts and the tower's identity: weights,
configuration, tokeniser and template. What several processes write at once is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.storage.local import make_folder, written_whole
from pipeline.config.json_files import read_json, to_json
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, count_text
from pipeline.models.text.contract import TextPlugin
from pipeline.timing import spoken_progress

FORMAT_VERSION = 2
FOLDER = ".texts"
HEADER, POOLED, TOKENS, STARTS = "texts.json", "pooled.f32", "tokens.f16", "starts.i64"
FLOAT32, FLOAT16, INT64 = np.dtype("<f4"), np.dtype("<f2"), np.dtype("<i8")
TEXTS_AT_ONCE = 256
"""Texts that are as long as the longest of them while they are embedded."""

Say = Callable[[str], object]


class KeptHeader(Settings):
    """The content of texts.json."""

    format_version: int
    key: str
    tower: dict[str, Any]
    """Identity of the tower."""
    texts: int
    """N."""
    width: int
    """E."""
    with_tokens: int
    """K, the first texts, whose tokens are kept."""
    tokens: int
    """M."""
    token_width: int
    """D."""
    cut: int
    """Texts that are longer than the tower reads, and lost their end."""


@dataclass(frozen=True)
class KeptTexts:
    """Embeddings of N texts. Safe in threads."""

    texts: tuple[str, ...]
    header: KeptHeader
    pooled_ND: np.ndarray
    """float32, of unit length."""
    tokens_MD: np.ndarray
    """float16; of no rows where none are kept."""
    starts_K: np.ndarray

    @cached_property
    def _number(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self.texts)}

    def pooled(self, texts: Sequence[str]) -> np.ndarray:
        """(K, E) float32, of unit length."""
        return np.array(self.pooled_ND[[self._number[text] for text in texts]], np.float32)

    def tokens(self, text: str) -> np.ndarray:
        """(L, D) float32: the tower's last layer over one of the first K texts."""
        number = self._number[text]
        start, stop = map(int, self.starts_K[number : number + 2])
        return np.array(self.tokens_MD[start:stop], np.float32)


@dataclass(frozen=True)
class TextPlaces:
    """Where embeddings of distinct texts are kept."""

    texts: Sequence[str]
    folders: Sequence[Path]
    """The best first."""
    name: str
    """What their own folder begins with."""
    with_tokens: int
    """How many of them, the first ones, are kept token by token, too."""

    def find(self, tower: dict[str, Any]) -> KeptTexts | None:
        """Those by the tower of an identity; None where none are kept. The tower is not needed."""
        key = self._key(tower)
        found = (_mapped(place, self.texts, key) for place in self._places(key))
        return next((kept for kept in found if kept), None)

    def make(self, tower: TextPlugin, say: Say) -> KeptTexts:
        """Those by `tower`, which are kept from now on. `say` is told how far it is now and then,
        where they lie, and how many texts were cut. Raises BadInput where a text is empty, or
        nothing can be written."""
        key = self._key(tower.identity)
        on_texts = spoken_progress(say, "texts embedded")
        for place in self._places(key):
            try:
                kept = _written(place, self.texts, key, tower, self.with_tokens, on_texts)
            except OSError as error:
                say(f"no embeddings of texts can be written into {place.parent}: {error.strerror}")
                continue
            size = sum(file.stat().st_size for file in place.iterdir())
            say(f"texts: {place}, {count_text(len(self.texts), 'text')}, {size:,} bytes")
            if kept.header.cut:
                say(
                    f"{count_text(kept.header.cut, 'text')} longer than {tower.most_tokens} "
                    "tokens: the end was left out"
                )
            return kept
        raise BadInput(
            f"embeddings of texts can be kept in none of {', '.join(map(str, self.folders))}",
            "free space or fix access; XDG_CACHE_HOME names another folder",
        )

    def _places(self, key: str) -> list[Path]:
        return [folder / f"{self.name}-{key}" for folder in self.folders]

    def _key(self, tower: dict[str, Any]) -> str:
        """12 hexadecimal digits over all that the embeddings depend on."""
        meaning = [FORMAT_VERSION, tower, self.with_tokens, list(self.texts)]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def _mapped(place: Path, texts: Sequence[str], key: str) -> KeptTexts | None:
    """What is kept in a folder; None where nothing is, or it is not what it should be."""
    with suppress(OSError, BadInput, ValueError):
        versions = range(FORMAT_VERSION, FORMAT_VERSION + 1)
        header = read_json(KeptHeader, place / HEADER, "", versions)
        if header.key != key or header.texts != len(texts):
            return None
        pooled_ND = _array(place / POOLED, FLOAT32, (header.texts, header.width))
        tokens_MD, starts_K = np.zeros((0, header.token_width), FLOAT16), np.zeros(1, INT64)
        if header.tokens:
            tokens_MD = _array(place / TOKENS, FLOAT16, (header.tokens, header.token_width))
            starts_K = np.array(_array(place / STARTS, INT64, (header.with_tokens + 1,)))
        return KeptTexts(tuple(texts), header, pooled_ND, tokens_MD, starts_K)
    return None


def _array(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """A file as an array in memory that is mapped. Raises ValueError where its size is another."""
    return np.memmap(file, dtype, "r").reshape(shape)


def _written(
    place: Path,
    texts: Sequence[str],
    key: str,
    tower: TextPlugin,
    with_tokens: int,
    on_texts: Callable[[int, int], None],
) -> KeptTexts:
    """Makes the embeddings in a folder. Raises OSError where it cannot be written."""
    base, folder = place.parent.parent, f"{place.parent.name}/{place.name}"
    make_folder(base)
    pooled, lengths, cut = [], [0], 0
    with written_whole(base, f"{folder}/{TOKENS}") as file:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            said = tower(texts[start : start + TEXTS_AT_ONCE])
            pooled.append(said.pooled_ND.float().cpu().numpy().astype(FLOAT32))
            cut += said.cut
            # Texts whose tokens are kept stand first.
            mask_KL = said.mask_NL[: max(0, with_tokens - start)]
            lengths += mask_KL.sum(1).tolist()
            tokens_MD = said.tokens_NLD[: len(mask_KL)][mask_KL].to(torch.float16).cpu().numpy()
            file.write(tokens_MD.astype(FLOAT16).tobytes())
            on_texts(min(start + TEXTS_AT_ONCE, len(texts)), len(texts))
    starts_K = np.cumsum(lengths).astype(INT64)
    for file_name, array in ((STARTS, starts_K), (POOLED, np.concatenate(pooled))):
        with written_whole(base, f"{folder}/{file_name}") as file:
            file.write(array.tobytes())
    header = KeptHeader(
        format_version=FORMAT_VERSION,
        key=key,
        tower=tower.identity,
        texts=len(texts),
        width=tower.width,
        with_tokens=with_tokens,
        tokens=int(starts_K[-1]),
        token_width=tower.token_width,
        cut=cut,
    )
    with written_whole(base, f"{folder}/{HEADER}") as file:
        file.write(to_json(header))
    kept = _mapped(place, texts, key)
    assert kept is not None
    return kept
