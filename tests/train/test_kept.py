"""Training that leaves patches out reads fewer tokens of the same frames, by a draw that depends on
nothing but the seed and the number of the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.material import FPS, address_spec
from support.sweeps import BASE, assert_as_alone
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.config import plugins
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.errors import BadInput
from pipeline.experiments.planning.uncached import UncachedReader
from pipeline.experiments.sweep import sweep
from pipeline.experiments.sweep_spec import GIVEN, SweepSpec, groups_of
from pipeline.extract.extract import extract
from pipeline.models.encoders import address
from pipeline.models.encoders.contract import make_encoder
from pipeline.models.step_memory import STARTED_BYTES, TrainingMemory
from pipeline.models.tasks.contract import make_task, task_class
from pipeline.records import TokenShape
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import read_metrics
from pipeline.train.setup import RunContext, open_windows
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.kept import kept_patches
from pipeline.train.windows.windows import Windows

CPU = torch.device("cpu")
PLACES = 9
"""Patches of a frame of the address cache."""


class Label:
    needs = ("label",)
    dense_px = None

    def prepare(self, targets, rng):
        return targets


def make(cache, split="train", **settings) -> Windows:
    chosen = WindowSettings(**({"frames": 4, "fps": FPS} | settings))
    wanted = None if chosen.both_directions else Label()
    return Windows(cache, cache.manifest, split, chosen, wanted)


def dropping(**changes) -> Recipe:
    windows = {"keep_tokens": 0.25} | changes.pop("windows", {})
    return recipe(windows=windows, **changes)


def places(windows: Windows, batch) -> np.ndarray:
    """(B, K), the patches that a batch holds, which all frames and layers of a window share."""
    special, patches = windows.tokens(batch, CPU)
    assert address.read(special).special.all() and special.shape[2] == 2
    token_BTK = address.read(patches[-1]).token
    for layer in patches:
        np.testing.assert_array_equal(address.read(layer).token, token_BTK)
    np.testing.assert_array_equal(token_BTK, np.broadcast_to(token_BTK[:, :1], token_BTK.shape))
    return token_BTK[:, 0]


def by_number(windows: Windows, batch_size: int, steps: int, ranks: int = 1) -> dict:
    """Number of the sample -> the places that are kept of it."""
    found = {}
    for rank in range(ranks):
        for step, batch in windows.train(batch_size, range(steps), rank, ranks):
            for index, kept in enumerate(places(windows, batch).tolist()):
                found[step * batch_size + rank + index * ranks] = tuple(kept)
    return found


@pytest.fixture(scope="module")
def flipped(material, tmp_path_factory):
    """A cache with scales beside its tokens, compressed, and with a mirrored view."""
    table = address_spec().model_dump(exclude={"encoder", "codec"})
    spec = address_spec(
        codec={"name": "int8"},
        views=[{"name": "flip", "flip": True}],
        store=table["store"] | {"compression": "zstd"},
    )
    return extract(spec, material.manifest, tmp_path_factory.mktemp("flipped"))


def test_a_window_keeps_the_same_places_in_all_frames_and_draws_its_own(material):
    found = by_number(make(material.cache, keep_tokens=0.4), 4, 12)
    assert {len(kept) for kept in found.values()} == {round(0.4 * PLACES)} == {4}
    assert all(list(kept) == sorted(set(kept)) for kept in found.values())
    assert len(set(found.values())) > 24
    counts = np.bincount(np.concatenate(list(map(np.array, found.values()))), minlength=PLACES)
    assert counts.min() > 10  # no place is left out for ever
    assert make(material.cache, keep_tokens=0.01).settings.patches_kept((3, 3)) == 1


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"shuffle": True}, {"still": 0.5}, {"both_directions": True}, {"span": "clip"}],
)
def test_the_draw_depends_on_seed_and_number_alone(material, settings, ranks):
    """Not on batches, processes, or what else is done to the frames of a window."""
    rate = {"fps": None} if "span" in settings else {}
    plain = by_number(make(material.cache, keep_tokens=0.5), 4, 6)
    other = make(material.cache, keep_tokens=0.5, **settings, **rate)
    assert by_number(other, 2, 12, ranks) == plain
    assert by_number(make(material.cache, keep_tokens=0.5, seed=1), 4, 6) != plain


def test_what_is_kept_are_tokens_of_the_whole_window(material):
    whole, some = (make(material.cache, keep_tokens=share) for share in (None, 0.5))
    for (_, all_of), (_, kept) in zip(
        *(windows.train(3, range(5)) for windows in (whole, some)), strict=True
    ):
        assert_kept_of(whole, all_of, some, kept)


def assert_kept_of(whole, all_of, some, kept) -> None:
    at_BK = places(some, kept)
    special, patches = whole.tokens(all_of, CPU)
    found_special, found = some.tokens(kept, CPU)
    assert torch.equal(found_special, special)
    for before, after in zip(patches, found, strict=True):
        for window, at_K in enumerate(at_BK):
            assert torch.equal(after[window], before[window][:, at_K])
    np.testing.assert_array_equal(kept.time_s_BT, all_of.time_s_BT)
    np.testing.assert_array_equal(kept.targets["label"], all_of.targets["label"])


def test_views_scales_and_compressed_rows_are_kept_alike(flipped):
    both = {"views": ("base", "flip")}
    whole, some = (make(flipped, keep_tokens=share, **both) for share in (None, 0.5))
    seen = set()
    for step, (one, other) in enumerate(
        zip(*(windows.train(4, range(6)) for windows in (whole, some)), strict=True)
    ):
        _, all_of = one
        _, kept = other
        assert kept.arrays["layer_5"].shape == (4, 4, 4, 8)
        assert kept.arrays["layer_5_scale"].shape == (4, 4, 4)
        assert kept.arrays["special_scale"].shape == (4, 4, 2)
        for index in range(4):
            ref = some.order.sample(4 * step + index)
            seen.add(ref.view)
            kept_P = some.locate(ref).kept_P
            for name in ("layer_2", "layer_2_scale", "layer_5", "layer_5_scale"):
                np.testing.assert_array_equal(
                    kept.arrays[name][index], all_of.arrays[name][index][:, kept_P]
                )
    assert seen == {"base", "flip"}


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("number", [0, 12345, 2**32 - 1, 2**33 + 5])
def test_the_draw_is_that_of_numpy_itself(seed, number):
    """Runs that go on depend on it."""
    chosen = WindowSettings(frames=4, fps=FPS, keep_tokens=0.25, seed=seed)
    drawn = np.random.default_rng([seed, number, 2]).permutation(196)[:49]
    kept_P = kept_patches(WindowRef(0, 0.5, number), (14, 14), chosen)
    assert np.flatnonzero(kept_P).tolist() == sorted(drawn.tolist())


# A rectangle of the grid


def test_a_crop_is_a_rectangle_of_the_grid_that_lies_anywhere(material):
    found = by_number(make(material.cache, crop=(2, 1)), 4, 12)
    rectangles = [(3 * y + x, 3 * (y + 1) + x) for y in range(2) for x in range(3)]
    assert set(found.values()) == set(rectangles)
    counts = [list(found.values()).count(rectangle) for rectangle in rectangles]
    assert min(counts) >= 2
    assert by_number(make(material.cache, crop=(2, 1)), 2, 24, ranks=2) == found
    assert by_number(make(material.cache, crop=(2, 1), seed=1), 4, 12) != found


def test_a_share_of_a_crop_lies_in_it(material):
    crops = by_number(make(material.cache, crop=(3, 2)), 4, 12)
    some = by_number(make(material.cache, crop=(3, 2), keep_tokens=0.5), 4, 12)
    assert all(len(kept) == 3 and set(kept) < set(crops[number]) for number, kept in some.items())
    assert len(set(some.values())) > 10


def test_the_whole_grid_is_no_crop(material):
    whole, crop = (make(material.cache, crop=crop) for crop in (None, (3, 3)))
    (_, one), (_, other) = (next(windows.train(4, range(1))) for windows in (whole, crop))
    assert (places(whole, one) == places(crop, other)).all()


def test_what_a_crop_holds_are_tokens_of_the_whole_window(material):
    whole, some = (make(material.cache, crop=crop) for crop in (None, (2, 2)))
    for (_, all_of), (_, kept) in zip(
        *(windows.train(3, range(5)) for windows in (whole, some)), strict=True
    ):
        assert_kept_of(whole, all_of, some, kept)


def test_a_crop_that_does_not_fit_is_refused(material):
    said = r"windows.crop = \[4, 2\] does not fit into the 3 x 3 patches of cache .*address-\w+$"
    with pytest.raises(BadInput, match=said):
        make(material.cache, crop=(4, 2))


def test_a_training_on_crops_ends_as_one_that_was_stopped(material, tmp_path):
    chosen = recipe(windows={"crop": (2, 2)})
    whole = train(chosen, material.cache, tmp_path / "whole")
    with pytest.raises(Stop):
        train(chosen, material.cache, tmp_path / "cut", on_progress=stop_at(7))
    again = train(chosen, material.cache, tmp_path / "cut")
    assert_same(final(whole), final(again))
    assert evaluate(again, material.cache).forms == evaluate(whole, material.cache).forms


@pytest.mark.parametrize("dropping", [{"keep_tokens": 0.25}, {"crop": (2, 1)}])
def test_evaluation_reads_every_token(material, dropping):
    whole, some = (make(material.cache, "val", **settings) for settings in ({}, dropping))
    for before, after in zip(whole.evaluation(2), some.evaluation(2), strict=True):
        assert places(some, after).shape[1] == PLACES
        for name, array in before.arrays.items():
            np.testing.assert_array_equal(after.arrays[name], array)


def test_without_the_cache_the_same_places_are_kept(material):
    cached, uncached = (make(material.cache, keep_tokens=0.5) for _ in range(2))
    encoder = make_encoder(material.cache.cache_spec, CPU)
    with UncachedReader(uncached, encoder, 1, CPU) as reader:
        uncached.reader = reader
        for (_, one), (_, other) in zip(
            *(windows.train(2, range(2)) for windows in (cached, uncached)), strict=True
        ):
            for (special, patches), (others, others_patches) in [
                (cached.tokens(one, CPU), uncached.tokens(other, CPU))
            ]:
                assert torch.equal(special, others)
                assert all(map(torch.equal, patches, others_patches))


# Training


def test_a_share_of_one_is_training_as_it_was(material, tmp_path):
    plain = train(recipe(), material.cache, tmp_path / "plain")
    whole = train(recipe(windows={"keep_tokens": 1.0}), material.cache, tmp_path / "whole")
    assert_same(final(plain), final(whole))
    assert read_metrics(plain.path) == read_metrics(whole.path)


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(material, tmp_path):
    whole = train(dropping(), material.cache, tmp_path / "whole")
    with pytest.raises(Stop):
        train(dropping(), material.cache, tmp_path / "cut", on_progress=stop_at(7))
    again = train(dropping(), material.cache, tmp_path / "cut")
    assert_same(final(whole), final(again))
    assert read_metrics(whole.path) == read_metrics(again.path)
    assert evaluate(again, material.cache).forms == evaluate(whole, material.cache).forms
    with pytest.raises(BadInput, match=r"recipe.windows.keep_tokens: 0.5 / 0.25"):
        train(dropping(windows={"keep_tokens": 0.5}), material.cache, tmp_path / "cut")


@pytest.mark.parametrize("mixer", ["mlp", "norm", "concat"])
def test_two_parts_are_one_batch(material, tmp_path, mixer):
    """Also where a norm takes its moments over the tokens that are kept."""
    lines = [
        read_metrics(
            train(
                dropping(
                    model={"mixer": mixer},
                    training={"accumulate": parts, "steps": 6},
                ),
                material.cache,
                tmp_path / f"{parts}",
            ).path
        )
        for parts in (1, 2)
    ]
    for one, two in zip(*lines, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-3)
        assert two.get("val") == (pytest.approx(one["val"], rel=1e-3) if "val" in one else None)


def test_members_of_a_sweep_share_a_read_only_where_they_keep_as_much(material, tmp_path):
    base = tmp_path / "base.toml"
    base.write_text(
        "\n".join(
            line
            for name, table in BASE.items()
            for line in (f"[{name}]", *(f"{key} = {value!r}" for key, value in table.items()))
        )
    )
    shares = {"windows.keep_tokens": [0.25, 1.0]}

    def spec_of(axes):
        table = {"name": "kept", "recipe": str(base), "axes": axes}
        return plugins.validate(SweepSpec, table, "test")

    groups = groups_of(spec_of(shares | {"temporal": ["identity", "gru"]}).grid_points)
    assert groups == [
        ["keep_tokens=0.25-identity-seed0", "keep_tokens=0.25-gru-seed0"],
        ["keep_tokens=1-identity-seed0", "keep_tokens=1-gru-seed0"],
    ]
    made = sweep(spec_of(shares), {GIVEN: material.cache}, tmp_path / "sweep")
    assert [len(group) for group in made.groups] == [1, 1]
    assert_as_alone(made, tmp_path / "alone")


# Who may


def test_tasks_that_need_every_place_refuse_in_one_line(material, tmp_path):
    names = plugins.names("task")
    may = {name for name in names if plugins.load("task", name).drops_patches}
    assert {"classify", "pose"} <= may
    assert not may & {"boxes", "points", "depth", "forecast", "contrast"}
    for name in set(names) - may:
        wanted = plugins.validate(
            Recipe, recipe().canonical() | {"task": {"name": name}}, "test"
        ).model_copy(update={"windows": WindowSettings(frames=4, fps=FPS, keep_tokens=0.5)})
        assert task_class(wanted).drops_patches is False
        with pytest.raises(BadInput) as error:
            make_task(wanted, ())
        assert error.value.message == (
            "recipe 'test': windows.keep_tokens = 0.5 leaves patches out, and task "
            f"'{name}' needs those of every place"
        )
        with pytest.raises(BadInput, match="leaves patches out"):
            open_windows([wanted], RunContext.of(material.cache))
        cropped = WindowSettings(frames=4, fps=FPS, crop=(2, 3))
        with pytest.raises(BadInput, match=r"'test': windows.crop = \[2, 3\] leaves patches out"):
            make_task(wanted.model_copy(update={"windows": cropped}), ())
        everything = WindowSettings(frames=4, fps=FPS, keep_tokens=1.0)
        make_task(wanted.model_copy(update={"windows": everything}), ("a", "b"))


@pytest.mark.parametrize("share", [0, 1.01, -0.5])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match="keep_tokens"):
        WindowSettings(frames=4, fps=FPS, keep_tokens=share)


# What it takes


def test_a_step_takes_memory_for_what_it_reads():
    shape = TokenShape(64, (8, 8), 1, (1,))
    sizes = {"model": {"width": None}, "training": {"batch_size": 512, "accumulate": 8}}
    whole, some = (
        TrainingMemory(
            [recipe(windows={"keep_tokens": share}, **sizes)], shape, ("a", "b"), 256, 5, 1
        ).peak_bytes()
        - STARTED_BYTES
        for share in (None, 0.25)
    )
    tokens, kept = 1 + 64, 1 + 16
    assert some / whole == pytest.approx(kept / tokens, rel=0.15)
