"""`make gpu`: what it writes, whatever becomes of its parts. A short form of `make gpu DEVICE=cpu SMALL=1`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from gpu import parts, record, running, tables, wheels
from gpu.__main__ import main
from gpu.parts import Part
from support.paths import ROOT

from pipeline.cli.main import program
from pipeline.config.cache_spec import load_spec
from pipeline.models.encoders.contract import token_shape


def run(code: str, scratch: Path, limit_s: float = 60, says: str = "text") -> dict:
    part = Part("a part", ("-c", code), limit_s, says)
    return running.run(part, limit_s, scratch, os.environ)


def report(*found: dict) -> dict:
    return {
        "date": "2026-11-30T00:00:00+00:00",
        "device": "cpu",
        "small": True,
        "seconds": 480.0,
        "kernels": "as installed",
        "machine": {"processor": "a | b", "cores": 2},
        "parts": list(found),
    }


def test_figures_and_failures_of_a_part(tmp_path):
    good = run("print('{\"rows\": [1]}')", tmp_path, says="json")
    assert (good["outcome"], good["rc"], good["figures"]) == ("done", 0, {"rows": [1]})
    assert "tail" not in good
    bad = run("print('so far'); raise SystemExit('no such GPU')", tmp_path, says="json")
    assert (bad["outcome"], bad["rc"]) == ("failed", 1)
    assert bad["tail"] == ["so far", "no such GPU"] and "figures" not in bad


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    late = run(code, tmp_path, limit_s=10)
    assert late["outcome"] == "out of time" and late["rc"] != 0 and late["seconds"] < 60
    (child,) = map(int, late["tail"])
    # The system ends a process that was killed some time after it was asked to.
    assert any(is_gone(child) or time.sleep(0.1) for _ in range(300))


def is_gone(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_files_are_whole_after_every_part(tmp_path):
    whole = report(run("print('{}')", tmp_path, says="json"))
    record.write(whole, tmp_path)
    whole["parts"] += [
        run("raise SystemExit(3)", tmp_path),
        running.not_begun(Part("last", ("-c", ""), 1, "text")),
    ]
    record.write(whole, tmp_path)
    assert json.loads((tmp_path / record.JSON).read_text()) == whole
    lines = (tmp_path / record.MARKDOWN).read_text().splitlines()
    assert lines[0] == "# stillframe on a | b" and "| processor | a \\| b |" in lines
    assert sum(line.startswith("| a part |") for line in lines) == 2
    assert "| last | not begun: no time was left |  | 0 |  |" in lines
    assert "## failed: a part" in lines
    assert not list(tmp_path.glob(".gpu*"))


def test_every_bench_that_is_run_has_a_table(tmp_path):
    for small in (False, True):
        every = parts.everything("cpu", small, tmp_path)
        benches = [part for part in every if part.says == "json"]
        assert {part.arguments[3] for part in benches} <= set(tables.KINDS)
        wanted = {"extract", "temporal", "read", "epoch", "sweep", "plan", "forecast"}
        assert wanted <= {part.arguments[3] for part in benches}
        assert len({part.name for part in every}) == len(every)


def test_the_command_line_takes_every_part(tmp_path):
    for small in (False, True):
        for part in parts.everything("cpu", small, tmp_path):
            if part.says == "tests":
                continue
            command, words = program(), list(part.arguments[2:])
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            command.make_context("it", [word.replace(parts.CACHE, "cache") for word in words])
    for size in ("small", "large"):
        shape = token_shape(load_spec(parts.HERE / f"vit_{size}.toml"))
        assert shape.patch_tokens + shape.special_tokens == 201


def test_files_of_tests_are_found_on_disk():
    found = {str(file.relative_to(ROOT / "tests")) for file in parts.test_files()}
    assert {
        "models/test_on_device.py",
        "models/test_transfers.py",
        "models/test_selective_scan.py",
        "cache/test_codecs_on_device.py",
        "train/test_on_device.py",
        "train/test_step_options.py",
        "extract/test_compile.py",
        "extract/test_on_device.py",
        "experiments/test_sweep.py",
        "video/test_transforms.py",
    } == found


def test_wheels_are_tried_where_there_is_a_gpu_alone(tmp_path):
    before = {"PYTHONPATH": "x"}
    assert wheels.tried("", "cuda", tmp_path, before) == "as installed"
    assert "there are none" in wheels.tried(str(tmp_path), "cuda", tmp_path, before)
    (tmp_path / "mamba_ssm-2.0-py3-none-any.whl").write_bytes(b"no wheel")
    assert "no GPU" in wheels.tried(str(tmp_path), "cpu", tmp_path, before)
    assert "do not fit" in wheels.tried(str(tmp_path), "cuda", tmp_path, before)
    assert before == {"PYTHONPATH": "x"}


def test_without_time_nothing_begins(tmp_path):
    assert main(["--device=cpu", "--small", "--seconds=1", f"--out={tmp_path}", "--only=read"]) == 0
    (found,) = json.loads((tmp_path / record.JSON).read_text())["parts"]
    assert found["outcome"] == "not begun: no time was left" and found["rc"] is None


@pytest.mark.slow
def test_a_few_parts_on_the_cpu(tmp_path):
    for only in ("tests of cache", "bench forecast"):
        out = tmp_path / only
        assert main(["--device=cpu", "--small", f"--out={out}", f"--only={only}"]) == 0
        (found,) = json.loads((out / record.JSON).read_text())["parts"]
        assert (found["outcome"], found["rc"]) == ("done", 0)
        said = (out / record.MARKDOWN).read_text()
        if "tests" in found:
            every = found["tests"]["every"]
            assert found["tests"]["counts"] == {"passed": len(every)} and len(every) >= 15
            assert f"{len(every)} ended, 0 failed, 0 were skipped." in said
        else:
            assert found["figures"]["steps"]["classify"]["ratio"] == 1
            assert "| classify |" in said
