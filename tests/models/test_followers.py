"""Boxes and points that are followed step by step: where they start, what they may know, and that
a stream gives what a window gives."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import (
    PATCHES,
    STREAMING,
    WINDOW,
    Query,
    StreamingReadout,
    TaskPlugin,
)
from pipeline.records import TokenShape

B, T, OBJECTS, SIDE, D = 2, 4, 3, 6, 16
SPECIAL = 2
SHAPE = TokenShape(D, (SIDE, SIDE), SPECIAL, (1,))
WAYS = [
    {"start": "still", "reads": "tokens"},
    {"start": "still", "reads": "tokens", "look": "told"},
    {"start": "still", "reads": "likeness"},
    {"start": "likeness", "reads": "likeness"},
    {"start": "likeness", "reads": "both", "look": "updated"},
]
CASES = [(name, way) for name in ("boxes", "points") for way in WAYS]


def make(name: str, **settings: object) -> TaskPlugin:
    plugin = plugins.load("task", name)
    size = {"readout_width": 16, "heads": 2, "hidden": 8}
    return plugin(plugins.validate(plugin.Settings, size | settings, name), ())


def readout_of(
    name: str, *, trained: bool, grid_hw: tuple[int, int] = (SIDE, SIDE), **settings: object
) -> StreamingReadout:
    """A readout as training finds it, or one with weights that say something."""
    torch.manual_seed(0)
    shape = TokenShape(D, grid_hw, SPECIAL, (0,))
    readout = make(name, **settings).readout(STREAMING, D, T, shape)
    assert isinstance(readout, StreamingReadout)
    if trained:
        for parameter in readout.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return readout


def query_of(name: str) -> Query:
    generator = torch.Generator().manual_seed(1)
    centre = 0.3 + 0.4 * torch.rand(B, OBJECTS, 2, generator=generator)
    if name == "boxes":
        return {
            "box": torch.cat(
                [centre, 0.2 + 0.2 * torch.rand(B, OBJECTS, 2, generator=generator)], -1
            )
        }
    return {"point": centre, "frame": torch.tensor([[0, 1, 2], [2, 0, 0]])}


def seeing(query: Query, x_BTND: torch.Tensor, way: dict, patches: int = SIDE**2) -> Query:
    """The query, with what a readout that begins at a tracker sees beside the temporal outputs."""
    return query | ({PATCHES: x_BTND[:, :, -patches:]} if way["start"] == "likeness" else {})


def told_places(name: str, query: Query) -> torch.Tensor:
    return query["box"] if name == "boxes" else query["point"]


def moving_tokens(step: int, frames: int = T, side: int = 8) -> torch.Tensor:
    """(1, frames, side * side, D): a patch of three times two looks unlike the ground, and moves
    `step` patches to the right in every frame."""
    torch.manual_seed(2)
    ground, thing = torch.randn(2, D)
    tokens = ground + 0.1 * torch.randn(frames, side, side, D)
    for frame in range(frames):
        left = 1 + step * frame
        tokens[frame, 3:5, left : left + 3] = thing + 0.1 * torch.randn(2, 3, D)
    return tokens.flatten(1, 2).unsqueeze(0)


@pytest.mark.parametrize(("name", "way"), CASES)
@torch.no_grad()
def test_a_stream_of_followed_places_is_the_window_frame_by_frame(name, way):
    readout, query = readout_of(name, trained=True, **way), query_of(name)
    x = torch.randn(B, T, SPECIAL + SIDE**2, D)
    seen = seeing(query, x, way)
    whole, state = readout(x, seen), readout.start(query)
    shapes = {key: value.shape for key, value in state.items()}
    for time in range(T):
        now = {PATCHES: seen[PATCHES][:, time]} if PATCHES in seen else {}
        prediction, state = readout.step(x[:, time], state | now)
        torch.testing.assert_close(prediction, whole[:, time], atol=1e-6, rtol=0)
        assert {key: value.shape for key, value in state.items()} == shapes
    assert whole.shape == (B, T, OBJECTS, 4) and whole.isfinite().all()
    assert (whole[:, 0] - whole[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "way"), CASES)
@torch.no_grad()
def test_training_begins_at_a_place_that_stands_still_or_goes_where_its_look_goes(name, way):
    readout = readout_of(name, trained=False, grid_hw=(8, 8), **way)
    centre = torch.tensor([[[2.5 / 8, 0.5]]])
    query = {"box": torch.cat([centre, torch.tensor([[[3 / 8, 2 / 8]]])], -1)}
    if name == "points":
        query = {"point": centre, "frame": torch.zeros(1, 1, dtype=torch.int64)}
    x = moving_tokens(step=1)
    found = readout(x, seeing(query, x, way, 8 * 8))[0, :, 0]
    moved = found[:, :2] - centre[0, 0]
    if way["start"] == "still":
        assert moved.abs().max() == 0
    elif name == "boxes":  # a point inside a thing without features has nothing to hold on to
        assert (moved[-1, 0] > 0.5 * 3 / 8) and moved[:, 1].abs().max() < 0.05
    if name == "boxes":
        assert (found[:, 2:] == query["box"][0, 0, 2:]).all()
    else:
        assert (found[:, 2] > 0).all()


@pytest.mark.parametrize(("name", "way"), CASES)
@torch.no_grad()
def test_what_is_told_is_the_answer_and_each_object_is_alone(name, way):
    readout, query = readout_of(name, trained=True, **way), query_of(name)
    x = torch.randn(B, T, SIDE**2, D)
    found = readout(x, seeing(query, x, way))
    told, width = told_places(name, query), told_places(name, query).shape[-1]
    frames = query.get("frame", torch.zeros(B, OBJECTS, dtype=torch.int64))
    for b, o in [(b, o) for b in range(B) for o in range(OBJECTS)]:
        assert torch.equal(found[b, frames[b, o], o, :width], told[b, o])
    one = {key: value[:, 1:2] for key, value in query.items()}
    alone = readout(x, seeing(one, x, way))
    # The attention's features of a place magnify a rounding error some thousandfold per frame.
    within = 1e-5 if way["reads"] == "likeness" else 0.05
    torch.testing.assert_close(found[:, :, 1:2], alone, atol=within, rtol=0)


@pytest.mark.parametrize("name", ["boxes", "points"])
@torch.no_grad()
def test_likeness_knows_neither_where_it_is_nor_the_special_tokens(name):
    """Tokens and places that are moved together by a cell of the search, here two patches, give
    answers moved by as much."""
    readout = readout_of(name, trained=True, grid_hw=(14, 14), start="still", reads="likeness")
    for parameter in readout.parameters():
        parameter.data *= 0.4
    torch.manual_seed(3)
    grid = torch.randn(1, T, 14, 14, D)
    told = torch.tensor([[[6 / 14, 7 / 14, 2 / 14, 2 / 14]]])
    query = {"box": told}
    if name == "points":
        query = {"point": told[..., :2], "frame": torch.zeros(1, 1, dtype=torch.int64)}
    found = readout(grid.flatten(2, 3), query)
    key = "box" if name == "boxes" else "point"
    by = torch.tensor([2 / 14, 0, 0, 0])
    beside = query | {key: query[key] + by[: query[key].shape[-1]]}
    moved = readout(grid.roll(2, dims=3).flatten(2, 3), beside)
    steps = (found[..., :2] - told[:, :, None, :2]).abs().amax()
    assert 1e-3 < steps < 3 / 14, "a step that leaves the part that was moved proves nothing"
    torch.testing.assert_close(moved, found + by, atol=1e-5, rtol=0)
    special = torch.randn(1, T, SPECIAL, D)
    with_special = readout(torch.cat([special, grid.flatten(2, 3)], dim=2), query)
    torch.testing.assert_close(with_special, found)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_followers_learn_to_go_and_no_gradient_flows_through_the_last_place(name, way):
    task, readout = make(name, **way), readout_of(name, trained=True, **way)
    x = torch.randn(B, T, SIDE**2, D, requires_grad=True)
    found = readout(x, seeing(query_of(name), x.detach(), way))
    found.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    for key, parameter in readout.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0 or "told" in key, key
    assert type(task.readout(WINDOW, D, T, SHAPE)) is type(readout)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_followed_places_stay_exact_under_autocast(way):
    for name in ("boxes", "points"):
        readout, query = readout_of(name, trained=False, **way), query_of(name)
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(B, T, SIDE**2, D)
            found = readout(x, seeing(query, x, way))
        assert found.dtype == torch.float32
        assert torch.equal(found[0, 0, 0, :2], told_places(name, query)[0, 0, :2])


def test_boxes_neither_vanish_nor_burst():
    readout = readout_of("boxes", trained=False, start="still", reads="likeness")
    query = query_of("boxes")
    for growth in (-1e6, 1e6):
        readout.follower.search.network[-1].bias.data[2:] = growth
        sides = readout(torch.randn(B, 40, SIDE**2, D), query)[..., 2:]
        assert sides.isfinite().all() and sides.min() > 0.01


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reads": "likeness"}, "start"),
        ({"look": "told"}, "start"),
        ({"start": "likeness"}, "reads"),
        ({"start": "still", "reads": "likeness", "look": "told"}, "reads"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, said):
    for name in ("boxes", "points"):
        with pytest.raises(BadInput, match=said):
            make(name, **wrong)
