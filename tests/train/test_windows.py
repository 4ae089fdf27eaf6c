"""Windows: the frames in a batch are the frames that were asked for, in an order that is a pure
function of seed and step."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from support.material import FPS, LENGTHS

from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name
from pipeline.config.recipe import WindowSettings
from pipeline.errors import BadInput
from pipeline.models.encoders import address
from pipeline.train.windows.index import WindowRef, expected_windows
from pipeline.train.windows.windows import Windows


class Label:
    """Wants the label alone."""

    needs = ("label",)
    dense_px = None

    def prepare(self, targets, rng):
        return targets


def make(material, split="train", clips=None, seed=0, **settings) -> Windows:
    """Windows over the shared cache, with the clips changed as `clips` says."""
    source = material.manifest
    if clips is not None:
        source = dataclasses.replace(source, clips=tuple(clips))
    return Windows(
        material.cache,
        source,
        split,
        WindowSettings(**({"frames": 4, "fps": FPS, "seed": seed} | settings)),
        Label(),
    )


def in_val(material, split="val"):
    """All clips, in one split."""
    return [dataclasses.replace(clip, split=split) for clip in material.manifest.clips]


def addresses(windows: Windows, batch) -> address.Address:
    """What the first patch of layer 5 says of every frame, (B, T)."""
    _, patches = windows.tokens(batch, torch.device("cpu"))
    return address.read(patches[-1][:, :, 0])


def test_every_array_of_every_window_holds_its_own_frames(material):
    windows = make(material)
    for batch in windows.evaluation(2):
        special, patches = windows.tokens(batch, torch.device("cpu"))
        videos = np.array([int(windows.clip(int(index)).video_id[3]) for index in batch.clip_index])
        frames = np.round(batch.time_s_BT * FPS).astype(int)
        for tensor, layer in ((special, 5), (patches[0], 2), (patches[1], 5)):
            found = address.read(tensor)
            np.testing.assert_array_equal(
                found.video, np.broadcast_to(videos[:, None, None], found.video.shape)
            )
            np.testing.assert_array_equal(
                found.frame, np.broadcast_to(frames[:, :, None], found.frame.shape)
            )
            assert (found.layer == layer).all()
            np.testing.assert_array_equal(
                found.token, np.broadcast_to(np.arange(found.token.shape[2]), found.token.shape)
            )


@pytest.mark.parametrize(
    ("fps", "speed", "step"), [(10, 1, 1), (5, 1, 2), (5, 2, 4), (2, 0.5, 2.5)]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_speed_and_direction_are_honoured_when_a_window_is_read(
    material, fps, speed, step, reverse
):
    clips = [
        dataclasses.replace(clip, split="train", speed=float(speed), reverse=reverse)
        for clip in material.manifest.clips
        if LENGTHS[clip.video_id] > 20
    ]
    windows = make(material, clips=clips, fps=fps)
    for _, batch in windows.train(3, range(4)):
        found = addresses(windows, batch).frame
        steps = np.diff(found, axis=1) * (-1 if reverse else 1)
        assert (np.abs(steps - step) <= (0.5 if step % 1 else 0)).all(), steps
        np.testing.assert_allclose(batch.time_s_BT, found / FPS, atol=1e-4)


def test_clip_borders_are_kept(material):
    clip = next(clip for clip in material.manifest.clips if clip.video_id == "b/v5.mp4")
    windows = make(
        material, clips=[dataclasses.replace(clip, split="train", start_s=1.0, stop_s=2.2)]
    )
    seen = {
        int(frame)
        for _, batch in windows.train(4, range(25))
        for frame in addresses(windows, batch).frame.ravel()
    }
    assert seen == set(range(10, 22))


def test_a_short_clip_repeats_its_last_frame_and_is_counted(material):
    windows = make(
        material,
        split="train",
        clips=[dataclasses.replace(c, split="train") for c in material.manifest.clips],
        frames=8,
    )
    place = next(
        place for place in range(len(windows)) if windows.clip(place).video_id == "b/v4.mp4"
    )
    found = addresses(windows, windows.read([WindowRef(place, 0.7)])).frame[0]
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4, 4, 4, 4])
    assert windows.index.padded == 1


def test_a_reversed_clip_is_the_forward_one_read_backwards(material):
    """Where it is shorter than its window, the frame that is read last is repeated, not the first,
    by which alone a model could tell the direction."""
    clips = [
        dataclasses.replace(clip, split="train", reverse=reverse)
        for clip in material.manifest.clips
        for reverse in (False, True)
    ]
    windows = make(material, clips=clips, frames=8, fps=5)
    for forward in range(0, len(windows), 2):
        length_s = LENGTHS[windows.clip(forward).video_id] / FPS
        inside = min(8, math.ceil(length_s * 5))
        for position in (0.0, 0.3, 1.0):
            refs = [WindowRef(forward + backwards, position) for backwards in (0, 1)]
            ahead, back = addresses(windows, windows.read(refs)).frame
            assert back[:inside].tolist() == ahead[:inside][::-1].tolist()
            assert (back[inside:] == ahead[0]).all()


def test_training_reads_half_of_the_windows_backwards_if_asked_to(material):
    """They are the same windows otherwise; evaluation reads forwards."""
    both, ahead = (
        Windows(
            material.cache,
            material.manifest,
            "train",
            WindowSettings(frames=4, fps=FPS, both_directions=both_directions),
        )
        for both_directions in (True, False)
    )
    refs = [both.order.sample(number) for number in range(400)]
    assert [ref._replace(backwards=False) for ref in refs] == [
        ahead.order.sample(number) for number in range(400)
    ]
    assert 150 < sum(ref.backwards for ref in refs) < 250
    for ref in refs[:10]:
        rows_T = ahead.index.locate(ref._replace(backwards=False)).rows_T
        read_T = both.index.locate(ref).rows_T
        inside = np.unique(rows_T)  # a short clip repeats the frame that is read last
        expected = inside[::-1] if ref.backwards else inside
        assert read_T[: len(inside)].tolist() == expected.tolist()
    assert list(both.order.evaluation()) == list(ahead.order.evaluation())


def test_both_directions_are_refused_where_truth_is_of_one(material):
    with pytest.raises(BadInput, match="windows.both_directions is .* the truth 'label' is of one"):
        Windows(
            material.cache,
            material.manifest,
            "train",
            WindowSettings(frames=2, fps=FPS, both_directions=True),
            Label(),
        )


def test_every_start_of_a_window_is_as_likely(material):
    """All starts from which a window lies in its clip, the first and the last among them."""
    windows = make(material, frames=6)
    starts = [windows.index.locate(WindowRef(0, (n + 0.5) / 1000)).rows_T[0] for n in range(1000)]
    frames = len(windows.index.clip_rows[0].time_s)
    counts = np.bincount(np.array(starts) - min(starts))
    assert len(counts) == frames - 5 and np.ptp(counts) < 0.1 * counts.mean() + 2


def test_every_clip_comes_once_in_every_epoch(material):
    windows = make(
        material, clips=[dataclasses.replace(c, split="train") for c in material.manifest.clips]
    )
    samples = [windows.order.sample(number) for number in range(4 * len(windows))]
    for epoch in range(4):
        clips = [
            sample.clip for sample in samples[epoch * len(windows) : (epoch + 1) * len(windows)]
        ]
        assert sorted(clips) == list(range(len(windows)))
    assert len({tuple(sample.clip for sample in samples[i * 6 : i * 6 + 6]) for i in range(4)}) > 1
    assert len({sample.position for sample in samples}) == len(samples)


@pytest.mark.parametrize("shuffle", [False, True])
def test_going_on_in_mid_epoch_gives_the_same_batches(material, shuffle):
    windows = make(material, shuffle=shuffle)
    whole = dict(windows.train(3, range(9)))
    rest = dict(windows.train(3, range(5, 9)))
    assert list(rest) == [5, 6, 7, 8]
    for step, batch in rest.items():
        np.testing.assert_array_equal(batch.clip_index, whole[step].clip_index)
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(array, whole[step].arrays[name])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_out(material, world_size, shuffle):
    windows = make(material, shuffle=shuffle)
    whole = dict(windows.train(6, range(3)))
    parts = [dict(windows.train(6, range(3), rank, world_size)) for rank in range(world_size)]
    for step, batch in whole.items():
        together = np.stack([part[step].clip_index for part in parts], axis=1).ravel()
        np.testing.assert_array_equal(together, batch.clip_index)
        times_BT = np.stack([part[step].time_s_BT for part in parts], axis=1).reshape(6, -1)
        np.testing.assert_array_equal(times_BT, batch.time_s_BT)


def test_another_seed_is_another_order(material):
    a, b = (make(material, seed=seed) for seed in (0, 1))
    assert [a.order.sample(n) for n in range(20)] != [b.order.sample(n) for n in range(20)]


def test_evaluation_windows_are_spread_evenly(material):
    windows = make(material, eval_windows=3)
    batches = list(windows.evaluation(2))
    assert sum(map(len, batches)) == 3 * len(windows)
    frames = np.concatenate([addresses(windows, batch).frame for batch in batches]).reshape(
        len(windows), 3, 4
    )
    for place in range(len(windows)):
        last = LENGTHS[windows.clip(place).video_id] - 1
        np.testing.assert_array_equal(frames[place, 0], np.arange(4))
        np.testing.assert_array_equal(frames[place, 2], np.arange(last - 3, last + 1))


def by_length(material, **settings):
    """Windows of 4 frames over all clips, of which those of 15, 25 and 9 frames hold 4, 6 and 2."""
    clips = [dataclasses.replace(clip, split="train") for clip in material.manifest.clips]
    return make(material, clips=clips, per_clip="length", **settings)


def test_clips_count_by_length_if_asked_to(material):
    windows = by_length(material)
    lengths = [LENGTHS[clip.video_id] for clip in windows.index.clips]
    counts = [max(1, math.floor(length / 4 + 0.5)) for length in lengths]
    assert windows.order.counts.tolist() == counts and len(set(counts)) > 3
    total = windows.order.windows
    assert total == sum(counts)
    for epoch in range(3):
        refs = [
            windows.order.sample(number) for number in range(epoch * total, (epoch + 1) * total)
        ]
        for clip, count in enumerate(counts):
            positions = sorted(ref.position for ref in refs if ref.clip == clip)
            assert [math.floor(position * count) for position in positions] == list(range(count))
    # Every rank's share of every step, and a start in mid-epoch, are the same stream of numbers.
    stream = [windows.order.sample(number) for number in range(24)]
    shares = [windows.order.batch(step, 6, rank, 2) for step in range(4) for rank in range(2)]
    assert sorted(ref.number for share in shares for ref in share) == list(range(24))
    assert all(ref == stream[ref.number] for share in shares for ref in share)


def test_evaluation_windows_count_by_length_too(material):
    windows = by_length(material, eval_windows=2)
    refs = list(windows.order.evaluation())
    counts = (2 * windows.order.counts).tolist()
    assert [ref.clip for ref in refs] == np.repeat(range(len(windows)), counts).tolist()
    first = [ref.position for ref in refs if ref.clip == 0]
    np.testing.assert_allclose(first, np.linspace(0, 1, counts[0]))
    shares = [list(windows.order.evaluation(rank, 3)) for rank in range(3)]
    assert sorted(ref for share in shares for ref in share) == sorted(refs)
    # What the trivial answer knows is of all clips, not of the first few long ones.
    some = list(windows.order.some_of_evaluation(len(windows)))
    assert len(some) <= len(windows) and some[0] == refs[0]
    assert len({ref.clip for ref in some}) > len(windows) // 2
    assert list(windows.order.some_of_evaluation(10**6)) == refs
    assert (
        list(make(material).order.some_of_evaluation(2))
        == list(make(material).order.evaluation())[:2]
    )


@pytest.mark.parametrize("fraction", [1e-300, 1e-10, 1e-9, 1e-3])
def test_a_share_of_less_than_a_video_is_refused(material, fraction):
    clips = [clip for clip in material.manifest.clips if clip.split == "train"]
    most = max(Counter(clip.label for clip in clips).values())
    with pytest.raises(BadInput, match=f"less than one video of each label: the most have {most}"):
        make(material, train_fraction=fraction)
    least = make(material, train_fraction=1 / most).index.clips
    assert sorted(clip.label for clip in least) == ["a", "b"]


def test_one_window_a_clip_is_what_it_was(material):
    """The default draws as it always did: the numbers are those of version 0.4."""
    order = make(material, seed=3, train_fraction=1.0).order
    n = order.clips
    rng = np.random.Generator(np.random.Philox(key=np.array([3, 1], np.uint64)))
    clips, positions = rng.permutation(n), rng.random(n)
    found = [order.sample(number) for number in range(n, 2 * n)]
    assert [(ref.clip, ref.position) for ref in found] == [(int(c), positions[c]) for c in clips]
    assert order.counts is None and order.windows == n


def test_headers_tell_how_many_windows_an_epoch_has(material):
    """What `plan` says before anything is cached is what training has."""
    for speed in (1.0, 2.0):
        clips = [
            dataclasses.replace(
                clip, split="train", speed=speed, start_s=0.2 if number == 1 else 0.0
            )
            for number, clip in enumerate(material.manifest.clips)
        ]
        manifest = dataclasses.replace(material.manifest, clips=tuple(clips))
        settings = WindowSettings(frames=3, fps=5, per_clip="length")
        windows = Windows(material.cache, manifest, "train", settings)
        assert expected_windows(manifest, settings, material.spec) == windows.order.windows
        assert expected_windows(manifest, WindowSettings(frames=3, fps=5), material.spec) == len(
            clips
        )


def test_a_whole_clip_is_one_window():
    with pytest.raises(ValueError, match="leave per_clip out"):
        WindowSettings(span="clip", per_clip="length")


def test_labels_travel_with_their_clips(material):
    windows = make(material)
    for batch in windows.evaluation(2):
        names = [material.manifest.labels[label] for label in batch.targets["label"]]
        assert names == [windows.clip(int(index)).label for index in batch.clip_index]


def test_fewer_layers_read_fewer_arrays(material):
    windows = Windows(
        material.cache, material.manifest, "train", WindowSettings(frames=2, fps=FPS), layers=[5]
    )
    batch = next(iter(windows.evaluation(1)))
    assert set(batch.arrays) == {"special", "layer_5"}


def test_a_window_of_a_whole_clip_has_one_frame_of_each_of_its_equal_parts(material):
    """Whatever the clip's length: 40 frames give every 5th, 17 about every 2nd, 8 all of them, and 5
    are too few."""
    windows = make(material, split="val", clips=in_val(material), frames=8, fps=None, span="clip")
    frames = {}
    for batch in windows.evaluation(2):
        for index, found in zip(batch.clip_index, addresses(windows, batch).frame, strict=True):
            frames[windows.clip(int(index)).video_id] = found.tolist()
    assert frames["b/v5.mp4"] == [2, 7, 12, 17, 22, 27, 32, 37]
    assert frames["a/v2.mp4"] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert frames["a/v1.mp4"] == list(range(8))
    assert frames["b/v4.mp4"] == [0, 0, 1, 1, 2, 3, 3, 4]
    assert windows.index.padded == 1 and windows.index.slower == 0


def test_training_windows_of_a_whole_clip_move_within_its_parts(material):
    windows = make(material, clips=in_val(material, "train"), frames=8, fps=None, span="clip")
    seen = {}
    for _, batch in windows.train(3, range(60)):
        for index, found in zip(batch.clip_index, addresses(windows, batch).frame, strict=True):
            seen.setdefault(windows.clip(int(index)).video_id, set()).add(tuple(found.tolist()))
    assert seen["b/v5.mp4"] == {tuple(range(first, 40, 5)) for first in range(5)}
    assert seen["a/v1.mp4"] == {tuple(range(8))}
    no_repeat = [video for video in LENGTHS if LENGTHS[video] >= 8]
    assert all(len(set(window)) == 8 for video in no_repeat for window in seen[video])


def test_a_window_is_a_rate_or_a_whole_clip(material):
    for settings in ({"fps": None}, {"fps": 5, "span": "clip"}):
        with pytest.raises(ValueError, match="wanted exactly one of fps, every and span"):
            make(material, **settings)
    clips = [dataclasses.replace(clip, split="train") for clip in material.manifest.clips]
    clips[0] = dataclasses.replace(clips[0], speed=4.0)
    with pytest.raises(BadInput, match="at speeds of 1 and 4, which windows of whole clips do not"):
        make(material, clips=clips, fps=None, span="clip")


def test_shuffled_frames_are_those_of_the_window_in_an_order_of_their_own(material):
    """Drawn anew for every sample and the same each time it is read; in evaluation it depends on no
    other clip. Tokens, times and rows move together."""
    plain, mixed = (make(material, frames=6, shuffle=shuffle) for shuffle in (False, True))
    orders = set()
    for (_, before), (_, after), (_, again) in zip(
        *(windows.train(2, range(12)) for windows in (plain, mixed, mixed)), strict=True
    ):
        ahead, found = addresses(plain, before).frame, addresses(mixed, after).frame
        np.testing.assert_array_equal(np.sort(found), ahead)
        np.testing.assert_array_equal(found, addresses(mixed, again).frame)
        np.testing.assert_allclose(after.time_s_BT, found / FPS, atol=1e-4)
        np.testing.assert_array_equal(before.targets["label"], after.targets["label"])
        orders |= {tuple(np.argsort(row)) for row in found.tolist()}
    assert len(orders) > 20

    def in_evaluation(windows):
        return {
            windows.clip(int(index)).clip_id: tuple(row)
            for batch in windows.evaluation(2)
            for index, row in zip(
                batch.clip_index, addresses(windows, batch).frame.tolist(), strict=True
            )
        }

    whole = in_evaluation(mixed)
    fewer = [clip for clip in material.manifest.clips if clip.split == "train"][1:]
    assert (
        in_evaluation(make(material, clips=fewer, frames=6, shuffle=True)).items() < whole.items()
    )
    assert in_evaluation(make(material, frames=6, shuffle=True, seed=1)) != whole
    assert len({tuple(np.argsort(row)) for row in whole.values()}) > 1


@pytest.mark.parametrize(("still", "kept"), [(0.0, 0), (0.5, 2), (1.0, 5)])
def test_a_still_window_shows_one_of_its_frames_at_every_instant(material, still, kept):
    plain, frozen = (make(material, frames=6, still=value) for value in (None, still))
    for before, after in zip(plain.evaluation(2), frozen.evaluation(2), strict=True):
        alone = addresses(plain, before).frame[:, kept : kept + 1]
        np.testing.assert_array_equal(addresses(frozen, after).frame, np.repeat(alone, 6, axis=1))
        np.testing.assert_allclose(after.time_s_BT, np.repeat(alone, 6, axis=1) / FPS, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "key"), [({"shuffle": True}, "shuffle"), ({"still": 0.5}, "still")]
)
def test_controls_are_refused_where_truth_is_about_single_frames(material, settings, key):
    class Boxes(Label):
        needs = ("label", "boxes")

    with pytest.raises(BadInput, match=f"windows.{key} is .* the truth 'boxes' is about single"):
        Windows(
            material.cache,
            material.manifest,
            "train",
            WindowSettings(frames=2, fps=FPS, **settings),
            Boxes(),
        )
    with pytest.raises(ValueError, match="either shuffle or still"):
        WindowSettings(frames=2, fps=FPS, shuffle=True, still=0.0)


def test_holes_are_refused_by_name_or_left_out_by_count(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    (cache.path / receipt_name(0)).unlink()
    holed = sum(
        clip.video_id in cache.plan[0] and clip.split == "train" for clip in material.manifest.clips
    )
    settings = WindowSettings(frames=2, fps=FPS)
    with pytest.raises(
        BadInput,
        match=rf"has holes: {holed} of \d clips of split 'train' are not covered, .*: not extracted yet",
    ):
        Windows(cache, material.manifest, "train", settings)
    windows = Windows(cache, material.manifest, "train", settings, allow_missing=True)
    assert len(windows.index.skipped) == holed and len(windows) + holed == len(
        material.manifest.split("train")
    )


def test_an_unknown_split_is_named(material):
    with pytest.raises(BadInput, match="no split called 'trian'; there are: train, val"):
        make(material, split="trian")


def test_more_frames_per_second_than_the_spec_cached_are_refused(material):
    cache = Cache(material.cache.path)
    cache.spec["frames"]["fps"] = 10.0
    with pytest.raises(BadInput, match=r"windows want 12 frames per second, cache .* holds 10"):
        Windows(cache, material.manifest, "train", WindowSettings(frames=2, fps=12))


def test_a_clip_without_a_cached_frame_is_named(material):
    gone = dataclasses.replace(
        material.manifest.clips[0], clip_id="gone", split="train", start_s=50.0, stop_s=51.0
    )
    clips = [gone, *material.manifest.clips]
    with pytest.raises(
        BadInput,
        match=r"the first is gone: no cached frame in \[50, 51\) s after the first frame; "
        r"its video is cached from 0.000 to .* s after it",
    ):
        make(material, clips=clips)
    windows = Windows(
        material.cache,
        dataclasses.replace(material.manifest, clips=tuple(clips)),
        "train",
        WindowSettings(frames=2, fps=FPS),
        allow_missing=True,
    )
    assert list(windows.index.skipped) == ["gone"]


def test_videos_slower_than_the_window_are_counted_and_refused_if_all_are(material):
    with pytest.raises(
        BadInput, match="windows want 25 frames per second, every video of split 'train' has fewer"
    ):
        make(material, fps=25)
    clips = [
        dataclasses.replace(clip, split="train", speed=4.0 if i else 0.5)
        for i, clip in enumerate(material.manifest.clips)
    ]
    assert make(material, clips=clips, fps=12).index.slower == 1
