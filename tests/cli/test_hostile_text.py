"""Text that others have written, shown to a person: a terminal obeys none of it, a spreadsheet computes none, and Markdown
holds no HTML of theirs."""

from __future__ import annotations

import csv
import io

import pytest
from pydantic import ValidationError
from support.commands import call

from pipeline.cli import console
from pipeline.errors import in_one_line, printable
from pipeline.extract.launchers.slurm import Engine
from pipeline.report.tables import Column, Table, in_markdown, inert, plain

ESCAPES = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\r",
    "\x08",
    "\u202e",
    "\u2066",
    "\udcff",
    "\x00",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_control_reaches_the_terminal(text, capsys):
    assert printable(f"a{text}b") == f"a{ascii(text)[1:-1]}b"
    console.say(f"a{text}b")
    console.show(f"a{text}b")
    console.show_table(f"t{text}", [f"c{text}"], [[f"a{text}b"]])
    with console.progress(f"p{text}") as update:
        update(1, 2, text)
    out, err = capsys.readouterr()
    assert not any(character in out + err for character in text if not character.isprintable())


def test_ordinary_text_is_as_it_was():
    text = "Grüße, 東京, مرحبا, 🎞 a\tb\nc\\x1b"
    assert printable(text) == text
    assert in_one_line("a\nb\tc") == "a\\nb\\tc"


def test_names_of_videos_that_are_escapes(videos, tmp_path):
    root = tmp_path / "videos"
    for number, label in enumerate(("a", "\x1b]0;owned\x07b")):
        (root / label).mkdir(parents=True)
        (root / label / f"\x1b[2J{number}.mp4").write_bytes((videos / "a/v1.mp4").read_bytes())
        (root / label / "\x1b[31mbad\nerror: gone.mp4").write_bytes(b"")
    result = call("manifest", "folder", root, "--out", tmp_path / "data")
    assert "\x1b" not in result.out + result.err and "\\x1b" in result.out + result.err
    result = call("status", root / "\x1b[2J")
    assert result.code == 2 and result.err.count("\n") == 1 and "\x1b" not in result.err
    result = call("status", root / "a\nerror: b")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@x", "\t=1"])
def test_no_cell_of_a_csv_file_is_a_formula(text):
    table = Table("t", [], [{"run": text, "score": -0.5, "loss": None}])
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert row["run"] == f"'{text}" and row["score"] == "-0.5"
    assert inert("a=1") == "a=1" and inert(-1) == -1 and inert("\r=1") == "\\r=1"


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "![x](http://127.0.0.1/x.png)",
        "[a](javascript:alert(1))",
        "a | b",
        "a\n\n# b",
        "<script>\nx</script>",
        "\\[a](b)",
    ],
)
def test_markdown_of_others_is_text(text):
    shown = in_markdown(text)
    assert "<" not in shown and "\n" not in shown
    assert not any(shown.count(mark) != shown.count(f"\\{mark}") for mark in "[]|")
    cell = Table("t", [Column("run", "run", plain("run"))], [{"run": text}]).markdown()
    assert len(cell.splitlines()) == 3 and "<" not in cell
    assert in_markdown("a_b 0.5 .. 0.6 (x), `y`") == "a_b 0.5 .. 0.6 (x), `y`"


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
@pytest.mark.parametrize("value", ["gpu\n#SBATCH --wrap=evil", "a b", "$(x)", "a;b", "", "'x'"])
def test_a_setting_of_slurm_is_one_word(key, value):
    with pytest.raises(ValidationError):
        Engine.Settings(**{key: value})
    assert Engine.Settings(**{key: "gpu-long,gpu_2"})


def test_a_line_of_setup_is_one_line():
    assert Engine.Settings(setup=("module load cuda; x=$(pwd)",))
    with pytest.raises(ValidationError):
        Engine.Settings(setup=("a\n#SBATCH --wrap=evil",))
