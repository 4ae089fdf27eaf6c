"""The walks of the README and of the guide, taken: every command that this machine can carry out, in the order of the page.

A tiny encoder stands in for the one that would be downloaded, trainings are cut short, and the videos are small; the commands
are otherwise those of the page, run in a folder of their own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import call
from support.manual import README, ROOT, Line, blocks, lines
from support.material import write_video

GUIDE = ROOT / "docs/guide"
SPEC = """
[encoder]
name = "transformers"
layers = [2, 5, 8, 11]
seed = 0
[encoder.config]
model_type = "vit"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 12
num_attention_heads = 2
patch_size = 32
image_size = 64
[frames]
size_px = 64
fps = 12
"""
"""As `dinov2_small`, but small and of random weights."""
SHORTER = {
    "train": [
        "--set",
        "training.steps=3",
        "--set",
        "training.warmup_steps=1",
        "--set",
        "training.batch_size=4",
    ],
    "sweep": ["--dry-run"],
    "plan": ["--measure-s", "0.5"],
}
"""Command -> what is added to it, so that it takes seconds."""
ELSEWHERE = (
    "slurm",
    "ray",
    "s3://",
    "torchrun",
    "--track wandb",
    "--track mlflow",
    "import-checkpoint",
    "runs/boxes",
    "runs/points",
    "sweeps/",
    "world",
    "stories",
    "room",
    "motion_factors",
    "lists=",
    "split_lists",
    "gym",
    "data/tracking",
    "manifest vos",
    "manifest davis",
    "manifest tapvid",
    "manifest boxes_text",
    "baselines",
    "--split test",
    "windows.crop=",
    "data/parts",
    "/00017",
    "hundredth",
    "torchcodec",
    "encoder.compile",
)
"""Lines that need a cluster, an object store, a released file, a published data set, or what another page makes. They have tests of their own."""


def moving(sign: int, number: int) -> list[np.ndarray]:
    """Three seconds of a bar that moves to one side."""
    frames = []
    for frame in range(36):
        pixels_HWC = np.full((64, 64, 3), 40, np.uint8)
        left = 28 + number + sign * (frame - 18)
        pixels_HWC[16:48, left : left + 8] = (200, 180, 60)
        frames.append(pixels_HWC)
    return frames


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """What a reader has: videos under two labels, a list of them, one more video, and a spec."""
    folder = tmp_path_factory.mktemp("desk")
    for label, sign in (("opening", -1), ("closing", 1)):
        for number in range(3):
            write_video(
                folder / f"my_videos/{label}/clip_{number}.mp4", moving(sign, number), fps=12
            )
    rows = [
        f"{label}/clip_{number}.mp4,{label}"
        for label in ("opening", "closing")
        for number in range(3)
    ]
    (folder / "my_videos/labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    shutil.copy(folder / "my_videos/opening/clip_0.mp4", folder / "clip.mp4")
    (folder / "frames").mkdir()
    for number, pixels in enumerate(moving(1, 0)):
        Image.fromarray(pixels).save(folder / f"frames/{number:03d}.png")
    for spec in ("dinov2_small.toml", "my_vit.toml"):
        (folder / spec).write_text(SPEC)
    return folder


def taken(line: Line, desk: Path) -> list[str]:
    """The arguments as they are given here: patterns and placeholders filled in, the real encoder replaced."""
    arguments = line.arguments
    assert arguments is not None
    found: list[str] = []
    for word in arguments:
        word = word.replace("LABEL", "opening").replace(
            "clip.mp4", "clip_0.mp4" if "LABEL" in word else "clip.mp4"
        )
        if word == "dinov2_small":
            word = "dinov2_small.toml"
        if place := re.fullmatch(r"(caches.*)/(NAME|dinov2_small-\*)", word):
            (word,) = [
                f"{place[1]}/{path.name}"
                for path in (desk / place[1]).glob("dinov2_small-*")
                if is_base(path)
            ]
        found += (
            sorted(f"runs/{path.name}" for path in (desk / "runs").iterdir())
            if word == "runs/*"
            else [word]
        )
    if "data_fraction" in found:  # of three videos of a label 5 % are none
        found += ["--axis", "windows.train_fraction=[0.5, 1.0]"]
    return [*found, *SHORTER.get(arguments[0], [])]


def is_base(cache: Path) -> bool:
    """Whether this is the cache of the unchanged spec, and not one of those that the page makes beside it."""
    header = json.loads((cache / "cache.json").read_text())
    spec = header["spec"]
    return (
        header["derived_from"] is None
        and spec["frames"]["fps"] == 12
        and len(spec["encoder"]["layers"]) == 4
    )


def walk(desk: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> dict[str, str]:
    """Takes the steps of a page; command line -> what it printed."""
    monkeypatch.chdir(desk)
    printed = {}
    for line in lines(page):
        if (
            line.arguments is None
            or "--help" in line.arguments
            or any(word in line.text for word in ELSEWHERE)
        ):
            continue
        result = call(*taken(line, desk))
        assert result.code == 0, (str(line), result)
        printed[" ".join(line.arguments)] = result.out
    return printed


@pytest.mark.slow
def test_own_videos_to_a_page_as_the_readme_says(desk, monkeypatch):
    printed = walk(desk, monkeypatch, README)
    assert len(printed) == 7
    assert "with the cache, extraction included" in next(
        text for command, text in printed.items() if command.startswith("plan")
    )
    answers = next(
        text for command, text in printed.items() if command.startswith("stream")
    ).splitlines()
    assert (
        json.loads(answers[0]).keys() == {"time_s", "label", "probability"} and len(answers) == 12
    )
    assert "opening" in (desk / "report/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_guide_page_after_page(desk, monkeypatch):
    """One page uses the manifests, caches and runs of those before it."""
    for page in ("videos", "extract", "train", "export", "report", "sweep"):
        assert walk(desk, monkeypatch, GUIDE / f"{page}.md")


@pytest.mark.slow
def test_python_of_the_readme(tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line]) == 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr()
    assert said.out.startswith("score=") and said.err == ""
    assert (tmp_path / "tour/runs/gru/last.json").is_file()
