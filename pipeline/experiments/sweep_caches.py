"""The caches of a sweep beside the one it is started on: other codecs or rates of the same videos,
or harder videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.leases import Leases
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.experiments.sweep_spec import GIVEN, DerivedCache, SweepSpec, grid_points
from pipeline.extract.derive import derive
from pipeline.extract.extract import extract

OnStep = Callable[[str, float, float], None]
"""(what, done, total)"""
ROOM = "start the sweep on a cache of the built-in world's room: stillframe manifest world --out DIR --set scene=room"


def prepare(
    spec: SweepSpec,
    given: Cache,
    out: Path,
    device: torch.device | None = None,
    on_step: OnStep = lambda *_: None,
) -> dict[str, Cache]:
    """Every cache that a setting of the sweep is trained on, by its name in the sweep; made where
    it is missing.

    Derived caches and rendered videos lie in `out`, and are kept. Several processes may be at it.
    Raises BadInput for a cache that cannot be made.
    """
    wanted = dict.fromkeys(point.cache for point in grid_points(spec))
    for name in wanted:
        if name != GIVEN and spec.caches[name].data:
            require_rendered(name, spec.caches[name], given)
    others = [name for name in wanted if name != GIVEN]
    shown = {
        name: f"{name}, {number} of {len(others)} caches"
        for number, name in enumerate(others, start=1)
    }

    def made(name: str) -> Cache:
        return _made(
            name,
            spec.caches[name],
            given,
            out,
            device,
            lambda what, *share: on_step(f"{what} {shown[name]}", *share),
        )

    return {name: given if name == GIVEN else made(name) for name in wanted}


def require_rendered(name: str, other: DerivedCache, given: Cache) -> None:
    """Refuses other data where the videos are a user's own, and settings that the data set refuses,
    before any is rendered."""
    dataset = given.manifest.origin.dataset
    if not plugins.load("dataset", dataset).renders:
        raise BadInput(
            f"cache '{name}' of the sweep wants other videos, and data set '{dataset}' of {given} renders none",
            ROOM,
        )
    try:
        plugins.settings(
            "dataset", dataset, given.manifest.origin.settings | other.data, f"data set of {given}"
        )
    except BadInput as error:
        raise BadInput(
            f"cache '{name}' of the sweep wants other videos: {error.message}", ROOM
        ) from error


def _made(
    name: str,
    other: DerivedCache,
    given: Cache,
    out: Path,
    device: torch.device | None,
    on_step: OnStep,
) -> Cache:
    if other.derive:
        return derive(
            given,
            other.derive,
            out / "caches",
            lambda done, total: on_step("deriving", done, total),
        )
    origin = given.manifest.origin
    settings = origin.settings | other.data
    with Leases(open_storage(out)) as leases, leases.alone(f"data-{name}"):
        videos = manifest.build(
            origin.dataset,
            None,
            out / "data" / name,
            settings,
            lambda done, total: on_step("rendering", done, total),
        )
    return extract(
        given.cache_spec,
        videos,
        out / "caches" / name,
        device,
        on_progress=lambda state: on_step("extracting", state.frames, state.frames_planned),
    )
