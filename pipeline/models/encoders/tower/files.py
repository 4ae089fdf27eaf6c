"""Where the files of a model are, in a local folder or in the hub's cache, and which of them may be
opened: JSON and safetensors, inside the folder."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors

from pipeline.config.json_files import json_value
from pipeline.config.regular_files import open_regular, read_regular
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import MAY_FETCH

JSON_FILES = ["config.json", "preprocessor_config.json", "processor_config.json"]
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
MAX_JSON_BYTES = 2**26
"""Largest JSON file that is parsed; the index of the largest models is some megabytes."""
LFS_POINTER = b"version https://git-lfs"
"""How the small text begins that Git leaves in the place of a large file until LFS fetches it."""


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
                name,
                revision=settings.revision,
                allow_patterns=files,
                local_files_only=not MAY_FETCH.get(),
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
        if not MAY_FETCH.get():
            raise BadInput(
                f"model '{name}', which the cache or run names, is not on this machine, and is not "
                "fetched for that",
                f"if you trust it: hf download {name}",
            ) from error
        raise BadInput(
            f"model '{name}' looks like a hub id; it is not in the local cache, and the hub cannot "
            "be reached",
            f"where there is a network (and HF_HUB_OFFLINE is not set): hf download {name}; or "
            "give a local folder",
        ) from error


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises BadInput where the file holds none."""
    try:
        data = read_regular(file, MAX_JSON_BYTES)
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    _refuse_pointer(file, data)
    try:
        table = json_value(data)
    except ValueError as error:
        raise BadInput(f"{file} is not valid JSON: {error}", "fetch it again") from error
    if not isinstance(table, dict):
        raise BadInput(
            f"{file}: wanted a JSON object, found {textwrap.shorten(str(table), 40)}",
            "fetch it again",
        )
    return table


def _refuse_pointer(file: Path, start: bytes) -> None:
    """Raises BadInput where `file`, which begins with `start`, is what Git LFS leaves in the place
    of a file that it has not fetched."""
    if start.startswith(LFS_POINTER):
        raise BadInput(
            f"{file} is a Git LFS pointer: the file itself was not fetched",
            f"git lfs pull, in {file.parent}",
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, all of them regular files of its folder. Raises BadInput
    where there are none, where one is missing, or where one lies elsewhere: an index comes with the
    model, and what it names is not trusted."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = _indexed_files(index)
    elif list(folder.glob("*.bin")):
        raise BadInput(
            f"{folder} has no model.safetensors, and its pickled weights (.bin) are not read",
            "where you trust them, load the model with transformers and call save_pretrained, "
            "which writes safetensors",
        )
    else:
        raise BadInput(f"{folder} has no model.safetensors", "fetch the model's weights again")
    for file in files:
        _refuse_link_out(file)
        with open_regular(file) as stream:
            _refuse_pointer(file, stream.read(len(LFS_POINTER)))
    return files


def _indexed_files(index: Path) -> list[Path]:
    """The files that an index names, each of them there."""
    names = json_object(index).get("weight_map")
    if not (
        isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())
    ):
        raise BadInput(f"{index} has no weight_map from weights to files", "fetch it again")
    distinct = sorted({*names.values()})
    for name in distinct:
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise BadInput(
                f"{index} names {name!r}, which is not the name of a file in its own folder",
                "fetch the model again, from a source that you trust",
            )
        if not name.endswith(".safetensors"):
            raise BadInput(
                f"{index} names {name!r}, and only safetensors are read: other weights are "
                "pickled, and could run code",
                "where you trust them, load the model with transformers and call save_pretrained, "
                "which writes safetensors",
            )
    files = [index.parent / name for name in distinct]
    gone = [file.name for file in files if not os.path.isfile(file)]  # noqa: PTH113 - Path's raises for long names
    if gone:
        raise BadInput(
            f"{index.parent} lacks {len(gone)} of {len(files)} weight files, the first is "
            f"{gone[0]}",
            "fetch it again",
        )
    return files


def _refuse_link_out(file: Path) -> None:
    """Raises BadInput where `file` is a link that leads out of its folder, to anything but the
    blobs of a hub cache: there, links from a snapshot to the blobs beside it are the rule."""
    target = file.resolve()
    if target.is_relative_to(file.parent.resolve()):
        return
    if target.parent.name == "blobs" and target.parent.parent.name.startswith("models--"):
        return
    raise BadInput(
        f"{file} is a link to {target}, outside of the model's folder", "copy the file in its place"
    )
