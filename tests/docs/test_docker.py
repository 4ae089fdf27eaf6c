"""The Dockerfile, as far as it can be tried without a daemon and without a download: what it copies builds the wheel, and what it installs is the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
from support.paths import ROOT

import pipeline

FILE = ROOT / "docs/docker/Dockerfile"


class Step(NamedTuple):
    word: str
    rest: str


def stages() -> list[list[Step]]:
    """The steps of each stage; those before the first FROM belong to none."""
    text = re.sub(r"\\\n\s*", " ", FILE.read_text(encoding="utf-8"))
    found: list[list[Step]] = [[]]
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        step = Step(*line.split(maxsplit=1))
        if step.word == "FROM":
            found.append([])
        found[-1].append(step)
    return found[1:]


def of(stage: list[Step], word: str) -> list[str]:
    return [step.rest for step in stage if step.word == word]


def test_the_command_runs_as_a_user_of_its_own_over_named_volumes():
    build, last = stages()
    assert of(build, "FROM") == ["python:${PYTHON}-slim AS build"]
    assert of(last, "FROM") == ["python:${PYTHON}-slim"]
    (user,) = of(last, "USER")
    words = [step.word for step in last]
    assert user == "stillframe" and words.index("USER") > max(
        number for number, word in enumerate(words) if word in ("RUN", "COPY")
    )
    (made,) = [run for run in of(last, "RUN") if "useradd" in run]
    (volumes,) = map(json.loads, of(last, "VOLUME"))
    assert volumes == ["/data", "/var/stillframe/.cache"]
    assert made.endswith(f"install -d -o {user} {' '.join(volumes)}")
    assert of(last, "WORKDIR") == [volumes[0]]
    assert [json.loads(text) for text in of(last, "ENTRYPOINT") + of(last, "CMD")] == [
        ["stillframe"],
        ["--help"],
    ]


def test_torch_comes_first_and_without_cuda_unless_asked():
    _, last = stages()
    given = dict(text.partition("=")[::2] for text in of(last, "ARG"))
    assert given == {
        "TORCH": "torch",
        "TORCH_INDEX": "https://download.pytorch.org/whl/cpu",
        "EXTRAS": "",
    }
    first, second, _ = of(last, "RUN")
    assert first.endswith('pip install --no-cache-dir "$TORCH" --index-url "$TORCH_INDEX"')
    assert "/wheel/stillframe-*.whl" in second


@pytest.mark.slow
def test_what_is_copied_builds_the_wheel_and_what_is_installed_is_the_command(tmp_path):
    build, last = stages()
    source, wheels = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    for text in of(build, "COPY"):
        *names, target = text.split()
        for name in names:
            if (ROOT / name).is_dir():
                assert target == name
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, source)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python").write_text(  # the packages that it needs are at hand: none is downloaded
        f"#!/bin/sh\nshift 2\nexec {sys.executable} -m pip --quiet --disable-pip-version-check "
        f'--python {environment}/bin/python "$@" --no-deps --no-index\n'
    )
    (programs / "python").chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PATH": f"{programs}:{os.environ['PATH']}", "EXTRAS": "", "PIP_NO_INDEX": "1"}
    (wheel,) = of(build, "RUN")
    (install,) = [run for run in of(last, "RUN") if ".whl" in run]
    for run in (wheel.replace("pip wheel", "pip wheel --no-build-isolation"), install):
        command = run.replace("/wheel", str(wheels))
        done = subprocess.run(
            ["sh", "-c", command], cwd=source, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        [environment / "bin/stillframe", "--version"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"stillframe {pipeline.__version__}\n"
