"""How much is said, and what is kept of it: --quiet, --verbose, and the logs of long commands."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from support.commands import assert_refused, call, digest, fine, process

from pipeline.cli import console
from pipeline.cli import main as main_module
from pipeline.cli.talk import log_file, loudness

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \d+ "


def lines(log: Path) -> list[str]:
    """The lines of a log, each without its time and process."""
    found = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(STAMP, line) for line in found), found
    return [re.sub(STAMP, "", line, count=1) for line in found]


# --quiet and --verbose


@pytest.fixture
def talkative(place, tmp_path) -> tuple:
    """A command that has something to say: a sibling differs, and steps are uneven."""
    shutil.copytree(place.cache, tmp_path / "caches" / place.cache.name)
    sets = ("--set", "frames.fps=4")
    return ("extract", place.spec, place.data, "--out", tmp_path / "caches", *sets, "--json")


@pytest.mark.parametrize("is_behind", [False, True])
def test_quiet_leaves_results_and_errors(talkative, is_behind):
    quiet = (*talkative, "--quiet") if is_behind else ("--quiet", *talkative)
    result = call(*quiet)
    assert (result.code, result.err) == (0, "")
    assert result.json["frames"] > 0
    loud = call(*talkative)  # all is there already, and some of the talk comes again
    assert "would be even" in loud.err and "differs in" in loud.err
    assert loud.json["fingerprint"] == result.json["fingerprint"]
    assert_refused(call("--quiet", "status", "nowhere"), "nowhere")


def test_quiet_shows_no_progress_and_no_warning(monkeypatch, capsys):
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    with loudness.loudness_of_call():
        loudness.choose(True, False, console.say)
        with console.progress("work") as update:
            update(1, 2, "steps")
        warnings.warn("mind this", stacklevel=1)  # an error elsewhere in these tests
        assert os.environ[loudness.DOWNLOAD_BARS] == "1"
    assert capsys.readouterr().err == ""
    assert loudness.DOWNLOAD_BARS not in os.environ and not loudness.is_quiet()
    with console.progress("work") as update:
        update(1, 2, "steps")
    assert capsys.readouterr().err == "work 1/2 steps\n"


def test_verbose_says_what_is_read_and_when(place, tmp_path):
    out = ("--out", tmp_path / "run")
    result = call("--verbose", "train", place.recipe, place.cache, *out, "--json")
    assert result.code == 0 and result.json["steps"] == 3
    said = [re.fullmatch(r" *(\d+\.\d\d) s  (.*)", line) for line in result.err.splitlines()]
    times = [float(match[1]) for match in said if match]
    texts = [match[2] for match in said if match]
    assert times == sorted(times)
    assert texts[0] == f"read recipe {place.recipe}"
    assert f"cache {place.cache} of 3 stores, device cpu" in texts
    (begins,) = [text for text in texts if text.startswith(f"run {tmp_path}/run begins: ")]
    assert re.search(r"begins: \d+ parameters, 4 windows an epoch$", begins)
    assert f"saved checkpoint of {tmp_path}/run at step 3" in texts
    assert any(text.startswith(f"scored {tmp_path}/run after step 3: ") for text in texts)
    again = call("train", place.recipe, place.cache, *out, "--verbose")
    assert f"run {tmp_path}/run goes on: " in again.err
    assert not logging.getLogger("pipeline").handlers
    assert fine("train", place.recipe, place.cache, *out).err == ""


def test_verbose_shows_where_an_error_is_from():
    result = call("list", "nothing", "--verbose")
    *trace, last = result.err.splitlines()
    assert result.code == 2 and last.startswith("error: no kind called 'nothing'")
    assert trace[0].startswith("Traceback") and trace[-1].startswith("pipeline.errors.BadInput: ")
    assert_refused(call("list", "nothing"), "no kind called 'nothing'")


def test_both_at_once_are_refused_and_no_value_is_taken_for_one(place):
    assert_refused(call("--quiet", "--verbose", "list"), "--quiet and --verbose", "leave one out")
    assert_refused(call("list", "--quiet", "--verbose"), "--quiet and --verbose")
    assert loudness.flags_first(["a", "--quiet", "--", "--verbose"]) == [
        "--quiet",
        "a",
        "--",
        "--verbose",
    ]
    assert_refused(call("--quietly", "list"), "--quietly")


# Logs


def test_a_training_keeps_a_log_and_appends_to_it(place, tmp_path):
    run = tmp_path / "run"
    sets = ("--set", "training.checkpoint_every=1")
    fine("train", place.recipe, place.cache, "--out", run, *sets)
    first = lines(run / "log.txt")
    command = f"$ stillframe train {place.recipe} {place.cache} --out {run} {' '.join(sets)}"
    assert first[0] == command
    assert re.fullmatch(r"stillframe \S+( \(.*\))?, Python \d+\.\d+\.\d+", first[1])
    assert re.match(r"train tiny 3/3 steps  loss \d", first[2])
    assert re.fullmatch(r"exit code 0 after \d+\.\d s", first[3]) and len(first) == 4
    fine("train", place.recipe, place.cache, "--out", run, *sets)
    assert lines(run / "log.txt") == first  # there was nothing to do
    (run / "last.json").unlink()
    fine("--quiet", "train", place.recipe, place.cache, "--out", run, *sets)
    both = lines(run / "log.txt")
    assert both[:4] == first and both[4] == command.replace("stillframe", "stillframe --quiet", 1)


def test_what_is_refused_leaves_no_log(place, tmp_path):
    before = digest(place.run)
    written = (place.run / "log.txt").read_bytes()
    assert call("train", "demo_depth", place.cache, "--out", tmp_path / "run").code == 2
    assert call("train", "demo_gru", place.cache, "--out", place.run).code == 2
    assert not (tmp_path / "run").exists()
    assert (digest(place.run), (place.run / "log.txt").read_bytes()) == (before, written)


def test_a_log_in_quiet_has_the_talk(talkative, tmp_path):
    call("--quiet", *talkative)
    (log,) = [
        path for path in tmp_path.glob("caches/*/log.txt") if "frames.fps=4" in path.read_text()
    ]
    assert any("would be even" in line for line in lines(log))
    assert any("differs in (this / that)" in line for line in lines(log))


def test_caches_have_logs_that_verify_knows(place, tmp_path):
    lines_of_cache = lines(place.cache / "log.txt")
    assert lines_of_cache[0].startswith(f"$ stillframe extract {place.spec} {place.data} --out ")
    assert len(commands(place.cache / "log.txt")) == 1
    assert fine("verify", place.cache, "--json").json["left_over"] == {}
    derived = fine(
        "derive", place.cache, "--out", tmp_path, "--set", "codec.name=int8", "--json"
    ).json["cache"]
    assert lines(Path(derived) / "log.txt")[0].startswith("$ stillframe derive ")
    assert fine("verify", derived, "--json").json["left_over"] == {}


def test_a_cache_in_an_object_store_has_its_log_in_the_folder_of_logs(place, tmp_path):
    out = f"memory://logs-{tmp_path.name}"
    made = call("extract", place.spec, place.data, "--out", out, "--logs", tmp_path / "l", "--json")
    assert made.code == 0, made
    (log,) = (tmp_path / "l").iterdir()
    assert log.name == f"{made.json['cache'].rpartition('/')[2]}.txt"
    assert lines(log)[0].startswith("$ stillframe extract ")


def test_a_sweep_keeps_a_log(place, tmp_path):
    file = tmp_path / "two.toml"
    file.write_text(f'recipe = "{place.recipe}"\n[axes]\n"training.learning_rate" = [0.1, 0.2]\n')
    call("sweep", file, place.cache, "--out", tmp_path / "sweep")
    found = lines(tmp_path / "sweep/log.txt")
    assert found[0].startswith(f"$ stillframe sweep {file} ") and found[-1].startswith(
        "exit code 0"
    )
    assert any(line.startswith("sweep two 6/6 steps of 2 of 2 runs") for line in found)


def test_a_killed_training_leaves_its_log_and_the_next_one_goes_on(place, tmp_path):
    run = tmp_path / "run"
    sets = ("--set", "training.steps=100000", "--set", "training.checkpoint_every=5")
    command = [sys.executable, "-m", "pipeline.cli", "train", place.recipe, place.cache]

    def until(begins: int, end: signal.Signals) -> list[str]:
        """The log after the command has begun so many times, and has been ended."""
        pipe = subprocess.PIPE
        words = [*map(str, command), "--out", str(run), *sets]
        running = subprocess.Popen(words, stdout=pipe, stderr=pipe)
        while not (run / "log.txt").is_file() or len(commands(run / "log.txt")) < begins:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(end)
        running.communicate()
        return lines(run / "log.txt")

    killed = until(1, signal.SIGKILL)
    assert len(killed) == 2 and killed[0].startswith("$ stillframe train ")
    stopped = until(2, signal.SIGINT)
    assert stopped[:2] == killed and stopped[2] == killed[0]
    assert stopped[-2].startswith("stopped; what was finished is kept")
    assert stopped[-1].startswith("exit code 130 after ")


def commands(log: Path) -> list[str]:
    return [line for line in lines(log) if line.startswith("$ ")]


def test_a_full_disk_ends_the_log_and_not_the_training(place, tmp_path, monkeypatch):
    write, run = os.write, tmp_path / "run"

    def full(handle: int, data: bytes) -> int:
        if b" $ stillframe" in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    result = call("--quiet", "train", place.recipe, place.cache, "--out", run, "--json")
    assert (result.code, result.json["steps"]) == (0, 3)
    assert result.err == (
        f"{run}/log.txt: no log is kept: No space left on device; the work goes on\n"
    )


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_file_is_not_written_to(place, tmp_path, kind):
    """As it may be in a run from somebody else."""
    run, other = tmp_path / "run", tmp_path / "other.txt"
    other.write_text("mine\n")
    run.mkdir()
    log = run / "log.txt"
    if kind == "pipe":
        os.mkfifo(log)
    elif kind == "link":
        log.symlink_to(other)
    else:
        log.mkdir()
    result = call("train", place.recipe, place.cache, "--out", run, "--json")
    assert (result.code, result.json["steps"]) == (0, 3)
    assert f"{log}: no log is kept: " in result.err and result.err.count("\n") == 1
    assert other.read_text() == "mine\n"


def test_a_defect_is_in_the_log(tmp_path, monkeypatch):
    def broken(_: list[str]) -> int:
        log_file.keep_log(tmp_path / "log.txt")
        console.say("one\x1b[2J")
        raise ZeroDivisionError("of no use")

    monkeypatch.setattr(main_module, "_exit_code", broken)
    with pytest.raises(ZeroDivisionError):
        call("train")
    found = lines(tmp_path / "log.txt")
    assert found[0] == "$ stillframe train" and found[2] == "one\\x1b[2J"
    assert found[3].startswith("Traceback") and found[-1] == "ZeroDivisionError: of no use"


def test_the_log_of_a_process_tells_the_process_and_the_error(place, tmp_path):
    run = tmp_path / "run"
    done = process("train", place.recipe, place.cache, "--out", run, "--set", "training.steps=2")
    assert done.returncode == 0
    with (run / "log.txt").open(encoding="utf-8") as log:
        assert len({line.split()[1] for line in log}) == 1


def test_a_time_that_nobody_can_tell_is_unknown():
    told = [console.duration_text(seconds) for seconds in (0, 59.6, 3723, 1e12, math.inf, math.nan)]
    assert told == ["0:00", "1:00", "1:02:03", "unknown", "unknown", "unknown"]
