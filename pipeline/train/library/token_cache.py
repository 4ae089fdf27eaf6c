"""A cache as tensors: a clip's tokens, the times of its frames and its truth in one call."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import AFFINE, SPECIAL, in_view, layer_name
from pipeline.config.cache_spec import BASE
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.targets import STORED, Arrays, Targets
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, count_text, unknown_name
from pipeline.records import Clip
from pipeline.train.windows.index import ClipRows, clip_rows_of

LABEL, DEPTH = "label", "depth_m"
TRUTHS = (LABEL, *STORED)
"""Names of truth that can be read beside tokens; texts are beside all."""
EVERY_ROW = WindowSettings(frames=1, every=1)


@dataclass
class PlainTruth:
    """Truth as a manifest has it, mapped into the square: what a task makes of it is left to the
    reader. See `pipeline.datasets.manifest.targets` for names, shapes and units."""

    needs: tuple[str, ...]
    dense_px: int | None

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """The targets as they are."""
        return targets


@dataclass(frozen=True, repr=False)
class ClipTokens:
    """One clip: T cached frames in the order of the video, all that lie in its stretch."""

    clip: Clip
    special_TSD: torch.Tensor
    """CLS, then registers, of the last layer; S may be 0. Tokens have the codec's dtype."""
    patches: dict[int, torch.Tensor]
    """layer -> (T, P, D), patch tokens row by row of the grid."""
    grid_hw: tuple[int, int]
    """Rows and columns of the patches: P = h * w."""
    time_s_T: torch.Tensor
    """float64, seconds after the first frame of the video."""
    affine_T23: torch.Tensor
    """float64: (x, y, 1) in the source frame, from 0 to 1, to (x, y) in the encoder's square."""
    truth: dict[str, torch.Tensor]
    """What is known of the clip, mapped into the square: `label` (), and of every frame `boxes` (T,
    O, 4), `points` (T, Q, 2), `pose` (T, 4, 4), `depth_m` (T, H, W) with the masks beside them, see
    `pipeline.datasets.manifest.targets`."""
    texts: ClipTexts
    """What is said or asked about it."""

    @property
    def patches_TPD(self) -> torch.Tensor:
        """The patches, where one layer was read. Raises BadInput where there are several."""
        if len(self.patches) > 1:
            raise BadInput(
                f"{self.clip.clip_id} was read with layers {', '.join(map(str, self.patches))}",
                "name one: cache.read(clip, layer=L), or take patches[L]",
            )
        (patches_TPD,) = self.patches.values()
        return patches_TPD

    @property
    def tokens_TND(self) -> torch.Tensor:
        """Special tokens and then the patches of the one layer that was read, N = S + P."""
        return torch.cat([self.special_TSD, self.patches_TPD], 1)

    def __len__(self) -> int:
        return len(self.time_s_T)

    def __repr__(self) -> str:
        first, last = float(self.time_s_T[0]), float(self.time_s_T[-1])
        shape = f"{self.grid_hw[0]} x {self.grid_hw[1]} + {self.special_TSD.shape[1]} tokens"
        return (
            f"ClipTokens('{self.clip.clip_id}', {count_text(len(self), 'frame')} from {first:.3f} "
            f"to {last:.3f} s, layers {', '.join(map(str, self.patches))}, {shape} of width "
            f"{self.special_TSD.shape[2]}, truth: {', '.join(self.truth) or 'none'})"
        )


