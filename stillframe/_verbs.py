"""What the commands do, as functions. They take what the commands take: the name of what ships with
the package, a path, or what another of these functions returned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.config import cache_spec as specs
from pipeline.config import plugins
from pipeline.config import recipe as recipes
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.config.shipped import named_file
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.exchange.hub.address import is_hub_address
from pipeline.exchange.hub.contents import What
from pipeline.exchange.hub.pull import kept
from pipeline.extract import extract as extraction
from pipeline.train import evaluate as scoring
from pipeline.train import loop
from pipeline.train.evaluation import Evaluation
from pipeline.train.library.frame_encoder import FrameEncoder
from pipeline.train.library.token_cache import TokenCache
from pipeline.train.library.trained_model import TrainedModel, load_trained
from pipeline.train.run import Run
from pipeline.train.stream import Stream

Device = torch.device | str | None
"""Where it computes, such as "cuda:1"; None: CUDA where there is one."""


def add_plugins(path: Path | str) -> None:
    """Makes plug-ins of your own known by their names for the rest of this process, as `stillframe
    --plugins PATH` does: `path` is a file of Python, or a folder of such files, whose code is run
    when one of them is used.

    Raises BadInput: no such file, none that defines a plug-in, a name that is taken.
    """
    plugins.add(Path(path))


def make_manifest(
    dataset: str, root: Path | str | None = None, *, out: Path | str, **settings: Any
) -> Manifest:
    """The clips of a data set, with splits and truth, as `stillframe manifest` writes them into the
    folder `out`.

    `dataset`: a name of `stillframe list dataset`, such as "folder" for videos of one's own, one
    folder for each label. `root`: where its videos are. `settings`: those of the data set, such as
    `val_fraction=0.2`. Raises BadInput: no such data set or setting, no usable video.

    >>> manifest = stillframe.make_manifest("world", out="data", clips_per_class=3, frames=12)
    >>> len(manifest.clips), manifest.labels[0], manifest.splits
    (24, 'approaching', ('train', 'val'))
    """
    return build(dataset, None if root is None else Path(root), Path(out), settings)


def load_manifest(folder: Path | str, root: Path | str | None = None) -> Manifest:
    """The manifest in a folder. `root`: where its videos are, if they were moved. Raises BadInput
    where there is none, or it is damaged."""
    return Manifest.load(Path(folder), None if root is None else Path(root))


def load_spec(spec: Path | str, changes: Sequence[str] = ()) -> CacheSpec:
    """What to cache: a shipped spec by its name, or a .toml file. `changes`: as --set takes them.

    Raises BadInput: no such spec, a key or value that no spec has.

    >>> stillframe.load_spec("demo", ["frames.fps=5"]).frames.fps
    5.0
    """
    return specs.load_spec(named_file("spec", str(spec)), changes)


def load_recipe(recipe: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """What to train: a shipped recipe by its name, a .toml file, or a run with all that it was made
    with. `changes`: as --set takes them.

    Raises BadInput: no such recipe, a key or value that no recipe has.

    >>> stillframe.load_recipe("demo_gru", ["training.steps=20"]).training.steps
    20
    """
    return recipes.load_recipe(named_file("recipe", str(recipe)), changes)


def extract(
    spec: CacheSpec | Path | str,
    manifest: Manifest | Path | str,
    out: Path | str = "caches",
    *,
    device: Device = None,
    decoders: int = 1,
) -> TokenCache:
    """Stage one: every frame is encoded once, into a cache in the folder or URL `out`. Called again
    it goes on where it was.

    Videos that fail are in `cache.failures`. Raises BadInput where spec or manifest cannot be used,
    StillframeError where the cache cannot be written.
    """
    wanted = spec if isinstance(spec, CacheSpec) else load_spec(spec)
    videos = manifest if isinstance(manifest, Manifest) else load_manifest(manifest)
    return TokenCache(extraction.extract(wanted, videos, out, _device(device), decoders).storage)


def train(
    recipe: Recipe | Path | str,
    cache: Cache | Path | str,
    out: Path | str | None = None,
    changes: Sequence[str] = (),
    *,
    manifest: Manifest | Path | str | None = None,
    device: Device = None,
    allow_missing: bool = False,
    follow: bool = False,
) -> Run:
    """Stage two: a temporal module and a readout are trained from a cache, into the run folder
    `out` (runs/NAME). Called again it goes on from the last checkpoint.

    `changes`: as --set takes them. `manifest`: other clips or labels over the same videos.
    `allow_missing`: clips that the cache does not cover are left out. `follow`: the cache is still
    being filled, and is waited for. Raises BadInput where recipe, cache, manifest and an existing
    run do not fit together.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, changes)
    elif changes:
        raise ValueError("changes are for a recipe that is named: load_recipe(name, changes)")
    folder = Path("runs") / recipe.name if out is None else Path(out)
    clips, where = _manifest(manifest), _device(device)
    return loop.train(recipe, _cache(cache), folder, clips, where, allow_missing, follow=follow)


