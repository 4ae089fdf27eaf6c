"""The model types of transformers that serve as encoders: one entry of `MODEL_TYPES` for each.

A type fits where it turns a square image of any number of patches, or of one number alone, into a
sequence of one width: special tokens first, then one token for each patch, row by row.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pipeline.errors import BadInput

Arguments = Callable[[torch.Tensor, tuple[int, int]], dict[str, Any]]
"""Makes the arguments of a tower's forward from normalised pixels (N, C, H, W) and the patch grid
(rows, columns)."""
PositionCheck = Callable[[Any, int], None]
"""Raises BadInput where the positions that a configuration describes do not serve square frames of
that many pixels."""


def image_side(config: Any) -> int:
    """Side in pixels of the square image that a tower was trained at. Raises BadInput where the
    configuration says anything else than one square."""
    size = config.image_size
    sides = size if isinstance(size, list | tuple) else (size, size)
    whole = all(type(side) is int and side >= 1 for side in sides)
    if not whole or len(sides) != 2 or sides[0] != sides[1]:
        raise BadInput(
            f"this encoder's image_size is {size}: its position embeddings are not those of a "
            "square, and frames are squares",
            "use a model trained at square images; transformers would read its position embeddings "
            "as another grid, or stop",
        )
    side: int = sides[0]
    return side


def _learned(config: Any, _size_px: int) -> None:
    """One vector for each patch of a square image: interpolated to other squares."""
    side = image_side(config)
    if side < config.patch_size:
        raise BadInput(
            f"this encoder's image_size is {side}, less than its patch_size, {config.patch_size}"
        )


def _any_size(_config: Any, _size_px: int) -> None:
    """Positions are computed for every grid (rotary embeddings)."""


def _square_number(config: Any, _size_px: int) -> None:
    """One vector for each of `num_patches` patches of a square, whatever their size in pixels."""
    count = config.num_patches
    if type(count) is not int or count < 1 or math.isqrt(count) ** 2 != count:
        raise BadInput(
            f"this encoder's num_patches is {count}: its position embeddings are not those of a "
            "square, and frames are squares"
        )


def _radio(config: Any, _size_px: int) -> None:
    """One vector for each patch of the largest image there is: cut or interpolated to others."""
    side = config.max_img_size
    if type(side) is not int or side < config.patch_size:
        raise BadInput(
            f"this encoder's max_img_size is {side}; wanted a whole number, of at least its "
            f"patch_size, {config.patch_size}"
        )


def _aimv2(config: Any, size_px: int) -> None:
    """Computed for every grid in models of native resolution, else learned for one size alone."""
    if config.is_native:
        if config.hidden_size % 4:
            raise BadInput(
                f"this encoder's hidden_size is {config.hidden_size}, not a multiple of 4, which "
                "its computed positions need"
            )
        return
    _learned(config, size_px)
    grid = image_side(config) // config.patch_size
    if size_px != grid * config.patch_size:
        raise BadInput(
            f"size_px = {size_px}, but this encoder has positions for {grid} x {grid} patches "
            f"alone, which transformers does not interpolate",
            f"size_px = {grid * config.patch_size}, or a model of native resolution",
        )


def _pixels_alone(x_NCHW: torch.Tensor, _grid_hw: tuple[int, int]) -> dict[str, Any]:
    """For towers that interpolate or compute positions unasked."""
    return {"pixel_values": x_NCHW}


def _interpolated(x_NCHW: torch.Tensor, _grid_hw: tuple[int, int]) -> dict[str, Any]:
    """For towers that interpolate positions where they are asked to."""
    return {"pixel_values": x_NCHW, "interpolate_pos_encoding": True}


def _unmasked(x_NCHW: torch.Tensor, grid_hw: tuple[int, int]) -> dict[str, Any]:
    """For masked auto-encoders, which sort patches by noise and drop the last: ascending numbers
    leave them in their order, and a mask ratio of 0 drops none."""
    rows, columns = grid_hw
    noise = torch.arange(rows * columns, dtype=torch.float32, device=x_NCHW.device)
    return _interpolated(x_NCHW, grid_hw) | {"noise": noise.expand(len(x_NCHW), -1)}


def _flat_patches(x_NCHW: torch.Tensor, grid_hw: tuple[int, int]) -> dict[str, Any]:
    """For towers that take flat patches (N, patches, patch * patch * 3) of any grid."""
    blocks = x_NCHW.unflatten(3, (grid_hw[1], -1)).unflatten(2, (grid_hw[0], -1))
    return {
        "pixel_values": blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor(grid_hw, device="cpu").expand(len(x_NCHW), 2),
    }


class ModelType(NamedTuple):
    """How a tower of one type is made, called and read."""

    model_class: str
    """Class of transformers that is the tower alone."""
    norm: str | None = "layernorm"
    """Attribute of the tower that is its final norm, through which every recorded layer passes;
    None where the type has none, and its tokens are the blocks' own outputs."""
    specials: tuple[int | str, ...] = (1,)
    """Special tokens before the patches: numbers, and configuration keys that count them."""
    positions: PositionCheck = _learned
    """Says whether the positions serve frames of a size."""
    arguments: Arguments = _interpolated
    """What the tower's forward is called with."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """Configuration keys and the values that every tower is made with."""
    unread: frozenset[str] = frozenset()
    """Configuration keys that do not reach the tokens, beside those of every type."""

    def special_tokens(self, config: Any) -> int:
        """S, the special tokens of a frame. Raises BadInput where the configuration counts them in
        anything but whole numbers."""
        counts = [
            part if isinstance(part, int) else getattr(config, part) for part in self.specials
        ]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise BadInput(f"this encoder's {self.specials[-1]} is {counts[-1]}; wanted 0 or more")
        return sum(counts)


REGISTERS = (1, "num_register_tokens")
"""CLS, and registers after it."""
MASKING = frozenset(
    {
        *("decoder_hidden_size", "decoder_intermediate_size", "decoder_num_attention_heads"),
        *("decoder_num_hidden_layers", "mask_ratio", "norm_pix_loss"),
    }
)
"""Configuration keys that matter to the training of a masked auto-encoder alone."""

MODEL_TYPES = {
    "aimv2_vision_model": ModelType("Aimv2VisionModel", "rms_norm", (), _aimv2, _pixels_alone),
    "beit": ModelType("BeitModel", arguments=_pixels_alone),
    "blip_2_vision_model": ModelType("Blip2VisionModel", "post_layernorm"),
    "chinese_clip_vision_model": ModelType("ChineseCLIPVisionModel", "post_layernorm"),
    "clip_vision_model": ModelType("CLIPVisionModel", "post_layernorm"),
    "data2vec-vision": ModelType("Data2VecVisionModel", arguments=_pixels_alone),
    "deit": ModelType("DeiTModel", specials=(2,)),
    "dinov2": ModelType("Dinov2Model", arguments=_pixels_alone),
    "dinov2_with_registers": ModelType(
        "Dinov2WithRegistersModel", specials=REGISTERS, arguments=_pixels_alone
    ),
    "dinov3_vit": ModelType("DINOv3ViTModel", "norm", REGISTERS, _any_size, _pixels_alone),
    "ijepa": ModelType("IJepaModel", specials=()),
    "metaclip_2_vision_model": ModelType("MetaClip2VisionModel", "post_layernorm"),
    "mlcd_vision_model": ModelType(
        "MLCDVisionModel", "post_layernorm", positions=_any_size, arguments=_pixels_alone
    ),
    "pixio": ModelType("PixioModel", specials=("n_cls_tokens",), arguments=_pixels_alone),
    "radio": ModelType(
        "RadioModel", None, ("num_cls_tokens", "num_registers"), _radio, _pixels_alone
    ),
    "sapiens2": ModelType("Sapiens2Model", "norm", REGISTERS, _any_size, _pixels_alone),
    "siglip2_vision_model": ModelType(
        "Siglip2VisionModel", "post_layernorm", (), _square_number, _flat_patches
    ),
    "siglip_vision_model": ModelType("SiglipVisionModel", "post_layernorm", ()),
    "tipsv2_vision_model": ModelType(
        "Tipsv2VisionModel", specials=REGISTERS, arguments=_pixels_alone
    ),
    "vit": ModelType("ViTModel"),
    "vit_mae": ModelType(
        "ViTMAEModel", arguments=_unmasked, fixed=(("mask_ratio", 0.0),), unread=MASKING
    ),
    "vit_msn": ModelType("ViTMSNModel"),
}
"""Model type -> how its towers are made, called and read."""
