"""Labels of every frame and intervals: small copies of the layouts, and what the truth of a window is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import media

from pipeline.datasets.frame_labels import equal_lines, uncovered
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.edit import select
from pipeline.datasets.manifest.join import join
from pipeline.datasets.manifest.targets import Targets, sample_classes
from pipeline.errors import BadInput

LINES = {"a": "cut cut mix mix mix", "b": "mix cut", "c": "cut cut cut"}


def salads(root: Path, videos: str = "ab", mapping: str = "0 mix\n1 cut\n2 SIL\n") -> Path:
    """The community's layout; `videos` are those that are there."""
    (root / "groundTruth").mkdir(parents=True)
    (root / "splits").mkdir()
    for name, labels in LINES.items():
        (root / f"groundTruth/{name}.txt").write_text("\n".join(labels.split()) + "\n")
    for name in videos:
        frames = len(LINES[name].split())
        media.encode(root / f"{name}.mp4", [media.grey(8 * at) for at in range(frames)], rate=10)
    (root / "mapping.txt").write_text(mapping)
    (root / "splits/train.split1.bundle").write_text("a.txt\n")
    (root / "splits/test.split1.bundle").write_text("b.txt\n")
    return root


class Wanted:
    needs = ("classes",)
    dense_px = None

    def prepare(self, targets, rng):
        return targets


def test_the_layout_of_50salads(tmp_path: Path) -> None:
    built = manifest.build("frame_labels", salads(tmp_path / "root"), tmp_path / "out", {})
    facts = [
        (clip.clip_id, clip.source, clip.split, clip.stop_s, clip.label) for clip in built.clips
    ]
    assert facts == [("a", "a.mp4", "train", 0.5, None), ("b", "b.mp4", "val", 0.2, None)]
    assert built.classes == ("mix", "cut", "SIL") and built.labels == ()
    assert manifest.Manifest.load(built.folder).classes == built.classes
    truth = built.targets("a")
    assert truth["segments_s"].tolist() == [[0, 0.2], [0.2, 0.5]]
    assert truth["segment_class"].tolist() == [1, 0] and truth["segment_class"].dtype == np.int64
    assert built.origin.notes == {
        "groundTruth": "1 files of groundTruth are in no bundle and left out: c"
    }
    # The times of the frames, as a file has them that counts in milliseconds.
    window = Targets(built, Wanted()).window(
        built.clips[0], np.array([0, 0.1, 0.199, 0.3, 0.4, 0.4]), np.zeros((6, 2, 3)), 0.1, None
    )
    assert window["classes"][:, :2].argmax(1).tolist() == [1, 1, 0, 0, 0, 0]
    assert window["classes_valid"].tolist() == [True] * 5 + [False], (
        "a frame that repeats counts once"
    )


def test_videos_that_are_not_there_need_a_rate(tmp_path: Path) -> None:
    root = salads(tmp_path / "root", videos="a")
    with pytest.raises(
        BadInput, match=r"b\.txt: nothing says how many of its lines are a second: video b is not"
    ):
        manifest.build("frame_labels", root, tmp_path / "out", {})
    assert not (tmp_path / "out/manifest.jsonl").exists()
    built = manifest.build("frame_labels", root, tmp_path / "out", {"fps": 5})
    assert [(clip.source, clip.stop_s) for clip in built.clips] == [
        ("a.mp4", 1),
        ("b", 0.4),
    ]
    assert (
        built.origin.notes["groundTruth"]
        == (
            "1 of 2 videos are not there, and can only be used with imported features: b; "
            "1 files of groundTruth are in no bundle and left out: c"
        )
        or "imported features: b" in built.origin.notes["groundTruth"]
    )


def test_without_bundles_or_mapping(tmp_path: Path) -> None:
    root = salads(tmp_path / "root", videos="")
    for path in (*(root / "splits").iterdir(), root / "mapping.txt"):
        path.unlink()
    built = manifest.build(
        "frame_labels", root, tmp_path / "out", {"fps": 5, "val_sequences": ["c"]}
    )
    assert built.classes == ("cut", "mix")
    assert [clip.split for clip in built.clips] == ["train", "train", "val"]
    drawn = manifest.build("frame_labels", root, tmp_path / "drawn", {"fps": 5})
    assert sorted(clip.split for clip in drawn.clips) == ["train", "train", "val"]


