"""Views: other looks at every frame in the cache, seen from the right pixels, with the truth where they see it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from support import media
from support.commands import SPEC, assert_refused, call, digest
from support.forgery import edit
from support.material import FPS, address_spec, write_video
from support.views import FLIP, PART, Wants, blurred, most, noise, resize_then_crop, vit_spec

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import check_store, require_valid
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.verify import verify_cache
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, CacheSpec, fingerprint, load_spec
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.derive import derive
from pipeline.models.encoders import address
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import load_model
from pipeline.train.stream import Stream
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows
from pipeline.video.transforms import crop_view, flip_horizontally, resize_and_crop

CPU = torch.device("cpu")
QUARTERS = [
    {"name": "upper_left", "crop": [0, 0, 0.5, 0.5]},
    {"name": "upper_right", "crop": [0.5, 0, 1, 0.5]},
    {"name": "lower_left", "crop": [0, 0.5, 0.5, 1], "flip": True},
    {"name": "lower_right", "crop": [0.5, 0.5, 1, 1], "flip": True},
]
"""Of the square in the middle of `quarters`."""


def recipe(task: str, views: list[str]) -> Recipe:
    small = {
        "classify": {"readout_width": 8, "heads": 2},
        "pose": {"readout_width": 8, "hidden": 8},
    }
    table = {
        "name": "test",
        "task": {"name": task, **small[task]},
        "temporal": {"name": "identity"},
        "windows": {"frames": 4, "fps": 5, "views": views},
        "training": {"steps": 3, "batch_size": 4, "warmup_steps": 1},
    }
    return plugins.validate(Recipe, table, "test")


# The spec


def test_a_spec_without_views_says_nothing_of_them_and_keeps_its_fingerprint():
    plain, flipped = address_spec(), address_spec(views=[FLIP])
    assert "views" not in plain.canonical() and plain == address_spec(views=[])
    assert flipped.canonical()["views"] == [{"name": "flip", "flip": True, "crop": None}]
    assert plugins.validate(CacheSpec, flipped.canonical(), "test") == flipped
    prints = [
        fingerprint(address_spec(views=views), {}, "d")
        for views in ([], [FLIP], [PART], [FLIP, PART])
    ]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "base", "flip": True}, "names something else"),
        ({"name": "layer_5", "flip": True}, "names something else"),
        ({"name": "Flip", "flip": True}, "lower-case"),
        ({"name": "a/b", "flip": True}, "lower-case"),
        ({"name": "x"}, "view 'x' is the base itself"),
        ({"name": "x", "crop": [0, 0, 1, 1]}, "view 'x' is the base itself"),
        ({"name": "x", "crop": [0, 0, 1.1, 1]}, "in \\[0, 1\\]"),
        ({"name": "x", "crop": [0.5, 0, 0.5, 1]}, "at least 0.1"),
        ({"name": "x", "flop": True}, "did you mean 'flip'"),
    ],
)
def test_a_wrong_view_is_refused(table, words):
    with pytest.raises(BadInput, match=words):
        address_spec(views=[table])


def test_names_are_unique():
    with pytest.raises(BadInput, match="two views have the same name"):
        address_spec(views=[FLIP, PART | {"name": "flip"}])


def test_views_cost_bytes_and_leave_the_plan_alone(material):
    plain = extract.preview(material.spec, material.manifest)
    more = extract.preview(address_spec(views=[FLIP, PART]), material.manifest)
    for key in ("store_bytes", "bytes_per_frame", "tokens_per_frame"):
        assert getattr(more, key) == 3 * getattr(plain, key)
    assert (more.stores, more.frames) == (plain.stores, plain.frames)


def test_views_are_read_from_toml(tmp_path):
    (tmp_path / "x.toml").write_text(
        SPEC + '[[views]]\nname = "flip"\nflip = true\n[[views]]\nname = "l"\ncrop = [0, 0, 0.5, 1]'
    )
    assert [(view.name, view.flip, view.crop) for view in load_spec(tmp_path / "x.toml").views] == [
        ("flip", True, None),
        ("l", False, (0, 0, 0.5, 1)),
    ]


# The pixels


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_a_part_is_resampled_from_the_source(resample):
    pixels = noise(128, 192)
    _, affine = resize_and_crop(pixels, 32, "crop", resample)
    part, of_part = crop_view(pixels, affine, (0.25, 0, 0.75, 0.5), 32, resample)
    whole = resize_then_crop(pixels[:, :64, 64:128], (32, 32), 32, resample)
    inside = (
        slice(None),
        slice(None),
        slice(4, -4),
        slice(4, -4),
    )  # at its edges the filter sees beyond the part
    assert most(part[inside], whole[inside]) <= 2
    np.testing.assert_allclose(of_part, [[3, 0, -1], [0, 2, 0]])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(40, 400),
    width=st.integers(40, 400),
    aspect=st.sampled_from([1.0, 64 / 51, 0.5]),
    fit=st.sampled_from(["crop", "squash"]),
    corner=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    side=st.floats(0.3, 0.5),
    flip=st.booleans(),
)
def test_the_affine_of_a_part_leads_to_the_marker(height, width, aspect, fit, corner, side, flip):
    """A round spot in the middle of the part is found where the part's affine says."""
    _, affine = resize_and_crop(
        torch.zeros(1, height, width, 3, dtype=torch.uint8), 64, fit, "bilinear", aspect
    )
    crop = (*corner, corner[0] + side, corner[1] + side)
    place = np.linalg.solve(affine[:, :2], np.array(corner) + side / 2 - affine[:, 2])
    radius = 0.12 * side / np.diag(affine)
    rows, columns = (
        (np.arange(height) + 0.5) / height - place[1],
        (np.arange(width) + 0.5) / width - place[0],
    )
    spot = np.exp(-0.5 * ((rows[:, None] / radius[1]) ** 2 + (columns[None] / radius[0]) ** 2))
    pixels = torch.from_numpy((spot * 255).round().astype(np.uint8))[None, :, :, None].expand(
        1, -1, -1, 3
    )
    part, affine = crop_view(pixels, affine, crop, 64, "bilinear")
    if flip:
        part, affine = flip_horizontally(part, affine)
    mass, centres = part[0, 0].numpy().astype(float), (np.arange(64) + 0.5) / 64
    found = np.array([mass.sum(0) @ centres, mass.sum(1) @ centres]) / mass.sum()
    expected = affine @ [*place, 1]
    np.testing.assert_allclose(found, expected, atol=0.4 / 64)
    np.testing.assert_allclose(expected, [0.5, 0.5], atol=0.51 / 64)  # pixels are whole


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (3, 2), (2, 2999)])
@pytest.mark.parametrize("crop", [(0, 0, 0.1, 0.1), (0.9, 0.9, 1, 1), (0, 0, 1, 0.5)])
def test_parts_of_extreme_shapes(height, width, crop):
    pixels = torch.tensor([10, 128, 250], dtype=torch.uint8).expand(1, height, width, 3)
    for fit in ("crop", "squash"):
        part, _ = crop_view(
            pixels, resize_and_crop(pixels, 24, fit, "bicubic")[1], crop, 24, "bicubic"
        )
        assert part.shape == (1, 3, 24, 24) and part.is_contiguous()
        assert [int(part[0, channel].float().mean()) for channel in range(3)] == [10, 128, 250]


