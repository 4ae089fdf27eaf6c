"""A frozen vision tower of Hugging Face transformers: from the hub, from a local folder, or with
seeded random weights.

Any checkpoint of the families in `tower.config.CLS_TOKENS` serves, alone or inside a two-tower
model, of which only the vision half is read. Weights come from safetensors; nothing is unpickled
and no code is fetched. Every recorded block output passes through the tower's own final norm, which
for the last block gives the model's own last hidden state (CLIP's excepted: its model norms CLS
alone). Blocks above the last recorded layer are dropped, so special tokens are those of the last
*recorded* layer.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import transformers
from pydantic import model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.plugins import Seed
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings
from pipeline.models.encoders.tower.config import canonical_config, tower_config, tower_shape
from pipeline.models.encoders.tower.files import JSON_FILES, WEIGHT_FILES, json_object, model_folder
from pipeline.models.encoders.tower.weights import pretrained_tower, random_tower
from pipeline.records import Tokens, TokenShape

FINAL_NORMS = ("layernorm", "post_layernorm", "norm")


class Encoder(EncoderPlugin):
    """The tower in evaluation mode on one device; not to be called from two threads at once."""

    class Settings(EncoderSettings):
        """These settings say which tower is run: exactly one of `model` and `config` is set."""

        model: str | None = None
        """Hub id, or a local folder with config.json and safetensors."""
        revision: str | None = None
        """Branch, tag or commit on the hub."""
        config: dict[str, Any] | None = None
        """`model_type` and that type's own keys, for a tower with random weights."""
        seed: Seed | None = None
        """Draws the random weights."""
        mean: tuple[float, float, float] | None = None
        """RGB mean in [0, 1]; None: the model's preprocessor_config.json, or 0.5 with `config`."""
        std: tuple[float, float, float] | None = None
        """RGB standard deviation in [0, 1]; goes with `mean`."""
        precision: Literal["float32", "bfloat16", "float16"] = "float32"
        """Number format in which the tower computes."""

        @model_validator(mode="after")
        def _whole(self) -> Self:
            if (self.model is None) == (self.config is None):
                raise ValueError("wanted exactly one of model and config")
            if (self.config is None) != (self.seed is None):
                raise ValueError("config and seed go together")
            if self.revision is not None and self.model is None:
                raise ValueError("revision goes with model")
            if (self.mean is None) != (self.std is None):
                raise ValueError("mean and std go together")
            if self.std is not None and min(self.std) <= 0:
                raise ValueError("std must be above 0")
            return self

    @classmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        return tower_shape(
            tower_config(settings, model_folder(settings, JSON_FILES)), settings.layers, size_px
        )

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        config = tower_config(settings, model_folder(settings, JSON_FILES))
        shape = tower_shape(config, settings.layers, size_px)
        with (
            torch.device("meta"),
            torch.inference_mode(),
            FlopCounterMode(display=False) as counter,
        ):  # shapes, no numbers
            tower = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
            _blocks(tower, shape.layers[-1])
            tower.eval()(
                **_inputs(config.model_type, shape.grid_hw, torch.empty(1, 3, size_px, size_px))
            )
        return counter.get_total_flops()

    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None:
        folder = model_folder(settings, JSON_FILES + WEIGHT_FILES)
        config = tower_config(settings, folder)
        self._shape = tower_shape(config, settings.layers, size_px)
        pixels = _pixels(settings, folder)
        tower, weights = (
            pretrained_tower(folder, config) if folder else random_tower(config, settings.seed)
        )

        blocks = _blocks(tower, settings.layers[-1])
        for layer in settings.layers:
            blocks[layer].register_forward_hook(partial(self._keep, layer))
        self._outputs: dict[int, torch.Tensor] = {}
        self._dtype = getattr(torch, settings.precision)
        for (
            parameter
        ) in tower.parameters():  # parameters alone: DINOv3's rotary frequencies stay in float32
            parameter.data = parameter.data.to(self._dtype)
        self._tower = tower.eval().requires_grad_(False).to(device)
        self._norm = next(getattr(tower, name) for name in FINAL_NORMS if hasattr(tower, name))

        mean, std = (
            torch.tensor(pixels[name], dtype=torch.float64).view(3, 1, 1)
            for name in ("mean", "std")
        )
        self._scale = (pixels["rescale"] / std).to(device, torch.float32)
        self._offset = (-mean / std).to(device, torch.float32)
        self.identity = {
            "config": canonical_config(config),
            "weights": weights,
            "pixels": pixels,
            "precision": settings.precision,
        }

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        """Tokens are in the chosen precision."""
        x_NCHW = torch.addcmul(self._offset, pixels_NCHW, self._scale).to(self._dtype)
        self._tower(**_inputs(self._tower.config.model_type, self._shape.grid_hw, x_NCHW))
        specials = self._shape.special_tokens
        normed = {layer: self._norm(self._outputs.pop(layer)) for layer in self._shape.layers}
        patches = {layer: tokens_NND[:, specials:] for layer, tokens_NND in normed.items()}
        return Tokens(normed[self._shape.layers[-1]][:, :specials], patches)

    def _keep(self, layer: int, _block: nn.Module, _args: Any, output: Any) -> None:
        self._outputs[layer] = output[0] if isinstance(output, tuple) else output


