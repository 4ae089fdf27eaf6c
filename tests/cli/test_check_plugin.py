"""`stillframe check-plugin` says which laws hold, and names the first one that does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import media
from support.commands import assert_refused, call
from support.paths import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`pipeline/[\w/]+/(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S))
CHANGE = ROOT / "docs/template/stillframe_template/fading_change.py"
CODEC = '''"""Halves of floats, of my own, for a test of laws."""

from pipeline.cache.codecs import float16


class Codec(float16.Codec):
    def {name}(self, {argument}):
        {body}
'''


def checked(file: Path, text: str, *arguments: object):
    file.write_text(text, encoding="utf-8")
    return call("check-plugin", file, *arguments)


def laws_of(result) -> dict[str, str]:
    assert result.code == 0, result
    return {row["law"]: row["found"] for row in result.json}


@pytest.mark.slow
def test_the_module_of_the_template_keeps_all_laws():
    found = laws_of(call("check-plugin", CHANGE, "--json"))
    assert len(found) == 24 and {*found.values()} == {"holds"}


@pytest.mark.slow
def test_the_task_of_the_page_keeps_all_laws(tmp_path):
    found = laws_of(checked(tmp_path / "distance.py", FILES["distance.py"], "--json"))
    assert len(found) >= 14 and {*found.values()} == {"holds"}


def test_the_data_set_of_the_page_keeps_its_laws(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    media.encode(root / "a.mp4", [media.grey(8 * number) for number in range(30)], rate=10)
    span = {"video": "a.mp4", "split": "train", "label": "cut", "start_s": 0.5, "stop_s": 2.0}
    (root / "spans.json").write_text(json.dumps([span]))
    file = tmp_path / "spans.py"
    found = laws_of(checked(file, FILES["spans.py"], "--data", root, "--json"))
    assert len(found) == 5 and {*found.values()} == {"holds"}
    (given,) = set(laws_of(call("check-plugin", file, "--json")).values()) - {"holds"}
    assert given == "not checked: no folder of its layout was given: --data DIR"


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        (
            "        return self.output_norm(y_BTND), (h_BND,)\n",
            "        return self.output_norm(y_BTND + x_BTND.mean(1, True)), (h_BND,)\n",
            "breaks the law that no output depends on a later frame: frame 3 was changed, and outputs "
            "of frames 0 to 2 by ",
        ),
        (
            "        return self.output_norm(y_BTND), (h_BND,)\n",
            "        return self.output_norm(y_BTND + y_BTND.mean(0, True)), (h_BND,)\n",
            "breaks the law that windows of a batch do not see each other: window 1 of 3 was changed, ",
        ),
        (
            "        return self.output_norm(y_BTND), (h_BND,)\n",
            "        return self.output_norm(y_BTND), (0.5 * h_BND,)\n",
            "breaks the law that a whole window, the same in pieces, and frame by frame agree: "
            "the output of frame 1 as a step: they differ by ",
        ),
        (
            "        return ((tokens, self.width),)\n",
            "        return ((tokens, self.width), (1,))\n",
            "ValueError: too many values to unpack (expected 1) (/",
        ),
        (
            "(2 * self.width**2 + 4 * self.width)",
            "self.width**2",
            "breaks the law that flops are those that run: the products that PyTorch counts, and what "
            "runs element by element: flops says 1310720; ",
        ),
        (
            '    """Share of the mean that is kept from one frame to the next, before training."""\n',
            "",
            "breaks the law that its settings are below those of its kind, and each is explained under "
            "it: nothing is said under keep: wanted a string below each",
        ),
        (
            '"""What is new at every token position: the difference to a mean that fades at a learned rate.',
            '"""Change.',
            "breaks the law that the first paragraph of its file says what it is, in a sentence: it is "
            "'Change.', wanted ",
        ),
        (
            "class Temporal(TemporalModule):",
            "class Temporal(nn.Module):",
            "is not below TemporalModule",
        ),
    ],
)
def test_the_first_broken_law_of_a_module_is_named(tmp_path, line, instead, said):
    text = CHANGE.read_text(encoding="utf-8")
    assert text.count(line) == 1
    file = tmp_path / "broken.py"
    result = checked(file, text.replace(line, instead))
    assert_refused(result, f"temporal plug-in 'broken' of {file} ", said, "docs/extending.md")


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        (
            '        return (targets["distance_m"] > 0).sum(axis=1).astype(np.float64)\n',
            '        return np.ones(len(targets["distance_m"]))\n',
            "breaks the law that where nothing is valid, a window weighs nothing and costs nothing: "
            "targets that are all zero weigh [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]",
        ),
        (
            '    truth_settings = ("size_px",)\n',
            "",
            "breaks the law that the truth depends on the settings that truth_settings names, and on no "
            "others: prepare and dense_px read size_px, which truth_settings does not name",
        ),
        (
            "        return error_BT.sum() / known_BT.sum().clamp(min=1)\n",
            "        return error_BT.sum(1)\n",
            "breaks the law that the loss reaches every parameter of the readout, and is one finite "
            "number: streaming: the loss is tensor([",
        ),
    ],
)
def test_the_first_broken_law_of_a_task_is_named(tmp_path, line, instead, said):
    text = FILES["distance.py"]
    assert text.count(line) == 1
    file = tmp_path / "broken.py"
    result = checked(file, text.replace(line, instead))
    assert_refused(result, f"task plug-in 'broken' of {file} ", said)


