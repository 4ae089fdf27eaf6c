"""The specs that come with the project: what they cost, and that the demonstration needs nothing else."""

from __future__ import annotations

import torch
from support.paths import ROOT

from pipeline.cache.layout import bytes_per_frame
from pipeline.config import plugins
from pipeline.config.cache_spec import fingerprint, load_spec
from pipeline.models.encoders.contract import token_shape
from pipeline.records import TokenShape

SPECS = ROOT / "cache_specs"
SHAPES = {
    "clip_vitb16": TokenShape(768, (14, 14), 1, (11,)),
    "clip_vitb32": TokenShape(768, (7, 7), 1, (11,)),
    "demo": TokenShape(64, (7, 7), 1, (1,)),
    "dinov2_small": TokenShape(384, (16, 16), 1, (2, 5, 8, 11)),
    "dinov3_vitl16": TokenShape(1024, (14, 14), 5, (5, 11, 17, 23)),
    "dinov3_vitl16_published": TokenShape(1024, (14, 14), 5, (5, 11, 17, 23)),
    "rvm_small": TokenShape(384, (16, 16), 1, (11,)),
    "siglip2_base": TokenShape(768, (14, 14), 0, (2, 5, 8, 11)),
}


def test_every_spec_states_its_cost() -> None:
    """Shapes of models that would have to be fetched are written above, from their published configurations."""
    assert {file.stem for file in SPECS.glob("*.toml")} >= SHAPES.keys()
    for name, expected in SHAPES.items():
        spec = load_spec(SPECS / f"{name}.toml")
        assert spec.encoder.settings.layers == expected.layers
        header = (SPECS / f"{name}.toml").read_text()
        assert f"stillframe extract cache_specs/{name}.toml DATA --out caches" in header
        assert f"make extract SPEC=cache_specs/{name}.toml DATA=" in header
        frame_bytes, fps = bytes_per_frame(spec, expected), spec.frames.rate or 12
        cost = f"{frame_bytes / 1e3:.1f} kB a frame; {frame_bytes * fps * 3600 / 1e9:.3f} GB per hour of video at {fps:g} fps"
        assert cost in header, f"{name}: wanted '{cost}'"


def test_the_demonstration_needs_nothing_but_its_spec() -> None:
    """Its tokens follow the picture: they vary over it, and a moving object moves them."""
    spec = load_spec(SPECS / "demo.toml")
    assert token_shape(spec) == SHAPES["demo"]
    encoder = plugins.load("encoder", "transformers")(
        spec.encoder.settings, spec.frames.size_px, torch.device("cpu")
    )
    assert len(fingerprint(spec, encoder.identity, "none")) == 12
    pixels_NCHW = torch.full((2, 3, 112, 112), 90, dtype=torch.uint8)
    for frame, left_px in enumerate((40, 44)):
        pixels_NCHW[frame, 0, 40:72, left_px : left_px + 32] = 220
    patches_NPD = encoder(pixels_NCHW).patches_NPD[1].view(2, 7, 7, 64)
    background, edge = (
        patches_NPD[:, 0, 0],
        patches_NPD[:, 3, 2],
    )  # the object's left edge lies in column 2
    assert (edge[0] - background[0]).norm() > 0.5 * background[0].norm()
    assert (edge[0] - edge[1]).norm() > 10 * (background[0] - background[1]).norm()
    assert (edge[0] - edge[1]).norm() > 0.1 * edge[0].norm()
