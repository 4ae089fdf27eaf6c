"""The Python of the guide and of the notebook, run as it stands, in a folder with a few videos."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.manual import ROOT, blocks
from support.material import write_video

GUIDE = ROOT / "docs/guide/python.md"
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """The working directory: three short videos under each of two labels, and one more."""
    for label, sign in (("opening", -1), ("closing", 1)):
        for number in range(3):
            frames = []
            for frame in range(24):
                pixels_HWC = np.full((64, 64, 3), 40, np.uint8)
                left = 28 + number + sign * (frame - 12)
                pixels_HWC[16:48, left : left + 8] = (200, 180, 60)
                frames.append(pixels_HWC)
            write_video(tmp_path / f"my_videos/{label}/{number}.mp4", frames, fps=12)
    shutil.copy(tmp_path / "my_videos/opening/0.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    yield tmp_path
    plt.close("all")


def run(code: str, where: str, names: dict[str, object]) -> None:
    exec(compile(code, where, "exec"), names)


def test_the_guide(desk, capsys):
    names: dict[str, object] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(GUIDE, "python")):
        run(code, f"{GUIDE.name}, block {number + 1}", names)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == ""
    assert re.fullmatch(r"score=\S+ low=\S+ high=\S+ 0\.5\d*", lines[0])
    assert lines[1].endswith(
        ", 6 videos, every frame, layers 1, 7 x 7 + 1 tokens of width 64, codec float16)"
    )
    assert sum(line.startswith(("0.", "1.")) and " s {" in line for line in lines) == 8
    assert lines[-1] == "tensor(0.)"
    assert sorted(names["state"]) == ["head", "windows"] and names["state"]["windows"] == {
        "step": 2
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(notebook, desk, capsys):
    shutil.rmtree(desk / "my_videos")  # it draws some
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        run("".join(cell["source"]), f"{notebook.name}, {cell['id']}", names)
    assert len(plt.get_fignums()) == 2
    (chances, others), (axes,) = plt.gca().lines, plt.gcf().axes
    assert re.fullmatch(r"(left|right)/\d.mp4 is \1", axes.get_title())
    np.testing.assert_allclose(chances.get_ydata() + others.get_ydata(), 1, atol=1e-5)
    assert len(chances.get_xdata()) == 12  # four a second
    assert capsys.readouterr().out.startswith("top-1 score=")
