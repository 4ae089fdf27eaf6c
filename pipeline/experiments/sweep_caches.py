"""The caches that a sweep needs beside the one it is started on: other codecs or rates of the same
videos, or harder videos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.leases import Leases
from pipeline.cache.parts.chosen import ChosenStores
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.experiments.sweep_spec import GIVEN, DerivedCache, SweepSpec
from pipeline.extract.derive import derive
from pipeline.extract.execution import Execution
from pipeline.extract.extract import extract_all

OnStep = Callable[[str, float, float], None]
"""Takes what is being made, how much of it is done, and how much there is in all."""
RENDERED_HINT = (
    "start the sweep on a cache of the built-in world's room: "
    "stillframe manifest world --out DIR --set scene=room"
)


def prepare(
    spec: SweepSpec,
    source: Cache,
    out: Path,
    device: torch.device | None = None,
    on_step: OnStep = lambda *_: None,
) -> dict[str, Cache]:
    """Every cache that a point of the sweep is trained on, by its name in the sweep; `source` is
    the one that the sweep is started on, and all others are made where they are missing.

    Derived caches and rendered videos lie in `out`, and are kept. Several processes may prepare
    them at once. Raises BadInput for a cache that cannot be made.
    """
    names = list(dict.fromkeys(point.cache for point in spec.grid_points))
    to_make = [name for name in names if name != GIVEN]
    require_makeable(spec, source)
    caches = {}
    for name in names:
        if name == GIVEN:
            caches[name] = source
            continue
        title = f"{name}, {to_make.index(name) + 1} of {len(to_make)} caches"
        caches[name] = _make_cache(
            name, spec.caches[name], source, out, device, partial(_titled_step, on_step, title)
        )
    return caches


def _titled_step(on_step: OnStep, title: str, step: str, done: float, total: float) -> None:
    on_step(f"{step} {title}", done, total)


def require_makeable(spec: SweepSpec, source: Cache) -> None:
    """Refuses, before any is made, caches that cannot be made from the one that a sweep is started
    on. Raises BadInput."""
    for name in dict.fromkeys(point.cache for point in spec.grid_points):
        if name == GIVEN:
            continue
        if spec.caches[name].data:
            _require_rendered(name, spec.caches[name], source)
        elif isinstance(source, ChosenStores):
            raise BadInput(
                f"cache '{name}' of the sweep is derived from {source.storage}, which is in parts",
                "sweep over one part, or over axes of the recipe alone",
            )


def _require_rendered(name: str, derived: DerivedCache, source: Cache) -> None:
    """Refuses other data where the videos are a user's own, and settings that the data set
    refuses."""
    origin = source.manifest.origin
    if origin.made_by is not None:
        raise BadInput(
            f"cache '{name}' of the sweep wants other videos, and the manifest of {source} was "
            f"made by 'stillframe manifest {origin.made_by.command}', which is not done again",
            RENDERED_HINT,
        )
    try:
        plugins.require_origin("dataset", origin.dataset, origin.plugin)
    except BadInput as error:
        raise BadInput(f"manifest of {source}: {error.message}", error.hint) from error
    if not plugins.load("dataset", origin.dataset).renders:
        raise BadInput(
            f"cache '{name}' of the sweep wants other videos, "
            f"and data set '{origin.dataset}' of {source} renders none",
            RENDERED_HINT,
        )
    try:
        plugins.settings(
            "dataset", origin.dataset, origin.settings | derived.data, f"data set of {source}"
        )
    except BadInput as error:
        raise BadInput(
            f"cache '{name}' of the sweep wants other videos: {error.message}", RENDERED_HINT
        ) from error


def require_same_videos(spec: SweepSpec, manifest_folder: Path) -> None:
    """Refuses to lay the clips of one manifest over the caches of a sweep where one of them is of
    other videos: they have the same names, and the labels would be those of others."""
    for name in dict.fromkeys(point.cache for point in spec.grid_points):
        if name != GIVEN and spec.caches[name].data:
            raise BadInput(
                f"cache '{name}' of sweep '{spec.name}' is of other videos, "
                f"which manifest {manifest_folder} knows nothing of",
                "leave --manifest out, or compare what needs no other videos",
            )


def _make_cache(
    name: str,
    derived: DerivedCache,
    source: Cache,
    out: Path,
    device: torch.device | None,
    on_step: OnStep,
) -> Cache:
    """Derives one cache from the source, or renders its videos and extracts them."""
    if derived.derive:
        return derive(source, derived.derive, out / "caches", partial(on_step, "deriving"))
    origin = source.manifest.origin
    settings = origin.settings | derived.data
    with Leases(open_storage(out)) as leases, leases.alone(f"data-{name}"):
        videos = manifest.build(
            origin.dataset, None, out / "data" / name, settings, partial(on_step, "rendering")
        )
    how = Execution(
        device,
        on_progress=lambda state: on_step("extracting", state.frames, state.frames_planned),
    )
    return extract_all([source.cache_spec], videos, out / "caches" / name, how)[0]