def test_a_part_has_the_detail_that_the_square_has_lost():
    stripes = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    square, affine = resize_and_crop(stripes, 32, "crop", "bilinear")
    part, _ = crop_view(stripes, affine, (0.5, 0.5, 0.625, 0.625), 32, "bilinear")
    assert square[..., 4:-4].float().std() < 2 and part.float().std() > 100


def test_a_mirror_is_exact():
    square, affine = resize_and_crop(blurred(40, 60), 32, "crop", "bicubic")
    flipped, of_flipped = flip_horizontally(square, affine)
    assert torch.equal(flipped, square.flip(3))
    np.testing.assert_allclose(of_flipped, [[-1.5, 0, 1.25], [0, 1, 0]])


# The cache


@pytest.fixture(scope="module")
def quarters(tmp_path_factory) -> tuple[Manifest, Cache]:
    """Wide frames whose middle square has four bar codes, the lower ones mirrored, seen by a view each."""
    root = tmp_path_factory.mktemp("quarters")
    for video in range(4):
        pictures = []
        for frame in range(11 + video):
            codes = [address.paint(10 * video + quarter, frame, 64) for quarter in range(4)]
            rows = (
                np.concatenate(codes[:2], 1),
                np.concatenate([code[:, ::-1] for code in codes[2:]], 1),
            )
            square = np.concatenate(rows)
            pictures.append(np.pad(square, ((0, 0), (32, 32), (0, 0))))
        write_video(root / f"videos/{'xy'[video % 2]}/v{video}.mp4", pictures)
    built = manifest.build("folder", root / "videos", root / "data", {"val_fraction": 0.5})
    return built, extract.extract(address_spec(views=QUARTERS), built, root / "caches")


