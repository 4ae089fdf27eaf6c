"""Specs and recipes: what is wrong is named with the nearest legal name, and the fingerprint is over meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.material import address_spec

from pipeline.cache.layout import bytes_per_frame, frames_per_shard, frames_per_store
from pipeline.config.cache_spec import fingerprint, load_spec
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.config.toml_tables import differences, override
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import token_shape
from pipeline.records import Stride

SPEC = """
[encoder]
name = "address"
layers = [2]
[frames]
size_px = 64
"""
RECIPE = """
[task]
name = "classify"
[temporal]
name = "identity"
[windows]
fps = 8
[training]
steps = 10
"""


@pytest.fixture
def spec_file(tmp_path) -> Path:
    (tmp_path / "mine.toml").write_text(SPEC)
    return tmp_path / "mine.toml"


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path / "mine.toml"


def test_defaults_are_filled_in_and_the_file_names_the_spec(spec_file):
    table = load_spec(spec_file).canonical()
    assert table["name"] == "mine" and table["codec"] == {"name": "float16"}
    assert table["frames"] == {
        "fps": "all",
        "sampling": "time",
        "size_px": 64,
        "fit": "crop",
        "resample": "bicubic",
        "antialias": True,
        "pixel_aspect": True,
        "damaged": "list",
    }


def test_every_nth_frame_is_a_key_of_those_specs_alone_that_have_it(spec_file):
    """Fingerprints of caches that were made before it are those they had."""
    assert load_spec(spec_file, ["frames.every=1"]) == load_spec(spec_file)
    nth = load_spec(spec_file, ["frames.every=3"])
    assert nth.canonical()["frames"]["every"] == 3
    assert nth.frames.rate is None and nth.frames.kept == Stride(every=3)
    with pytest.raises(BadInput, match="every = 3 counts frames of the video, fps = 12 seconds"):
        load_spec(spec_file, ["frames.every=3", "frames.fps=12"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("frames.fsp=3", "unknown key 'frames.fsp' (did you mean 'frames.fps'?)"),
        ("frame.fps=3", "unknown key 'frame' (did you mean 'frames'?)"),
        ("encoder.widht=8", "unknown key 'widht' (did you mean 'width'?)"),
        (
            "encoder.name=adress",
            "no encoder called 'adress'; there are: address, features, rvm, transformers",
        ),
        ("codec.name=float17", "no codec called 'float17'"),
        ("frames.size_px=big", "key 'frames.size_px'"),
        ("frames.fps=0", 'wanted a number in (0, 1000] or "all"'),
        ("frames.fit=stretch", "'crop' or 'squash'"),
        ("store.chunk_frames=0", "key 'store.chunk_frames'"),
        ("store.chunk_frames=4097", "less than or equal to 4096"),
        ("store.batch_frames=4097", "less than or equal to 4096"),
        ("store.shard_mb=100001", "less than or equal to 100000"),
        ("store.store_mb=10000001", "less than or equal to 10000000"),
        ("store.store_mb=inf", "key 'store.store_mb': Input should be a finite number, found inf"),
        ("frames.fps=nan", "finite number"),
        ("name=a b", "wanted lower-case letters, digits and underscores"),
    ],
)
def test_what_is_wrong_in_a_spec_is_named(spec_file, change, message):
    with pytest.raises(BadInput) as caught:
        load_spec(spec_file, [change])
    text = f"{caught.value.message} {caught.value.hint}"
    assert message.replace("'frames.fps'", "'fps'") in text or message in text, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steps=-1", "key 'training.steps'"),
        ("training.epochs=2", "training wants exactly one of steps and epochs"),
        ("temporal.name=grru", "no temporal called 'grru'"),
        ("task.forms=[]", "forms"),
        ("windows.frames=0", "key 'windows.frames'"),
        ("windows.fps=inf", "key 'windows.fps': Input should be a finite number"),
        (
            "windows.crop=4",
            "'windows.crop': wanted two whole numbers from 1 on, [rows, columns], found 4",
        ),
        (
            "windows.crop=[0, 3]",
            "wanted two whole numbers from 1 on, [rows, columns], found [0, 3]",
        ),
        ("training.betas=0.9", "key 'training.betas': wanted a list, in brackets, found 0.9"),
        (
            "training.learning_rate=inf",
            "key 'training.learning_rate': Input should be a finite number",
        ),
        (
            "training.weight_decay=nan",
            "key 'training.weight_decay': Input should be a finite number",
        ),
        ("training.betas=[0.9, nan]", "key 'training.betas.1': Input should be a finite number"),
        (
            "training.seed=9223372036854775808",
            "key 'training.seed': Input should be less than or equal to",
        ),
        ("task.label_smoothing=nan", "key 'label_smoothing': Input should be a finite number"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(recipe_file, change, message):
    with pytest.raises(BadInput) as caught:
        load_recipe(recipe_file, [change])
    assert message in caught.value.message


def test_a_missing_file_names_its_neighbours(spec_file):
    with pytest.raises(BadInput) as caught:
        load_spec(spec_file.with_name("mien.toml"))
    assert caught.value.message == f"spec {spec_file.with_name('mien.toml')} does not exist"
    assert "mine.toml" in caught.value.hint


def test_a_folder_is_no_spec(spec_file):
    with pytest.raises(BadInput) as caught:
        load_spec(spec_file.parent)
    assert caught.value.message == f"spec {spec_file.parent} is a folder, not a file"
    assert caught.value.hint == f"in {spec_file.parent} there are: mine.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: "),
        ("[1]", "holds no recipe"),
        ('{"recipe": 3}', "holds no recipe"),
        ('{"recipe": {"name": "x"}}', "task"),
    ],
)
def test_a_run_json_that_holds_no_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    for path in (tmp_path, tmp_path / "run.json"):
        with pytest.raises(BadInput, match=message):
            load_recipe(path)


def test_what_is_wrong_in_a_plugins_table_names_file_and_plugin(spec_file, recipe_file):
    spec_file.write_text(SPEC)
    with pytest.raises(BadInput) as caught:
        load_spec(spec_file, ["encoder.widht=8"])
    assert (
        caught.value.message
        == f"{spec_file}: [encoder] address: unknown key 'widht' (did you mean 'width'?)"
    )
    with pytest.raises(BadInput) as caught:
        load_spec(spec_file, ["codec.name=floa16"])
    assert caught.value.message.startswith(
        f"{spec_file}: [codec] floa16: no codec called 'floa16'; there are: "
    )
    assert caught.value.hint == "did you mean 'float16'?"
    with pytest.raises(
        BadInput, match=r"^encoder 'address': bar codes are read from 16 px up, found size_px = 8$"
    ):
        token_shape(load_spec(spec_file, ["frames.size_px=8"]))
    recipe_file.write_text(RECIPE)
    with pytest.raises(BadInput) as caught:
        load_recipe(recipe_file, ["task.headz=8"])
    assert (
        caught.value.message
        == f"{recipe_file}: [task] classify: unknown key 'headz' (did you mean 'heads'?)"
    )


def test_broken_toml_is_named(spec_file):
    spec_file.write_text("[encoder\n")
    with pytest.raises(BadInput, match=r"is not valid TOML: .*line 1"):
        load_spec(spec_file)


def test_overrides():
    table = override(
        {"frames": {"fps": 1}},
        ["frames.fps=8", "frames.fit=squash", "encoder.layers=[1, 2]", "a.b.c=true"],
    )
    assert table == {
        "frames": {"fps": 8, "fit": "squash"},
        "encoder": {"layers": [1, 2]},
        "a": {"b": {"c": True}},
    }
    with pytest.raises(BadInput, match="--set wants key=value, found 'frames.fps'"):
        override({}, ["frames.fps"])
    with pytest.raises(BadInput, match="'fps' is a value, not a table"):
        override({"frames": {"fps": 1}}, ["frames.fps.x=1"])


def test_fingerprint_changes_with_every_meaning_and_with_nothing_else():
    base = fingerprint(address_spec(), {"weights": "a"}, "pyav 1")
    assert base == fingerprint(address_spec(), {"weights": "a"}, "pyav 1") and len(base) == 12
    assert base == fingerprint(address_spec(name="other"), {"weights": "a"}, "pyav 1")
    changed = {
        fingerprint(address_spec(), {"weights": "b"}, "pyav 1"),
        fingerprint(address_spec(), {"weights": "a"}, "pyav 2"),
        fingerprint(address_spec(frames={"size_px": 80}), {"weights": "a"}, "pyav 1"),
        fingerprint(
            address_spec(frames={"size_px": 64, "fit": "squash"}), {"weights": "a"}, "pyav 1"
        ),
        fingerprint(address_spec(frames={"size_px": 64, "fps": 3}), {"weights": "a"}, "pyav 1"),
        fingerprint(
            address_spec(encoder={"name": "address", "layers": [5]}), {"weights": "a"}, "pyav 1"
        ),
        fingerprint(address_spec(store={"chunk_frames": 4}), {"weights": "a"}, "pyav 1"),
    }
    assert len(changed) == 7 and base not in changed


def test_a_spec_that_names_no_decoder_has_the_fingerprint_of_before_there_was_a_choice():
    plain = address_spec()
    assert fingerprint(plain, {"weights": "a"}, "pyav 1") == "4cd7e1432901"
    said = address_spec(frames={**plain.frames.canonical(), "decoder": "pyav"})
    assert said.canonical() == plain.canonical() and "decoder" not in plain.canonical()["frames"]
    other = address_spec(frames={**plain.frames.canonical(), "decoder": "torchcodec"})
    assert other.canonical()["frames"]["decoder"] == "torchcodec"
    assert fingerprint(other, {"weights": "a"}, "pyav 1") != "4cd7e1432901"


def test_derived_values():
    spec = address_spec()
    shape = token_shape(spec)
    assert shape.tokens_per_frame == 2 * 9 + 2
    assert bytes_per_frame(spec, shape) == 20 * 8 * 2
    assert (
        frames_per_shard(spec, shape) == 8
    )  # 1200 bytes / (9 tokens * 16 bytes) = 8.3, in whole chunks of 4
    assert frames_per_store(spec, shape) == 50
    capped = spec.model_copy(update={"store": spec.store.model_copy(update={"store_frames": 20})})
    assert frames_per_store(capped, shape) == 20
    # A spec that has no such key is what it was before there was one.
    assert "store_frames" not in spec.canonical()["store"]
    assert capped.canonical()["store"] == spec.canonical()["store"] | {"store_frames": 20}


def test_differences():
    ours, theirs = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": "x"}
    assert differences(ours, theirs) == ["b.c: 2 / 4", "b.d: 3 / null", 'e: null / "x"']


@pytest.mark.parametrize("path", shipped("recipe").values(), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem


@pytest.mark.parametrize(
    "path", sorted(Path("cache_specs").glob("*.toml")), ids=lambda path: path.stem
)
def test_shipped_specs_open_with_their_command(path):
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("#") and f"stillframe extract cache_specs/{path.name}" in head
    assert load_spec(path).name == path.stem
