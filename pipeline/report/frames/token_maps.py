"""Tokens are drawn over time, patch by patch: their main components as colours, and a run's state
and gates as maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.config.recipe import WindowSettings
from pipeline.errors import BadInput, StillframeError
from pipeline.models.tasks.parts.token_colours import CLIPPED, in_bytes, principal_colours
from pipeline.models.temporal.contract import Gate
from pipeline.models.video_model import VideoModel
from pipeline.report.frames.videos import manifest_of
from pipeline.report.source import cache_of
from pipeline.train.run import Run, load_model
from pipeline.train.visualize import drawing_reader, evenly_spaced, squares
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows

CLIPS, MOMENTS = 3, 8
"""Clips that are shown, and how often each is."""
FRAMES_PER_S = 4.0
"""Frame rate at which a cache is shown without a run."""
FRAME_PX = 192


@dataclass(frozen=True)
class Strip:
    """One quantity of one clip at MOMENTS times: uint8 (H, W, 3) pictures."""

    name: str
    about: str
    tiles: list[np.ndarray]
    is_grid: bool
    """A pixel is a patch."""


@dataclass(frozen=True)
class Film:
    """One clip over time."""

    clip: str
    label: str
    time_s: list[float]
    """When its moments are, in seconds after the first frame of the video."""
    strips: list[Strip]


@dataclass(frozen=True)
class _Window:
    """The tokens of one window of a clip, and what a run makes of them."""

    clip_index: int
    time_s_T: np.ndarray
    patches_TPD: np.ndarray
    """Patch tokens of the last layer, as the cache has them."""
    maps: dict[tuple[str, str], np.ndarray]
    """(name, what it is) -> (T, P) of a run's state and gates; empty without a run."""


def films_of_run(run: Run, checkpoint: str, split: str) -> tuple[list[Film], str]:
    """A few clips as the run sees them, with its state and gates; and a sentence on what is
    missing."""
    try:
        cache = cache_of(run)
        model, _ = load_model(run, cache.shape, checkpoint)
        require_valid(cache)
        windows = Windows(
            cache,
            manifest_of(run, cache),
            split,
            run.recipe.windows,
            None,
            model.layers,
            allow_missing=True,
        )
    except StillframeError as error:
        return [], f"Tokens cannot be shown: {error}."
    return _films(windows, model)


def films_of_cache(cache: Cache) -> tuple[list[Film], str]:
    """Two seconds of a few clips of the first split; and a sentence on what is missing."""
    settings = WindowSettings(frames=MOMENTS, fps=min(FRAMES_PER_S, cache.fps or FRAMES_PER_S))
    try:
        require_valid(cache)
        split, layers = cache.manifest.splits[0], cache.shape.layers[-1:]
        windows = Windows(cache, cache.manifest, split, settings, layers=layers, allow_missing=True)
    except StillframeError as error:
        return [], f"Tokens cannot be shown: {error}."
    return _films(windows, None)


def _films(windows: Windows, model: VideoModel | None) -> tuple[list[Film], str]:
    """A film of each of a few clips, and a sentence on what is missing."""
    shown = [_look(windows, model, index) for index in evenly_spaced(len(windows), CLIPS)]
    rows = [_of_tokens([window.patches_TPD for window in shown])]
    rows += [_of_maps(*key, [window.maps[key] for window in shown]) for key in shown[0].maps]
    grid_hw = windows.cache.shape.grid_hw
    films, missing = [], ""
    with drawing_reader(windows.manifest.root) as reader:
        for index, window in enumerate(shown):
            clip = windows.clip(window.clip_index)
            moments = evenly_spaced(len(window.time_s_T), MOMENTS)
            time_s = window.time_s_T[moments]
            strips = []
            try:
                frames = [_frame(pixels) for pixels in squares(reader, windows.cache, clip, time_s)]
                strips.append(Strip("frame", "as the encoder sees it", frames, is_grid=False))
            except BadInput as error:
                missing = f"The frames themselves are not shown: {error}."
            for name, about, colours in rows:
                tiles = [colours(index)[moment].reshape(*grid_hw, 3) for moment in moments]
                strips.append(Strip(name, about, tiles, is_grid=True))
            after_s = time_s - windows.index.clip_rows[window.clip_index].first_s
            films.append(Film(clip.clip_id, clip.label or "", after_s.tolist(), strips))
    return films, missing


