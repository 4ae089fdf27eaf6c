"""Every network on another device is the network on the CPU, within rounding: outputs, states, losses, answers, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.image_text import FAMILIES, SENTENCE, save_image_text, sentence_folder
from support.modules import NAMES as TEMPORAL
from support.modules import make
from support.on_device import CPU, copied, differ, on
from support.towers import TOWERS, settings_of

from pipeline.config import plugins
from pipeline.config.cache_spec import choice
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest.targets import TOKENS
from pipeline.errors import BadInput
from pipeline.models.encoders._laws import OneEncoder
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks import _laws as of_tasks
from pipeline.models.tasks.contract import make_task
from pipeline.models.temporal._laws import gaussian_tokens, in_pieces
from pipeline.models.text.contract import make_text
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, Tokens, TokenShape

pytestmark = pytest.mark.cuda
WITHIN, GRADIENTS_WITHIN = 1e-4, 1e-3
"""Of the largest number in a tensor."""
CONVOLVED_WITHIN = 5e-3
"""PyTorch lets convolutions on CUDA round to TF32: what the patches of image models go through."""
TASKS = plugins.names("task")
SHAPE = TokenShape(16, (3, 3), 1, (5, 11))
LABELS = tuple("abcdefgh")
BATCH = 2


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)  # what is this small runs slower on two


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Any:
    """Takes pairs of tensors that should be alike; the largest difference is kept with the outcome of the test."""
    worst = [0.0]

    def take(ours: Any, wanted: Any, within: float = WITHIN) -> None:
        for one, other in zip(ours, wanted, strict=True):
            found = differ(one, other)
            worst[0] = max(worst[0], found)
            record_property("difference", worst[0])  # here, for what fails too; the last one counts
            assert found <= within

    return take


def gradients(loss: torch.Tensor, of: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, of, materialize_grads=True))


# Temporal modules


@pytest.mark.parametrize("name", TEMPORAL)
def test_a_window_and_its_gradients(name, device, note):
    module, x_BTND, weights = make(name), gaussian_tokens(6), gaussian_tokens(6, seed=2)
    there = copied(module, device)
    found = []
    for one, at in ((there, device), (module, CPU)):
        x = x_BTND.to(at).requires_grad_()
        y_BTND, state = one(x)
        total = (y_BTND * weights.to(at)).sum() + sum(part.square().sum() for part in state)
        assert {part.device.type for part in (y_BTND, *state)} == {at.type}
        found.append(([y_BTND, *state], gradients(total, [x, *one.parameters()])))
    (ours, our_gradients), (wanted, wanted_gradients) = found
    note(ours, wanted)
    note(our_gradients, wanted_gradients, GRADIENTS_WITHIN)


@pytest.mark.parametrize("name", TEMPORAL)
@torch.no_grad()
def test_pieces_and_steps(name, device, note):
    module, x_BTND = make(name), gaussian_tokens(5)
    wanted, end = module(x_BTND)
    there, x = copied(module, device), x_BTND.to(device)
    for cuts in ([2], [1, 4]):
        pieces, pieces_end = in_pieces(there, x, cuts)
        note([pieces, *pieces_end], [wanted, *end])
    state = there.initial_state(len(x), x.shape[2])
    for t in range(x.shape[1]):
        y_BND, state = there.step(x[:, t], state)
        note([y_BND], [wanted[:, t]])
    note(state, end)


@pytest.mark.parametrize("name", TEMPORAL)
def test_bfloat16_autocast_stays_near(name, device):
    module, x_BTND = make(name), gaussian_tokens(6)
    exact, _ = module(x_BTND)
    there = copied(module, device)
    with torch.autocast(device.type, torch.bfloat16):
        y_BTND, state = in_pieces(there, x_BTND.to(device), [2])
    assert {part.dtype for part in state} <= {torch.float32}
    assert (y_BTND.detach().cpu().float() - exact).abs().max() < 0.1
    y_BTND.float().square().sum().backward()
    assert all(part.grad.isfinite().all() for part in there.parameters())


# Tasks


@pytest.mark.parametrize("name", TASKS)
def test_losses_answers_and_gradients_of_a_task(name, device, note):
    small = of_tasks.SmallTasks(plugins.load("task", name))
    targets = of_tasks.example_targets(small.make())
    x_BTND = torch.randn(of_tasks.B, of_tasks.T, of_tasks.N, of_tasks.D)
    for form in small.make().forms:
        found = []
        for at in (device, CPU):
            torch.manual_seed(0)
            task = small.make().to(at)
            readout, truth = of_tasks.small_readout(task, form).to(at), on(at, targets)
            x = x_BTND.to(at).requires_grad_()
            prediction = readout(x, of_tasks.told_of_batch(task, truth))
            loss = task.loss(form, prediction, truth)
            told = [loss, prediction, task.answer(form, prediction)]
            learning = [*readout.parameters(), *task.parameters()]
            found.append((told, gradients(loss, [x, *learning])))
        (ours, our_gradients), (wanted, wanted_gradients) = found
        note(ours, wanted)
        note(our_gradients, wanted_gradients, GRADIENTS_WITHIN)


@pytest.mark.parametrize("name", TASKS)
def test_baselines_of_a_task(name, device, note):
    task = of_tasks.SmallTasks(plugins.load("task", name)).make()
    targets = of_tasks.example_targets(task)
    statistics = task.statistics(iter([of_tasks.truth_arrays(targets)]))
    tokens_BThwD = torch.randn(of_tasks.B, of_tasks.T, 3, 4, of_tasks.D)
    if TOKENS in task.needs:
        tokens_BThwD = targets[TOKENS].unflatten(2, (2, 2))
    for baseline in task.baselines.values():
        ours, wanted = (
            baseline(tokens_BThwD.to(at), task.query(on(at, targets)), statistics)
            for at in (device, CPU)
        )
        note([ours], [wanted])


@pytest.mark.parametrize("name", [name for name in shipped("recipe") if name.startswith("demo_")])
def test_a_step_of_a_shipped_recipe(name, device, note):
    """Mixer, projection, temporal module, readouts with their aids, as a training has them. The other recipes are made
    of the same parts, many times larger."""
    recipe = load_recipe(shipped("recipe")[name])
    frames, found = recipe.windows.frames, []
    truth = example_truth(make_task(recipe, LABELS), frames)
    targets = {key: torch.from_numpy(np.repeat(part, BATCH, 0)) for key, part in truth.items()}
    special = torch.randn(BATCH, frames, SHAPE.special_tokens, SHAPE.width)
    patches = {
        layer: torch.randn(BATCH, frames, SHAPE.patch_tokens, SHAPE.width) for layer in SHAPE.layers
    }
    for at in (device, CPU):
        torch.manual_seed(0)
        task = make_task(recipe, LABELS).to(at)
        model = VideoModel(recipe, SHAPE, task).to(at).train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # each device draws its own
        batch = OnDevice(
            special.to(at),
            {layer: patches[layer].to(at) for layer in model.layers},
            on(at, targets),
        )
        whole = model.truth(batch, task)
        losses = [
            task.loss(form, prediction.float(), whole)
            for form, prediction in model.predict(batch, task).items()
        ]
        learning = [
            part for part in (*model.parameters(), *task.parameters()) if part.requires_grad
        ]
        found.append((losses, gradients(torch.stack(losses).sum(), learning) if learning else []))
    (ours, our_gradients), (wanted, wanted_gradients) = found
    note(ours, wanted)
    scale = max((float(part.abs().max()) for part in wanted_gradients), default=1.0)
    # Where a gradient is nothing but rounding, that of another device is another one.
    small = 1e-6 * max(scale, 1.0)
    pairs = [
        (one, other)
        for one, other in zip(our_gradients, wanted_gradients, strict=True)
        if float(other.abs().max()) > small
    ]
    note([one for one, _ in pairs], [other for _, other in pairs], 10 * GRADIENTS_WITHIN)


# Encoders and text towers


def parts(tokens: Tokens) -> list[torch.Tensor]:
    return [tokens.special_NSD, *tokens.patches_NPD.values()]


@pytest.mark.parametrize("name", plugins.names("encoder"))
def test_tokens_of_an_encoder(name, device, note):
    plugin, settings = plugins.load("encoder", name), settings_of(name)
    one = OneEncoder(plugin, settings)
    try:
        wanted = one.encoder(one.frames(2))
    except BadInput as error:
        pytest.skip(f"encoder '{name}' has no weights here: {error.message}")
    there = plugin(settings, one.size_px, device)
    assert there.identity == one.encoder.identity
    note(parts(there(one.frames(2).to(device))), parts(wanted), CONVOLVED_WITHIN)


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tokens_of_every_family(family, precision, device, note):
    unread = MODEL_TYPES[family].unread
    config = {key: value for key, value in TOWERS[family].config.items() if key not in unread}
    table = {
        "layers": [1, 3],
        "seed": 0,
        "precision": precision,
        "config": {"model_type": family, **config},
    }
    settings = plugins.settings("encoder", "transformers", table, family)
    pixels = torch.randint(
        0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = []
    for at in (device, CPU):
        tokens = plugins.load("encoder", "transformers")(settings, 32, at)(pixels.to(at))
        assert {part.device.type for part in parts(tokens)} == {at.type}
        found.append(parts(tokens))
    note(*found, CONVOLVED_WITHIN if precision == "float32" else 0.1)


@pytest.mark.parametrize("family", [*FAMILIES, *SENTENCE])
def test_embeddings_of_texts(family, device, note, tmp_path: Path):
    save, name = (
        (save_image_text, "image_text") if family in FAMILIES else (sentence_folder, "sentence")
    )
    table = {"name": name, "model": str(save(family, tmp_path / "model"))}
    ours, wanted = (
        make_text(choice("text", table), at)(["a red dog jumps", "it"]) for at in (device, CPU)
    )
    note([ours.pooled_ND, ours.tokens_NLD], [wanted.pooled_ND, wanted.tokens_NLD])
