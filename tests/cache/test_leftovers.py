"""Files that a killed process was writing are removed by the next one that writes there, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import call
from support.training import recipe

from pipeline.cache.storage.local import ABANDONED_S, write_atomically
from pipeline.cache.storage.processes import machine_tag
from pipeline.train import loop

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.cache.storage import local

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

local.os.replace = die
local.write_atomically(Path(sys.argv[1]), bytes(1000))
"""


def killed_before_the_rename(file: Path) -> None:
    """Leaves behind what a SIGKILL between writing and renaming leaves."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL


def partials(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.partial"))


def test_a_killed_training_leaves_no_checkpoint_for_good(material, tmp_path):
    run = tmp_path / "run"
    wanted = recipe(training={"steps": 2, "checkpoint_every": 1})
    loop.train(wanted, material.cache, run)
    killed_before_the_rename(run / "last-000001.safetensors")
    (left,) = partials(run)
    assert left.startswith(".last-000001.safetensors.")
    loop.train(wanted, material.cache, run)
    assert partials(run) == []


@pytest.mark.parametrize("what", ["evaluation", "report", "sweep member", "import"])
def test_whatever_is_written_next_into_a_folder_clears_it(place, tmp_path, what):
    file = tmp_path / what / "file.json"
    file.parent.mkdir()
    killed_before_the_rename(file)
    assert len(partials(tmp_path)) == 1
    write_atomically(file.with_name("another.html"), b"x")
    assert partials(tmp_path) == [] and file.with_name("another.html").read_bytes() == b"x"


def test_what_is_not_known_to_be_left_stays(tmp_path):
    """Of a living process, of another machine, a folder, a link, a file of the user, and one that lies deeper."""
    child = subprocess.Popen(["sleep", "60"])
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    dead = int(gone.stdout)
    here, elsewhere = machine_tag(), "0" * 8
    keep = {
        f".last.json.{child.pid}-{here}00000000.partial",
        f".last.json.{dead}-{elsewhere}00000000.partial",
        f".last.json.{dead}-00000000.partial",  # as versions before 0.5.0 named it
        ".thesis.1.partial",
        "last.json.partial",
        f".last.json.{dead}-{here}0000000Z.partial",
    }
    for name in keep:
        (tmp_path / name).write_text("mine")
    (tmp_path / "deeper").mkdir()
    (tmp_path / f"deeper/.a.{dead}-{here}00000000.partial").write_text("mine")
    (tmp_path / f".folder.{dead}-{here}00000000.partial").mkdir()
    (tmp_path / f".link.{dead}-{here}00000000.partial").symlink_to(tmp_path / "deeper")
    before = partials(tmp_path)
    try:
        write_atomically(tmp_path / "last.json", b"{}")
        assert partials(tmp_path) == before
        long_ago = time.time() - ABANDONED_S - 10
        for name in keep:
            os.utime(tmp_path / name, (long_ago, long_ago))
        write_atomically(tmp_path / "last.json", b"{}")
        assert set(before) - set(partials(tmp_path)) == {
            f".last.json.{dead}-{elsewhere}00000000.partial",
            f".last.json.{dead}-00000000.partial",
        }
    finally:
        child.kill()
        child.wait()


def test_a_manifest_that_is_built_again_clears_what_was_unfinished(place, tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    for name in ("manifest.jsonl", "targets.h5", "videos.jsonl", "dataset.json"):
        (out / f".{name}.partial").write_bytes(b"{")
    assert (
        call("manifest", "folder", place.videos, "--out", out, "--set", "val_fraction=0.3").code
        == 0
    )
    assert partials(out) == []
