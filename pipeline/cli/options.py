"""What commands share: the application, its options, and how a name on the command line becomes a
thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.extract.launchers.contract import EnginePlugin

FINISHED_WITH_FAILURES = 3

app = typer.Typer(
    name="stillframe",
    help="A frozen image model, a token cache and a small recurrent temporal module make a video model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be given many times."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print plain JSON on stdout.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:1. Default: cuda where there is one.")
]
ManifestFolder = Annotated[
    Path | None, typer.Option("--manifest", help="Other clips or labels over the same videos.")
]
AllowMissing = Annotated[
    bool, typer.Option(help="Leave out clips that the cache does not cover, and say how many.")
]

EngineName = Annotated[
    str | None,
    typer.Option("--engine", help="Who does it: local, slurm or ray. Default: this process."),
]
Workers = Annotated[int, typer.Option(min=1, help="Workers of the engine, each with a device.")]
EngineSets = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-set", metavar="KEY=VALUE", help="Setting of the engine, as partition=gpu."
    ),
]
Logs = Annotated[Path, typer.Option(help="Folder for the logs of an engine's workers.")]


def say(text: str) -> None:
    from pipeline.cli import console

    console.say(text)


def torch_device(name: str | None) -> torch.device | None:
    import torch

    if name is None:
        return None
    known = "cpu, cuda or cuda:1"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"no device called '{name}'", known) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            f"device '{name}' asks for CUDA, which this machine or this torch does not have",
            "--device cpu",
        )
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(
            f"device '{name}' cannot be used: {str(error).splitlines()[0]}", known
        ) from error
    return device


def other_manifest(folder: Path | None) -> Manifest | None:
    from pipeline.datasets.manifest.manifest import Manifest

    return None if folder is None else Manifest.load(folder)


def recipe_file(name: str) -> Path:
    from pipeline.config.recipe import shipped_recipes

    return named_file("recipe", name, shipped_recipes())


def named_file(what: str, name: str, shipped: Mapping[str, Path]) -> Path:
    """A path as it is; otherwise what is shipped under that name."""
    from pipeline.errors import unknown_name

    if name.endswith((".toml", ".json")) or "/" in name:
        return Path(name)
    if name not in shipped:
        raise unknown_name(what, name, shipped)
    return shipped[name]


def make_engine(name: str | None, workers: int, sets: list[str]) -> EnginePlugin | None:
    """More than one worker are processes of this machine unless an engine is named."""
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override

    if name is None and workers == 1:
        if sets:
            raise BadInput(
                f"--engine-set {sets[0]} is for an engine, and none is named", "--engine slurm"
            )
        return None
    name = name or "local"
    plugin = plugins.load("engine", name)
    made: EnginePlugin = plugin(
        plugins.settings("engine", name, override({}, sets), f"engine '{name}'"), workers
    )
    return made