def test_every_view_saw_its_own_pixels_of_every_frame(quarters):
    _, cache = quarters
    assert list(cache.views) == [BASE, *(view["name"] for view in QUARTERS)] and not cache.failures
    for source, place in cache.locations.items():
        group = zarr.open_group(cache.path / store_name(place.store), mode="r")
        for quarter, view in enumerate(QUARTERS):
            for name in ("special", "layer_2", "layer_5"):
                found = address.read(
                    np.asarray(group[f"{view['name']}/{name}"][place.start : place.stop])
                )
                assert (found.video == 10 * int(source[3]) + quarter).all()
                assert (found.frame == np.arange(place.stop - place.start)[:, None]).all()
                assert (found.special == (name == "special")).all()
        assert (address.read(np.asarray(group["layer_5"][:])).video == address.UNREADABLE).all()


def test_every_view_has_its_affine_and_the_base_keeps_its_own(quarters):
    _, cache = quarters
    expected = {
        "affine": [[1.5, 0, -0.25], [0, 1, 0]],
        "upper_right/affine": [[3, 0, -1.5], [0, 2, 0]],
        "lower_left/affine": [[-3, 0, 1.5], [0, 2, -1]],
    }
    for store in cache.plan:
        group = zarr.open_group(cache.path / store_name(store), mode="r")
        for name, affine in expected.items():
            np.testing.assert_allclose(
                group[name][:], np.broadcast_to(affine, group[name].shape), atol=1e-9
            )


@pytest.fixture(scope="module")
def flipped_cache(quarters, tmp_path_factory) -> Cache:
    built, _ = quarters
    return extract.extract(address_spec(views=[FLIP]), built, tmp_path_factory.mktemp("flipped"))


def test_damage_in_a_view_is_found_by_name(flipped_cache, tmp_path):
    cache = Cache(shutil.copytree(flipped_cache.path, tmp_path / flipped_cache.name))
    require_valid(cache)
    file = cache.path / store_name(0) / "flip/layer_5/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    assert check_store(cache, 0) == {"flip/layer_5/c/0/0/0": "content differs from its checksum"}
    assert_refused(call("verify", cache.path), "in 1 store: ", out=True)


@pytest.mark.parametrize(
    "file",
    ["flip/zarr.json", "flip/affine/zarr.json", "flip/affine/c/0/0/0", "flip/layer_5/c/0/0/0"],
)
def test_a_file_of_a_view_that_a_receipt_leaves_out_is_no_stray(flipped_cache, tmp_path, file):
    """It is needed, so a repair must not remove it."""
    cache = Cache(shutil.copytree(flipped_cache.path, tmp_path / flipped_cache.name))
    edit(cache.path / receipt_name(0), lambda table: table["files"].pop(file))
    (damage,) = verify_cache(cache).damage
    assert (damage.kind, damage.file, damage.problem) == (
        "receipt",
        receipt_name(0),
        f"it does not list {file}",
    )


