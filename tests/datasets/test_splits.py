"""Splits keep groups whole, stay as they are when videos are added, and follow names and lists."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import plugins
from pipeline.datasets.formats.known_groups import known_group, with_known_groups
from pipeline.datasets.formats.split_draw import draw_units
from pipeline.datasets.formats.splits import SplitSettings, split_clips, units_of
from pipeline.errors import BadInput
from pipeline.records import Clip

GROUPS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.sets(st.sampled_from("xyz"), min_size=1, max_size=3),
    min_size=1,
    max_size=20,
)
"""Group -> the labels of its videos."""


def clips_of(groups: dict[str, set[str]]) -> list[Clip]:
    return [
        Clip(name, name, name, "train", label=label, group=group)
        for group, labels in groups.items()
        for label in sorted(labels)
        for name in (f"{group}_{label}_0.mp4", f"{group}_{label}_1.mp4")
    ]


def videos(*names: str, split: str = "train") -> list[Clip]:
    return [Clip(name, name, name, split) for name in names]


def split_of(
    clips: list[Clip],
    root: Path = Path(),
    drawn: float | None = None,
    **settings: object,
) -> tuple[dict[str, str], dict[str, str]]:
    """Clip -> split, and the notes."""
    notes: dict[str, str] = {}
    checked = plugins.validate(SplitSettings, settings, "settings")
    done = split_clips(clips, checked, notes, root, drawn)
    return {clip.clip_id: clip.split for clip in done}, notes


@given(groups=GROUPS, seed=st.integers(0, 9), val=st.sampled_from([0.1, 0.3, 0.6]))
def test_no_group_is_divided_and_every_label_that_can_be_is_in_both(
    groups: dict[str, set[str]], seed: int, val: float
) -> None:
    clips = clips_of(groups)
    splits, notes = split_of(clips, drawn=0.2, seed=seed, val_fraction=val)
    assert splits == split_of(clips[::-1], drawn=0.2, seed=seed, val_fraction=val)[0]
    of_group: dict[str | None, set[str]] = defaultdict(set)
    of_label: dict[str | None, set[str]] = defaultdict(set)
    for clip in clips:
        of_group[clip.group].add(splits[clip.clip_id])
        of_label[clip.label].add(splits[clip.clip_id])
    assert all(len(found) == 1 for found in of_group.values())
    most = max(sum(label in labels for labels in groups.values()) for label in "xyz")
    assert (set(splits.values()) == {"train", "val"}) == (most > 1)
    single = all(len(labels) == 1 for labels in groups.values())
    for label, found in of_label.items():
        count = sum(label in labels for labels in groups.values())
        if count == 1 or single:
            assert len(found) == min(count, 2)
    assert ("splits" in notes) == any("val" not in found for found in of_label.values())


@given(groups=GROUPS, share=st.sampled_from([0.2, 0.3]))
def test_three_splits_are_filled_where_there_are_three_groups(
    groups: dict[str, set[str]], share: float
) -> None:
    clips = clips_of({group: {"x"} for group in groups})
    splits, _ = split_of(clips, drawn=0.2, val_fraction=share, test_fraction=share)
    assert len(set(splits.values())) == min(len(groups), 3)


@given(groups=GROUPS, new=st.text("abcdefgh", min_size=1, max_size=4), seed=st.integers(0, 3))
def test_a_group_that_is_added_moves_one_other_at_most(
    groups: dict[str, set[str]], new: str, seed: int
) -> None:
    before = draw_units(dict.fromkeys(groups, "x"), {"val": 0.3}, seed)
    after = draw_units(dict.fromkeys([*groups, new], "x"), {"val": 0.3}, seed)
    assert sum(after[group] != before[group] for group in groups) <= 1
    # A video that is added to a group moves nothing.
    clips = clips_of({group: {"x"} for group in groups})
    first, _ = split_of(clips, drawn=0.3, seed=seed)
    one = Clip("new.mp4", "new.mp4", "new.mp4", "train", label="x", group=clips[0].group)
    grown, _ = split_of([*clips, one], drawn=0.3, seed=seed)
    assert first == {name: grown[name] for name in first}
    assert grown["new.mp4"] == grown[clips[0].clip_id]


def test_groups_that_share_a_video_are_drawn_as_one() -> None:
    clips = [
        Clip("a#1", "a", "a", "train", group="1"),
        Clip("a#2", "a", "a", "train", 1.0, group="2"),
        Clip("b", "b", "b", "train", group="2"),
        Clip("c", "c", "c", "train"),
    ]
    assert units_of(clips) == {"a": "1", "b": "1", "c": "c"}


def test_names_are_taken_whole_by_last_part_or_by_group() -> None:
    clips = [
        *videos("x/dog.mp4", "x/cat.mp4", "y/cat.mp4", "sequences/09"),
        Clip("otb", "Car4", "Car4/img", "train"),
        Clip("p", "p.mp4", "p.mp4", "train", group="P001"),
        Clip("q", "q.mp4", "q.mp4", "train", group="P001"),
    ]

    def val(name: object) -> list[str]:
        splits, _ = split_of(clips, val_sequences=name)
        return [clip for clip, split in splits.items() if split == "val"]

    assert val("dog") == val(["dog.mp4"]) == val("x/dog.mp4") == val("x/dog") == ["x/dog.mp4"]
    assert val("09") == ["sequences/09"]
    assert val("Car4") == ["otb"]
    assert val("P001") == ["p", "q"]
    with pytest.raises(BadInput, match="'cat' may be any of 2 videos: x/cat.mp4, y/cat.mp4"):
        val("cat")
    with pytest.raises(BadInput) as caught:
        val("dig")
    assert caught.value.message.startswith("val_sequences: no sequence called 'dig'; there are: ")
    assert caught.value.hint == "did you mean 'dog'?"
    with pytest.raises(BadInput) as caught:
        val("dog,cat")
    assert caught.value.hint == 'several names are written val_sequences=["...", "..."]'
    with pytest.raises(BadInput, match="wanted names, such as"):
        val(1.5)


def test_what_is_asked_for_replaces_the_own_splits_and_test_stays() -> None:
    own = videos("a", "b", "c") + videos("d", "e", split="val") + videos("t", split="test")
    assert split_of(own) == ({clip.clip_id: clip.split for clip in own}, {})
    splits, notes = split_of(own, val_sequences="a")
    assert splits == {
        "a": "val",
        "b": "train",
        "c": "train",
        "d": "train",
        "e": "train",
        "t": "test",
    }
    assert notes == {"splits": "the data set's own val is laid aside for val_sequences"}
    splits, notes = split_of(own, test_sequences="a")
    assert splits == {"a": "test", "b": "train", "c": "train", "d": "val", "e": "val", "t": "test"}
    assert not notes
    splits, _ = split_of(videos("d", "e", split="val"), val_fraction=0.5)
    assert sorted(splits.values()) == ["train", "val"]
    assert set(split_of(own, val_fraction=0)[0].values()) == {"train", "test"}


def test_lists_are_read_by_name_path_or_stem(tmp_path: Path) -> None:
    clips = videos("A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi", "B/v_B_g01_c01.avi", "B/my film.mp4")
    (tmp_path / "train.txt").write_text("# UCF\nA/v_A_g01_c01.avi 1\n/data/B/v_B_g01_c01.avi 2\n")
    (tmp_path / "test.txt").write_text("v_A_g02_c01\r\nB/nothing.avi\n")
    lists = {"train": "train.txt", "test": "test.txt"}
    splits, notes = split_of(clips, tmp_path, split_lists=lists)
    assert splits == {
        "A/v_A_g01_c01.avi": "train",
        "A/v_A_g02_c01.avi": "test",
        "B/v_B_g01_c01.avi": "train",
    }
    assert notes == {
        "splits": "1 of 4 videos are in no list and left out: B/my film.mp4",
        str(tmp_path / "test.txt"): "1 of the 2 it lists are not there: B/nothing.avi",
    }
    (tmp_path / "val.txt").write_text("my film\n")
    splits, _ = split_of(clips, tmp_path, split_lists={"val": "val.txt"})
    assert [clip for clip, split in splits.items() if split == "val"] == ["B/my film.mp4"]
    assert len(splits) == 4
    # DAVIS 2016 lists every image of a sequence.
    (tmp_path / "images.txt").write_text("/JPEG/480p/dog/00000.jpg /Ann/480p/dog/00000.png\n")
    splits, _ = split_of(videos("dog", "cat"), tmp_path, split_lists={"val": "images.txt"})
    assert splits == {"dog": "val", "cat": "train"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_sequences": "a", "val_fraction": 0.2}, "both say what is val: give one"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing for train"),
        ({"group": "(a"}, "is no regular expression: missing \\)"),
        ({"group": "z+"}, "group 'z\\+' finds nothing in any path, such as a"),
        ({"val_sequences": "a", "test_sequences": "a"}, "'a' is named by val_sequences too"),
        ({"split_lists": {"val": "no.txt"}}, "split_lists.val: no.txt does not exist"),
        ({"split_lists": {"val": "empty.txt"}}, "empty.txt is empty"),
        ({"split_lists": {"val": "other.txt"}}, "other.txt lists none of the 2 videos"),
        ({"split_lists": {"vol": "x"}}, "unknown key 'split_lists.vol' \\(did you mean 'val'"),
        ({"split_lists": {"val": "a.txt", "test": "a.txt"}}, "lists a, and so does"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.txt").write_text("z\n")
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(BadInput, match=message):
        split_of(videos("a", "b"), tmp_path, **settings)


def test_groups_by_pattern_and_straddling_ones_are_told() -> None:
    clips = videos("s1/a.mp4", "s1/b.mp4", "s2/a.mp4", "other.mp4")
    splits, notes = split_of(clips, group=r"(s\d)/", val_sequences="s1/a")
    assert splits["s1/a.mp4"] == "val"
    assert notes["groups"] == (
        r"'(s\d)/' finds nothing in 1 path, each a group of its own: other.mp4; 1 of 2 groups lie in more "
        "than one split, which flatters scores: 's1' in val (s1/a.mp4) and train (s1/b.mp4)"
    )
    splits, _ = split_of(clips[:3], group=r"s\d", val_fraction=0.5)
    assert splits["s1/a.mp4"] == splits["s1/b.mp4"] != splits["s2/a.mp4"]


def test_every_data_set_of_users_takes_splits() -> None:
    readers = [
        name for name in plugins.names("dataset") if not plugins.load("dataset", name).renders
    ]
    for name in readers:
        assert issubclass(plugins.load("dataset", name).Settings, SplitSettings), name


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("A/v_ApplyEyeMakeup_g01_c02.avi", "v_ApplyEyeMakeup_g01"),
        ("v_jumping_07_03.mpg", "v_jumping_07"),
        ("clap/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09_brush_hair"),
        ("S001C002P003R002A013_rgb.avi", "P003"),
        ("person07_boxing_d2_uncomp.avi", "person07"),
        ("abseiling/-7CLk_qJbVI_000010_000020.mp4", "-7CLk_qJbVI"),
        ("holiday_01.mp4", None),
        ("IMG_0001_000010.mp4", None),
    ],
)
def test_groups_of_known_names(name: str, group: str | None) -> None:
    known = known_group(name)
    assert (known and known[1]) == group
    assert with_known_groups(videos(name), notes := {})[0].group == group
    assert bool(notes) == (group is not None)
