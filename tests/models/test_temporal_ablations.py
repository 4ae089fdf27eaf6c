"""Temporal modules beyond the paper, against their definitions written out and against independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.modules import LargestTensor, make
from torch import nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from pipeline.errors import BadInput
from pipeline.models.temporal import mamba2
from pipeline.models.temporal._laws import D, in_pieces
from pipeline.models.temporal._laws import gaussian_tokens as tokens
from pipeline.models.temporal.layers.recurrence import causal_conv, linear_recurrence
from pipeline.models.temporal.mamba2 import state_space_dual
from pipeline.models.temporal.rg_lru import RgLru


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_linear_recurrence_is_its_definition(frames):
    a, b, h = (random(frames, 3, 2, 4), random(frames, 3, 2, 4, seed=1), random(3, 2, 4, seed=2))
    expected, last = [], h
    for t in range(frames):
        last = a[t] * last + b[t]
        expected.append(last)
    torch.testing.assert_close(
        linear_recurrence(a, b, h), torch.stack(expected), atol=1e-14, rtol=0
    )
    inputs = [part.requires_grad_() for part in (a, b, h)]
    assert torch.autograd.gradcheck(linear_recurrence, inputs)
    single = linear_recurrence(*(part.float() for part in inputs))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), torch.stack(expected), atol=1e-4, rtol=1e-5)


def test_linear_recurrence_runs_in_float32_under_autocast():
    """1 - 2^-12 is 1 in bfloat16: a recurrence in that type would keep everything for ever."""
    with torch.autocast("cpu", torch.bfloat16):
        h = linear_recurrence(
            torch.full((2, 1), 1 - 2**-12), torch.zeros(2, 1, dtype=torch.bfloat16), torch.ones(1)
        )
    assert h.dtype == torch.float32
    assert h[-1].item() == (1 - 2**-12) ** 2


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_causal_conv_is_torch_conv1d_with_its_past(taps):
    conv = nn.Conv1d(3, 3, taps, groups=3).double()
    x_TRE, history_RHE = random(6, 2, 3), random(2, taps - 1, 3, seed=1)
    y_TRE, after = causal_conv(x_TRE, history_RHE, conv.weight, conv.bias)
    padded_RET = torch.cat([history_RHE.transpose(0, 1), x_TRE]).permute(1, 2, 0)
    torch.testing.assert_close(y_TRE.permute(1, 2, 0), conv(padded_RET), atol=1e-12, rtol=0)
    assert torch.equal(after, padded_RET.transpose(1, 2)[:, 6:])


@torch.no_grad()
def test_min_gru_is_its_definition():
    module, x = make("min_gru", layers=1), tokens(6)
    layer = module.layers[0]
    cell, h, expected = layer.mixer, 0.0, []
    for frame in layer.norm(x).unbind(1):
        z = torch.sigmoid(frame @ cell.gate.weight.T + cell.gate.bias)
        h = (1 - z) * h + z * (frame @ cell.candidate.weight.T + cell.candidate.bias)
        expected.append(cell.out_proj(h))
    torch.testing.assert_close(
        module(x)[0], module.output_norm(x + torch.stack(expected, 1)), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.sigmoid(cell.gate.bias), torch.full((2 * D,), 1 / (1 + math.e))
    )


@pytest.mark.parametrize("name", ["min_gru", "rg_lru"])
@torch.no_grad()
def test_a_slow_decay_is_not_rounded_away_under_autocast(name):
    """A state of ones that is kept by 0.999 a frame is 0.999^20 = 0.98 after 20 frames of nothing; in bfloat16, still 1."""
    module = make(name, width=4, layers=1)
    mixer = module.layers[0].mixer
    for parameter in mixer.parameters():
        parameter.zero_()
    if name == "min_gru":
        mixer.gate.bias.fill_(-math.log(999))
    else:
        mixer.rg_lru.a_param.fill_(math.log(math.expm1(-math.log(0.999) / 4)))
    state = (
        *(torch.zeros(1, *shape) for shape in module.state_shapes(1)[:-1]),
        torch.ones(1, 1, 8),
    )
    with torch.autocast("cpu", torch.bfloat16):
        _, after = module(torch.ones(1, 20, 1, 4), state)
    torch.testing.assert_close(after[-1], torch.full((1, 1, 8), 0.999**20), atol=1e-5, rtol=0)


@torch.no_grad()
def test_rg_lru_is_its_definition():
    """One number at a time: the gates by blocks, then the recurrence."""
    torch.manual_seed(0)
    unit, x_TRE, h_RE = RgLru(6, heads=2).double(), random(4, 2, 6), random(2, 6, seed=1)
    unit.a_gate.bias.normal_()
    unit.input_gate.bias.normal_()
    expected = torch.zeros_like(x_TRE)
    for row in range(2):
        h = h_RE[row].tolist()
        for t in range(4):
            for e in range(6):
                head, place = divmod(e, 3)
                seen = x_TRE[t, row, 3 * head : 3 * head + 3]
                r, i = (
                    torch.sigmoid(
                        seen @ gate.weight[head, :, place] + gate.bias[head, place]
                    ).item()
                    for gate in (unit.a_gate, unit.input_gate)
                )
                a = math.exp(-8 * math.log1p(math.exp(unit.a_param[e])) * r)
                h[e] = a * h[e] + math.sqrt(1 - a * a) * i * x_TRE[t, row, e].item()
                expected[t, row, e] = h[e]
    torch.testing.assert_close(unit(x_TRE, h_RE), expected, atol=1e-12, rtol=0)


def test_rg_lru_starts_on_the_ring():
    torch.manual_seed(0)
    radius = torch.exp(-F.softplus(RgLru(20_000, heads=1000).a_param.detach()))
    assert 0.6 <= radius.min() < 0.605 and 0.995 < radius.max() <= 0.9991
    # Uniform over the area: half of it lies beyond the root of the mean of the squares.
    assert (radius > math.sqrt((0.6**2 + 0.999**2) / 2)).double().mean().item() == pytest.approx(
        0.5, abs=0.02
    )


def test_rg_lru_with_a_shut_gate_keeps_its_state_and_has_finite_gradients():
    unit, x_TRE = RgLru(4, heads=2), random(3, 2, 4).float().requires_grad_()
    with torch.no_grad():
        unit.a_gate.bias.fill_(-200.0)
    h_TRE = unit(x_TRE, torch.ones(2, 4))
    assert torch.equal(h_TRE, torch.ones(3, 2, 4))
    h_TRE.sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (x_TRE, *unit.parameters()))


@torch.no_grad()
def test_rg_lru_block_is_griffins():
    module, x = make("rg_lru", layers=1), tokens(6)
    layer = module.layers[0]
    block, normed = layer.mixer, layer.norm(x).transpose(1, 2).flatten(0, 1)
    convolved = block.conv_1d(F.pad(block.linear_x(normed).mT, (3, 0))).mT
    h = block.rg_lru(convolved.transpose(0, 1), torch.zeros(len(normed), 2 * D)).transpose(0, 1)
    y = block.linear_out(F.gelu(block.linear_y(normed)) * h).unflatten(0, (2, 5)).transpose(1, 2)
    torch.testing.assert_close(module(x)[0], module.output_norm(x + y), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "key"), [("rg_lru", "heads"), ("causal_attention", "heads"), ("mamba2", "head_dim")]
)
def test_widths_that_do_not_divide_are_refused_with_the_legal_ones(name, key):
    with pytest.raises(BadInput, match=rf"\[temporal\] {name}: .*found 5 .*(12|24)$") as error:
        make(name, width=12, **{key: 5})
    assert f"set temporal.{key} to one of 1, 2, 3, 4, 6, " in error.value.hint


def attend_by_hand(module, x: torch.Tensor) -> torch.Tensor:
    """One layer of causal_attention, one frame, head and token at a time."""
    block, history = module.layers[0], module.settings.history
    attention, attended = block.attention, torch.zeros_like(x)
    q, k, v = attention.qkv(block.attention_norm(x)).chunk(3, dim=-1)
    size = D // attention.heads
    for b, t, n, head in torch.cartesian_prod(
        *(torch.arange(m) for m in (*x.shape[:3], attention.heads))
    ).tolist():
        part = slice(head * size, (head + 1) * size)
        past = range(max(0, t - history), t + 1)
        scores = [
            q[b, t, n, part] @ k[b, s, n, part] / math.sqrt(size) + attention.age_bias[head, t - s]
            for s in past
        ]
        weights = torch.stack(scores).softmax(0)
        attended[b, t, n, part] = sum(
            weight * v[b, s, n, part] for weight, s in zip(weights, past, strict=True)
        )
    x = x + attention.out_proj(attended)
    return module.output_norm(x + block.mlp(block.mlp_norm(x)))


@pytest.mark.parametrize("history", [1, 2, 3, 64])
@torch.no_grad()
def test_causal_attention_with_any_history_in_any_pieces(history):
    module, x = make("causal_attention", layers=1, history=history), tokens(8)
    module.layers[0].attention.age_bias.normal_(generator=torch.Generator().manual_seed(0))
    expected = attend_by_hand(module, x)
    ends = []
    for cuts in ([], [1], [2, 3], [5], list(range(1, 8))):
        y, end = in_pieces(module, x, cuts)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
        ends.append(end)
    state = module.initial_state(2, 5)
    for t in range(8):
        y, state = module.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t], atol=1e-5, rtol=0)
    for end in (*ends, state):
        assert end[0].sum(1).tolist() == [min(history, 8)] * 2
        for part, first in zip(end, ends[0], strict=True):
            torch.testing.assert_close(part, first, atol=1e-5, rtol=0)


@torch.no_grad()
def test_causal_attention_forgets_exactly_what_is_too_old():
    """Two layers of 3 frames of history reach 6 frames back, and no further."""
    module, x = make("causal_attention", layers=2, history=3), tokens(9)
    changed = x.clone()
    changed[:, 0] = tokens(1, seed=2)[:, 0]
    difference = (module(changed)[0] - module(x)[0]).abs().amax(dim=(0, 2, 3))
    assert difference[6] > 1e-6
    assert torch.equal(difference[7:], torch.zeros(2))


@torch.no_grad()
def test_causal_attention_knows_order_by_age_alone():
    module, x = make("causal_attention", layers=1), tokens(4)
    swapped = x[:, [1, 0, 2, 3]]
    torch.testing.assert_close(module(swapped)[0][:, 2:], module(x)[0][:, 2:], atol=1e-6, rtol=0)
    module.layers[0].attention.age_bias.normal_(generator=torch.Generator().manual_seed(0))
    assert (module(swapped)[0][:, 2:] - module(x)[0][:, 2:]).abs().max() > 1e-3


def dual_inputs(frames: int, rows: int, heads: int, head_dim: int, size: int) -> list[torch.Tensor]:
    """x, dt, A, B, C, state in float64."""
    inner = heads * head_dim
    x, dt, A = (
        random(frames, rows, inner),
        F.softplus(random(frames, rows, heads, seed=1)),
        -random(heads, seed=2).exp(),
    )
    return [
        x,
        dt,
        A,
        random(frames, rows, size, seed=3),
        random(frames, rows, size, seed=4),
        random(rows, size, inner, seed=5),
    ]


def naive_dual(x, dt, A, b, c, h):
    """The recurrence, frame by frame, every channel with the decay and the step of its head."""
    head_dim, outputs = x.shape[-1] // len(A), []
    dt = dt.repeat_interleave(head_dim, dim=-1)
    for t in range(len(x)):
        h = torch.exp(dt[t] * A.repeat_interleave(head_dim)).unsqueeze(1) * h + torch.einsum(
            "rk,re->rke", b[t], dt[t] * x[t]
        )
        outputs.append(torch.einsum("rk,rke->re", c[t], h))
    return torch.stack(outputs), h


@pytest.mark.parametrize(
    ("block", "window"), [(2**18, 64), (1, 64), (2 * 7 * 6, 64), (2**18, 3), (2**18, 1)]
)
def test_dual_form_equals_the_recurrence(block, window, monkeypatch):
    """All rows at once, one row a block, blocks with a ragged last one; the window whole and in pieces."""
    monkeypatch.setitem(mamba2.BLOCK_ELEMENTS, "cpu", block)
    monkeypatch.setattr(mamba2, "WINDOW_FRAMES", window)
    inputs = [part.requires_grad_() for part in dual_inputs(7, 5, 2, 3, 4)]
    results = []
    for run in (naive_dual, state_space_dual):
        y, last = run(*inputs)
        loss = (y * random(*y.shape, seed=6)).sum() + (last * random(*last.shape, seed=7)).sum()
        results.append([y, last, *torch.autograd.grad(loss, inputs)])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)


def test_dual_form_gradcheck():
    assert torch.autograd.gradcheck(
        state_space_dual, [part.requires_grad_() for part in dual_inputs(3, 2, 2, 2, 2)]
    )


@torch.no_grad()
def test_dual_form_keeps_its_digits_after_frames_of_strong_decay():
    """Differences of sums from the start would be off by 2e-4 of the largest output here."""
    x, dt, A, b, c, state = dual_inputs(64, 3, 2, 4, 4)
    dt[:32], dt[32:] = 100.0, 0.01
    y, last = state_space_dual(*(part.float() for part in (x, dt, A, b, c, state)))
    expected, expected_last = naive_dual(x, dt, A, b, c, state)
    torch.testing.assert_close(y.double()[32:], expected[32:], atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(last.double(), expected_last, atol=1e-4, rtol=1e-6)


@torch.no_grad()
def test_mamba2_is_the_mixer_of_transformers():
    """The same names: its weights load, and one layer's branch gives its outputs."""
    module = make("mamba2", width=32, layers=1, state=8, head_dim=16)
    config = Mamba2Config(
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        state_size=8,
        n_groups=1,
        expand=2,
        conv_kernel=4,
        use_bias=False,
        chunk_size=4,
    )
    reference, layer = Mamba2Mixer(config, layer_idx=0).eval(), module.layers[0]
    nn.init.normal_(reference.norm.weight)
    nn.init.normal_(reference.D)
    layer.mixer.load_state_dict(reference.state_dict())
    x = 2 * tokens(11, width=32)
    rows = layer.norm(x).transpose(1, 2).flatten(0, 1)
    y = reference(rows).unflatten(0, (2, 5)).transpose(1, 2)
    torch.testing.assert_close(module(x)[0], module.output_norm(x + y), atol=1e-5, rtol=0)


def test_mamba2_starts_as_published():
    torch.manual_seed(0)
    mixer = make("mamba2", width=512, layers=1, state=64, head_dim=4).layers[0].mixer
    step = F.softplus(mixer.dt_bias.detach())
    assert 1e-3 <= step.min() < 2e-3 and 5e-2 < step.max() <= 0.1 + 1e-6
    assert 1 <= mixer.A_log.exp().min() < 1.5 and 15.5 < mixer.A_log.exp().max() <= 16
    assert torch.equal(mixer.D, torch.ones(256))


@pytest.mark.parametrize(
    ("width", "head_dim"), [(16, 32), (32, 64), (384, 64), (1024, 64), (45, 45), (53, 53), (37, 37)]
)
def test_mamba2_heads_are_64_wide_or_the_next_that_divides(width, head_dim):
    mixer = make("mamba2", width=width, layers=1, head_dim=None).layers[0].mixer
    assert mixer.inner // mixer.heads == head_dim


def test_mamba2_never_makes_the_states_of_all_frames():
    module, x = make("mamba2", layers=1, state=64), tokens(12)
    all_states = 12 * 2 * 5 * 2 * D * 64
    with LargestTensor() as largest:
        module(x)[0].sum().backward()
    assert largest.elements < all_states / 8
