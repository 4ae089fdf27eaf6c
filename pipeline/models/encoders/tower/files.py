"""Where the files of a model are: in a local folder, or in the hub's cache."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors

from pipeline.errors import BadInput

JSON_FILES = ["config.json", "preprocessor_config.json"]
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


def model_folder(settings: Any, files: list[str]) -> Path | None:
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


def json_object(file: Path) -> dict[str, Any]:
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


def weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = json_object(index).get("weight_map")
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
