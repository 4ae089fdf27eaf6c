"""The selective scan and the Mamba layer around it: their definition, their gradients, what they keep, and their back ends."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from support.modules import LargestTensor
from support.on_device import differ
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from pipeline.models.temporal.layers import scan_pytorch
from pipeline.models.temporal.layers import selective_scan as module
from pipeline.models.temporal.layers.mamba import Mamba, MambaBlock
from pipeline.models.temporal.layers.selective_scan import selective_scan


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
    x, dt, A, b, c, state = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return [x, nn.functional.softplus(dt), -A.exp(), b, c, state]


def naive_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    h: torch.Tensor,
):
    """The definition, one number of the output at a time."""
    y, h = torch.zeros_like(x), h.clone()
    for t, row, e in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        h[row, :, e] = (
            torch.exp(dt[t, row, e] * A[:, e]) * h[row, :, e]
            + dt[t, row, e] * x[t, row, e] * b[t, row]
        )
        y[t, row, e] = c[t, row] @ h[row, :, e]
    return y, h


def layer(width: int, state: int = 4, expand: int = 2, conv: int = 4) -> Mamba:
    """The same weights at every call; A, D and the biases moved off their regular start."""
    torch.manual_seed(0)
    mamba = Mamba(width, state, expand, conv)
    with torch.no_grad():
        for part in (mamba.A_log, mamba.D, mamba.dt_proj.bias):
            part += 0.2 * torch.randn_like(part)
    return mamba


def tokens(
    frames: int, batch: int = 2, count: int = 5, width: int = 8, seed: int = 1
) -> torch.Tensor:
    """(T, B, N, D)."""
    return torch.randn(frames, batch, count, width, generator=torch.Generator().manual_seed(seed))


def some_state(
    mamba: Mamba, batch: int = 2, count: int = 5, seed: int = 3
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, *shape, generator=generator) for shape in mamba.state_shapes(count)
    )


def gradients(
    mamba: Mamba, x: torch.Tensor, state: tuple[torch.Tensor, ...] | None
) -> list[torch.Tensor]:
    """Outputs, then gradients of a weighted sum of all outputs by x, the state and every weight."""
    leaves = [part.detach().requires_grad_() for part in (x, *(state or ()))]
    y, after = mamba(leaves[0], tuple(leaves[1:]) or None)
    outputs = [y, *after]
    weights = [
        torch.randn(part.shape, generator=torch.Generator().manual_seed(5)).to(part)
        for part in outputs
    ]
    total = sum((part * weight).sum() for part, weight in zip(outputs, weights, strict=True))
    return [part.detach() for part in outputs] + list(
        torch.autograd.grad(total, [*leaves, *mamba.parameters()])
    )


def set_block(monkeypatch, mamba: Mamba, frames: int, rows: int) -> None:
    """Blocks of `rows` rows."""
    monkeypatch.setitem(scan_pytorch.BLOCK_ELEMENTS, "cpu", frames * rows * mamba.A_log.numel())


# The scan.


@pytest.mark.parametrize("block", [1, 60, 2**20])
def test_scan_equals_its_definition(block, monkeypatch):
    monkeypatch.setitem(scan_pytorch.BLOCK_ELEMENTS, "cpu", block)
    inputs = scan_inputs(4, 5, 3, 2)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        y, last = selective_scan(*(part.to(dtype) for part in inputs))
        assert y.dtype == last.dtype == dtype
        expected_y, expected_last = naive_scan(*inputs)
        torch.testing.assert_close(y.double(), expected_y, atol=atol, rtol=atol)
        torch.testing.assert_close(last.double(), expected_last, atol=atol, rtol=atol)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("block", [1, 2 * 3 * 2 * 2, 2**20])
def test_scan_gradients(with_state, with_states, frames, block, monkeypatch):
    """One row a block, blocks with a ragged last one, one block; h of every frame kept, or made again."""
    monkeypatch.setitem(scan_pytorch.BLOCK_ELEMENTS, "cpu", block)
    inputs = [part.requires_grad_() for part in scan_inputs(frames, 3, 2, 2)]

    def run(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.empty(frames, 3, 2, 2, dtype=torch.float64) if with_states else None
        return selective_scan(*parts[:5], parts[5] if with_state else None, states)

    assert torch.autograd.gradcheck(run, inputs if with_state else inputs[:5])


def test_no_state_is_a_state_of_zeros():
    *parts, state = scan_inputs(3, 4, 3, 2)
    for a, b in zip(
        selective_scan(*parts), selective_scan(*parts, torch.zeros_like(state)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-15, rtol=1e-15)


def test_scan_stays_finite_at_extreme_steps():
    """dt of 1e4 forgets everything (exp2 underflows to 0), dt of 0 changes nothing."""
    x, dt, A, b, c, state = (part.float() for part in scan_inputs(4, 3, 5, 2))
    leaves = [part.requires_grad_() for part in (x, torch.full_like(dt, 1e4), 1e3 * A, b, c, state)]
    y, last = selective_scan(*leaves)
    (y.sum() + last.sum()).backward()
    assert all(torch.isfinite(part).all() for part in (y, last, *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(last, (1e4 * x[-1]).unsqueeze(1) * b[-1].unsqueeze(2))
    assert torch.equal(selective_scan(x, torch.zeros_like(dt), A, b, c, state)[1], state)


# The layer.


def test_mamba_starts_as_published():
    torch.manual_seed(0)
    mamba = Mamba(64, state=16, expand=2, conv=4)
    step = nn.functional.softplus(mamba.dt_proj.bias.detach())
    assert mamba.rank == 4 and mamba.inner == 128
    assert 1e-3 <= step.min() < 2e-3 and 5e-2 < step.max() <= 0.1 + 1e-6
    assert mamba.dt_proj.weight.abs().max() <= 4**-0.5
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(mamba.D, torch.ones(128))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize(
    ("width", "frames", "state", "expand", "conv"),
    [(24, 7, 4, 2, 4), (32, 16, 16, 2, 4), (20, 1, 8, 1, 3), (48, 5, 3, 3, 2)],
)
def test_layer_equals_transformers(rows, width, frames, state, expand, conv, monkeypatch):
    mamba, x = layer(width, state, expand, conv), tokens(frames, width=width)
    config = MambaConfig(
        hidden_size=width,
        state_size=state,
        expand=expand,
        conv_kernel=conv,
        time_step_rank=mamba.rank,
        use_bias=False,
    )
    reference = MambaMixer(config, layer_idx=0)
    reference.load_state_dict(mamba.state_dict())
    set_block(monkeypatch, mamba, frames, rows)

    weight, rest = (
        tokens(frames, width=width, seed=2),
        [x.clone().requires_grad_() for _ in range(2)],
    )
    y = mamba(rest[0])[0]
    sequences = rest[1].flatten(1, 2).transpose(0, 1)
    expected = reference(sequences).transpose(0, 1).view_as(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(rest[0].grad, rest[1].grad, atol=1e-5, rtol=1e-5)
    theirs = dict(reference.named_parameters())
    for name, parameter in mamba.named_parameters():
        scale = theirs[name].grad.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(
            parameter.grad / scale, theirs[name].grad / scale, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 9, 10])
def test_blocks_of_any_size_give_equal_results_and_gradients(rows, with_state, monkeypatch):
    mamba, x = layer(8).double(), tokens(6).double()
    state = tuple(part.double() for part in some_state(mamba)) if with_state else None
    whole = gradients(mamba, x, state)
    set_block(monkeypatch, mamba, 6, rows)
    for a, b in zip(gradients(mamba, x, state), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("rows", [2, 100])
def test_layer_gradcheck(rows, monkeypatch):
    mamba = layer(4, state=2).double()
    set_block(monkeypatch, mamba, 3, rows)
    x = tokens(3, batch=1, count=3, width=4).double().requires_grad_()
    state = [part.double().requires_grad_() for part in some_state(mamba, 1, 3)]

    def run(
        x: torch.Tensor, conv: torch.Tensor, h: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        y, after = mamba(x, (conv, h))
        return y, *after

    assert torch.autograd.gradcheck(run, [x, *state, *mamba.parameters()])


@pytest.mark.parametrize("rows", [2, 100])
def test_one_output_alone_may_be_used_and_weights_be_frozen(rows, monkeypatch):
    mamba, x = layer(8), tokens(4)
    set_block(monkeypatch, mamba, 4, rows)
    mamba(x)[1][0].sum().backward()
    assert mamba.in_proj.weight.grad.abs().max() > 0
    assert all(
        part is None or not part.any() for part in (mamba.out_proj.weight.grad, mamba.D.grad)
    )

    mamba = layer(8).requires_grad_(False)
    mamba.D.requires_grad_()
    y, (conv, h) = mamba(x)
    (y.sum() + conv.sum() + h.sum()).backward()
    assert mamba.D.grad.abs().min() > 0 and mamba.out_proj.weight.grad is None


@pytest.mark.parametrize("rows", [3, 100])
@torch.no_grad()
def test_pieces_and_no_state_agree_and_later_frames_change_nothing_before(rows, monkeypatch):
    torch.manual_seed(0)
    block, x = MambaBlock(8, state=4, expand=2, conv=4, dropout=0.0), tokens(6)
    set_block(monkeypatch, block.mamba, 6, rows)
    whole, end = block(x)
    zeros = tuple(torch.zeros_like(part) for part in end)
    torch.testing.assert_close(block(x, zeros)[0], whole, atol=1e-6, rtol=0)
    first, state = block(x[:2])
    rest, state = block(x[2:], state)
    torch.testing.assert_close(torch.cat([first, rest]), whole, atol=1e-6, rtol=0)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

    changed = x.clone()
    changed[4] += 1.0
    assert torch.equal(block(changed)[0][:4], whole[:4])
    changed = x.clone()
    changed[:, 1] = 9.0
    assert torch.equal(block(changed)[0][:, 0], whole[:, 0])


@pytest.mark.parametrize("rows", [3, 100])
def test_gradients_under_autocast_are_whole_when_blocks_and_steps_mix(rows, monkeypatch):
    """A window in blocks and a last frame at once, in one autocast region, which shares its casts of the weights."""
    mamba, x = layer(8), tokens(6)
    exact = gradients(mamba, x, None)[-len(list(mamba.parameters())) :]
    weights = [
        torch.randn(shape, generator=torch.Generator().manual_seed(5))
        for shape in (x.shape, (2, 5, 3, 16), (2, 5, 4, 16))
    ]
    set_block(monkeypatch, mamba, 5, rows)
    with torch.autocast("cpu", torch.bfloat16):
        first, state = mamba(x[:5])
        last, after = mamba(x[5:], state)
    assert first.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in after)
    outputs = [torch.cat([first, last]).float(), *after]
    sum((part * weight).sum() for part, weight in zip(outputs, weights, strict=True)).backward()
    for parameter, gradient in zip(mamba.parameters(), exact, strict=True):
        assert (parameter.grad - gradient).abs().max() < 0.03 * gradient.abs().max()


@pytest.mark.parametrize("frames", [1, 6])
def test_float32_error_of_the_layer_is_that_of_rounding(frames):
    mamba, x = layer(64, state=16), tokens(frames, width=64)
    y = mamba(x)[0]
    exact = mamba.double()(x.double())[0]
    assert (y - exact).abs().max() < 1e-6 * exact.abs().max()


def test_a_layer_makes_no_more_than_a_block_and_keeps_its_input_only(monkeypatch):
    frames, batch, count, rows = 16, 4, 10, 2
    mamba, x = layer(8, state=16), tokens(frames, batch, count).requires_grad_()
    set_block(monkeypatch, mamba, frames, rows)
    saved: list[int] = []
    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda part: saved.append(part.numel()) or part, lambda part: part
        ):
            y, _ = mamba(x)
        y.sum().backward()
    block, last_state = frames * rows * mamba.A_log.numel(), batch * count * mamba.A_log.numel()
    assert largest.elements == max(block, last_state, x.numel())
    assert sorted(saved)[-1] == x.numel() and sum(saved) <= x.numel() + 2 * sum(
        p.numel() for p in mamba.parameters()
    )


# torch.compile itself makes an instance of every autograd.Function it traces, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("with_state", [True, False])
def test_compiled_layer_equals_eager_without_a_loop_in_its_graph(with_state, monkeypatch):
    mamba, x = layer(8), tokens(6)
    state = some_state(mamba) if with_state else None
    set_block(monkeypatch, mamba, 6, 4)
    eager = gradients(mamba, x, state)
    counts: list[int] = []

    def backend(graph, inputs):
        counts.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(mamba, backend=backend, fullgraph=True)
    for a, b in zip(gradients(compiled, x, state), eager, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert len(counts) == 1 and counts[0] < 150


# The kernel of mamba_ssm.


@pytest.fixture
def fresh_kernel():
    module._kernel.cache_clear()
    yield
    module._kernel.cache_clear()


def stand_in(x, dt, A, b, c, return_last_state):
    """mamba_ssm's selective_scan_fn as documented: (R, E, T), A (E, K), and a last state without a gradient."""
    h, outputs = torch.zeros(*x.shape[:2], A.shape[1], dtype=x.dtype), []
    for t in range(x.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt * x)[:, :, t, None] * b[:, None, :, t]
        outputs.append((h * c[:, None, :, t]).sum(2))
    assert return_last_state
    return torch.stack(outputs, dim=2), h.detach()


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_the_kernel_gets_the_gradient_of_the_last_state_that_it_lacks(
    used, fresh_kernel, monkeypatch
):
    monkeypatch.setitem(sys.modules, module.KERNELS, SimpleNamespace(selective_scan_fn=stand_in))
    inputs = [part.requires_grad_() for part in scan_inputs(5, 3, 4, 2)[:5]]

    def run(scan) -> tuple[torch.Tensor, ...]:
        outputs = [part for part, use in zip(scan(*inputs), used, strict=True) if use]
        total = sum(part.sin().sum() for part in outputs)
        return *outputs, *(
            part for part in torch.autograd.grad(total, inputs, materialize_grads=True)
        )

    for a, b in zip(run(module._kernel_scan), run(selective_scan), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_the_kernel_serves_cuda_tensors_at_the_start_of_a_stream(fresh_kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, module.KERNELS, SimpleNamespace(selective_scan_fn=stand_in))
    on_cuda = SimpleNamespace(is_cuda=True)
    assert module.uses_kernel(on_cuda, None)
    assert not module.uses_kernel(on_cuda, torch.zeros(1))
    assert not module.uses_kernel(torch.zeros(1), None)


def test_a_kernel_that_does_not_import_is_one_warning(fresh_kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, module.KERNELS, None)
    selective_scan(*scan_inputs(2, 2, 2, 2)[:5])
    assert module._kernel.cache_info().misses == 0  # tensors on the CPU do not look for it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not any(module.uses_kernel(SimpleNamespace(is_cuda=True), None) for _ in range(3))
    assert [str(warning.message).split(" (")[0] for warning in caught] == [
        "mamba_ssm cannot be used"
    ]
    assert "plain PyTorch" in str(caught[0].message)


@pytest.mark.cuda
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_mamba_ssm_gives_what_the_plain_scan_gives(used, device, record_property):
    """The kernel itself: outputs, the last state, and all gradients."""
    try:
        importlib.import_module(module.KERNELS)
    except Exception as error:  # a build for another torch, CUDA or driver fails in many ways
        pytest.skip(f"mamba_ssm cannot be used: {type(error).__name__}: {error}")
    if device.type != "cuda":
        pytest.skip("the kernel of mamba_ssm runs on CUDA alone")
    inputs = [part.float().to(device).requires_grad_() for part in scan_inputs(16, 48, 32, 16)[:5]]

    def plain(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scan_pytorch.PytorchScan.apply(*parts, None, None)

    def run(scan) -> tuple[torch.Tensor, ...]:
        outputs = [part for part, use in zip(scan(*inputs), used, strict=True) if use]
        total = sum(part.sin().sum() for part in outputs)
        return *outputs, *torch.autograd.grad(total, inputs, materialize_grads=True)

    worst = max(differ(a, b) for a, b in zip(run(module._kernel_scan), run(plain), strict=True))
    record_property("difference", worst)
    assert worst < 1e-3
