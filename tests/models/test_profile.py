"""What a setting costs: operations against the published sizes and closed forms, state and latency of a stream."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import plugins
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.models import profile
from pipeline.models.profile import cost, flops
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

SMALL = TokenShape(384, (14, 14), 5, (2, 5, 8, 11))
LARGE = TokenShape(1024, (14, 14), 5, (5, 11, 17, 23))
LARGE_256 = TokenShape(1024, (16, 16), 5, (5, 11, 17, 23))
TINY = TokenShape(8, (2, 3), 1, (0, 1))
KINDS = tuple(f"kind {number}" for number in range(174))
CPU = torch.device("cpu")


def recipe(name, *overrides):
    return load_recipe(shipped("recipe")[name], overrides)


def tiny(*overrides):
    """demo_gru as it is, but small."""
    return recipe("demo_gru", "task.readout_width=4", "task.heads=2", "model.width=6", *overrides)


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("mamba", 25.9), ("mamba_mix", 75.4), ("gated_mamba_mix", 82.9), ("gated_transformer", 72.4)],
)
def test_operations_behind_vit_s_at_the_published_sizes(name, gflop):
    found = flops(recipe("ssv2", f"temporal.name={name}"), SMALL, KINDS)
    assert (round(found["mixer"] / 1e9, 1), round(found["temporal"] / 1e9, 1)) == (14.8, gflop)


@pytest.mark.parametrize(
    ("name", "shape", "mixer", "temporal", "readout"),
    [
        ("ssv2", LARGE, 105.2, 562.6, 0.4),
        ("waymo", LARGE_256, 137.4, 734.7, 18.0),
        ("scannet", LARGE, 105.2, 562.6, 262.2),
        ("nuscenes", LARGE, 105.2, 562.6, 0.0),
    ],
)
def test_operations_of_the_published_readouts_behind_vit_l(name, shape, mixer, temporal, readout):
    found = {
        part: round(count / 1e9, 1) for part, count in flops(recipe(name), shape, KINDS).items()
    }
    assert found == {"mixer": mixer, "temporal": temporal, "readout": readout}


def test_operations_by_hand():
    """T = 8 frames of P = 6 patches, N = 7 tokens, D = 8 wide, projected to 6, read at 4 by 2 heads with K = 3 labels.
    The one query is taken through W_k once, and looks at tokens; what it reads goes through W_v."""
    only = 'task.forms=["streaming"]'
    queries, attention, values, out, mlp, classes = (
        2 * 4 * 6,
        2 * 2 * 7 * 6 * 2,
        2 * 6 * 4,
        2 * 4 * 4,
        2 * 2 * 4 * 16,
        2 * 4 * 3,
    )
    expected = {
        "mixer": 2 * 8 * 7 * 8 * 6,
        "temporal": 8 * 7 * 14 * 6**2,
        "readout": queries + 8 * (attention + values + out + mlp + classes),
    }
    assert flops(tiny(only), TINY, KINDS[:3]) == expected
    mlps = 2 * 8 * 6 * (2 * 8 * 16 * 2)
    assert flops(tiny(only, "model.mixer=mlp"), TINY, KINDS[:3]) == expected | {
        "mixer": expected["mixer"] + mlps
    }
    linear = 2 * 8 * 6 * (2 * 8) * 8
    assert flops(tiny(only, "model.mixer=concat"), TINY, KINDS[:3]) == expected | {
        "mixer": expected["mixer"] + linear
    }
    one = flops(tiny(only, "model.mixer=mlp", "model.layers=[1]"), TINY, KINDS[:3])
    assert one == expected | {"mixer": expected["mixer"] + mlps // 2}
    nothing = flops(tiny(only, "temporal.name=identity", "model.tokens=patches"), TINY, KINDS[:3])
    assert (nothing["mixer"], nothing["temporal"]) == (2 * 8 * 6 * 8 * 6, 0)
    assert flops(tiny(), TINY, KINDS[:3])["readout"] > expected["readout"]
    half = tiny(only, "windows.keep_tokens=0.5")  # N = 4 in training, and 7 afterwards
    assert flops(half, TINY, KINDS[:3]) == expected
    assert flops(half, TINY, KINDS[:3], in_training=True) == {
        "mixer": expected["mixer"] * 4 // 7,
        "temporal": expected["temporal"] * 4 // 7,
        "readout": queries + 8 * (attention * 4 // 7 + values + out + mlp + classes),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("temporal"))
def test_every_temporal_module(name):
    """Parts add up to the whole, and the model is the one that is trained."""
    wanted, before = tiny(f"temporal.name={name}", "model.width=16"), torch.get_rng_state()
    found = cost(wanted, TINY, KINDS[:3], CPU)
    assert torch.equal(torch.get_rng_state(), before)
    model = VideoModel(
        wanted, TINY, plugins.load("task", "classify")(wanted.task.settings, KINDS[:3])
    )
    assert found.parameters == sum(part.numel() for part in model.parameters())
    assert found.flops == sum(flops(wanted, TINY, KINDS[:3]).values())
    assert found.state_bytes == model.temporal.state_bytes(7)
    assert found.latency_ms is not None and found.latency_ms > 0


@pytest.mark.parametrize("name", ["boxes", "boxes, absolute", "points", "depth", "pose"])
def test_every_task(name):
    """A stream of boxes that begins at the tracker remembers patches and keys of two frames, four places, an outline and whether it has begun; one that says them anew a box; a stream of points the place, its frame, the time and the query made of it."""
    task, *start = name.split(", ")
    anew = ["task.start=absolute", "task.reads=tokens"] if start else []
    wanted = recipe(f"demo_{task}", *anew)
    found, parts = cost(wanted, TINY, (), CPU), flops(wanted, TINY, ())
    module = plugins.load("temporal", wanted.temporal.name)(
        wanted.model.width or 8, wanted.temporal.settings
    )
    remembered = {
        "boxes": 4 * (2 * 6 * (8 + wanted.model.width) + 4 * 2 + 2 * 2 * 6) + 1,
        "boxes, absolute": 4 * 4,
        "points": 2 * 4 + 8 + 8 + 4 * getattr(wanted.task.settings, "readout_width", 0),
    }
    assert found.state_bytes - module.state_bytes(7) == remembered.get(name, 0)
    assert parts["readout"] > 0
    assert found.flops == sum(parts.values())


def test_a_model_that_cannot_follow_a_stream_has_no_latency():
    found = cost(tiny('task.forms=["window"]'), TINY, KINDS[:3], CPU)
    assert found.latency_ms is None
    assert found.state_bytes == 4 * 7 * 6


def test_latency_is_the_median_of_the_warm_steps(monkeypatch):
    """Steps are really made; the clock says 9 s for those that warm up and then 1, 2, ... 20 ms."""
    passed = iter(
        [9.0] * profile.WARM_FRAMES + [0.001 * (step + 1) for step in range(profile.TIMED_FRAMES)]
    )
    monkeypatch.setattr(profile, "timed", lambda call, _device: (next(passed), call()))
    assert cost(tiny(), TINY, KINDS[:3], CPU).latency_ms == pytest.approx(10.5)


def test_timed():
    seconds, result = profile.timed(lambda: torch.ones(2).sum(), CPU)
    assert seconds > 0
    assert result == 2