def test_tokens_of_the_flip_are_those_of_flipped_squares(material, tmp_path):
    """The real encoder at work on squares that were flipped by hand; the base is what it is without views."""
    spec = vit_spec([0, 2], views=[FLIP], codec={"name": "float16"})
    cache = extract.extract(spec, material.manifest, tmp_path)
    plain = extract.extract(
        vit_spec([0, 2], codec={"name": "float16"}), material.manifest, tmp_path / "plain"
    )
    files = digest(cache.path / "stores")
    own = {
        name: sha
        for name, sha in digest(plain.path / "stores").items()
        if not name.endswith(".zarr/zarr.json")
    }
    assert own.items() <= files.items()
    encoder = plugins.load("encoder", "transformers")(spec.encoder.settings, 32, CPU)
    for store, videos in cache.plan.items():
        squares = [
            resize_and_crop(torch.from_numpy(block.pixels_FHWC), 32, "crop", "bilinear")[0].flip(-1)
            for video in videos
            for block in media.decode(material.root / video, 4)
        ]
        for name in ("special", "layer_0", "layer_2"):
            tokens = [encoder(batch) for batch in torch.cat(squares).split(5)]
            parts = [
                part.special_NSD if name == "special" else part.patches_NPD[int(name[-1])]
                for part in tokens
            ]
            stored = cache.reader(store).read_general(
                f"flip/{name}", np.arange(len(torch.cat(parts)))
            )
            assert np.array_equal(stored, torch.cat(parts).half().numpy())


def test_deriving_keeps_the_views_unless_told(material, tmp_path):
    def values(cache: Cache) -> dict[str, str]:
        return {
            name: sha
            for name, sha in digest(cache.path / "stores").items()
            if not name.endswith(".zarr/zarr.json")
        }

    source = extract.extract(address_spec(views=[FLIP, PART]), material.manifest, tmp_path)
    kept = derive(source, ["codec.name=int8", "frames.fps=5"], tmp_path / "derived")
    spec = {"codec": {"name": "int8"}, "frames": {"size_px": 64, "fps": 5}}
    assert values(kept) == values(
        extract.extract(address_spec(views=[FLIP, PART], **spec), material.manifest, tmp_path / "e")
    )
    bare = derive(source, ["views=[]"], tmp_path / "derived")
    assert values(bare) == values(material.cache) and list(bare.views) == [BASE]
    one = derive(
        source, ['views=[{name="part", crop=[0.25, 0.0, 1.0, 0.75]}]'], tmp_path / "derived"
    )
    assert set(one.token_arrays) == {
        f"{view}{name}" for view in ("", "part/") for name in ("special", "layer_2", "layer_5")
    }
    with pytest.raises(
        BadInput, match=r"cannot derive views \['flip'\] from .*, which holds \['base'\]"
    ):
        derive(bare, ['views=[{name="flip", flip=true}]'], tmp_path / "derived")


def test_all_views_of_a_layer_have_one_fitted_codec(material, tmp_path):
    pca = {"name": "pca", "components": 8, "frames": 20}
    cache = extract.extract(address_spec(views=[FLIP], codec=pca), material.manifest, tmp_path)
    plain = extract.extract(address_spec(codec=pca), material.manifest, tmp_path)
    assert cache.header.codec_sha256 == plain.header.codec_sha256
    assert cache.codecs["flip/layer_5"] is cache.codecs["layer_5"]


# Training


