"""The command line: parsing and printing only. Heavy imports wait until a command needs them, so
that --help is quick."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from typer.models import CommandInfo

# Importing a file of commands registers them.
from pipeline.cli import ask, cache, plan, start, sweep, train, verify  # noqa: F401
from pipeline.cli.about import commands as about_commands  # noqa: F401
from pipeline.cli.bench import commands, training_commands  # noqa: F401
from pipeline.cli.bench.commands import bench_app
from pipeline.cli.bench.training import step_commands  # noqa: F401
from pipeline.cli.checks import check_command  # noqa: F401
from pipeline.cli.manifests import build, edits, several  # noqa: F401
from pipeline.cli.options import app
from pipeline.cli.share import checkpoints, features, hub, runs  # noqa: F401
from pipeline.cli.talk import log_file, loudness
from pipeline.config.outside import one_call
from pipeline.device import is_out_of_memory
from pipeline.errors import StillframeError, count_text, in_one_line

BENCHES = (
    "extract",
    "read",
    "write",
    "startup",
    "leases",
    "codecs",
    "temporal",
    "forecast",
    "step",
    "keep",
    "epoch",
    "plan",
    "sweep",
    "report",
    "search",
)
LESS = (
    "next: ask for less at once (training: a higher training.accumulate, lower windows.frames or "
    "model.width; extraction: a lower store.batch_frames), or give it more memory"
)
EXTRA = "Got unexpected extra argument"
"""How typer begins where a command has more arguments than it takes."""
NO_OPTION = "No such option: --plugins"
"""What typer says of an option of all commands behind the command."""
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def _name(command: CommandInfo) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))


def _in_order(registered: list[CommandInfo], names: Sequence[str]) -> list[CommandInfo]:
    """Visible commands as `names` has them, then the hidden ones: words of earlier versions."""
    return sorted(
        registered,
        key=lambda command: len(names) if command.hidden else names.index(_name(command)),
    )


bench_app.registered_commands = _in_order(bench_app.registered_commands, BENCHES)


@functools.cache
def program() -> Any:
    """All commands. `app` itself would make them of their functions anew at every call, which takes
    longer than many a command."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 ok, 1 failed, 2 bad input, 3 finished with
    failures listed."""
    words = sys.argv[1:] if arguments is None else arguments
    with loudness.loudness_of_call(), log_file.logs_of_call(words):
        try:
            code = _exit_code(loudness.flags_first(words))
        except BaseException:  # a defect, of which the log is to tell, too
            log_file.note(traceback.format_exc())
            raise
        log_file.end(code)
        return code


def _exit_code(words: list[str]) -> int:
    """Runs one command, and says what was wrong."""
    try:
        with one_call():
            code = program()(words, prog_name="stillframe", standalone_mode=False)
    except typer.Exit as stop:  # a RuntimeError, too
        code = stop.exit_code
    except StillframeError as error:
        next_step = f"; next: {error.hint}" if error.hint else ""
        _say(in_one_line(f"error: {error.message}{next_step}"))
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _say(in_one_line(f"error: {what}; next: check the path, its rights and the free space"))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        _say(f"error: this machine has not enough for it: {text or 'no memory left'}; {LESS}")
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _say(_usage(error.format_message(), getattr(error, "ctx", None), words))
        return 2
    if code == INTERRUPTED:
        _say("stopped; what was finished is kept, run the same command again to go on")
    return code if isinstance(code, int) else 0


def _say(text: str) -> None:
    """One line on stderr; with --verbose, where in the code the error is from comes first.
    rich is imported no sooner than there is something to say."""
    from pipeline.cli import console

    if loudness.is_verbose() and sys.exception() is not None:
        console.say(traceback.format_exc().rstrip())
    console.say_error(text)


def _usage(message: str, context: typer.Context | None, words: Sequence[str]) -> str:
    """typer's own words on a missing argument or an unknown option, with the help to read
    next."""
    command = context.command_path.removeprefix(context.find_root().command_path) if context else ""
    if message.startswith(NO_OPTION):
        return (
            f"error: --plugins is no option of{command}: it comes before the command; next: "
            f"stillframe --plugins PATH{command} ..."
        )
    if message.startswith(EXTRA) and len(caches := _caches_among(words)) > 1:
        return (
            f"error: stillframe{command} reads one cache, and {len(caches)} are given: "
            f"{'; '.join(caches)}; next: write the folder of the one that is meant"
        )
    return f"error: {message.rstrip('.')}; next: stillframe{command} --help"


def _caches_among(words: Sequence[str]) -> list[str]:
    """The caches among the words of a command, each with what tells it from the others: a pattern
    such as caches/NAME-* matches those of every data set in a folder."""
    from pipeline.cache.cache import Cache
    from pipeline.cache.layout import HEADER_FILE

    texts = []
    for word in words:
        if (Path(word) / HEADER_FILE).is_file():
            with suppress(StillframeError, OSError):
                header = Cache(word).header
                videos = count_text(sum(map(len, header.plan.values())), "video")
                texts.append(f"{word} ({videos} of {header.root})")
    return texts


def entry() -> None:
    """The console script."""
    # Compute threads that spin for long while they wait steal the cores from the threads that
    # read, decode and write; threads that sleep at once take longer to wake than many an operation
    # lasts. This many turns of GNU OpenMP are some microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # A letter that the terminal's encoding lacks, or a byte of a file name that is no letter, is
    # spelled out, as Python does on stderr by itself.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _keep_interrupts
    sys.exit(main())


def _keep_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised while it cleans up an object, a Ctrl-C too, which then comes
    again a moment later, as a signal to the main thread: that also wakes it where it waits."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        main_thread = threading.main_thread().ident
        threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
