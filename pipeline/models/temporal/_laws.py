"""The laws of temporal modules: see `contract`, and docs/extending.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.gradcheck import GradcheckError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.laws import Laws, demand, require_refused
from pipeline.config.plugins import validate
from pipeline.models.temporal.contract import State, TemporalModule

B, N, D = 2, 5, 16
"""Windows, tokens and width of what the laws are tried on."""
SMALL = {"layers": 2, "heads": 2, "state": 3, "head_dim": 4}
"""Settings that keep a module small, where it has them."""
WIDTHS = (4, 16, 64, 256)
FRAMES_OF_A_STREAM = 2000
WITHIN = 1e-5
"""Largest difference between a window, its pieces and its frames, in float32."""
SHARE_OF_FLOPS = 0.03
PER_ELEMENT = {
    "mul": 1,
    "add": 1,
    "sub": 1,
    "sum": 1,
    "cumsum": 1,
    "cumprod": 1,
    "addcmul": 3,
    "lerp": 3,
}
"""Operator of torch -> operations for each element."""


class SmallModules:
    """Makes one temporal module at small sizes, the same weights at every call."""

    def __init__(
        self, plugin: type[TemporalModule], settings: Mapping[str, Any] | None = None
    ) -> None:
        """`settings`: those of the user, which come before the small ones."""
        self.plugin, self.settings = plugin, dict(settings or {})

    def make(self, width: int = D, **keys: Any) -> TemporalModule:
        """The module with `keys` where it has such settings, in eval mode."""
        fields = self.plugin.Settings.model_fields
        chosen = {key: value for key, value in (SMALL | keys).items() if key in fields}
        torch.manual_seed(0)
        settings = validate(self.plugin.Settings, chosen | self.settings, "settings")
        return self.plugin(width, settings).eval()


class PerElement(TorchDispatchMode):
    """Additions and multiplications that run element by element: what recurrences are made of, and
    what torch's own counter does not see. Norms and residual sums are among them."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name in PER_ELEMENT:
            # A sum adds what goes in; a complex product is four products and two sums.
            tensor = args[0] if name in ("sum", "cumsum", "cumprod") else out
            self.flops += PER_ELEMENT[name] * (6 if tensor.is_complex() else 1) * tensor.numel()
        return out


def gaussian_tokens(frames: int, batch: int = B, width: int = D, seed: int = 1) -> torch.Tensor:
    """(batch, frames, N, width), gaussian."""
    return torch.randn(batch, frames, N, width, generator=torch.Generator().manual_seed(seed))


def in_pieces(
    module: TemporalModule, x_BTND: torch.Tensor, cuts: Sequence[int]
) -> tuple[torch.Tensor, State]:
    """Forward over [0, cut), [cut, cut) ... [cut, T) with the state carried over."""
    state, outputs = None, []
    for start, stop in pairwise([0, *cuts, x_BTND.shape[1]]):
        y_BTND, state = module(x_BTND[:, start:stop], state)
        outputs.append(y_BTND)
    assert state is not None
    return torch.cat(outputs, dim=1), state


def require_close(
    ours: torch.Tensor, wanted: torch.Tensor, what: str, within: float = WITHIN, rtol: float = 0
) -> None:
    """Raises BrokenLaw where two tensors differ by more than `within` and `rtol` of what is
    wanted."""
    demand(
        ours.shape == wanted.shape and ours.dtype == wanted.dtype,
        f"{what}: found {_kind(ours)}, wanted {_kind(wanted)}",
    )
    error = (ours - wanted).detach().abs()
    # Written so that NaN is no agreement.
    agree = bool((error <= within + rtol * wanted.abs()).all())
    found = float(error.max()) if error.numel() else 0.0
    demand(agree, f"{what}: they differ by {found:.3g}, wanted {within:g} at most")


