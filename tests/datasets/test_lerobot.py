"""LeRobot folders of both versions in their true layout: episodes, cameras, tasks in words, states and actions, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from support import media
from support.material import address_spec

from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract.extract import preview

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FPS = 10
LENGTHS = (6, 8, 5, 7)
TASKS = ("pick the cube", "pick the cube", "open the drawer", "wave")
TOP, WRIST = "observation.images.top", "observation.images.wrist"


def level(camera: str, episode: int, frame: int) -> int:
    """The grey of a frame, which tells where it is from."""
    return 16 + (100 if camera == WRIST else 0) + 24 * episode + 2 * frame


def features() -> dict[str, dict[str, object]]:
    video = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    return {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "note": {"dtype": "string", "shape": [1], "names": None},
        TOP: video,
        WRIST: video,
        "observation.images.depth": video | {"info": {"video.is_depth_map": True}},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
        },
    }


def rows_of(episode: int) -> dict[str, list[object]]:
    frames = range(LENGTHS[episode])
    return {
        "observation.state": [[float(episode), float(frame), 0.5] for frame in frames],
        "action": [[float(frame), -1.0] for frame in frames],
        "next.done": [frame == LENGTHS[episode] - 1 for frame in frames],
        "timestamp": [frame / FPS for frame in frames],
        "frame_index": list(frames),
        "episode_index": [episode] * len(frames),
        "index": list(frames),
        "task_index": [0] * len(frames),
    }


def write_table(path: Path, columns: dict[str, list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_info(root: Path, version: str, **changes: object) -> None:
    patterns = {
        "v2.1": {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        },
        "v3.0": {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        },
    }[version]
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        **patterns,
        "features": features(),
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info | changes))


def version_2(root: Path) -> Path:
    write_info(root, "v2.1")
    lines = [
        json.dumps({"episode_index": number, "tasks": [task], "length": length})
        for number, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True))
    ]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    tasks = [json.dumps({"task_index": 0, "task": TASKS[0]})]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    for episode, length in enumerate(LENGTHS):
        write_table(root / f"data/chunk-000/episode_{episode:06d}.parquet", rows_of(episode))
        for camera in (TOP, WRIST):
            folder = root / "videos/chunk-000" / camera
            folder.mkdir(parents=True, exist_ok=True)
            greys = [media.grey(level(camera, episode, frame)) for frame in range(length)]
            media.encode(folder / f"episode_{episode:06d}.mp4", greys, rate=FPS)
    return root


FILES = ((0, 1, 2), (3,))
"""Episodes of each file of version 3."""


def version_3(root: Path, keyframes: bool = True) -> Path:
    write_info(root, "v3.0")
    rows: dict[str, list[object]] = {}
    for file, episodes in enumerate(FILES):
        columns: dict[str, list[object]] = {}
        for episode in episodes:
            for name, values in rows_of(episode).items():
                columns.setdefault(name, []).extend(values)
        write_table(root / f"data/chunk-000/file-{file:03d}.parquet", columns)
        for camera in (TOP, WRIST):
            folder = root / "videos" / camera / "chunk-000"
            folder.mkdir(parents=True, exist_ok=True)
            greys = [
                media.grey(level(camera, episode, frame))
                for episode in episodes
                for frame in range(LENGTHS[episode])
            ]
            at, forced = 0, []
            for episode in episodes:
                forced.append(at)
                at += LENGTHS[episode]
            joined(folder / f"file-{file:03d}.mp4", greys, forced if keyframes else [0])
        begin = 0.0
        for episode in episodes:
            stop = begin + LENGTHS[episode] / FPS
            record = {
                "episode_index": episode,
                "tasks": [TASKS[episode]],
                "length": LENGTHS[episode],
                "data/chunk_index": 0,
                "data/file_index": file,
                "stats/action/min": [0.0],
            }
            for camera in (TOP, WRIST):
                record |= {
                    f"videos/{camera}/chunk_index": 0,
                    f"videos/{camera}/file_index": file,
                    f"videos/{camera}/from_timestamp": begin,
                    f"videos/{camera}/to_timestamp": stop,
                }
            for name, value in record.items():
                rows.setdefault(name, []).append(value)
            begin = stop
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", rows)
    write_table(
        root / "meta/tasks.parquet", {"task": list(dict.fromkeys(TASKS)), "task_index": [0, 1, 2]}
    )
    return root


def joined(path: Path, frames: list[np.ndarray], starts: list[int]) -> None:
    """A file with keyframes at the frames `starts`, as files have that were joined."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"x264-params": "scenecut=0:bframes=2"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pict_type = PictureType.I if number in starts else PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def greys_of(path: Path) -> list[int]:
    frames, times_s, reason = media.read(path)
    assert reason == ""
    np.testing.assert_allclose(times_s - times_s[0], np.arange(len(times_s)) / FPS, atol=1e-3)
    return [int(frame.mean().round()) for frame in frames]


