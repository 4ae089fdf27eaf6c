"""Damaged frames in a cache: left out and listed, or kept and marked; clips that hold one are
holes, all others are read as ever."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from support.commands import fine
from support.material import address_spec
from support.media import packet_spans

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.cache.verify import verify_cache
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.extract.derive import derive
from pipeline.extract.execution import Execution
from pipeline.extract.extract import extract, extract_all
from pipeline.models.encoders import address

FRAMES, RATE, GROUP = 40, 10, 10


def address_video(path: Path, video: int) -> Path:
    """Frames that tell their address, in groups of 10 that begin with a key frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": "12", "g": str(GROUP), "bf": "0", "x264-params": "scenecut=0"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            pixels = address.paint(video, number, 64)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def tear(path: Path, number: int) -> None:
    """Overwrites the packet of a frame, which is refused then."""
    data = bytearray(path.read_bytes())
    position, size = packet_spans(path)[number]
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.fixture(scope="module")
def torn(tmp_path_factory) -> Manifest:
    """Two videos, of which the second lacks frame 14, on which frames 15 to 19 rest."""
    folder = tmp_path_factory.mktemp("torn")
    for video in range(2):
        address_video(folder / "videos/x" / f"v{video}.mp4", video)
    tear(folder / "videos/x/v1.mp4", 14)
    return manifest.build("folder", folder / "videos", folder / "data", {"val_fraction": 0.5})


def spec(fps: float | str, damaged: str = "list") -> CacheSpec:
    return address_spec(frames={"size_px": 64, "fps": fps, "damaged": damaged})


def frames_of(cache: Cache, video_id: str) -> list[int]:
    """The numbers of the cached frames, as their tokens tell them."""
    place = cache.locations[video_id]
    rows = np.arange(place.start, place.stop)
    found = address.read(cache.reader(place.store).read_general("layer_5", rows))
    return found.frame[:, 0].tolist()


@pytest.fixture(scope="module")
def caches(torn, tmp_path_factory) -> list[Cache]:
    """One decode serves both policies, and a lower rate."""
    specs = [spec("all"), spec("all", "keep"), spec(2)]
    return extract_all(specs, torn, tmp_path_factory.mktemp("caches"))


@pytest.fixture
def listed(caches) -> Cache:
    return caches[0]


@pytest.fixture
def kept(caches) -> Cache:
    return caches[1]


def test_damaged_frames_are_left_out_and_listed(listed):
    left = [*range(14), *range(20, FRAMES)]
    assert frames_of(listed, "x/v0.mp4") == list(range(FRAMES))
    assert frames_of(listed, "x/v1.mp4") == left
    content = listed.content["x/v1.mp4"]
    assert (content.decoded, content.header) == (FRAMES - 1, FRAMES)
    lost, damaged = content.damaged
    assert (lost.frames, lost.left_out) == (None, 1)
    assert lost.time_s == pytest.approx((1.4, 1.5))
    assert (damaged.frames, damaged.left_out) == ((14, 19), 5)
    assert damaged.time_s == pytest.approx((1.5, 2.0))
    assert content.decoded - damaged.left_out == len(left)
    failure = listed.failures["x/v1.mp4"]
    assert failure.reason.startswith(
        "6 frames are left out as damaged or missing, from 1.400 s on: "
    )
    assert failure.frames_stored == len(left) and not listed.broken_off
    facts = status(listed)
    assert (facts.videos.stored, facts.videos.failed) == (1, 1)
    assert facts.damaged == {"x/v1.mp4": content.damaged}
    assert verify_cache(listed).is_valid


def test_a_clip_is_a_hole_only_if_a_frame_of_it_is_left_out(listed):
    (clip,) = [clip for clip in listed.manifest.clips if clip.video_id == "x/v1.mp4"]

    def hole(start_s: float, stop_s: float | None) -> str | None:
        return listed.hole(dataclasses.replace(clip, start_s=start_s, stop_s=stop_s))

    assert hole(0.0, 1.4) is None and hole(2.0, None) is None and hole(2.0, 3.0) is None
    assert (hole(0.0, 1.5) or "").startswith("1 frame is left out as damaged or missing, from 1.4")
    assert (hole(1.7, 1.8) or "").startswith("5 frames are left out")
    assert hole(0.0, None) == listed.failures["x/v1.mp4"].reason


def test_kept_frames_are_marked_and_the_video_is_whole(kept):
    assert not kept.failures and all(kept.hole(clip) is None for clip in kept.manifest.clips)
    place = kept.locations["x/v1.mp4"]
    assert place.stop - place.start == FRAMES - 1
    stretches = kept.content["x/v1.mp4"].damaged
    assert [(stretch.frames, stretch.left_out) for stretch in stretches] == [
        (None, 0),
        ((14, 19), 0),
    ]
    assert status(kept).damaged.keys() == {"x/v1.mp4"}


