"""Laws of every temporal module found on disk, and what single modules promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import laws
from support.modules import NAMES, PRODUCTS_ALONE, make
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cli.bench.memory import live_bytes
from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.temporal._laws import (
    TEMPORAL_LAWS,
    B,
    D,
    N,
    SmallModules,
    require_pieces_agree,
)
from pipeline.models.temporal._laws import gaussian_tokens as tokens
from pipeline.models.temporal.layers.spatial_attention import DropPath


# torch.compile itself makes an instance of every autograd.Function it traces, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("law", laws.each(TEMPORAL_LAWS, "long_stream"))  # which is below
@pytest.mark.parametrize("name", NAMES)
def test_law(name, law):
    laws.holds(law, SmallModules(plugins.load("temporal", name)))


@pytest.mark.parametrize("name", NAMES)
@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@torch.no_grad()
def test_window_pieces_and_steps_agree(name, data):
    frames = data.draw(st.integers(1, 7), label="frames")
    cuts = sorted(
        data.draw(st.sets(st.integers(1, max(1, frames - 1)), max_size=frames - 1), label="cuts")
    )
    x = 3 * tokens(frames, seed=data.draw(st.integers(0, 99), label="seed"))
    require_pieces_agree(make(name), x, cuts)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused_with_what_was_found_and_wanted(name):
    module, x = make(name), tokens(3)
    _, state = module(x)

    def refused(x: torch.Tensor, state: tuple[torch.Tensor, ...] | None, *said: str) -> None:
        with pytest.raises(BadInput) as error:
            module(x, state)
        assert f"temporal module '{name}'" in error.value.message
        assert [part for part in said if part not in error.value.message] == []

    refused(tokens(3, width=D + 1), None, f"D = {D}", f"({B}, 3, {N}, {D + 1})")
    refused(x[0], None, f"D = {D}", f"(3, {N}, {D})")
    refused(x[:, :0], None, "at least 1 frame", "T = 0")
    for wrong in ([torch.nan], [torch.inf], [torch.inf, -torch.inf]):
        damaged = x.clone()
        damaged[1, 2, 3, : len(wrong)] = torch.tensor(wrong)
        refused(damaged, None, f"{len(wrong)} of {x.numel()} numbers")
    refused(x, (*state, torch.zeros(B)), f"found {len(state) + 1} parts, wanted {len(state)}")
    if state:
        refused(x, state[:-1], f"found {len(state) - 1} parts, wanted {len(state)}")
        refused(x[:1], state, "B = 1 streams", f"is ({B}, ", "wanted (1, ")
        refused(
            x[:, :, :-1], state, f"N = {N - 1} tokens", f"is ({B}, {N}, ", f"wanted ({B}, {N - 1}, "
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_stream_of_2000_frames_stays_finite_and_takes_no_more_memory(name):
    module = make(name, width=4, layers=1, history=3)
    frames = torch.randn(2000, 1, 1, 4, generator=torch.Generator().manual_seed(1))
    state, sizes = module.initial_state(1, 1), []
    finite = torch.ones((), dtype=torch.bool)
    kinds = [(part.shape, part.dtype) for part in state]
    for t, x_BND in enumerate(frames):
        y, state = module.step(x_BND, state)
        finite &= torch.isfinite(y).all()
        if t in (9, 999, 1999):
            sizes.append(live_bytes(torch.device("cpu")))
            assert [(part.shape, part.dtype) for part in state] == kinds
            assert sum(part.untyped_storage().nbytes() for part in state) == module.state_bytes(1)
    assert finite
    assert all(torch.isfinite(part).all() for part in state)
    assert max(sizes) == sizes[0]  # what earlier work left behind may go in the meantime


@pytest.mark.parametrize("name", PRODUCTS_ALONE)
@torch.no_grad()
def test_flops_are_products_where_these_are_nearly_all(name):
    module, x = make(name, width=256), tokens(4, batch=1, width=256)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert module.flops(4, N) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert (module.flops(1, 1) > 0) == (name != "identity")


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


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 3, 2))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(y), y)
