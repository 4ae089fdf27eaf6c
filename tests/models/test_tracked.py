"""Readouts that begin at a tracker: before training they are that tracker, whatever the grid and the
temporal module, and what they learn knows neither left from right nor where it is."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.models.tasks.contract import PATCHES, STREAMING, Query, StreamingReadout, TaskPlugin
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

B, T, OBJECTS, D, WIDTH = 2, 5, 3, 24, 6
GRIDS = [(4, 7), (9, 3), (1, 1)]
LIKENESS = {"start": "likeness", "reads": "likeness"}
BOTH = {"start": "likeness", "reads": "both", "look": "told"}


def make(name: str, **settings: object) -> TaskPlugin:
    plugin = plugins.load("task", name)
    size = {"readout_width": 8, "heads": 2, "hidden": 8}
    return plugin(plugins.validate(plugin.Settings, size | settings, name), ())


def readout_of(task: TaskPlugin, grid_hw: tuple[int, int], std: float = 0.0) -> StreamingReadout:
    torch.manual_seed(0)
    readout = task.readout(STREAMING, WIDTH, T, TokenShape(D, grid_hw, 1, (2,)))
    assert isinstance(readout, StreamingReadout)
    for parameter in readout.parameters() if std else ():
        torch.nn.init.normal_(parameter, std=std)
    return readout


def told(name: str) -> Query:
    """Three boxes, of which one is cut by the edge and one is no object; or points told in several
    frames."""
    if name == "boxes":
        boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.9, 0.2, 0.4, 0.3], [0, 0, 0, 0]])
        return {"box": boxes.expand(B, -1, -1) + torch.tensor([0.0, 0.1])[:, None, None]}
    point = torch.tensor([[[0.2, 0.3], [0.6, 0.5], [0.95, 0.7]], [[0.5, 0.5], [0.1, 0.9], [0, 1]]])
    return {"point": point, "frame": torch.tensor([[0, 2, 3], [2, 0, 0]])}


def moving(grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, T, P, D): tokens that wander over the grid, in half precision, as caches hold them."""
    scene = torch.randn(B, *grid_hw, D)
    frames = [scene.roll((time, time // 2), (1, 2)) for time in range(T)]
    tokens = torch.stack(frames, dim=1) + 0.3 * torch.randn(B, T, *grid_hw, D)
    return tokens.flatten(2, 3).half()


@pytest.mark.parametrize("name", ["boxes", "points"])
@pytest.mark.parametrize("grid_hw", GRIDS)
@pytest.mark.parametrize("way", [LIKENESS, BOTH])
@torch.no_grad()
def test_before_training_the_answers_are_the_trackers(name, grid_hw, way):
    """Whatever the temporal outputs are, of a window and frame by frame."""
    task, query = make(name, **way), told(name)
    readout, patches = readout_of(task, grid_hw), moving(grid_hw)
    x = torch.randn(B, T, 1 + patches.shape[2], WIDTH)
    tracker = task.baselines["likeness"](patches.unflatten(2, grid_hw), query, {})
    window = readout(x, query | {PATCHES: patches})
    state, stream = readout.start(query), []
    for time in range(T):
        said, state = readout.step(x[:, time], state | {PATCHES: patches[:, time]})
        stream.append(said)
    torch.testing.assert_close(torch.stack(stream, 1), window, atol=1e-6, rtol=0)
    answer, since = task.answer(STREAMING, window), torch.ones(B, T, OBJECTS, dtype=torch.bool)
    if name == "points":
        answer, tracker = answer[..., :2], tracker[..., :2]
        since = query["frame"].unsqueeze(1) <= torch.arange(T)[:, None]
        assert (window[..., 2][since] > 0).all()
    torch.testing.assert_close(answer[since], tracker[since], atol=1e-5, rtol=0)
    if grid_hw != (1, 1):
        assert (tracker[:, -1] - tracker[:, 0]).abs().max() > 0.01, "nothing moved: no proof"


@pytest.mark.parametrize("name", ["boxes", "points"])
@pytest.mark.parametrize("temporal", ["identity", "gru"])
def test_a_model_that_is_about_to_be_trained_scores_as_the_tracker(name, temporal):
    """Behind a layer mixer, a projection and a temporal module: the tracker sees the cached tokens
    of the last layer."""
    task, query, grid_hw = make(name, **LIKENESS), told(name), (5, 8)
    table = {
        "name": "test",
        "task": {"name": name, **LIKENESS, "readout_width": 8, "heads": 2, "hidden": 8},
        "temporal": {"name": temporal},
        "windows": {"frames": T, "fps": 4},
        "model": {"width": WIDTH},
        "training": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 0},
    }
    model = VideoModel(
        plugins.validate(Recipe, table, "test"), TokenShape(D, grid_hw, 1, (0, 3)), task
    )
    layers = [moving(grid_hw), moving(grid_hw)]
    said = model(torch.randn(B, T, 1, D), layers, query)
    tracker = task.baselines["likeness"](layers[-1].unflatten(2, grid_hw), query, {})
    answer = task.answer(STREAMING, said[STREAMING])
    torch.testing.assert_close(answer[:, -1, :, :2], tracker[:, -1, :, :2], atol=1e-5, rtol=0)
    # Training reaches the temporal module as soon as the answers depend on it.
    torch.nn.init.normal_(model.readouts[STREAMING].reader.network[-1].weight)
    model(torch.randn(B, T, 1, D), layers, query)[STREAMING].sum().backward()
    gradients = [parameter.grad for parameter in model.temporal.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["boxes", "points"])
@pytest.mark.parametrize("axes", [(True, False), (False, True)], ids=["mirror", "transpose"])
@torch.no_grad()
def test_what_is_learnt_knows_neither_left_from_right_nor_x_from_y(name, axes):
    mirror, transpose = axes
    high, wide = grid_hw = 4, 6
    readout = readout_of(make(name, **LIKENESS), grid_hw, std=0.3)
    patches, query = moving(grid_hw), told(name)
    x = torch.randn(B, T, high * wide, WIDTH)
    key = "box" if name == "boxes" else "point"

    def other(places: torch.Tensor) -> torch.Tensor:
        """Centres or places, and then sizes where there are any."""
        centre, rest = places[..., :2], places[..., 2:]
        if transpose:
            return torch.cat([centre.flip(-1), rest.flip(-1) if name == "boxes" else rest], -1)
        return torch.cat([centre * torch.tensor([-1, 1]) + torch.tensor([1, 0]), rest], -1)

    def turned(tokens: torch.Tensor) -> torch.Tensor:
        grid = tokens.unflatten(2, grid_hw)
        return (grid.flip(3) if mirror else grid.transpose(2, 3)).flatten(2, 3)

    found = readout(x, query | {PATCHES: patches})
    readout_there = readout_of(
        make(name, **LIKENESS), (wide, high) if transpose else grid_hw, std=0.3
    )
    there = query | {key: other(query[key]), PATCHES: turned(patches)}
    untrained = readout_of(make(name, **LIKENESS), grid_hw)(x, query | {PATCHES: patches})
    assert (found[..., :2] - untrained[..., :2]).abs().max() > 0.01, "nothing was learnt: no proof"
    torch.testing.assert_close(readout_there(turned(x), there), other(found), atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_is_said_of_one_frame_does_not_lead_the_tracker_astray():
    """A box goes on where it would have been, whatever was said of it before."""
    readout = readout_of(make("boxes", **LIKENESS), (5, 5))
    patches, query, x = moving((5, 5)), told("boxes"), torch.randn(B, T, 25, WIDTH)
    calm = readout(x, query | {PATCHES: patches})
    state = readout.start(query)
    for time in range(T):
        readout.reader.network[-1].bias.data.fill_(3.0 if time < T - 1 else 0.0)
        said, state = readout.step(x[:, time], state | {PATCHES: patches[:, time]})
        if time == T - 2:
            assert (said - calm[:, time]).abs().max() > 0.1
    torch.testing.assert_close(said, calm[:, -1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_tracked_boxes_neither_vanish_nor_burst():
    readout = readout_of(make("boxes", **LIKENESS), (4, 4))
    query, x = told("boxes"), torch.randn(B, T, 16, WIDTH)
    for growth in (-1e6, 1e6):
        readout.reader.network[-1].bias.data[-1] = growth
        sides = readout(x, query | {PATCHES: moving((4, 4))})[..., 2:]
        assert sides.isfinite().all() and sides[:, :, :2].min() > 0.01 and sides.max() < 5