def test_a_val_bundle_leaves_test_alone(tmp_path: Path) -> None:
    root = salads(tmp_path / "root", videos="")
    (root / "splits/val.split1.bundle").write_text("c.txt\nd.txt\n")
    built = manifest.build("frame_labels", root, tmp_path / "out", {"fps": 5})
    assert [clip.split for clip in built.clips] == ["train", "test", "val"]
    assert built.origin.notes["splits"] == "1 videos have no labels in groundTruth: d"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (
            {"mapping.txt": "mix\ncut\n"},
            {},
            "mapping.txt: wanted one class a line, as '0 class', found 'mix'",
        ),
        (
            {"mapping.txt": "0 mix\n1 stir\n"},
            {},
            "clip a: no class called 'cut'; there are: mix, stir",
        ),
        ({"groundTruth/b.txt": "\n"}, {}, "b.txt is empty"),
        (
            {"splits/test.split1.bundle": "a.txt\n"},
            {},
            "test.split1.bundle: video a is in two splits",
        ),
        (
            {},
            {"bundle": 4},
            "splits holds no train.split4.bundle, found: test.split1.bundle, train.split1",
        ),
        ({}, {"csv": "gone.csv"}, "csv: gone.csv does not exist"),
    ],
)
def test_damaged_labels_are_one_line(
    tmp_path: Path, changes: dict[str, str], settings: dict[str, object], message: str
) -> None:
    root = salads(tmp_path / "root", videos="")
    for name, text in changes.items():
        (root / name).write_text(text)
    with pytest.raises(BadInput) as caught:
        manifest.build("frame_labels", root, tmp_path / "out", {"fps": 5, **settings})
    assert message in caught.value.message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.jsonl"))


def test_a_folder_without_labels_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no groundTruth/NAME.txt"):
        manifest.build("frame_labels", tmp_path, tmp_path / "out", {})


CSV = """video,start_s,stop_s,label,split
a.mp4,0.1,0.3,wave,train
a.mp4,0.2,0.4,jump,train
gone,1,2.5,jump,val
"""


def test_intervals_may_overlap_and_leave_background(tmp_path: Path) -> None:
    root = salads(tmp_path / "root", videos="a", mapping="0 wave\n1 jump\n")
    (root / "events.csv").write_text(CSV)
    built = manifest.build("frame_labels", root, tmp_path / "out", {"csv": "events.csv"})
    assert [(clip.clip_id, clip.source, clip.split, clip.stop_s) for clip in built.clips] == [
        ("a", "a.mp4", "train", None),
        ("gone", "gone", "val", 2.5),
    ]
    assert built.classes == ("wave", "jump", "background")
    truth = built.targets("a")
    sampled = sample_classes(
        truth["segments_s"], truth["segment_class"], 3, np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    )
    wanted = [[0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert sampled["classes"].astype(int).tolist() == wanted
    without = manifest.build(
        "frame_labels", root, tmp_path / "without", {"csv": "events.csv", "background": ""}
    )
    assert without.classes == ("wave", "jump")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "video,start_s,label\n",
            "line 1: wanted the column 'stop_s' once; found: video, start_s, label",
        ),
        (CSV.replace("jump,val", ",val"), "line 4: label is empty"),
        (CSV.replace("1,2.5", "3,2.5"), "line 4: wanted start_s < stop_s, found 3 and 2.5"),
        (CSV.replace("jump,val", "jump,dev"), "line 4: no split called 'dev'"),
        (
            CSV.replace("a.mp4,0.2,0.4,jump,train", "a,0.2,0.4,jump,val"),
            "line 3: video a is in split 'val'",
        ),
        ("video,start_s,stop_s,label\n", "has no rows below its header"),
    ],
)
def test_damaged_intervals_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    root = salads(tmp_path / "root", videos="")
    (root / "events.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        manifest.build("frame_labels", root, tmp_path / "out", {"csv": "events.csv"})
    assert message in caught.value.message


def test_classes_keep_their_numbers_when_manifests_are_joined_or_selected(tmp_path: Path) -> None:
    one = manifest.build("frame_labels", salads(tmp_path / "one", ""), tmp_path / "m1", {"fps": 5})
    root = salads(tmp_path / "two", "", mapping="0 cut\n1 mix\n")
    for name in "abc":
        (root / f"groundTruth/{name}.txt").rename(root / f"groundTruth/{name}2.txt")
    for bundle in (root / "splits").iterdir():
        bundle.write_text(bundle.read_text().replace(".txt", "2.txt"))
    two = manifest.build("frame_labels", root, tmp_path / "m2", {"fps": 5})
    both = join([one, two], tmp_path / "both")
    assert both.classes == ("mix", "cut", "SIL")
    assert both.targets("a")["segment_class"].tolist() == [1, 0]
    assert two.targets("a2")["segment_class"].tolist() == [0, 1]
    assert both.targets("a2")["segment_class"].tolist() == [1, 0]
    some = select(one, tmp_path / "some", splits=["val"])
    assert some.classes == one.classes and len(some.clips) == 1


def test_unknown_stretches_are_not_known() -> None:
    sampled = sample_classes(
        np.array([[0.0, 1.0], [0.5, 2.0]]), np.array([1, -1]), 2, np.array([0.0, 0.5, 1.9, 2.0])
    )
    assert sampled["classes_valid"].tolist() == [True, False, False, True]
    assert sampled["classes"].tolist() == [[False, True], [False] * 2, [False] * 2, [False] * 2]


def test_runs_and_gaps_by_hand() -> None:
    assert equal_lines(["a", "a", "b"]) == [(0, 2, "a"), (2, 3, "b")]
    assert uncovered(np.array([[1.0, 2], [1.5, 3], [5, 6]]), 8).tolist() == [[0, 1], [3, 5], [6, 8]]
    assert uncovered(np.empty((0, 2)), 2).tolist() == [[0, 2]]