def load_run(
    path: Path | str, checkpoint: str = "last", device: torch.device | str = "cpu"
) -> TrainedModel:
    """The run in a folder, with the weights of its "last" or "best" checkpoint.

    `path`: a folder, or a run of the Hugging Face hub, `hf://user/name` or
    `hf://user/name@revision`. That one is fetched once, checked, and kept in the hub's folder for
    assets; without a network it is the one that was fetched last. No code of it is run.

    Raises BadInput: no run, no such checkpoint, files that are damaged, and where neither the run,
    its cache nor its encoder tells the shape of its tokens.
    """
    return load_trained(_here(path, "run"), checkpoint, device)


def open_cache(path: Path | str) -> TokenCache:
    """The cache in a folder, or at a URL such as `s3://bucket/caches/NAME`. `hf://user/name` is one
    of the Hugging Face hub: all of it is fetched once, checked, and kept in the hub's folder for
    assets.

    Raises BadInput where there is none, or it is of a version that this one cannot read.
    """
    return TokenCache(_here(path, "cache"))


def evaluate(
    run: Run | Path | str,
    cache: Cache | Path | str | None = None,
    split: str = "val",
    *,
    checkpoint: str = "last",
    manifest: Manifest | Path | str | None = None,
    device: Device = None,
    allow_missing: bool = False,
) -> Evaluation:
    """Scores of a run on every clip of a split, with intervals, also written into its folder.

    `cache`: None is the one that it was trained on. What is returned has `forms`, form -> metric ->
    score with its 95 % interval, and `trivial`, metric -> what an answer scores that does not look.
    Raises BadInput where run and cache do not fit together.
    """
    opened = run if isinstance(run, Run) else Run(run)
    if cache is None:
        cache = opened.cache_path
        if cache is None:
            raise ValueError(f"run {opened.path} does not say where its cache is: name it")
    where = _device(device)
    clips = _manifest(manifest)
    return scoring.evaluate(opened, _cache(cache), split, checkpoint, clips, where, allow_missing)


def open_stream(
    run: Run | Path | str,
    *,
    device: Device = None,
    encoder: dict[str, Any] | None = None,
    ask: Sequence[str] = (),
) -> Stream:
    """A run that answers frame by frame: `stream.step(frame_HWC, time_s)` about frames of one's
    own, `stream.follow(path)` about a file.

    `encoder`: keys of the spec's [encoder] table to use instead, such as `{"model": "FOLDER"}`; a
    model that only the run names is not fetched over a network. `ask`: texts that answers are
    about, for runs that are asked in words. Raises BadInput: another encoder than the one the run
    was trained on, a run without the streaming form.
    """
    opened = run if isinstance(run, Run) else Run(run)
    return Stream(opened, _device(device), encoder, ask)


def open_encoder(
    source: Cache | CacheSpec | Path | str,
    *,
    device: Device = None,
    encoder: dict[str, Any] | None = None,
) -> FrameEncoder:
    """Stage one for frames of one's own: squares, encoder and codec of a cache (its folder or URL),
    or of a spec.

    `encoder`: keys of a cache's [encoder] table to use instead, such as `{"model": "FOLDER"}`; a
    model that only a cache names is not fetched over a network. Raises BadInput where the encoder
    is not there, or not the one of the cache.
    """
    if isinstance(source, CacheSpec):
        return FrameEncoder(source, device)
    if not isinstance(source, Cache):
        source = TokenCache(source)
    return FrameEncoder.of_cache(source, device, encoder)


def _here(path: Path | str, wanted: What) -> Path | str:
    """The folder or URL of a run or cache; one of the hub is fetched if it is not there yet."""
    return kept(path, wanted) if isinstance(path, str) and is_hub_address(path) else path


def _cache(cache: Cache | Path | str) -> Cache:
    return cache if isinstance(cache, Cache) else TokenCache(cache)


def _manifest(manifest: Manifest | Path | str | None) -> Manifest | None:
    if manifest is None or isinstance(manifest, Manifest):
        return manifest
    return load_manifest(manifest)


def _device(device: Device) -> torch.device | None:
    return None if device is None else torch.device(device)
