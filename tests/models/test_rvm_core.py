"""The released core of RVM as a temporal module: parity with a reference in NumPy, laws, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import rvm

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.temporal._laws import in_pieces
from pipeline.models.temporal.contract import TemporalModule

WIDTH, TOKENS = 24, 7


@pytest.fixture(scope="module")
def arrays() -> rvm.Arrays:
    return rvm.random_weights()


@pytest.fixture(scope="module")
def released(arrays: rvm.Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rvm.write(tmp_path_factory.mktemp("rvm") / "released.npz", arrays)


def settings_of(path: Path, **table: Any) -> Any:
    table = {"weights": str(path)} | table
    return plugins.settings("temporal", "gated_transformer", table, "[temporal] gated_transformer")


def make(path: Path, width: int = WIDTH, **table: Any) -> TemporalModule:
    module: TemporalModule = plugins.load("temporal", "gated_transformer")(
        width, settings_of(path, **table)
    )
    module.load_released()
    return module.eval()


def tokens(frames: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, frames, TOKENS, WIDTH, generator=generator)


def test_states_of_several_frames_are_those_of_the_reference(arrays, released):
    """Whole windows, pieces with the state carried over, and frame by frame."""
    module, x_BTND = make(released), tokens(6)
    wanted = np.stack([rvm.core(arrays, window.numpy()) for window in x_BTND])
    whole, (state_BND,) = module(x_BTND)
    np.testing.assert_allclose(whole, wanted, atol=1e-5, rtol=0)
    np.testing.assert_allclose(state_BND, wanted[:, -1], atol=1e-5, rtol=0)
    pieces, _ = in_pieces(module, x_BTND, [1, 4])
    np.testing.assert_allclose(pieces, wanted, atol=1e-5, rtol=0)
    state = module.initial_state(2, TOKENS)
    for t in range(6):
        y_BND, state = module.step(x_BTND[:, t], state)
        np.testing.assert_allclose(y_BND, wanted[:, t], atol=1e-5, rtol=0)


def test_a_file_of_the_core_alone_gives_the_same(arrays, released, tmp_path):
    part = {name: array for name, array in arrays.items() if name.startswith("rnn_core/")}
    alone = make(rvm.write(tmp_path / "core.npz", part))
    assert torch.equal(alone(tokens(3))[0], make(released)(tokens(3))[0])


def test_later_frames_do_not_change_earlier_outputs(released):
    module, x = make(released), tokens(5)
    changed = x.clone()
    changed[:, 3] += 1
    assert torch.equal(module(x)[0][:, :3], module(changed)[0][:, :3])


def test_the_released_core_is_frozen_unless_it_is_to_be_tuned(released):
    frozen, tuned = make(released), make(released, tune=True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    x = tokens(3).requires_grad_()
    frozen.train()(x)[0].square().sum().backward()  # what lies before it is trained all the same
    assert x.grad is not None and x.grad.abs().max() > 0
    tuned.train()(tokens(3))[0].square().sum().backward()
    for name, parameter in tuned.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_sizes_come_from_the_file_and_a_run_needs_it_no_more(released, tmp_path):
    settings = settings_of(released)
    assert (settings.layers, settings.heads) == (2, 4)
    assert settings.released.hidden == 52
    kept = settings.model_dump(mode="json") | {"weights": str(tmp_path / "gone.npz")}
    again = plugins.settings("temporal", "gated_transformer", kept, "run.json")
    module = plugins.load("temporal", "gated_transformer")(WIDTH, again)
    whole = make(released)
    module.load_state_dict(whole.state_dict())
    assert torch.equal(module(tokens(3))[0], whole(tokens(3))[0])
    with pytest.raises(BadInput, match=r"gone\.npz cannot be read: No such file"):
        module.load_released()


def test_operations_are_those_of_the_module_of_this_form(released):
    attention, mlp = 8 * TOKENS * WIDTH**2 + 4 * TOKENS**2 * WIDTH, 4 * TOKENS * WIDTH * 52
    assert make(released).flops(3, TOKENS) == 3 * (
        8 * TOKENS * WIDTH**2 + 2 * (2 * attention + mlp)
    )


CA = "rnn_core/transformer/xa_blocks_0/ca_attention"
WRONG: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "gate": ({"rnn_core/input_reset/kernel": None}, "lack 1 of the 59 arrays of the core"),
    "no_core": ({f"{CA}/query/kernel": None}, f"lack the array {CA}/query/kernel"),
    "bias": ({"rnn_core/state_layer_norm/bias": np.ones(24)}, "1 array that RVM does not have"),
    "shape": ({f"{CA}/key/kernel": np.ones((24, 3, 8))}, "(24, 3, 8), wanted (24, 4, 6)"),
    "nan": ({f"{CA}/out/bias": np.full(24, np.nan)}, "24 of 24 numbers of array rnn_core/"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_are_no_core_are_refused(arrays, tmp_path, name):
    changes, said = WRONG[name]
    changed = {key: array for key, array in (arrays | changes).items() if array is not None}
    assert said in refusal(rvm.write(tmp_path / "wrong.npz", changed))


def test_settings_that_do_not_fit_the_file_are_refused(released, tmp_path):
    assert "for tokens of width 24, found 32" in refusal(released, width=32)
    assert f"layers is 3, and 2 in {released}: leave it out" in refusal(released, layers=3)
    assert "mlp_ratio is 4.0, and 2.16667 in" in refusal(released, mlp_ratio=4)
    assert "cannot be read: No such file" in refusal(tmp_path / "none.npz")
    for table in ({"tune": True}, {"released": settings_of(released).released.model_dump()}):
        with pytest.raises(BadInput, match="goes with weights"):
            plugins.settings("temporal", "gated_transformer", table, "recipe")


def test_another_file_than_the_recipe_was_written_for_is_refused(arrays, released, tmp_path):
    kept = settings_of(released).model_dump(mode="json")
    other = rvm.write(tmp_path / "other.npz", rvm.random_weights(seed=1))
    assert "are not those that the recipe was written for" in refusal(
        other,
        released=kept["released"],
        **{key: kept[key] for key in ("layers", "heads", "mlp_ratio")},
    )


def refusal(path: Path, width: int = WIDTH, **table: Any) -> str:
    with pytest.raises(BadInput) as caught:
        make(path, width, **table)
    text = caught.value.with_hint
    assert str(path) in text and "\n" not in text and len(text) < 700
    return text