def _look(windows: Windows, model: VideoModel | None, clip_index: int) -> _Window:
    """The window in the middle of a clip."""
    batch = windows.read([WindowRef(clip_index, 0.5)])
    special, patches = windows.tokens(batch, torch.device("cpu"))
    maps = {} if model is None else state_and_gates(model, special, patches)
    return _Window(clip_index, batch.time_s_BT[0], patches[-1][0].float().numpy(), maps)


@torch.inference_mode()
def state_and_gates(
    model: VideoModel, special_1TSD: torch.Tensor, patches_1TPD: list[torch.Tensor]
) -> dict[tuple[str, str], np.ndarray]:
    """(Name, what it is) -> (T, P) of one stream that is read frame by frame: the norm of each
    patch token's state, and how far its gates are open, mean over channels and layers.

    A temporal module without state or gates has no entry for them.
    """
    temporal, opened = model.temporal, dict[str, list[torch.Tensor]]()
    gates = [part for part in temporal.modules() if isinstance(part, Gate)]

    def watch(gate: Gate, _: object, output: torch.Tensor) -> None:
        opened.setdefault(gate.opens, []).append(output.reshape(model.tokens_per_frame, -1).mean(1))

    hooks = [gate.register_forward_hook(watch) for gate in gates]
    state = temporal.initial_state(1, model.tokens_per_frame)
    rows_of: dict[tuple[str, str], list[torch.Tensor]] = {}
    try:
        for t in range(special_1TSD.shape[1]):
            tokens_1ND = model.tokens_of(special_1TSD[:, t], [part[:, t] for part in patches_1TPD])
            _, state = temporal.step(tokens_1ND, state)
            # Parts of the state that tell tokens apart are (B, N, ...).
            squared = [part[0].flatten(1).square().sum(1) for part in state if part.ndim > 2]
            if squared:
                rows_of.setdefault(("state", "norm of each token's state"), []).append(
                    torch.stack(squared).sum(0).sqrt()
                )
            for opens, parts in opened.items():
                rows_of.setdefault(("gate", f"how far it {opens}"), []).append(
                    torch.stack(parts).mean(0)
                )
            opened.clear()
    finally:
        for hook in hooks:
            hook.remove()
    patches = patches_1TPD[0].shape[2]
    return {key: torch.stack(rows)[:, -patches:].float().numpy() for key, rows in rows_of.items()}


Colours = Callable[[int], np.ndarray]
"""Number of a clip -> uint8 (T, P, 3)."""


def _of_tokens(patches: list[np.ndarray]) -> tuple[str, str, Colours]:
    colours = principal_colours(patches)
    return "tokens", "three main components as red, green and blue", colours.__getitem__


def _of_maps(name: str, about: str, maps: list[np.ndarray]) -> tuple[str, str, Colours]:
    low, high = np.percentile(np.concatenate([values_TP.ravel() for values_TP in maps]), CLIPPED)
    palette = colormaps["viridis"]
    pictures = [palette(in_bytes(values_TP, low, high))[..., :3] for values_TP in maps]
    colours = [(picture * 255).round().astype(np.uint8) for picture in pictures]
    return name, f"{about}, {low:.3g} (dark) to {high:.3g} (bright)", colours.__getitem__


def _frame(pixels_HWC: np.ndarray) -> np.ndarray:
    return np.array(
        Image.fromarray(pixels_HWC).resize((FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)
    )


def sheet(films: list[Film], tile_px: int = 128, gap_px: int = 4) -> Image.Image:
    """All strips of all clips in one picture, for papers."""
    side = tile_px + gap_px
    rows = [(number, strip) for number, film in enumerate(films) for strip in film.strips]
    width = max(len(strip.tiles) for _, strip in rows) * side - gap_px
    page = Image.new(
        "RGB", (width, len(rows) * side + 3 * gap_px * (len(films) - 1) - gap_px), "white"
    )
    for row, (number, strip) in enumerate(rows):
        for column, tile in enumerate(strip.tiles):
            how = Image.Resampling.NEAREST if strip.is_grid else Image.Resampling.LANCZOS
            picture = Image.fromarray(tile).resize((tile_px, tile_px), how)
            page.paste(picture, (column * side, row * side + 3 * gap_px * number))
    return page
