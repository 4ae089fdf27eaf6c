"""A frozen vision tower of Hugging Face transformers: from the hub, from a local folder, or with
seeded random weights.

Any checkpoint of the families in `CLS_TOKENS` serves, alone or inside a two-tower model, of which
only the vision half is read. Weights come from safetensors; nothing is unpickled and no code is
fetched. Every recorded block output passes through the tower's own final norm, which for the last
block gives the model's own last hidden state (CLIP's excepted: its model norms CLS alone). Blocks
above the last recorded layer are dropped, so special tokens are those of the last *recorded* layer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors as hub_errors
from pydantic import model_validator
from safetensors import SafetensorError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import ACT2FN

from pipeline.config.plugins import Seed
from pipeline.errors import BadInput, unknown_name
from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings
from pipeline.records import Tokens, TokenShape

CLS_TOKENS = {
    "clip_vision_model": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "siglip2_vision_model": 0,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_msn": 1,
}
"""Model type -> leading CLS tokens; registers follow them where the configuration counts any, then
the patches."""

FINAL_NORMS = ("layernorm", "post_layernorm", "norm")
NOT_TOKENS = {
    *(
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
    ),
    *(
        "out_features",
        "out_indices",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "stage_names",
    ),
}
"""Configuration keys that do not reach the tokens."""
JSON_FILES = ["config.json", "preprocessor_config.json"]
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
UNUSABLE = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, hub_errors.StrictDataclassError),
)
"""What transformers raises over a configuration or weights that it cannot use: it checks little
before it computes."""


class Encoder(EncoderPlugin):
    """The tower in evaluation mode on one device; not to be called from two threads at once."""

    class Settings(EncoderSettings):
        """Which tower: exactly one of `model` and `config`."""

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
        return _shape(_config(settings, _folder(settings, JSON_FILES)), settings.layers, size_px)

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        config = _config(settings, _folder(settings, JSON_FILES))
        shape = _shape(config, settings.layers, size_px)
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
        folder = _folder(settings, JSON_FILES + WEIGHT_FILES)
        config = _config(settings, folder)
        self._shape = _shape(config, settings.layers, size_px)
        pixels = _pixels(settings, folder)
        tower, weights = _pretrained(folder, config) if folder else _random(config, settings.seed)

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
            "config": _canonical(config),
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
    """What the tower's forward takes. Position embeddings are interpolated to sizes other than the
    one trained at."""
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


def _folder(settings: Any, files: list[str]) -> Path | None:
    """The local folder that holds the model's `files`, fetched from the hub if need be; None for a
    tower from `config`."""
    name = settings.model
    if name is None:
        return None
    # Path.expanduser raises where there is no such user.
    local = Path(os.path.expanduser(name))  # noqa: PTH111
    if local.is_dir():
        if settings.revision is not None:
            raise BadInput(
                f"model {name} is a local folder, which has no revision", "drop the key 'revision'"
            )
        return local
    if name.startswith((".", "~", "/")) or name.count("/") != 1:
        raise BadInput(
            f"model '{name}' looks like a local folder, and there is none of that name",
            "relative paths start at the working directory; a hub id looks like "
            "facebook/dinov2-small",
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=settings.revision, allow_patterns=files
            )
        )
    except hub_errors.GatedRepoError as error:
        raise BadInput(
            f"model '{name}' is gated",
            f"accept its terms on huggingface.co/{name}, then: hf auth login",
        ) from error
    except (
        hub_errors.RepositoryNotFoundError,
        hub_errors.RevisionNotFoundError,
        hub_errors.HFValidationError,
    ) as error:
        at = f" at revision '{settings.revision}'" if settings.revision else ""
        raise BadInput(
            f"model '{name}'{at} is neither a folder here nor on the hub", "check the spelling"
        ) from error
    except OSError as error:
        raise BadInput(
            f"model '{name}' looks like a hub id; it is not in the local cache, and the hub cannot "
            "be reached",
            f"where there is a network (and HF_HUB_OFFLINE is not set): hf download {name}; or "
            "give a local folder",
        ) from error


def _config(settings: Any, folder: Path | None) -> Any:
    """The transformers configuration of the vision tower."""
    if folder is None:
        return _config_from_table(settings.config)
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"model {settings.model} has no config.json",
            "wanted a model saved by transformers' save_pretrained",
        )
    _json(folder / "config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except UNUSABLE as error:
        raise BadInput(
            f"model {settings.model}: its config.json cannot be used: {_reason(error)}"
        ) from error
    config = getattr(config, "vision_config", config)
    if config.model_type not in CLS_TOKENS:
        raise unknown_name("vision tower", config.model_type, CLS_TOKENS, f"model {settings.model}")
    return config


def _config_from_table(table: dict[str, Any]) -> Any:
    model_type = str(table.get("model_type"))
    if model_type not in CLS_TOKENS:
        raise unknown_name("vision tower", model_type, CLS_TOKENS, "config.model_type")
    known = transformers.AutoConfig.for_model(model_type).to_dict().keys() - NOT_TOKENS
    for key in table:
        if key not in known:
            raise unknown_name("key", key, known, f"config of {model_type}")
    try:
        return transformers.AutoConfig.for_model(**table)
    except UNUSABLE as error:
        raise BadInput(f"config of {model_type}: {_reason(error)}") from error


def _shape(config: Any, layers: tuple[int, ...], size_px: int) -> TokenShape:
    """Checks the configuration, and layers and size against it."""
    _check_config(config)
    depth, patch_px = config.num_hidden_layers, config.patch_size
    if not layers or list(layers) != sorted({*layers}):
        raise BadInput(f"layers must be ascending and different, found {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(
                f"layer {layer} is not there: this encoder has {depth} blocks, 0..{depth - 1}"
            )
    side, rest = divmod(size_px, patch_px)
    if rest or not side:
        legal = [str(count * patch_px) for count in (side, side + 1) if count]
        raise BadInput(
            f"size_px = {size_px} is not a whole number of this encoder's patches of {patch_px} px",
            f"near: {', '.join(legal)}",
        )
    specials = CLS_TOKENS[config.model_type] + getattr(config, "num_register_tokens", 0)
    return TokenShape(config.hidden_size, (side, side), specials, tuple(layers))


def _check_config(config: Any) -> None:
    """Refuses what transformers would trip over only later: in its constructors, or at the first
    frame."""
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        value = getattr(config, key)
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"this encoder's {key} is {value}; wanted one whole number of 1 or more")
    width, heads, channels = config.hidden_size, config.num_attention_heads, config.num_channels
    if width % heads:
        raise BadInput(
            f"this encoder's hidden_size is {width}, which its num_attention_heads, {heads}, do "
            "not divide"
        )
    if channels != 3:
        raise BadInput(
            f"this encoder's num_channels is {channels}; frames have 3: red, green and blue"
        )
    if config.hidden_act not in ACT2FN:
        raise unknown_name(
            "hidden_act", config.hidden_act, ACT2FN, f"config of {config.model_type}"
        )


def _pixels(settings: Any, folder: Path | None) -> dict[str, Any]:
    """How pixels become input: (pixel * rescale - mean) / std."""
    file = folder / "preprocessor_config.json" if folder else None
    table = _json(file) if file and file.is_file() else {}
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


def _json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises BadInput where the file holds none."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{file} is not valid JSON: {error}", "fetch it again") from error
    if not isinstance(table, dict):
        raise BadInput(
            f"{file}: wanted a JSON object, found {textwrap.shorten(str(table), 40)}",
            "fetch it again",
        )
    return table


def _pretrained(folder: Path, config: Any) -> tuple[Any, str]:
    """The tower with the folder's weights, in float32, and the sha256 of its weight files (one
    file: what sha256sum says)."""
    files = _weight_files(folder)
    try:
        with _quiet():
            tower, report = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except UNUSABLE as error:
        raise BadInput(
            f"the weights in {folder} cannot be read: {_reason(error)}",
            "fetch or convert them again",
        ) from error
    # transformers fills what it does not find with random numbers; pooling heads alone may go
    # missing, as no token needs them.
    missing = sorted(
        key for key in report["missing_keys"] if not key.startswith(("pooler.", "head."))
    )
    if missing:
        raise BadInput(
            f"{folder} lacks {len(missing)} weights of the tower, the first is {missing[0]}",
            "fetch it again",
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
    return tower, digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = _json(index).get("weight_map")
        if not (
            isinstance(names, dict)
            and names
            and all(isinstance(name, str) for name in names.values())
        ):
            raise BadInput(f"{index} has no weight_map from weights to files", "fetch it again")
        files = [folder / name for name in sorted({*names.values()})]
        gone = [file.name for file in files if not file.is_file()]
        if gone:
            raise BadInput(
                f"{folder} lacks {len(gone)} of {len(files)} weight files, the first is {gone[0]}",
                "fetch it again",
            )
        return files
    if list(folder.glob("*.bin")):
        raise BadInput(
            f"{folder} has no model.safetensors, and its pickled weights (.bin) are not read",
            "where you trust them, load the model with transformers and call save_pretrained, "
            "which writes safetensors",
        )
    raise BadInput(f"{folder} has no model.safetensors", "fetch the model's weights again")


def _random(config: Any, seed: int) -> tuple[Any, str]:
    """A tower with random weights, and the sha256 of their names and bytes. The global generator is
    left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            tower = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
        except UNUSABLE as error:
            raise BadInput(f"config of {config.model_type}: {_reason(error)}") from error
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return tower, digest.hexdigest()


def _canonical(config: Any) -> dict[str, Any]:
    """What sets this tower apart from its type's defaults, as plain JSON: a newer transformers may
    add keys without harm."""
    defaults = type(config)().to_dict()
    own = {
        key: value
        for key, value in config.to_dict().items()
        if key not in NOT_TOKENS and value != defaults.get(key)
    }
    canonical: dict[str, Any] = json.loads(json.dumps({**own, "model_type": config.model_type}))
    return canonical


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' loading report and progress bars; what they were set to comes back."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _reason(error: Exception) -> str:
    """One line; a KeyError would say its key alone."""
    text = repr(error) if isinstance(error, LookupError) or not str(error) else str(error)
    return textwrap.shorten(text, 300, placeholder=" ...")