class TokenCache(Cache):
    """A cache on disk or at a URL, opened for reading. Opening it reads `cache.json` only."""

    def __repr__(self) -> str:
        (rows, columns), special = self.shape.grid_hw, self.shape.special_tokens
        fps = "every frame" if self.fps is None else f"{self.fps:g} frames a second"
        videos = count_text(sum(map(len, self.plan.values())), "video")
        return (
            f"TokenCache('{self}', {videos}, {fps}, "
            f"layers {', '.join(map(str, self.layers))}, {rows} x {columns} + {special} tokens of "
            f"width {self.shape.width}, codec {self.spec['codec']['name']})"
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Recorded layers, ascending."""
        return self.shape.layers

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of its manifest, with split and label; `cache.hole(clip)` says what is missing
        of one."""
        return self.manifest.clips

    def read(
        self,
        clip: str | Clip,
        layer: int | Sequence[int] | None = None,
        view: str = BASE,
        truth: Sequence[str] | None = None,
        allow_missing: bool = False,
    ) -> ClipTokens:
        """The tokens of a clip, or of a whole video, by its id in the manifest.

        `layer`: one, or several; None: all that the cache has. `truth`: names among label, boxes,
        points, pose and depth_m; None: all that the manifest knows of the clip but depth, which is
        large. `allow_missing`: what there is of a clip that the cache does not hold whole.

        Raises BadInput: no such clip, layer or view, truth that the clip has not, a clip that is
        not there; StillframeError where what was read is damaged.
        """
        found = self._clip(clip)
        layers = self._layers(layer)
        if view not in self.views:
            raise unknown_name("view", view, self.views, f"cache {self}")
        rows = self._rows(found, allow_missing)
        frames = slice(rows.first_row, rows.first_row + len(rows))
        row_T = np.arange(frames.start, frames.stop)
        patches = {
            each: self._decoded(rows.store, layer_name(each), row_T, view) for each in layers
        }
        if self.shape.special_tokens:
            special_TSD = self._decoded(rows.store, SPECIAL, row_T, view)
        else:
            special_TSD = patches[layers[0]][:, :0]
        affine_T23 = self.small_array(rows.store, in_view(view, AFFINE))[frames]
        return ClipTokens(
            found,
            special_TSD,
            patches,
            self.shape.grid_hw,
            torch.from_numpy(rows.time_s - rows.first_s),
            torch.from_numpy(affine_T23.copy()),
            self._truth(found, rows, affine_T23, truth),
            self.manifest.texts.get(found.clip_id, ClipTexts()),
        )

    def plain_truth(self, names: Sequence[str]) -> PlainTruth:
        """Truth of these names as it is read beside tokens; depth as large as the square. Raises
        BadInput for names that are none."""
        for name in names:
            if name not in TRUTHS:
                raise unknown_name("truth", name, TRUTHS)
        size_px = int(self.spec["frames"]["size_px"])
        return PlainTruth(tuple(names), size_px if DEPTH in names else None)

    def _clip(self, name: str | Clip) -> Clip:
        if isinstance(name, Clip):
            return name
        for clip in self.manifest.clips:
            if clip.clip_id == name:
                return clip
        for video in self.manifest.videos:
            if video.video_id == name:
                return Clip(name, name, video.source, "all", image_fps=video.image_fps)
        known = [clip.clip_id for clip in self.manifest.clips]
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.3)
        raise BadInput(
            f"no clip or video called '{name}' among the {count_text(len(known), 'clip')} of cache "
            f"{self}",
            f"did you mean '{near[0]}'?" if near else f"the first is '{known[0]}'; see cache.clips",
        )

    def _layers(self, layer: int | Sequence[int] | None) -> tuple[int, ...]:
        layers = self.layers if layer is None else (layer,) if isinstance(layer, int) else layer
        if missing := [each for each in layers if each not in self.layers]:
            raise BadInput(
                f"cache {self} has no layer {', '.join(map(str, missing))}; it has "
                f"{', '.join(map(str, self.layers))}"
            )
        if not layers:
            raise BadInput("no layer is named", f"one of {', '.join(map(str, self.layers))}")
        return tuple(layers)

    def _rows(self, clip: Clip, allow_missing: bool) -> ClipRows:
        reason = self.hole(clip)
        if clip.video_id in self.locations and (reason is None or allow_missing):
            rows = clip_rows_of(self, clip, EVERY_ROW, 1)
            if isinstance(rows, ClipRows):
                return rows
            reason = rows
        hint = f"stillframe status {self}"
        if clip.video_id in self.locations:
            hint += "; allow_missing=True reads what is there"
        raise BadInput(f"cache {self} does not hold {clip.clip_id}: {reason}", hint)

    def _decoded(self, store: int, name: str, row_T: np.ndarray, view: str) -> torch.Tensor:
        array = in_view(view, name)
        stored = self.stored_rows(store, array, row_T)
        arrays = {key: torch.from_numpy(rows) for key, rows in stored.items()}
        return self.codecs[array].decode(arrays)

    def _truth(
        self, clip: Clip, rows: ClipRows, affine_T23: np.ndarray, names: Sequence[str] | None
    ) -> dict[str, torch.Tensor]:
        known = Targets(self.manifest, self.plain_truth(TRUTHS if names is None else names))
        has = [name for name in known.wanted.needs if known.has(clip, name)]
        if names is None:
            has = [name for name in has if name != DEPTH]
        elif lacking := sorted(set(names) - set(has)):
            raise BadInput(
                f"clip {clip.clip_id} has no {', '.join(lacking)}",
                f"it has {', '.join(name for name in TRUTHS if known.has(clip, name)) or 'none'}",
            )
        targets = Targets(self.manifest, self.plain_truth(has))
        seen_s_T = rows.time_s - rows.zero_s
        arrays = targets.window(clip, seen_s_T, affine_T23, rows.step_s, None)
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