def test_damage_that_no_rate_asks_for_leaves_nothing_out(caches, listed, tmp_path):
    """At one frame a second frames 0, 10, 20 and 30 are kept; at two, 15 too, which is damaged."""
    one = derive(listed, ["frames.fps=1"], str(tmp_path))
    assert not one.failures and frames_of(one, "x/v1.mp4") == [0, 10, 20, 30]
    two = caches[2]
    assert frames_of(two, "x/v1.mp4") == [0, 5, 10, 20, 25, 30, 35]
    assert [stretch.left_out for stretch in two.content["x/v1.mp4"].damaged] == [0, 1]
    derived = derive(listed, ["frames.fps=2"], str(tmp_path))
    assert frames_of(derived, "x/v1.mp4") == frames_of(two, "x/v1.mp4")
    assert derived.content == two.content and derived.failures == two.failures


@pytest.mark.parametrize(("every", "left_out"), [(5, 1), (10, 0)])
def test_frames_that_are_left_out_count_where_every_nth_is_kept(listed, tmp_path, every, left_out):
    """Of the decoded frames 14 to 18, which are damaged, every 5th is 15, and every 10th none."""
    derived = derive(listed, [f"frames.every={every}"], str(tmp_path / "derived"))
    wanted = address_spec(frames={"size_px": 64, "every": every})
    (extracted,) = extract_all([wanted], listed.manifest, tmp_path / "extracted")
    assert frames_of(derived, "x/v1.mp4") == frames_of(extracted, "x/v1.mp4")
    assert derived.content == extracted.content
    assert [stretch.left_out for stretch in derived.content["x/v1.mp4"].damaged][1] == left_out


def test_a_frame_that_is_left_out_is_on_screen_until_the_next_cached_one(listed, tmp_path):
    """Frames 0, 9, 18 and 27 are kept; a window from 2.2 s on would have frame 9 for frame 18."""
    cache = derive(listed, ["frames.fps=1.1111"], str(tmp_path))
    assert frames_of(cache, "x/v1.mp4") == [0, 9, 27, 36]
    (clip,) = [clip for clip in cache.manifest.clips if clip.video_id == "x/v1.mp4"]
    holes = [
        cache.hole(dataclasses.replace(clip, start_s=start_s, stop_s=start_s + 0.4)) is not None
        for start_s in (0.9, 1.6, 2.2, 2.7)
    ]
    assert holes == [False, True, True, False]


def test_a_video_whose_first_key_frame_is_torn_begins_there_all_the_same(tmp_path):
    """Its first group cannot be shown; seconds count as if it could, at any rate."""
    videos = tmp_path / "videos"
    for video in range(2):
        address_video(videos / "x" / f"v{video}.mp4", video)
    tear(videos / "x/v1.mp4", 0)
    built = manifest.build("folder", videos, tmp_path / "data", {"val_fraction": 0.5})
    every, two = extract_all([spec("all"), spec(2)], built, tmp_path / "caches")
    derived = derive(every, ["frames.fps=2"], str(tmp_path))
    assert frames_of(two, "x/v1.mp4") == frames_of(derived, "x/v1.mp4") == [*range(10, FRAMES, 5)]
    assert every.first_s("x/v1.mp4") == two.first_s("x/v1.mp4") == 0.0
    (clip,) = [clip for clip in every.manifest.clips if clip.video_id == "x/v1.mp4"]
    for cache in (every, two, derived):
        stretches_s = [(0.0, None), (0.5, 1.5), (1.0, 2.0)]
        clips = [dataclasses.replace(clip, start_s=a, stop_s=b) for a, b in stretches_s]
        holes = [cache.hole(clip) is not None for clip in clips]
        assert holes == [True, True, False]


def test_a_mended_video_is_tried_again(torn, tmp_path):
    root = tmp_path / "videos"
    for video in range(2):
        address_video(root / "x" / f"v{video}.mp4", video)
    built = manifest.build("folder", root, tmp_path / "data", {"val_fraction": 0.5})
    sound = (root / "x/v1.mp4").read_bytes()
    tear(root / "x/v1.mp4", 14)
    assert extract(spec("all"), built, tmp_path / "caches").failures
    (root / "x/v1.mp4").write_bytes(sound)
    again = Execution(retry_failed=True)
    (mended,) = extract_all([spec("all")], built, tmp_path / "caches", again)
    assert not mended.failures and frames_of(mended, "x/v1.mp4") == list(range(FRAMES))


def test_the_commands_say_what_is_left_out(listed, kept):
    said = " ".join(fine("status", listed.path).out.split())
    assert "1 video failed" in said
    assert "6 frames are left out as damaged or missing, from 1.400 s on" in said
    assert "damaged frames that are kept" in fine("status", kept.path).out