def test_a_view_is_drawn_as_a_pure_function_of_seed_and_sample(quarters):
    built, cache = quarters
    names = ("upper_left", "lower_left", "upper_right")
    made, again, other = (
        Windows(cache, built, "train", WindowSettings(frames=2, fps=FPS, views=names, seed=seed))
        for seed in (0, 0, 1)
    )
    drawn = [made.order.sample(number).view for number in range(600)]
    assert drawn == [again.order.sample(number).view for number in range(600)]
    assert drawn[::-1] == [made.order.sample(number).view for number in reversed(range(600))]
    assert drawn != [other.order.sample(number).view for number in range(600)]
    assert all(150 < drawn.count(name) < 250 for name in names)
    base = Windows(cache, built, "train", WindowSettings(frames=2, fps=FPS))
    assert [base.order.sample(n)._replace(view="") for n in range(50)] == [
        made.order.sample(n)._replace(view="") for n in range(50)
    ]
    assert {base.order.sample(number).view for number in range(50)} == {BASE}
    assert {sample.view for sample in made.order.evaluation()} == {BASE}


def test_a_batch_holds_every_sample_in_its_own_view(quarters):
    built, cache = quarters
    names = [view["name"] for view in QUARTERS]
    windows = Windows(cache, built, "train", WindowSettings(frames=3, fps=FPS, views=tuple(names)))
    numbers = range(8)
    batch = dict(windows.train(8, range(1)))[0]
    special, patches = windows.tokens(batch, CPU)
    for row, sample in enumerate(map(windows.order.sample, numbers)):
        video = 10 * int(windows.clip(sample.clip).video_id[3]) + names.index(sample.view)
        for tokens in (special, *patches):
            found = address.read(tokens[row])
            assert (found.video == video).all()
            assert (found.frame == np.round(batch.time_s_BT[row] * FPS)[:, None]).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Manifest, Cache]:
    """The built-in world in three views."""
    root = tmp_path_factory.mktemp("world")
    built = manifest.build(
        "world", None, root, {"clips_per_class": 2, "frames": 8, "size_px": 64, "val_fraction": 0.5}
    )
    spec = address_spec(
        frames={"size_px": 32, "fps": 12.0},
        views=[FLIP, PART, PART | {"name": "both", "flip": True}],
    )
    return built, extract.extract(spec, built, tmp_path_factory.mktemp("cache"))


def truth(world: tuple[Manifest, Cache], view: str) -> dict[str, np.ndarray]:
    built, cache = world
    wants = Wants("boxes", "points", "depth_m")
    windows = Windows(cache, built, "train", WindowSettings(frames=4, fps=6), wants)
    return windows.truth([WindowRef(clip, 0.3, None, view) for clip in range(len(windows))])


@pytest.mark.parametrize(("plain", "flipped"), [(BASE, "flip"), ("part", "both")])
def test_the_truth_of_a_mirrored_view_is_the_truth_mirrored(world, plain, flipped):
    ours, theirs = truth(world, flipped), truth(world, plain)
    assert theirs["boxes_valid"].any() and theirs["visible"].any()
    valid = theirs["boxes_valid"]
    np.testing.assert_array_equal(ours["boxes_valid"], valid)
    mirror = np.stack(
        [
            1 - theirs["boxes"][..., 2],
            theirs["boxes"][..., 1],
            1 - theirs["boxes"][..., 0],
            theirs["boxes"][..., 3],
        ],
        -1,
    )
    np.testing.assert_allclose(ours["boxes"][valid], mirror[valid], atol=1e-6)
    assert (ours["boxes"][valid][:, 2:] > ours["boxes"][valid][:, :2]).all() and not ours["boxes"][
        ~valid
    ].any()
    np.testing.assert_allclose(ours["points"][..., 0], 1 - theirs["points"][..., 0], atol=1e-6)
    np.testing.assert_allclose(ours["points"][..., 1], theirs["points"][..., 1], atol=1e-6)
    np.testing.assert_array_equal(ours["visible"], theirs["visible"])
    np.testing.assert_array_equal(ours["depth_m"], theirs["depth_m"][..., ::-1])


