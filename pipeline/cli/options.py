"""What commands share: the application, its options, and how a name on the command line becomes a
thing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli.about.version import version_text
from pipeline.cli.talk import loudness
from pipeline.config.shipped import named_file as named_file
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.extract.launchers.contract import EnginePlugin
    from pipeline.train.distributed import Ranks

FINISHED_WITH_FAILURES = 3

COMMANDS = (
    "manifest", "extract", "derive", "status", "verify", "diff", "spot-check", "plan",
    "baselines", "predictability", "search", "train", "sweep", "evaluate", "stream",
    "import-checkpoint", "import-features", "export", "export-features", "push", "pull", "report",
    "demo", "list", "show", "check-plugin", "doctor",
)  # fmt: skip
"""In the order in which --help lists them: that in which they are used, from videos to scores."""


class HelpAlone(TyperGroup):
    """A group that shows its help, and has done what it was asked for, where no command is
    given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As if the help was asked for."""
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))


class InOrder(HelpAlone):
    """The commands in the order of `COMMANDS`, then the others: groups, words of earlier
    versions."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names as --help lists them."""
        others = [name for name in super().list_commands(ctx) if name not in COMMANDS]
        return [*COMMANDS, *others]


class CommandOrGroup(TyperGroup):
    """A command with arguments and options of its own, which is a group where the first argument
    is the name of one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments and options of the command itself may come in any order, which those of a
        group may not; what comes after the name of a command of the group is left to it."""
        if args and args[0] in self.commands:
            ctx.invoked_subcommand, ctx.args = args[0], args[1:]
            return ctx.args
        ctx.allow_interspersed_args, ctx.allow_extra_args = True, False
        return super(TyperGroup, self).parse_args(ctx, args)

    def invoke(self, ctx: Any) -> object:
        """The command itself, or else one of the group."""
        if ctx.invoked_subcommand is None:
            return super(TyperGroup, self).invoke(ctx)
        command = self.commands[ctx.invoked_subcommand]
        # Beside this one and not below it, whose arguments would stand in its usage.
        name = f"{ctx.info_name} {ctx.invoked_subcommand}"
        with command.make_context(name, ctx.args, parent=ctx.parent) as inner:
            return command.invoke(inner)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Without the COMMAND that a group asks for."""
        return super(TyperGroup, self).collect_usage_pieces(ctx)


app = typer.Typer(
    name="stillframe",
    cls=InOrder,
    help="A frozen image model, a token cache and a small recurrent temporal module make a video "
    "model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        from pipeline.cli import console

        console.show(f"stillframe {version_text()}")
        raise typer.Exit


@app.callback()
def common(
    plugins: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A file of a plug-in of your own, or a folder of such files; may be given many "
            "times.",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Say nothing but results and errors, and show no progress."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            help="Also say what is read and chosen, and when; show where in the code an error is "
            "from.",
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version, and the commit of a checkout, and exit.",
        ),
    ] = False,
) -> None:
    """A frozen image model, a token cache and a small recurrent temporal module make a video
    model."""
    if quiet or verbose:
        from pipeline.cli import console

        loudness.choose(quiet, verbose, console.say)
    if plugins:
        from pipeline.config.plugins import add

        for path in plugins:
            add(path)


manifest_app = typer.Typer(cls=CommandOrGroup, rich_markup_mode=None)
app.add_typer(manifest_app, name="manifest")

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

Forecaster = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="A run that forecasts tokens: what RUN will say of later frames."
    ),
]
Ahead = Annotated[
    list[float] | None,
    typer.Option(
        metavar="SECONDS",
        help="How far ahead; may be given many times. Default: the horizons of the forecaster.",
    ),
]

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A video file, a folder of images, an address (rtsp, http, tcp, udp), or - for "
        "standard input.",
    ),
]
Camera = Annotated[
    str | None,
    typer.Option(metavar="N", help="A camera of this machine, by its number or name."),
]
RawSize = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Standard input is raw rgb24 frames of this size."),
]
RawFps = Annotated[float | None, typer.Option(min=0.001, max=1000, help="Raw frames a second.")]
EveryFrame = Annotated[
    bool,
    typer.Option("--every-frame", help="Let a live source wait, instead of dropping frames."),
]
TimeoutS = Annotated[
    float,
    typer.Option(min=0.1, help="Seconds without a frame after which a live source has stalled."),
]
FollowedJson = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help='What to follow from the first frame on: {"boxes": [[x0, y0, x1, y1]]} in [0, 1].',
    ),
]
AskedTexts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="How much is the video like this text (retrieve; may be repeated); or a question.",
    ),
]
StartS = Annotated[
    float,
    typer.Option(
        "--from",
        metavar="SECONDS",
        min=0,
        help="Begin with the frame on screen so long after the first one.",
    ),
]

SpecOption = Annotated[
    str, typer.Option(help="What to cache: a .toml file, or the name of a shipped spec.")
]
SpecArgument = Annotated[
    str, typer.Argument(help="What to cache: a .toml file, or the name of a shipped spec.")
]
RecipeOption = Annotated[
    str, typer.Option(help="What to train: a .toml file, or the name of a shipped recipe.")
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="What to train: a .toml file, the name of a shipped recipe, or a run (its folder or "
        "run.json) with all that it was made with."
    ),
]
CacheFolder = Annotated[str, typer.Argument(help="A cache: its folder or URL.")]
CachesFolder = Annotated[
    str, typer.Option(help="Folder or URL for caches; each gets a name of its own in it.")
]
Root = Annotated[Path | None, typer.Option(help="Where the videos are, if they were moved.")]
Decoders = Annotated[
    int, typer.Option(min=1, help="Processes that decode videos, for each worker.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

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
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Also log every run to wandb, mlflow or tensorboard; may be given many times.",
    ),
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="As --track tensorboard.")]
Logs = Annotated[
    Path,
    typer.Option(
        help="Folder for the logs of an engine's workers, and for that of an extraction to a URL."
    ),
]


def torch_device(name: str | None) -> torch.device | None:
    """The device of that name, None where none was named. Raises BadInput where it does not exist
    or cannot compute."""
    import torch

    if name is None:
        return None
    names = "cpu, cuda or cuda:1"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"no device called '{name}'", names) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            f"device '{name}' asks for CUDA, which this machine or this torch does not have",
            "--device cpu",
        )
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(
            f"device '{name}' cannot be used: {str(error).splitlines()[0]}", names
        ) from error
    return device


def other_manifest(folder: Path | str | None) -> Manifest | None:
    """The manifest in a folder that --manifest names, or a run."""
    from pipeline.datasets.manifest.manifest import Manifest

    return None if folder is None else Manifest.load(Path(folder))


def tracker_names(track: list[str] | None, tensorboard: bool) -> list[str]:
    """The trackers that --track and --tensorboard ask for."""
    return [*(track or []), *(["tensorboard"] if tensorboard else [])]


def make_engine(
    name: str | None, workers: int, sets: list[str], *, together: bool = False
) -> EnginePlugin | None:
    """The engine of that name with its settings, None where this process does the work. More than
    one worker are processes of this machine unless an engine is named. `together`: they are the
    processes of one job, which one worker starts."""
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override

    if name is None and workers == 1:
        if sets:
            raise BadInput(
                f"--engine-set {sets[0]} is for an engine, and none is named", "--engine slurm"
            )
        return None
    name = plugins.plugin_name("engine", name or "local")
    plugin = plugins.load("engine", name)
    engine: EnginePlugin = plugin(
        plugins.settings("engine", name, override({}, sets), f"engine '{name}'"),
        1 if together else workers,
    )
    return engine


def require_one_master(ranks: Ranks) -> None:
    """Raises BadInput where an engine's workers would train beside what torchrun has started."""
    if ranks.size > 1:
        raise BadInput(
            f"an engine starts workers of its own, and torchrun has started {ranks.size}",
            "leave one out",
        )
