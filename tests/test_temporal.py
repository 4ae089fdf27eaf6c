"""Laws of every temporal module found on disk, published values, and the selective scan against its definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import plugins
from pipeline.errors import BadInput
from pipeline.temporal import TemporalModule, _selective_scan
from pipeline.temporal._mamba import Mamba
from pipeline.temporal._selective_scan import selective_scan
from pipeline.temporal._spatial import DropPath

GOLDEN = Path(__file__).parent / "golden"
NAMES = plugins.names("temporal")
SMALL = {"layers": 2, "heads": 2, "state": 3}
B, N, D = 2, 5, 16


def make(name: str, width: int = D, **keys: object) -> TemporalModule:
    """The plug-in with small settings and `keys`, where it has such, in eval mode; the same weights at every call."""
    plugin = plugins.load("temporal", name)
    fields = plugin.Settings.model_fields
    torch.manual_seed(0)
    chosen = {key: value for key, value in (SMALL | keys).items() if key in fields}
    return plugin(width, plugin.Settings(**chosen)).eval()


def tokens(frames: int, batch: int = B, width: int = D, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, N, width, generator=torch.Generator().manual_seed(seed))


def in_pieces(module: TemporalModule, x_BTND: torch.Tensor, cuts: list[int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Forward over [0, cut), [cut, cut) ... [cut, T) with the state carried over."""
    state, outputs = None, []
    for start, stop in pairwise([0, *cuts, x_BTND.shape[1]]):
        y, state = module(x_BTND[:, start:stop], state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("name", NAMES)
def test_later_frames_do_not_change_earlier_outputs(name):
    module, x = make(name), tokens(6)
    changed = x.clone()
    changed[:, 3] += 1.0 + tokens(1)[:, 0]
    before, after = module(x)[0], module(changed)[0]
    assert before.shape == x.shape and before.dtype == x.dtype
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@torch.no_grad()
def test_window_pieces_and_steps_agree(name, data):
    frames = data.draw(st.integers(1, 7), label="frames")
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, frames - 1)), max_size=frames - 1), label="cuts"))
    module, x = make(name), 3 * tokens(frames, seed=data.draw(st.integers(0, 99), label="seed"))
    whole, end = module(x)

    pieces, pieces_end = in_pieces(module, x, cuts)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)

    state = module.initial_state(B, N)
    for t in range(frames):
        y, state = module.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], atol=1e-5, rtol=0)
    for parts in zip(end, pieces_end, state, strict=True):
        torch.testing.assert_close(parts[1], parts[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts[2], parts[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_windows_of_a_batch_do_not_see_each_other(name):
    module, x = make(name), tokens(4, batch=3)
    whole, _ = module(x)
    other = x.clone()
    other[1] = 9.0
    assert torch.equal(module(other)[0][[0, 2]], whole[[0, 2]])
    torch.testing.assert_close(module(x[1:2])[0], whole[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_pieces_equal_those_of_the_window(name):
    module, x = make(name).double(), tokens(5).double().requires_grad_()
    weights = tokens(5, seed=2).double()

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((y * weights).sum(), [x, *module.parameters()]))

    whole, pieces = gradients(module(x)[0]), gradients(in_pieces(module, x, [1, 3])[0])
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(b, a, atol=1e-10, rtol=1e-8)
    assert all(gradient.abs().max() > 0 for gradient in whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_means_that_the_last_output_remembers_the_first_frame(name):
    module, x = make(name), tokens(6).requires_grad_()
    module(x)[0][:, -1].square().sum().backward()
    reach = x.grad.abs().amax(dim=(0, 2, 3))
    assert reach[-1] > 0
    assert bool(reach[0] > 0) == bool(module.initial_state(1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_in_float64(name):
    module = make(name, width=4, layers=1).double()
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    state = [torch.randn_like(part).requires_grad_() for part in module.initial_state(1, 2)]

    def run(x: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, after = module(x, state)
        return y, *after

    assert torch.autograd.gradcheck(run, [x, *state], fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_state_has_the_declared_bytes_whatever_the_window(name):
    module = make(name)
    for batch, frames in ((1, 1), (1, 7), (3, 2)):
        _, state = module(tokens(frames, batch=batch))
        assert sum(part.numel() * part.element_size() for part in state) == batch * module.state_bytes(N)
        initial = module.initial_state(batch, N)
        assert [(part.shape, part.dtype) for part in state] == [(part.shape, part.dtype) for part in initial]
        assert all(len(part) == batch for part in state)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_stays_close_and_keeps_the_state_in_float32(name):
    module, x = make(name), tokens(6)
    exact, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = in_pieces(module, x, [2])
    assert all(part.dtype == torch.float32 for part in state)
    assert (y.float() - exact).abs().max() < 0.1
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_gives_every_parameter_a_finite_gradient(name):
    module = make(name).train()
    module(tokens(5))[0].square().sum().backward()
    for key, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_are_a_function_of_the_random_state(name):
    first, again = make(name), make(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("file", "gate_hidden"), [("gated_mamba_mix", 0), ("gated_mamba_mix_gate_hidden", 16)])
@torch.no_grad()
def test_gated_mamba_mix_reproduces_the_published_module(file, gate_hidden):
    golden = load_file(GOLDEN / f"{file}.safetensors")
    module = make("gated_mamba_mix", width=32, layers=2, heads=4, state=16, gate_hidden=gate_hidden)
    module.load_state_dict({key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")})
    y, _ = module(golden["in/tokens_BTND"])
    torch.testing.assert_close(y, golden["out/tokens_BTND"], atol=1e-5, rtol=0)


def test_gated_mamba_mix_names_the_legal_heads():
    with pytest.raises(BadInput, match="16 heads for width 12") as error:
        make("gated_mamba_mix", width=12, heads=16)
    assert "1, 2, 3, 4, 6, 12" in error.value.hint


@torch.no_grad()
def test_gru_layer_is_torch_gru():
    module = make("gru", layers=1)
    layer, reference = module.layers[0], nn.GRU(D, D, batch_first=True)
    reference.weight_ih_l0.copy_(layer.input_gates.weight)
    reference.weight_hh_l0.copy_(layer.hidden_gates.weight)
    reference.bias_ih_l0.copy_(layer.input_gates.bias)
    reference.bias_hh_l0.copy_(layer.hidden_gates.bias)
    x = tokens(6)
    rows = layer.norm(x).transpose(1, 2).flatten(0, 1)
    recurrent = reference(rows)[0].unflatten(0, (B, N)).transpose(1, 2)
    expected = module.output_norm(x + layer.out_proj(recurrent))
    torch.testing.assert_close(module(x)[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_identity_is_a_layer_norm():
    module, x = make("identity"), tokens(3)
    torch.testing.assert_close(module(x)[0], nn.functional.layer_norm(x, (D,)))
    assert module.state_bytes(N) == 0


def test_mamba_starts_as_published():
    torch.manual_seed(0)
    mamba = Mamba(64, state=16, expand=2, conv=4)
    step = nn.functional.softplus(mamba.dt_proj.bias.detach())
    assert mamba.rank == 4 and mamba.inner == 128
    assert 1e-3 <= step.min() < 2e-3 and 5e-2 < step.max() <= 0.1 + 1e-6
    assert mamba.dt_proj.weight.abs().max() <= 4**-0.5
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(mamba.D, torch.ones(128))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 3, 2))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(y), y)


def scan_inputs(frames: int, rows: int, inner: int, size: int) -> list[torch.Tensor]:
    """x, dt, A, B, C, state in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (frames, rows, inner),
        (frames, rows, inner),
        (size, inner),
        (frames, rows, size),
        (frames, rows, size),
        (rows, size, inner),
    )
    x, dt, A, b, c, state = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [x, nn.functional.softplus(dt), -A.exp(), b, c, state]


def naive_scan(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, b: torch.Tensor, c: torch.Tensor, h: torch.Tensor):
    """The definition, one number of the output at a time."""
    y, h = torch.zeros_like(x), h.clone()
    for t, row, e in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        h[row, :, e] = torch.exp(dt[t, row, e] * A[:, e]) * h[row, :, e] + dt[t, row, e] * x[t, row, e] * b[t, row]
        y[t, row, e] = c[t, row] @ h[row, :, e]
    return y, h


@pytest.mark.parametrize("block", [1, 60, 2**20])
def test_scan_equals_its_definition(block, monkeypatch):
    monkeypatch.setitem(_selective_scan.BLOCK_ELEMENTS, "cpu", block)
    inputs = scan_inputs(4, 5, 3, 2)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        y, last = selective_scan(*(part.to(dtype) for part in inputs))
        assert y.dtype == last.dtype == dtype
        expected_y, expected_last = naive_scan(*inputs)
        torch.testing.assert_close(y.double(), expected_y, atol=atol, rtol=atol)
        torch.testing.assert_close(last.double(), expected_last, atol=atol, rtol=atol)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("block", [1, 2 * 3 * 2 * 2, 2**20])
def test_scan_gradients(frames, block, monkeypatch):
    """One row a block, blocks with a ragged last one, one block."""
    monkeypatch.setitem(_selective_scan.BLOCK_ELEMENTS, "cpu", block)
    inputs = [part.requires_grad_() for part in scan_inputs(frames, 3, 2, 2)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return out


def test_the_state_of_all_frames_is_never_held(monkeypatch):
    batch, frames, state = 3, 6, 64
    module = make("gated_mamba_mix", layers=1, state=state).train()
    all_states = batch * N * frames * module.mamba_blocks[0].mamba.inner * state
    block = all_states // 10
    monkeypatch.setitem(_selective_scan.BLOCK_ELEMENTS, "cpu", block)
    saved = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x),
    ):
        module(tokens(frames, batch=batch))[0].sum().backward()
    one_frame = all_states // frames
    assert one_frame <= largest.elements <= max(block, one_frame)
    assert max(saved) <= one_frame
