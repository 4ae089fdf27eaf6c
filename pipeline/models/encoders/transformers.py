"""A frozen vision tower of Hugging Face transformers: from the hub, from a local folder, or with
seeded random weights.

Any checkpoint of a type in `tower.model_types.MODEL_TYPES` serves, alone or inside a two-tower
model, of which only the vision half is read. Weights come from safetensors inside the model's own
folder; nothing is unpickled and no code is fetched. Every recorded block output passes through the
tower's own final norm, if it has one, which for the last block gives the model's own last hidden
state (CLIP and its kin excepted: their models norm CLS alone). Blocks above the last recorded layer
are dropped, so special tokens are those of the last *recorded* layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.plugins import Seed
from pipeline.errors import BadInput
from pipeline.models.compiling import require_compiler
from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings
from pipeline.models.encoders.tower.config import (
    canonical_config,
    reason,
    tower_config,
    tower_shape,
)
from pipeline.models.encoders.tower.files import JSON_FILES, WEIGHT_FILES, model_folder
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.models.encoders.tower.pixels import normalisation
from pipeline.models.encoders.tower.weights import empty_tower, pretrained_tower, random_tower
from pipeline.records import Tokens, TokenShape


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
        """RGB mean in [0, 1]; None: the model's own (of the image_processor in
        processor_config.json, else of preprocessor_config.json), or 0.5 with `config`."""
        std: tuple[float, float, float] | None = None
        """RGB standard deviation in [0, 1]; goes with `mean`."""
        precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
        """Number format in which the tower computes. "auto" becomes "bfloat16" where the device
        that encodes multiplies it in hardware, and else "float32"; the cache says which."""
        compile: bool = False
        """Whether extraction computes through torch.compile, in whole batches. Tokens differ in
        rounding, and so it is another cache."""

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

        @model_serializer(mode="wrap")
        def _without_compile(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
            """A spec that does not compile says nothing of it, as before there was a choice."""
            table: dict[str, Any] = dump(self)
            if not self.compile:
                del table["compile"]
            return table

    @classmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        return tower_shape(
            tower_config(settings, model_folder(settings, JSON_FILES)), settings.layers, size_px
        )

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        config = tower_config(settings, model_folder(settings, JSON_FILES))
        shape = tower_shape(config, settings.layers, size_px)
        with FlopCounterMode(display=False) as counter:
            _rehearse(config, shape, size_px)
        return counter.get_total_flops()

    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None:
        folder = model_folder(settings, JSON_FILES + WEIGHT_FILES)
        config = tower_config(settings, folder)
        self._shape = tower_shape(config, settings.layers, size_px)
        pixels = normalisation(settings, folder)
        _rehearse(config, self._shape, size_px)
        tower, weights = (
            pretrained_tower(folder, config) if folder else random_tower(config, settings.seed)
        )

        blocks = _blocks(tower, settings.layers[-1])
        for layer in settings.layers:
            blocks[layer].register_forward_hook(partial(self._keep, layer))
        self._outputs: dict[int, torch.Tensor] = {}
        self._dtype = getattr(torch, settings.precision)
        # Parameters alone: DINOv3's rotary frequencies stay in float32.
        for parameter in tower.parameters():
            parameter.data = parameter.data.to(self._dtype)
        self._tower = tower.eval().requires_grad_(False).to(device)
        self._type = MODEL_TYPES[config.model_type]
        self._norm = getattr(tower, self._type.norm) if self._type.norm else nn.Identity()

        mean, std = (
            torch.tensor(pixels[name], dtype=torch.float64).view(3, 1, 1)
            for name in ("mean", "std")
        )
        self._scale = (pixels["rescale"] / std).to(device, torch.float32)
        self._offset = (-mean / std).to(device, torch.float32)
        self.identity = {
            "config": canonical_config(config, self._type.unread),
            "weights": weights,
            "pixels": pixels,
            "precision": settings.precision,
        } | ({"compile": True} if settings.compile else {})
        self._compiles, self._frames, self._size_px = settings.compile, 0, size_px
        self._run = self._normed

    def prepare(self, frames: int) -> None:
        """Compiles, if the settings say so: for batches of this size, so that it happens once."""
        if not self._compiles or frames == self._frames:
            return
        require_compiler("encoder.compile", self._scale.device)
        self._run, self._frames = torch.compile(self._normed, dynamic=False), frames
        self(self._scale.new_zeros((frames, 3, self._size_px, self._size_px)))

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        """Tokens are in the chosen precision."""
        x_NCHW = torch.addcmul(self._offset, pixels_NCHW, self._scale).to(self._dtype)
        normed = self._in_whole_batches(x_NCHW) if self._frames else self._run(x_NCHW)
        specials = self._shape.special_tokens
        patches = {layer: tokens_NND[:, specials:] for layer, tokens_NND in normed.items()}
        return Tokens(normed[self._shape.layers[-1]][:, :specials], patches)

    def _in_whole_batches(self, x_NCHW: torch.Tensor) -> dict[int, torch.Tensor]:
        """What `_run` gives, which sees batches of `prepare`'s size alone: the last is padded."""
        whole = [
            self._run(F.pad(part, (0, 0) * 3 + (0, self._frames - len(part))))
            for part in x_NCHW.split(self._frames)
        ]
        layers = self._shape.layers
        return {layer: torch.cat([one[layer] for one in whole])[: len(x_NCHW)] for layer in layers}

    def _normed(self, x_NCHW: torch.Tensor) -> dict[int, torch.Tensor]:
        """Layer -> all its tokens (N, S + P, D)."""
        self._tower(**self._type.arguments(x_NCHW, self._shape.grid_hw))
        return {layer: self._norm(self._outputs.pop(layer)) for layer in self._shape.layers}

    def _keep(self, layer: int, _block: nn.Module, _args: Any, output: Any) -> None:
        self._outputs[layer] = output[0] if isinstance(output, tuple) else output


def _rehearse(config: Any, shape: TokenShape, size_px: int) -> None:
    """Takes one frame through the tower up to the last recorded layer, with shapes and without
    numbers. Raises BadInput where the tower cannot do it: what is wrong with a configuration often
    shows at the first frame alone."""
    try:
        with torch.device("meta"):
            tower = empty_tower(config)
            _blocks(tower, shape.layers[-1])
            x_NCHW = torch.empty(1, 3, size_px, size_px)
        # No longer within it: some types keep indices from call to call, and would keep empty ones.
        with torch.inference_mode():
            tower.eval()(**MODEL_TYPES[config.model_type].arguments(x_NCHW, shape.grid_hw))
    except Exception as error:  # transformers fails in any way over what it did not foresee
        raise BadInput(f"config of {config.model_type}: {reason(error)}") from error


def _blocks(tower: Any, last: int) -> nn.ModuleList:
    """The tower's blocks up to `last`; those above it are dropped."""
    depth = tower.config.num_hidden_layers
    blocks = next(
        part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == depth
    )
    del blocks[last + 1 :]
    return blocks