def test_the_truth_of_a_part_is_the_truth_seen_through_it(world):
    ours, theirs = truth(world, "part"), truth(world, BASE)
    x0, y0, x1, y1 = PART["crop"]
    into = (theirs["points"] - [x0, y0]) / [x1 - x0, y1 - y0]
    np.testing.assert_allclose(ours["points"], into, atol=0.51 / 32)
    inside = ((ours["points"] >= 0) & (ours["points"] <= 1)).all(-1)
    np.testing.assert_array_equal(
        ours["visible"], theirs["visible"] & inside
    )  # the base shows all of the world
    assert ours["visible"].sum() < theirs["visible"].sum()
    boxes = ((theirs["boxes"] - [x0, y0, x0, y0]) / [x1 - x0, y1 - y0, x1 - x0, y1 - y0]).clip(0, 1)
    both = ours["boxes_valid"] & theirs["boxes_valid"]
    np.testing.assert_allclose(ours["boxes"][both], boxes[both], atol=0.51 / 32)


def test_training_draws_views_and_evaluation_sees_the_base(quarters, tmp_path):
    _, cache = quarters
    views = (["base"], ["upper_left", "base"], ["upper_left", "base"])
    runs = [
        train(recipe("classify", names), cache, tmp_path / f"run_{place}")
        for place, names in enumerate(views)
    ]
    base, mixed, again = ([*load_model(run, cache.shape)[0].parameters()] for run in runs)
    assert all(map(torch.equal, mixed, again)) and not all(map(torch.equal, base, mixed))
    facts = evaluate(runs[1], cache)
    seen = [Windows(cache, cache.manifest, "val", run.recipe.windows) for run in runs[:2]]
    assert facts.clips_scored == len(seen[0]) > 0
    for ours, theirs in zip(*(windows.evaluation(2) for windows in seen), strict=True):
        assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in theirs.arrays)


def test_views_that_do_not_fit_are_named_before_training(world, quarters, tmp_path):
    _, cache = quarters
    with pytest.raises(
        BadInput,
        match=r"windows.views: cache .*: no view called 'upper_lft'; there are: base, lower_left",
    ) as error:
        train(recipe("classify", ["base", "upper_lft"]), cache, tmp_path / "run")
    assert error.value.hint == "did you mean 'upper_left'?"
    with pytest.raises(
        BadInput,
        match="view 'both' is mirrored, and the truth of task 'pose' does not hold in a mirror",
    ):
        train(recipe("pose", ["part", "both"]), world[1], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(recipe("pose", ["base", "part"]), world[1], tmp_path / "run")
    with pytest.raises(BadInput, match="wanted at least one view, each once"):
        recipe("classify", [])


def test_a_stream_sees_the_base(quarters, tmp_path):
    """And says what a window of it says."""
    built, cache = quarters
    made = recipe("classify", ["upper_left", "base"])
    made = made.model_copy(update={"windows": made.windows.model_copy(update={"fps": float(FPS)})})
    run = train(made, cache, tmp_path / "run")
    stream = Stream(run)
    windows = Windows(cache, built, "val", run.recipe.windows, stream.task, stream.model.layers)
    with torch.no_grad():
        expected = stream.model(*windows.tokens(windows.read([WindowRef(0, 0.0)]), CPU))[
            "streaming"
        ][0]
    seen = list(stream.follow(Path(built.root) / windows.clip(0).source))[:4]
    np.testing.assert_allclose([one.answer for one in seen], expected, atol=1e-5)
    np.testing.assert_allclose(seen[0].affine_23, [[1.5, 0, -0.25], [0, 1, 0]])


def test_clips_read_backwards_are_so_in_every_view(quarters):
    built, cache = quarters
    backwards = dataclasses.replace(
        built, clips=tuple(dataclasses.replace(clip, reverse=True) for clip in built.clips)
    )
    windows = Windows(
        cache, backwards, "train", WindowSettings(frames=3, fps=FPS, views=("lower_left",))
    )
    batch = windows.read([windows.order.sample(0)])
    found = address.read(windows.tokens(batch, CPU)[1][0])
    assert (np.diff(found.frame[0, :, 0]) == -1).all() and (found.video % 10 == 2).all()
