"""Laws of every temporal module found on disk, and what single modules promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.modules import NAMES, PRODUCTS_ALONE, B, D, N, PerElement, in_pieces, make, tokens
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cli.bench.memory import live_bytes
from pipeline.errors import BadInput
from pipeline.models.temporal.layers.spatial_attention import DropPath


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
        assert sum(
            part.numel() * part.element_size() for part in state
        ) == batch * module.state_bytes(N)
        initial = module.initial_state(batch, N)
        assert [(part.shape, part.dtype) for part in state] == [
            (part.shape, part.dtype) for part in initial
        ]
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
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )


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


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_pieces_equal_those_of_the_window_in_float32(name):
    module, x = make(name), tokens(5).requires_grad_()
    weights = tokens(5, seed=2)
    whole, pieces = (
        torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
        for y in (module(x)[0], in_pieces(module, x, [1, 3])[0])
    )
    for a, b in zip(whole, pieces, strict=True):
        assert (b - a).norm() <= 1e-5 * a.norm()


# torch.compile itself makes an instance of every autograd.Function it traces, and warns of it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager_forward_and_backward(name):
    torch.compiler.reset()
    module, x = make(name, layers=1), tokens(2).requires_grad_()
    state = tuple(part.detach() for part in module(tokens(2, seed=2))[1])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    results = []
    for run in (module, compiled):
        y, after = run(x, state)
        loss = y.square().sum() + sum(
            (part.square().sum() for part in after), start=torch.zeros(())
        )
        results.append([y, *after, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-6, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_flops_are_those_that_run(name):
    """No less than the products that the counter sees, and no more than these and what runs element by
    element: convolutions by taps and recurrences are among that."""
    module, x = make(name, width=256), tokens(4, batch=1, width=256)
    with FlopCounterMode(display=False) as counter, PerElement() as others:
        module(x)
    products, stated = counter.get_total_flops(), module.flops(4, N)
    said = f"flops says {stated}; {products} ran in products, {others.flops} element by element"
    assert 0.97 * products <= stated <= 1.03 * (products + others.flops), said
    if name in PRODUCTS_ALONE:
        assert stated == pytest.approx(products, rel=0.03)
    assert (module.flops(1, 1) > 0) == (name != "identity")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_flops_grow_with_tokens_as_tokens_see_each_other(name):
    module, x = make(name), tokens(3)
    changed = x.clone()
    changed[:, :, 0] += 1
    alone = torch.equal(module(changed)[0][:, :, 1:], module(x)[0][:, :, 1:])
    assert (module.flops(3, 20) == 2 * module.flops(3, 10)) == alone
    assert module.flops(6, 10) >= 2 * module.flops(3, 10)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_places_are_told_apart_by_their_tokens_alone(name):
    """So training may leave places out: what is kept is no other place for that. Where tokens do
    not see each other, the rest do not notice."""
    module, x = make(name), tokens(4)
    order = torch.tensor([3, 0, 4, 1, 2])
    whole, end = module(x)
    moved, moved_end = module(x[:, :, order])
    torch.testing.assert_close(moved, whole[:, :, order], atol=1e-5, rtol=0)
    assert [part.shape for part in moved_end] == [part.shape for part in end]
    some, some_end = module(x[:, :, [1, 3]])
    assert some.shape == (B, 4, 2, D)
    assert [part.shape for part in some_end] == [part.shape for part in module.initial_state(B, 2)]
    if module.flops(3, 20) == 2 * module.flops(3, 10):  # tokens do not see each other
        torch.testing.assert_close(some, whole[:, :, [1, 3]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_float64_stays_float64(name):
    module, x = make(name), tokens(4)
    single, _ = module(x)
    y, state = module.double()(x.double())
    step, after = module.step(x[:, 0].double(), state)
    assert {part.dtype for part in (y, step, *state, *after)} == {torch.float64}
    torch.testing.assert_close(y.float(), single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_memory_layout_of_tokens_does_not_matter(name):
    module, x = make(name), tokens(4)
    strided = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    every_other = torch.stack([x, torch.full_like(x, 7)], dim=2).flatten(1, 2)[:, ::2]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    whole, _ = module(x)
    for other in (strided, every_other):
        torch.testing.assert_close(module(other)[0], whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_window_of_one_frame_is_a_step(name):
    module, x = make(name), tokens(2)
    _, state = module(x[:, :1])
    window, window_end = module(x[:, 1:], state)
    step, step_end = module.step(x[:, 1], state)
    assert window.shape == (B, 1, N, D)
    for ours, theirs in zip((step, *step_end), (window[:, 0], *window_end), strict=True):
        assert torch.equal(ours, theirs)


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