@pytest.mark.parametrize(
    ("name", "argument", "body", "said"),
    [
        (
            "max_error",
            "tokens_FND",
            "return 0 * tokens_FND",
            "breaks the law that a round trip stays within max_error: of tokens up to ",
        ),
        (
            "decode",
            "arrays",
            "return super().decode(arrays) + 1",
            "breaks the law that a round trip stays within max_error: ",
        ),
        (
            "noise",
            "arrays",
            "return 9 * super().noise(arrays)",
            "breaks the law that noise is, in the mean, the error of what is stored: at scale 0.01 ",
        ),
    ],
)
def test_the_first_broken_law_of_a_codec_is_named(tmp_path, name, argument, body, said):
    file = tmp_path / "float16_of_mine.py"
    result = checked(file, CODEC.format(name=name, argument=argument, body=body))
    assert_refused(result, f"codec plug-in 'float16_of_mine' of {file} ", said)


def test_an_encoder_is_checked_with_the_settings_that_it_lacks(tmp_path):
    file, text = tmp_path / "mine.py", "from pipeline.models.encoders.address import Encoder\n"
    missing = "encoder 'mine': key 'layers' is missing; next: settings are given by --set KEY=VALUE"
    assert_refused(checked(file, text), missing)
    sets = ("--set", "layers=[0, 1]")
    found = laws_of(checked(file, text, *sets, "--json"))
    assert {*found.values()} == {"holds"}, found


@pytest.mark.slow
def test_an_engine_is_checked_by_what_its_workers_do(tmp_path):
    text = "from pipeline.extract.launchers.local import Engine\n"
    found = laws_of(checked(tmp_path / "mine.py", text, "--json"))
    assert {*found.values()} == {"holds"}, found
    silent = '"""Workers of this machine, of whom nothing is heard."""\n'
    silent += text.replace("Engine", "Engine as Local") + (
        "class Engine(Local):\n    def poll(self):\n        return type(super().poll())(0, 0, ())\n"
    )
    broken = checked(tmp_path / "mine.py", silent)
    assert_refused(
        broken, "breaks the law that workers do the job, each once, and end by themselves"
    )


def test_a_plugin_is_found_by_its_name_among_all_kinds(tmp_path):
    assert_refused(call("check-plugin", "no_such"), "no plug-in called 'no_such'; there are: ")
    assert_refused(call("check-plugin", "gru", "--kind", "codec"), "no codec called 'gru'")
    assert_refused(call("check-plugin", "gru", "--kind", "modul"), "no kind called 'modul'")
    assert_refused(
        call("check-plugin", tmp_path / "no.py"), f"plug-in {tmp_path}/no.py does not exist"
    )
    text = call("check-plugin", "bfloat16").out
    assert re.search(r"codec 'bfloat16': \d+ laws hold, 1 were not checked", text)
