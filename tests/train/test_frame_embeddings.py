"""Embeddings of frames out of a cache, against the whole model on the pixels of the same videos."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import media
from support.image_text import FAMILIES, MEAN, STD, save_image_text, whole_model
from torch.nn import functional

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract.derive import derive
from pipeline.extract.extract import extract
from pipeline.models.text.parts.image_head import ImageHead
from pipeline.records import TokenShape, Video
from pipeline.train.language.frame_embeddings import FrameEmbeddings, image_head_of
from pipeline.video.reader import FrameReader

CPU, SIZE_PX, FRAMES = torch.device("cpu"), 40, 11


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The manifest of two videos of noise, of which each frame has its own."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "b.mp4"):
        tiles = rng.integers(0, 256, (FRAMES, 4, 4, 3)).astype(np.uint8)
        media.encode(root / name, tiles.repeat(16, 1).repeat(16, 2))
    return manifest.build("folder", root, tmp_path_factory.mktemp("manifest"), {"labelled": False})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_image_text(family, root / family) for family in FAMILIES}


def make_cache(folder: Path, noise: Any, out: Path, layers: tuple[int, ...] = (1, 2)) -> Cache:
    table = {
        "name": "small",
        "encoder": {"name": "transformers", "model": str(folder), "layers": layers},
        "frames": {"size_px": SIZE_PX},
    }
    return extract(plugins.validate(CacheSpec, table, "test"), noise, out)


@pytest.fixture(scope="module")
def caches(
    folders: dict[str, Path], noise: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Cache]:
    out = tmp_path_factory.mktemp("caches")
    return {name: make_cache(folders[name], noise, out) for name in ("clip", "siglip")}


def of_whole_model(folder: Path, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    """Embeddings of images of unit length, by the model's own forward pass from pixels on."""
    model = whole_model(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    x_NCHW = (pixels_NCHW / 255 - mean) / std
    with torch.no_grad():
        if model.config.model_type == "siglip2":
            side = x_NCHW.shape[-1] // 8
            cells = [cell for row in x_NCHW.split(8, 2) for cell in row.split(8, 3)]
            flat = torch.stack([cell.permute(0, 2, 3, 1).flatten(1) for cell in cells], 1)
            mask = torch.ones(len(flat), side * side, dtype=torch.long)
            shapes = torch.full((len(flat), 2), side)
            own = model.get_image_features(flat, mask, shapes)
        else:
            own = model.get_image_features(x_NCHW, interpolate_pos_encoding=True)
    return functional.normalize(own.pooler_output, dim=-1)


def cosines(cache: Cache, folder: Path) -> np.ndarray:
    """Of every frame of the first video: its embedding out of the cache, and that of its pixels."""
    embeddings_FD = FrameEmbeddings(cache, image_head_of(cache, None, CPU), CPU).of_video("a.mp4")
    location = cache.locations["a.mp4"]
    time_s = cache.small_array(location.store, "time_s")[location.start : location.stop]
    with FrameReader(cache.manifest.root, CPU) as reader:
        pixels = reader.at_times(Video("a.mp4", "a.mp4"), cache.cache_spec.frames, time_s)
    own_FD = of_whole_model(folder, pixels.float())
    assert embeddings_FD.shape == (FRAMES, own_FD.shape[1])
    assert embeddings_FD.dtype == np.float32
    # Frames are told apart by far more than what is allowed below.
    assert float((own_FD[0] * own_FD[5]).sum()) < 0.999
    return (embeddings_FD * own_FD.numpy()).sum(1)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_embeddings_out_of_a_cache_are_those_of_the_pixels(
    family: str, folders: dict[str, Path], caches: dict[str, Cache], tmp_path: Path
) -> None:
    assert cosines(caches[family], folders[family]).min() >= 0.99999
    coarse = derive(caches[family], ["codec.name=int8"], tmp_path)
    assert cosines(coarse, folders[family]).min() >= 0.9995


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_every_family_is_the_models_own(family: str, folders: dict[str, Path]) -> None:
    pixels = torch.randint(0, 256, (4, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    table = {"model": str(folders[family]), "layers": [2]}
    settings = plugins.settings("encoder", "transformers", table, "test")
    tokens = plugins.load("encoder", "transformers")(settings, SIZE_PX, CPU)(pixels)
    head = ImageHead(str(folders[family]), folders[family], CPU)
    read = tokens.special_NSD[:, 0] if head.reads_cls else tokens.patches_NPD[2]
    expected = of_whole_model(folders[family], pixels.float())
    torch.testing.assert_close(head(read), expected, rtol=0, atol=2e-6)


def refused(cache: Cache, model: Path | None = None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        image_head_of(cache, str(model) if model else None, CPU)
    assert "\n" not in caught.value.message
    return caught.value


def test_what_a_cache_lacks_is_said(
    folders: dict[str, Path], caches: dict[str, Cache], tmp_path: Path, material: Any
) -> None:
    lower = derive(caches["siglip"], ["encoder.layers=[1]"], tmp_path)
    assert "lacks layer 2, the encoder's last one" in refused(lower).message
    assert refused(lower).hint == "extract with encoder.layers=[1,2]"
    assert "the encoder 'address' of no model" in refused(material.cache).message
    own = Cache(caches["clip"].path)
    own.shape = TokenShape(own.shape.width, own.shape.grid_hw, 0, own.shape.layers)
    assert "lacks the special token CLS" in refused(own).message
    own = Cache(caches["siglip"].path)
    own.shape = TokenShape(own.shape.width, (5, 3), 0, own.shape.layers)
    assert "keeps 5 x 3 of the 5 x 5 patches" in refused(own).message


def test_a_model_that_is_not_the_caches_is_refused_whatever_its_widths(
    folders: dict[str, Path], caches: dict[str, Cache], noise: Any, tmp_path: Path
) -> None:
    other = save_image_text("clip", tmp_path / "other", seed=1)
    assert "is another than that of cache" in refused(caches["clip"], other).message
    moved = shutil.copytree(folders["clip"], tmp_path / "moved")
    head = image_head_of(caches["clip"], str(moved), CPU)
    assert head.weights == caches["clip"].header.encoder["weights"]
    alone = tmp_path / "alone"
    whole_model(folders["siglip"]).vision_model.save_pretrained(alone)
    shutil.copy(folders["siglip"] / "preprocessor_config.json", alone)
    of_tower = make_cache(alone, noise, tmp_path)
    assert "has no text half: its type is siglip_vision_model" in refused(of_tower).message