def _kind(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


TEMPORAL_LAWS: Laws[SmallModules] = Laws()


@TEMPORAL_LAWS.add("it runs at any width from 4 to 256 and gives outputs in the shape of its input")
@torch.no_grad()
def _widths(small: SmallModules) -> None:
    for width in WIDTHS:
        x_BTND = gaussian_tokens(3, width=width)
        y_BTND, _ = small.make(width)(x_BTND)
        demand(
            y_BTND.shape == x_BTND.shape and y_BTND.dtype == x_BTND.dtype,
            f"at width {width} it gives {_kind(y_BTND)} for {_kind(x_BTND)}",
        )
        demand(y_BTND.isfinite().all(), f"at width {width} outputs are not finite")


@TEMPORAL_LAWS.add("no output depends on a later frame")
@torch.no_grad()
def _causal(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(6)
    changed = x_BTND.clone()
    changed[:, 3] += 1.0 + gaussian_tokens(1)[:, 0]
    difference = (module(x_BTND)[0] - module(changed)[0]).abs().amax(dim=(0, 2, 3))
    before = float(difference[:3].max())
    demand(before == 0, f"frame 3 was changed, and outputs of frames 0 to 2 by {before:.3g}")
    here = float(difference[3])
    demand(here > 1e-3, f"frame 3 was changed, and its own output by {here:.3g} alone")


@TEMPORAL_LAWS.add("a whole window, the same in pieces, and frame by frame agree")
def _pieces(small: SmallModules) -> None:
    for frames in (1, 2, 5, 7):
        every = range(1, frames)
        for cuts in ((), tuple(every), tuple(every)[1:2], tuple(every)[::2]):
            require_pieces_agree(small.make(), 3 * gaussian_tokens(frames, seed=frames), cuts)


@torch.no_grad()
def require_pieces_agree(module: TemporalModule, x_BTND: torch.Tensor, cuts: Sequence[int]) -> None:
    """Raises BrokenLaw where a window, the same cut at `cuts`, and frame by frame do not agree, in
    outputs or in the state after."""
    whole, end = module(x_BTND)
    where = f"of {x_BTND.shape[1]} frames, cut at {list(cuts)}"
    pieces, pieces_end = in_pieces(module, x_BTND, cuts)
    require_close(pieces, whole, f"outputs {where}")
    state = module.initial_state(x_BTND.shape[0], x_BTND.shape[2])
    for t in range(x_BTND.shape[1]):
        y_BND, state = module.step(x_BTND[:, t], state)
        require_close(y_BND, whole[:, t], f"the output of frame {t} as a step")
    for part, wanted in enumerate(end):
        require_close(pieces_end[part], wanted, f"state {part} {where}", rtol=WITHIN)
        require_close(state[part], wanted, f"state {part} after as many steps", rtol=WITHIN)


@TEMPORAL_LAWS.add("a window of one frame is a step, bit for bit")
@torch.no_grad()
def _one_frame(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(2)
    _, state = module(x_BTND[:, :1])
    window, window_end = module(x_BTND[:, 1:], state)
    step, step_end = module.step(x_BTND[:, 1], state)
    demand(window.shape == (B, 1, N, D), f"a window of one frame gives {_kind(window)}")
    pairs = zip((step, *step_end), (window[:, 0], *window_end), strict=True)
    demand(all(torch.equal(*pair) for pair in pairs), "they differ")


@TEMPORAL_LAWS.add("windows of a batch do not see each other")
@torch.no_grad()
def _batch(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(4, batch=3)
    whole, _ = module(x_BTND)
    other = x_BTND.clone()
    other[1] = 9.0
    same = torch.equal(module(other)[0][[0, 2]], whole[[0, 2]])
    demand(same, "window 1 of 3 was changed, and the outputs of the others with it")
    require_close(module(x_BTND[1:2])[0], whole[1:2], "a window alone and in its batch")


@TEMPORAL_LAWS.add("places are told apart by their tokens alone, and any number of them will do")
@torch.no_grad()
def _places(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(4)
    order = torch.tensor([3, 0, 4, 1, 2])
    whole, end = module(x_BTND)
    moved, moved_end = module(x_BTND[:, :, order])
    require_close(moved, whole[:, :, order], "tokens in another order, and outputs in that order")
    shapes = [[part.shape for part in parts] for parts in (moved_end, end)]
    demand(shapes[0] == shapes[1], f"states of shapes {shapes[0]} and {shapes[1]}")
    some, some_end = module(x_BTND[:, :, [1, 3]])
    demand(some.shape == (B, 4, 2, D), f"2 of {N} tokens give {_kind(some)}")
    found = [part.shape for part in some_end]
    wanted = [part.shape for part in module.initial_state(B, 2)]
    demand(found == wanted, f"2 of {N} tokens leave states of {found}, wanted {wanted}")
    if module.flops(3, 20) == 2 * module.flops(3, 10):  # tokens do not see each other
        require_close(some, whole[:, :, [1, 3]], "2 tokens alone and among the others")


@TEMPORAL_LAWS.add("the memory layout of tokens does not matter")
@torch.no_grad()
def _layout(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(4)
    strided = x_BTND.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    every_other = torch.stack([x_BTND, torch.full_like(x_BTND, 7)], 2).flatten(1, 2)[:, ::2]
    whole, _ = module(x_BTND)
    for other in (strided, every_other):
        require_close(module(other)[0], whole, "strided and dense tokens", 1e-6)


@TEMPORAL_LAWS.add("the state has the declared bytes and shapes, whatever the window was")
@torch.no_grad()
def _state_bytes(small: SmallModules) -> None:
    module = small.make()
    for batch, frames in ((1, 1), (1, 7), (3, 2)):
        _, state = module(gaussian_tokens(frames, batch=batch))
        found = [_kind(part) for part in state]
        wanted = [_kind(part) for part in module.initial_state(batch, N)]
        what = f"after {frames} frames of {batch} windows"
        demand(found == wanted, f"{what} it is {found}, wanted {wanted}")
        size = sum(part.numel() * part.element_size() for part in state)
        declared = batch * module.state_bytes(N)
        demand(size == declared, f"{what} it has {size} bytes, state_bytes says {declared}")


@TEMPORAL_LAWS.add("a module with a state remembers the first frame, and one without does not")
def _memory(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(6).requires_grad_()
    module(x_BTND)[0][:, -1].square().sum().backward()
    demand(x_BTND.grad is not None, "no output depends on the tokens")
    assert x_BTND.grad is not None
    reach = x_BTND.grad.abs().amax(dim=(0, 2, 3))
    demand(reach[-1] > 0, "the last output does not depend on the last frame")
    remembers, has_state = bool(reach[0] > 0), bool(module.initial_state(1, 1))
    found = "depends" if remembers else "does not depend"
    has = "a" if has_state else "no"
    demand(remembers == has_state, f"the last output {found} on the first frame, with {has} state")


@TEMPORAL_LAWS.add("gradients of pieces are those of the window")
def _gradients(small: SmallModules) -> None:
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, WITHIN)):
        module = small.make().to(dtype)
        x_BTND = gaussian_tokens(5).to(dtype).requires_grad_()
        weights = gaussian_tokens(5, seed=2).to(dtype)
        of = [x_BTND, *module.parameters()]
        names = ["the tokens", *(name for name, _ in module.named_parameters())]
        whole, pieces = (
            torch.autograd.grad((y_BTND * weights).sum(), of, allow_unused=True)
            for y_BTND in (module(x_BTND)[0], in_pieces(module, x_BTND, [1, 3])[0])
        )
        for name, ours, wanted in zip(names, pieces, whole, strict=True):
            demand(wanted is not None and ours is not None, f"{name} gets no gradient")
            demand(wanted.abs().max() > 0, f"the gradient of {name} is zero")
            share = float((ours - wanted).norm() / wanted.norm())
            demand(share <= within, f"of {name} they differ by {share:.3g} of it, in {dtype}")


@TEMPORAL_LAWS.add("gradients are the derivatives of what it computes, in float64")
def _gradcheck(small: SmallModules) -> None:
    module = small.make(4, layers=1).double()
    torch.manual_seed(1)
    x_BTND = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    state = [torch.randn_like(part).requires_grad_() for part in module.initial_state(1, 2)]

    def run(x_BTND: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y_BTND, after = module(x_BTND, state)
        return y_BTND, *after

    said = ""
    try:
        torch.autograd.gradcheck(run, [x_BTND, *state], fast_mode=True)
    except GradcheckError as error:
        said = str(error).splitlines()[0]
    demand(not said, said)


@TEMPORAL_LAWS.add("every parameter gets a finite gradient in training")
def _training(small: SmallModules) -> None:
    module = small.make().train()
    module(gaussian_tokens(5))[0].square().sum().backward()
    for name, parameter in module.named_parameters():
        demand(parameter.grad is not None, f"{name} gets none")
        demand(parameter.grad.isfinite().all(), f"that of {name} is not finite")  # type: ignore[union-attr]


@TEMPORAL_LAWS.add("under bfloat16 autocast it stays close, and its state in float32")
def _bfloat16(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(6)
    exact, _ = module(x_BTND)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTND, state = in_pieces(module, x_BTND, [2])
    found = {str(part.dtype) for part in state} - {"torch.float32"}
    demand(not found, f"the state is {', '.join(found)}")
    error = float((y_BTND.float() - exact).detach().abs().max())
    demand(error < 0.1, f"outputs differ by {error:.3g} from those in float32")
    y_BTND.float().square().sum().backward()
    for name, parameter in module.named_parameters():
        finite = parameter.grad is not None and parameter.grad.isfinite().all()
        demand(finite, f"the gradient of {name} is not finite")


@TEMPORAL_LAWS.add("a module in float64 computes in float64")
@torch.no_grad()
def _float64(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(4)
    single, _ = module(x_BTND)
    y_BTND, state = module.double()(x_BTND.double())
    step, after = module.step(x_BTND[:, 0].double(), state)
    found = {str(part.dtype) for part in (y_BTND, step, *state, *after)}
    demand(found == {"torch.float64"}, f"it gives {', '.join(sorted(found))}")
    require_close(y_BTND.float(), single, "float64 and float32")


@TEMPORAL_LAWS.add("initial weights are a function of torch's random state")
def _initial_weights(small: SmallModules) -> None:
    pairs = zip(small.make().named_parameters(), small.make().named_parameters(), strict=True)
    other = [name for (name, one), (_, again) in pairs if not torch.equal(one, again)]
    demand(not other, f"{', '.join(other)} differs from one call to the next of the same seed")


@TEMPORAL_LAWS.add("tokens of another width, and a state of other streams, are refused")
def _refused(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(3)
    _, state = module(x_BTND)
    wide = gaussian_tokens(3, width=D + 1)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: module(wide), f"width {D + 1} in the place of {D}"),
        (lambda: module(x_BTND[:, :0]), "a window without frames"),
        (lambda: module(torch.full_like(x_BTND, torch.nan)), "a token that is NaN"),
        (lambda: module(x_BTND, (*state, torch.zeros(B))), "a state of one part more"),
    ]
    if state:
        cases.append((lambda: module(x_BTND[:1], state), "the state of another batch size"))
    for act, what in cases:
        require_refused(act, what)


@TEMPORAL_LAWS.add(
    "flops are those that run: the products that PyTorch counts, and what runs element by element"
)
@torch.no_grad()
def _flops(small: SmallModules) -> None:
    module, x_BTND = small.make(256), gaussian_tokens(4, batch=1, width=256)
    with FlopCounterMode(display=False) as counter, PerElement() as others:
        module(x_BTND)
    products, stated = counter.get_total_flops(), module.flops(4, N)
    said = f"flops says {stated}; {products} ran in products, {others.flops} element by element"
    most = (1 + SHARE_OF_FLOPS) * (products + others.flops)
    demand((1 - SHARE_OF_FLOPS) * products <= stated <= most, said)


@TEMPORAL_LAWS.add("flops grow with tokens as tokens see each other, and with frames")
@torch.no_grad()
def _growth(small: SmallModules) -> None:
    module, x_BTND = small.make(), gaussian_tokens(3)
    changed = x_BTND.clone()
    changed[:, :, 0] += 1
    apart = torch.equal(module(changed)[0][:, :, 1:], module(x_BTND)[0][:, :, 1:])
    ten, twenty = module.flops(3, 10), module.flops(3, 20)
    sees = "do not see" if apart else "see"
    demand(
        (twenty == 2 * ten) == apart,
        f"tokens {sees} each other, and flops say {ten} for 10 of them and {twenty} for 20",
    )
    longer = module.flops(6, 10)
    demand(longer >= 2 * ten, f"flops say {ten} for 3 frames and {longer} for 6")


@TEMPORAL_LAWS.add("it keeps no tensor from call to call but its own buffers")
@torch.no_grad()
def _no_globals(small: SmallModules) -> None:
    with FakeTensorMode(), suppress(Exception):  # what cannot run so has kept nothing
        small.make()._run(gaussian_tokens(3), None)
    module = small.make()
    y_BTND, state = module(gaussian_tokens(3))
    kept = [part for part in (y_BTND, *state, *module.parameters()) if isinstance(part, FakeTensor)]
    demand(not kept, "after a run on tensors without content, one on real tensors has such too")


@TEMPORAL_LAWS.add(f"a stream of {FRAMES_OF_A_STREAM:,} frames stays finite", is_slow=True)
@torch.no_grad()
def _long_stream(small: SmallModules) -> None:
    module = small.make(4, layers=1, history=3)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(FRAMES_OF_A_STREAM, 1, 1, 4, generator=generator)
    state = module.initial_state(1, 1)
    kinds = [_kind(part) for part in state]
    for t, x_BND in enumerate(frames):
        y_BND, state = module.step(x_BND, state)
        demand(y_BND.isfinite().all(), f"the output of frame {t} is not finite")
        if t % 100 == 99:
            found = [_kind(part) for part in state]
            demand(found == kinds, f"after frame {t} the state is {found}, wanted {kinds}")
            held = sum(part.untyped_storage().nbytes() for part in state)
            declared = module.state_bytes(1)
            demand(
                held == declared, f"after frame {t} the state holds {held} bytes, not {declared}"
            )
    demand(all(part.isfinite().all() for part in state), "the state is not finite at its end")


@TEMPORAL_LAWS.add("torch.compile takes it as one graph, which gives the same", is_slow=True)
def _compiled(small: SmallModules) -> None:
    torch.compiler.reset()
    module, x_BTND = small.make(layers=1), gaussian_tokens(2).requires_grad_()
    state = tuple(part.detach() for part in module(gaussian_tokens(2, seed=2))[1])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    results = []
    for run in (module, compiled):
        y_BTND, after = run(x_BTND, state)
        loss = y_BTND.square().sum() + sum(part.square().sum() for part in after)
        results.append([y_BTND, *after, *torch.autograd.grad(loss, [x_BTND, *module.parameters()])])
    torch.compiler.reset()
    for eager, ours in zip(*results, strict=True):
        require_close(ours, eager, "compiled and eager", 1e-6, 1e-5)