@pytest.mark.parametrize("make", [version_2, version_3])
def test_every_episode_is_a_clip_of_every_camera(tmp_path: Path, make) -> None:
    root = make(tmp_path / "root")
    built = manifest.build("lerobot", root, tmp_path / "out", {"val_sequences": ["episode_000001"]})
    assert [clip.clip_id for clip in built.clips] == [
        f"{camera}/episode_{episode:06d}" for camera in (TOP, WRIST) for episode in range(4)
    ]
    splits = ["train", "val", "train", "train"] * 2
    assert [clip.split for clip in built.clips] == splits, "of an episode all cameras"
    assert built.rejected == {} and built.labels == ()
    assert built.origin.notes["cameras"] == "depth is left out: observation.images.depth"
    for number, clip in enumerate(built.clips):
        episode, camera = number % 4, (TOP, WRIST)[number // 4]
        assert built.texts[clip.clip_id].captions == (TASKS[episode],)
        wanted = [level(camera, episode, frame) for frame in range(LENGTHS[episode])]
        np.testing.assert_allclose(greys_of(built.root / clip.source), wanted, atol=2)
        truth = built.targets(clip.clip_id)
        rows = rows_of(episode)
        assert np.array_equal(
            truth["observation.state"], np.array(rows["observation.state"], np.float32)
        )
        assert truth["action"].shape == (LENGTHS[episode], 2)
        assert truth["next.done"][-1] == 1 and truth["next.done"].sum() == 1
        np.testing.assert_allclose(
            truth["action_time_s"], np.arange(LENGTHS[episode]) / FPS, atol=1e-6
        )
        assert "note" not in truth
    assert preview(address_spec(), built).frames == 2 * sum(LENGTHS)


def test_nothing_is_written_in_the_folder_and_files_are_cut_once(tmp_path: Path) -> None:
    root = version_3(tmp_path / "root")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    built = manifest.build("lerobot", root, tmp_path / "out", {})
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert built.root == tmp_path / "out/episodes"
    episodes = {path: path.stat().st_mtime_ns for path in built.root.rglob("*.mp4")}
    assert len(episodes) == 8 and not list(built.root.rglob("*.partial"))
    again = manifest.build("lerobot", root, tmp_path / "out", {})
    assert {path: path.stat().st_mtime_ns for path in built.root.rglob("*.mp4")} == episodes
    assert again.digest == built.digest
    next(iter(episodes)).unlink()
    manifest.build("lerobot", root, tmp_path / "out", {})
    assert len(list(built.root.rglob("*.mp4"))) == 8


def test_files_as_they_lie(tmp_path: Path) -> None:
    """Episodes are stretches, and those of a file are in one split."""
    root = version_3(tmp_path / "root")
    built = manifest.build("lerobot", root, tmp_path / "out", {"cut": False, "cameras": [TOP]})
    assert built.root == root and len(built.videos) == 2
    facts = [(clip.source[-12:], clip.start_s, clip.stop_s) for clip in built.clips]
    assert facts == [
        ("file-000.mp4", 0.0, 0.6),
        ("file-000.mp4", 0.6, 1.4),
        ("file-000.mp4", 1.4, 1.9),
        ("file-001.mp4", 0.0, 0.7),
    ]
    assert len({clip.split for clip in built.clips[:3]}) == 1
    times = built.targets(f"{TOP}/episode_000001")["action_time_s"]
    np.testing.assert_allclose(times, 0.6 + np.arange(8) / FPS, atol=1e-6)


def test_an_episode_that_no_keyframe_begins_is_rejected(tmp_path: Path) -> None:
    root = version_3(tmp_path / "root", keyframes=False)
    built = manifest.build("lerobot", root, tmp_path / "out", {"cameras": [TOP]})
    assert [clip.clip_id for clip in built.clips] == [
        f"{TOP}/episode_000000",
        f"{TOP}/episode_000003",
    ]
    assert built.rejected[f"{TOP}/episode_000001.mp4"] == (
        "does not begin with a keyframe at 0.600 s of file-000.mp4"
    )


def test_splits_of_the_data_set_and_videos_that_are_not_there(tmp_path: Path) -> None:
    root = version_2(tmp_path / "root")
    write_info(root, "v2.1", splits={"train": "0:2", "validation": "2:3", "test": "3:4"})
    (root / f"videos/chunk-000/{WRIST}/episode_000002.mp4").unlink()
    (root / f"videos/chunk-000/{TOP}/episode_000000.mp4").write_bytes(b"no video")
    built = manifest.build("lerobot", root, tmp_path / "out", {})
    assert {clip.clip_id[-1]: clip.split for clip in built.clips} == {
        "0": "train",
        "1": "train",
        "2": "val",
        "3": "test",
    }
    assert list(built.rejected) == [f"videos/chunk-000/{TOP}/episode_000000.mp4"]
    assert (
        built.origin.notes["videos"] == f"1 video of episodes are not there: {WRIST} of episode 2"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version v1.6 is not read, v2.0, v2.1 and v3 are"),
        ({"features": {"x": {"dtype": "image"}}}, "no feature is a video; x are images in Parquet"),
        (
            {"video_path": "../{video_key}.mp4"},
            "video_path '../{video_key}.mp4' leads out of the folder",
        ),
        ({"video_path": "{camera}.mp4"}, "video_path '{camera}.mp4' is no pattern of such a path"),
        (
            {"splits": {"train": "0:2", "demo": "2:4"}},
            "splits: wanted names such as val with 80:100",
        ),
        ({"fps": "ten"}, "fps must be a number, found ten"),
    ],
)
def test_damaged_facts_are_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    root = version_2(tmp_path / "root")
    write_info(root, "v2.1", **changes)
    with pytest.raises(BadInput) as caught:
        manifest.build("lerobot", root, tmp_path / "out", {})
    assert message in caught.value.message
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_damaged_tables_and_unknown_cameras(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no meta/info.json"):
        manifest.build("lerobot", tmp_path, tmp_path / "out", {})
    root = version_3(tmp_path / "root")
    with pytest.raises(BadInput, match="no camera called 'top'; there are: observation.images.top"):
        manifest.build("lerobot", root, tmp_path / "out", {"cameras": ["top"]})
    table = root / "data/chunk-000/file-000.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"file-000\.parquet cannot be read: "):
        manifest.build("lerobot", root, tmp_path / "out", {})
    write_table(table, {"timestamp": [0.0], "episode_index": [0]})
    with pytest.raises(BadInput, match=r"file-000\.parquet lacks the column 'observation.state'"):
        manifest.build("lerobot", root, tmp_path / "out", {})
    lines = version_2(tmp_path / "two") / "meta/episodes.jsonl"
    lines.write_text('{"episode_index": 0, "tasks": 3}\n')
    with pytest.raises(BadInput, match="episodes.jsonl line 1: tasks must be a list, found 3"):
        manifest.build("lerobot", tmp_path / "two", tmp_path / "out", {})
