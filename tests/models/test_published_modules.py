"""The paper's temporal modules: published values, independent implementations at other sizes, parameter and operation counts."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import paths
from torch import nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.mixers import LayerMixer
from pipeline.models.temporal.contract import TemporalModule
from pipeline.models.temporal.gated_transformer import default_heads
from pipeline.models.temporal.layers.mamba import Mamba
from pipeline.models.temporal.layers.spatial_attention import CrossAttention, SelfAttention

NAMES = ("mamba", "mamba_mix", "gated_mamba_mix", "gated_transformer")
GOLDEN = [
    path for path in sorted(paths.GOLDEN.glob("*.safetensors")) if path.stem.startswith(NAMES)
]


def make(name: str, width: int, **keys: object) -> TemporalModule:
    """The plug-in with those of `keys` that it has, in eval mode, every parameter moved away from where it starts."""
    plugin = plugins.load("temporal", name)
    torch.manual_seed(0)
    module = plugin(
        width,
        plugin.Settings(**{key: keys[key] for key in keys if key in plugin.Settings.model_fields}),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def from_golden(path: Path) -> tuple[TemporalModule, dict[str, torch.Tensor], dict[str, str]]:
    """The module whose weights the file holds, its sizes taken from the shapes of the weights and from the metadata."""
    golden, metadata = read(path)
    weights = {
        key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")
    }
    width = golden["in/tokens_BTND"].shape[-1]

    def shape(suffix: str) -> tuple[int, ...] | None:
        return next((tuple(weights[key].shape) for key in weights if key.endswith(suffix)), None)

    keys: dict[str, object] = {
        "layers": int(metadata["layers"]),
        "heads": int(metadata.get("num_heads", metadata["spatial_heads"])),
    }
    if hidden := shape("mlp.fc1.bias"):
        keys["mlp_ratio"] = hidden[0] / width
    if decay := shape("A_log"):
        keys |= {"expand": decay[0] // width, "state": decay[1]}
    if taps := shape("conv1d.weight"):
        keys["conv"] = taps[-1]
    if gate := shape("gates.0.0.bias"):
        keys["gate_hidden"] = gate[0]
    module = make(
        max((name for name in NAMES if path.stem.startswith(name)), key=len), width, **keys
    )
    module.load_state_dict(weights)
    return module, golden, metadata


def test_there_are_golden_values_of_every_published_module():
    assert [path.stem for path in GOLDEN] == sorted([*NAMES, "gated_mamba_mix_gate_hidden"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@torch.no_grad()
def test_golden_values(path):
    module, golden, metadata = from_golden(path)
    y_BTND, state = module(golden["in/tokens_BTND"])
    torch.testing.assert_close(y_BTND, golden["out/tokens_BTND"], atol=1e-5, rtol=0)
    if "out/state_BND" in golden:
        torch.testing.assert_close(state, (golden["out/state_BND"],), atol=1e-5, rtol=0)
    if "num_parameters" in metadata:
        assert sum(parameter.numel() for parameter in module.parameters()) == int(
            metadata["num_parameters"]
        )


@pytest.mark.parametrize(("width", "heads"), [(12, 3), (16, 1), (24, 8)])
@torch.no_grad()
def test_attention_is_torch_multi_head_attention(width, heads):
    torch.manual_seed(0)
    x_FND, other_FMD = torch.randn(3, 5, width), torch.randn(3, 7, width)
    own, cross = (
        SelfAttention(width, heads, dropout=0.1).eval(),
        CrossAttention(width, heads, dropout=0.1).eval(),
    )
    for module, keys_FMD in ((own, x_FND), (cross, other_FMD)):
        nn.init.normal_(
            module.in_proj_bias
        )  # they start at zero, where a wrong use of them would not show
        nn.init.normal_(module.out_proj.bias)
        reference = nn.MultiheadAttention(width, heads, batch_first=True).eval()
        reference.load_state_dict(module.state_dict())
        expected, _ = reference(x_FND, keys_FMD, keys_FMD)
        found = own(x_FND) if module is own else cross(cross.queries(x_FND), keys_FMD)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def mixer(mamba: Mamba, width: int, expand: int) -> MambaMixer:
    """The implementation of transformers with the weights of ours."""
    config = MambaConfig(
        hidden_size=width,
        state_size=mamba.state,
        expand=expand,
        conv_kernel=mamba.conv1d.kernel_size[0],
        num_hidden_layers=1,
        use_mambapy=False,
    )
    reference = MambaMixer(config, layer_idx=0).eval()
    reference.load_state_dict(mamba.state_dict())
    return reference


SIZES = [
    {"width": 16, "layers": 1, "heads": 4, "state": 4, "expand": 2, "conv": 4, "frames": 5},
    {
        "width": 20,
        "layers": 3,
        "heads": 2,
        "state": 3,
        "expand": 1,
        "conv": 2,
        "frames": 1,
        "gate_hidden": 6,
    },  # rank 20 / 16
    {
        "width": 33,
        "layers": 2,
        "heads": 3,
        "state": 1,
        "expand": 3,
        "conv": 3,
        "frames": 9,
        "mlp_ratio": 1.5,
    },  # rank 33 / 16
]


@pytest.mark.parametrize("name", ["mamba", "mamba_mix", "gated_mamba_mix"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes["width"]))
@torch.no_grad()
def test_mamba_modules_against_torch_attention_and_the_mamba_of_transformers(name, sizes):
    module = make(name, **{key: sizes[key] for key in sizes if key != "frames"})
    batch, frames, tokens, width = 2, sizes["frames"], 3, sizes["width"]
    x = input_BTND = torch.randn(batch, frames, tokens, width)
    for i, block in enumerate(module.mamba_blocks):
        if name != "mamba":
            spatial = module.spatial_blocks[i]
            attention = nn.MultiheadAttention(width, sizes["heads"], batch_first=True).eval()
            attention.load_state_dict(spatial.sa_attn.state_dict())
            frame_FND = x.reshape(-1, tokens, width)
            normed = spatial.sa_norm(frame_FND)
            frame_FND = frame_FND + attention(normed, normed, normed)[0]
            hidden = nn.functional.gelu(spatial.mlp.fc1(spatial.mlp_norm(frame_FND)))
            x = (frame_FND + spatial.mlp.fc2(hidden)).reshape(x.shape)
        rows_RTD = x.transpose(1, 2).reshape(-1, frames, width)
        m = (
            mixer(block.mamba, width, sizes["expand"])(block.norm(rows_RTD))
            .reshape(batch, tokens, frames, width)
            .transpose(1, 2)
        )
        if name == "gated_mamba_mix":
            u = torch.sigmoid(module.gates[i](torch.cat([x, x + m], dim=-1)))
            x = (1 - u) * x + u * (x + m)
        else:
            x = x + m
    torch.testing.assert_close(module(input_BTND)[0], module.output_norm(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "key"), [("mamba", "dropout"), ("mamba_mix", "dropout"), ("mamba_mix", "drop_path")]
)
@torch.no_grad()
def test_dropout_is_for_training_and_can_be_turned_off(name, key):
    x_BTND = torch.randn(2, 3, 5, 16)
    off = make(name, 16, layers=1, dropout=0, drop_path=0)
    on = make(name, 16, layers=1, **{"dropout": 0, "drop_path": 0, key: 0.5})
    expected = off(x_BTND)[0]
    assert torch.equal(on(x_BTND)[0], expected)
    assert torch.equal(off.train()(x_BTND)[0], expected)
    assert (on.train()(x_BTND)[0] - expected).abs().max() > 0.01


class ReferenceBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ca_norm, self.mlp_norm, self.sa_norm = (
            nn.LayerNorm(width, eps=1e-6) for _ in range(3)
        )
        self.ca_attn, self.sa_attn = (
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), gelu=nn.GELU(), fc2=nn.Linear(hidden, width))
        )

    def forward(self, x: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        x = x + self.ca_attn(self.ca_norm(x), kv, kv)[0]
        x = x + self.mlp(self.mlp_norm(x))
        normed = self.sa_norm(x)
        return x + self.sa_attn(normed, normed, normed)[0]


class ReferenceGatedTransformer(nn.Module):
    """The equations of the paper, one frame at a time, with torch's own attention."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        for name in ("input_update", "input_reset", "state_update", "state_reset"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.state_layer_norm = nn.LayerNorm(width, eps=1e-6)
        blocks = nn.ModuleList(
            ReferenceBlock(width, heads, int(mlp_ratio * width)) for _ in range(layers)
        )
        self.transformer = nn.ModuleDict(
            {"layers": blocks, "output_norm": nn.LayerNorm(width, eps=1e-6)}
        )
        self.output_norm = nn.LayerNorm(width)

    def forward(self, x_BTND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state, outputs = torch.zeros_like(x_BTND[:, 0]), []
        for t in range(x_BTND.shape[1]):
            x = h = x_BTND[:, t]
            update = torch.sigmoid(self.input_update(x) + self.state_update(state))
            reset = torch.sigmoid(self.input_reset(x) + self.state_reset(state))
            kv = reset * self.state_layer_norm(state)
            for block in self.transformer["layers"]:
                h = block(h, kv)
            state = (1 - update) * state + update * self.transformer["output_norm"](h)
            outputs.append(self.output_norm(state))
        return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize(
    ("width", "layers", "heads", "mlp_ratio"), [(12, 1, 3, 4), (20, 3, 1, 1.5), (24, 2, 8, 2)]
)
def test_gated_transformer_against_torch_attention(width, layers, heads, mlp_ratio):
    """In float64, where a wrong epsilon shows; small inputs make it show more."""
    module = make(
        "gated_transformer", width, layers=layers, heads=heads, mlp_ratio=mlp_ratio
    ).double()
    reference = ReferenceGatedTransformer(width, layers, heads, mlp_ratio).double()
    reference.load_state_dict(module.state_dict())
    x = (0.01 * torch.randn(2, 4, 5, width, dtype=torch.float64)).requires_grad_()
    (y, (state,)), (expected_y, expected_state) = module(x), reference(x)
    torch.testing.assert_close(y, expected_y, atol=1e-10, rtol=0)
    torch.testing.assert_close(state, expected_state, atol=1e-10, rtol=0)

    names, weights = [name for name, _ in module.named_parameters()], torch.randn_like(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
    wanted = dict(reference.named_parameters())
    expected = torch.autograd.grad(
        (expected_y * weights).sum(), [x, *(wanted[name] for name in names)]
    )
    for name, a, b in zip(["x", *names], found, expected, strict=True):
        torch.testing.assert_close(
            a, b, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_default_heads():
    """Published where the paper has the width; else heads near 64 wide, more of them on a tie (2046: 66 or 62 wide)."""
    expected = {
        384: 8,
        768: 12,
        1024: 16,
        4096: 64,
        1280: 20,
        192: 3,
        96: 2,
        2046: 33,
        48: 1,
        97: 1,
    }
    assert {width: default_heads(width) for width in expected} == expected
    assert make("gated_transformer", 96).transformer.layers[0].sa_attn.heads == 2
    assert make("gated_transformer", 96, heads=6).transformer.layers[0].ca_attn.heads == 6


@pytest.mark.parametrize("name", ["mamba_mix", "gated_transformer"])
def test_heads_that_do_not_divide_the_width(name):
    with pytest.raises(
        BadInput,
        match=f"{name}: heads must divide the width of the tokens, found 5 heads for width 12",
    ) as error:
        make(name, 12, heads=5)
    assert "1, 2, 3, 4, 6, 12" in error.value.hint


def count(name: str, width: int, frames: int, tokens: int, **keys: object) -> tuple[float, float]:
    """Millions of parameters and GFLOP of a window, nothing allocated; published settings but for `keys`."""
    plugin = plugins.load("temporal", name)
    with torch.device("meta"):
        module = plugin(width, plugin.Settings(**keys))
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6, module.flops(
        frames, tokens
    ) / 1e9


@pytest.mark.parametrize(
    ("name", "width", "parameters_M", "gflop"),
    [
        ("mamba", 384, 3.86, 25.9),
        ("mamba", 768, 15.09, 99.2),
        ("mamba", 1024, 26.68, 174.4),
        ("mamba_mix", 384, 10.96, 75.4),
        ("mamba_mix", 768, 43.44, 289.2),
        ("mamba_mix", 1024, 77.06, 508.7),
        ("gated_mamba_mix", 384, 12.14, 82.9),
        ("gated_mamba_mix", 768, 48.16, 319.5),
        ("gated_mamba_mix", 1024, 85.45, 562.6),
        ("gated_transformer", 384, 10.06, 72.4),
        ("gated_transformer", 768, 40.17, 273.9),
        ("gated_transformer", 1024, 71.39, 479.8),
    ],
)
def test_cost_at_the_published_sizes(name, width, parameters_M, gflop):
    """16 frames of 201 tokens, behind ViT-S, B and L."""
    found_M, found_gflop = count(name, width, frames=16, tokens=201)
    assert (round(found_M, 2), round(found_gflop, 1)) == (parameters_M, gflop)


@pytest.mark.parametrize(
    ("name", "width", "layers", "tokens", "parameters_M", "gflop"),
    [
        ("gated_mamba_mix", 1024, 1, 201, 21.4, 141),
        ("gated_mamba_mix", 1024, 8, 201, 170.9, 1125),
        ("gated_transformer", 1024, 1, 201, 21.0, 140),
        ("gated_transformer", 1024, 8, 201, 138.6, 933),
        ("mamba", 1024, 4, 261, 26.7, 226),
        ("mamba_mix", 1024, 4, 261, 77.1, 665),
        ("gated_mamba_mix", 1024, 4, 261, 85.5, 735),
        ("gated_transformer", 1024, 4, 261, 71.4, 631),
        ("mamba", 4096, 4, 201, 421, 2721),
        ("gated_mamba_mix", 4096, 4, 201, 1361, 8806),
        ("gated_transformer", 4096, 4, 201, 1141, 7423),
    ],
)
def test_cost_at_other_depths_resolutions_and_widths(
    name, width, layers, tokens, parameters_M, gflop
):
    found_M, found_gflop = count(name, width, 16, tokens, layers=layers)
    assert (found_M, found_gflop) == pytest.approx((parameters_M, gflop), rel=4e-3)


def test_states_at_the_published_size():
    """Floats of one stream: 2D * (4 - 1 + 16) per layer and token for Mamba, whose newest input need not be kept; D per token."""
    with torch.device("meta"):
        for name in NAMES:
            plugin = plugins.load("temporal", name)
            floats = 201 * 1024 if name == "gated_transformer" else 201 * 4 * 2 * 1024 * (3 + 16)
            assert plugin(1024, plugin.Settings()).state_bytes(201) == 4 * floats


@pytest.mark.parametrize(("width", "parameters_M"), [(384, 2.37), (768, 9.45), (1024, 16.80)])
def test_parameters_of_the_layer_mixer(width, parameters_M):
    with torch.device("meta"):
        mixer = LayerMixer(width, 4)
    assert (
        round(sum(parameter.numel() for parameter in mixer.parameters()) / 1e6, 2) == parameters_M
    )