def _blocks(tower: Any, last: int) -> nn.ModuleList:
    """The tower's blocks up to `last`; those above it are dropped."""
    depth = tower.config.num_hidden_layers
    blocks = next(
        part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == depth
    )
    del blocks[last + 1 :]
    return blocks


def _inputs(model_type: str, grid_hw: tuple[int, int], x_NCHW: torch.Tensor) -> dict[str, Any]:
    """Arguments of the tower's forward. Position embeddings are interpolated to sizes other than
    the one trained at."""
    if (
        model_type == "siglip2_vision_model"
    ):  # takes flat patches (N, P, patch * patch * 3) of any grid
        blocks = x_NCHW.unflatten(3, (grid_hw[1], -1)).unflatten(2, (grid_hw[0], -1))
        return {
            "pixel_values": blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor(grid_hw, device="cpu").expand(len(x_NCHW), 2),
        }
    if model_type.startswith("dino"):  # these interpolate, or rotate, unasked
        return {"pixel_values": x_NCHW}
    return {"pixel_values": x_NCHW, "interpolate_pos_encoding": True}


def _pixels(settings: Any, folder: Path | None) -> dict[str, Any]:
    """Normalisation of pixels to input, (pixel * rescale - mean) / std, as plain JSON."""
    file = folder / "preprocessor_config.json" if folder else None
    table = json_object(file) if file and file.is_file() else {}
    rescale = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    if not _are_numbers([rescale]):
        raise BadInput(f"{file}: rescale_factor must be a number, found {rescale!r}")
    if settings.mean is not None:
        return {"rescale": rescale, "mean": list(settings.mean), "std": list(settings.std)}
    if folder is None:
        return {"rescale": rescale, "mean": [0.5] * 3, "std": [0.5] * 3}
    if not table.get("do_normalize", True):
        return {"rescale": rescale, "mean": [0.0] * 3, "std": [1.0] * 3}
    named: dict[str, Any] = {"mean": table.get("image_mean"), "std": table.get("image_std")}
    good = all(
        isinstance(values, list) and len(values) == 3 and _are_numbers(values)
        for values in named.values()
    )
    if not good or min(named["std"]) <= 0:
        raise BadInput(
            f"model {settings.model} does not say how pixels are normalised: no image_mean and "
            "image_std of three numbers, "
            "the latter above 0, in its preprocessor_config.json",
            "give them in the spec's [encoder] table, for example mean = [0.5, 0.5, 0.5] and std = "
            "[0.5, 0.5, 0.5]",
        )
    return {"rescale": rescale} | {
        name: [float(value) for value in values] for name, values in named.items()
    }


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite; JSON's true and false are no numbers."""
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
