"""MSR-VTT: 10 000 clips of YouTube videos, each with 20 sentences.

Written against the release of Xu et al. (2016), the splits of CLIP4Clip (msrvtt_data.zip) and the
lists of VindLU, which UMT uses:

    root/**/video7020.mp4                      the videos; any folder, any suffix
    root/**/MSRVTT_data.json                   {"videos": [{"video_id", "url", "split", ...}],
                                               "sentences": [{"video_id", "caption", ...}]}; or the
                                               two official files of that form,
                                               train_val_videodatainfo.json and
                                               test_videodatainfo.json
    root/**/MSRVTT_JSFUSION_test.csv           1000 videos and the one sentence of each (video_id,
                                               sentence), or msrvtt_ret_test1k.json
    root/**/MSRVTT_train.9k.csv                9000 training videos (video_id), or
                                               msrvtt_ret_train9k.json, which has their sentences
    root/**/MSRVTT_train.7k.csv                7010 training videos, or msrvtt_ret_train7k.json

Protocols 1k-A and 7k score the 1000 sentences of the test file against their videos, and leave it
open what is `val`: it is drawn from the training videos. A group is the YouTube video that clips
were cut from, where the file with the urls is there. A sentence that a video has twice is kept.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.datasets.captioned.caption_rows import read_caption_rows
from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described, caption
from pipeline.datasets.captioned.list_files import read_ids
from pipeline.datasets.formats.annotations import few, field, find_file, load_json
from pipeline.datasets.formats.splits import SPLITS, SplitSettings
from pipeline.datasets.lists.entries import split_named, stem_of
from pipeline.errors import BadInput

Protocol = Literal["1k-A", "7k", "full"]
TRAIN = {
    "1k-A": ("MSRVTT_train.9k.csv", "msrvtt_ret_train9k.json"),
    "7k": ("MSRVTT_train.7k.csv", "msrvtt_ret_train7k.json"),
}
TEST = ("MSRVTT_JSFUSION_test.csv", "msrvtt_ret_test1k.json")
MERGED = "MSRVTT_data.json"
OFFICIAL = ("train_val_videodatainfo.json", "test_videodatainfo.json")
ANNOTATIONS = f"put {MERGED}, or {' and '.join(OFFICIAL)}, into a folder with the videos"


class Settings(SplitSettings):
    """These settings say which videos are train and test."""

    protocol: Protocol = "1k-A"
    """1k-A: train on 9000 videos, test on the 1000 of JSFusion, one sentence each. 7k: train on
    7010, the same test. full: the official split, 6513, 497 and 2990 videos with 20 sentences."""


class Annotations(NamedTuple):
    """What a file of the release says of each video, in its order."""

    path: Path
    split: dict[str, str | None]
    group: dict[str, str | None]
    captions: dict[str, list[str]]


class Dataset(CaptionedDataset):
    """One clip per video, named by its official id."""

    Settings = Settings

    def described(self) -> list[Described]:
        """Train, val, test, each in the order of its list. Raises BadInput where files that the
        protocol needs are missing or damaged."""
        merged = find_file(self.root, self.files, [MERGED])
        others = [] if merged else [find_file(self.root, self.files, [name]) for name in OFFICIAL]
        annotations = [_read_release(path) for path in [merged, *others] if path]
        groups = {video: group for each in annotations for video, group in each.group.items()}
        is_official = self.settings.protocol == "full"
        described = self._official(annotations) if is_official else self._listed(annotations)
        sources = self.find_videos()
        return [
            each._replace(source=sources.get(each.video), group=groups.get(each.video))
            for each in described
        ]

    def _official(self, annotations: list[Annotations]) -> list[Described]:
        """The clips of the official split; sources are not known yet."""
        if not annotations:
            raise BadInput(f"{self.root} holds no {MERGED} of MSR-VTT", ANNOTATIONS)
        described = [
            _described(each.path, video, each.captions.get(video, []), split)
            for each in annotations
            for video, split in each.split.items()
        ]
        lost = [each.video for each in described if each.split is None]
        if lost:
            raise BadInput(
                f"{annotations[0].path}: {len(lost)} of {len(described)} videos have no key "
                f"'split': {few(lost)}",
                f"the official files have it: {', '.join(OFFICIAL)}",
            )
        return sorted(described, key=lambda each: SPLITS.index(each.split or "train"))

    def _listed(self, annotations: list[Annotations]) -> list[Described]:
        """The clips of the lists of a protocol; sources are not known yet."""
        names = TRAIN[self.settings.protocol]
        train = find_file(self.root, self.files, names)
        test = find_file(self.root, self.files, TEST)
        if train is None and test is None:
            raise BadInput(
                f"{self.root} holds no lists of MSR-VTT {self.settings.protocol}",
                f"looked for {', '.join((*names, *TEST))}; the official split needs none: --set "
                "protocol=full",
            )
        described = self._training(train, annotations) if train else []
        if test is not None:
            for video, said in _read_captions(test).items():
                described.append(_described(test, video, said, "test"))
        return described

    def _training(self, path: Path, annotations: list[Annotations]) -> list[Described]:
        """The training videos of a list, which has their captions or not."""
        if path.suffix == ".json":
            own = _read_captions(path)
            return [_described(path, video, said, "train") for video, said in own.items()]
        if not annotations:
            raise BadInput(f"{self.root} holds no captions of {path.name}", ANNOTATIONS)
        captions = {video: said for each in annotations for video, said in each.captions.items()}
        videos = read_ids(path)
        return [_described(path, video, captions.get(video, []), "train") for video in videos]


def _described(path: Path, video: str, captions: list[str], split: str | None) -> Described:
    return Described(path, video, video, None, captions, split)


def _read_release(path: Path) -> Annotations:
    """A file of the release. Raises BadInput with the entry's number."""
    content = load_json(path, dict)
    annotations = Annotations(path, {}, {}, defaultdict(list))
    for number, record in enumerate(field(content, "videos", list, str(path)), start=1):
        place = f"{path} videos {number}"
        video = field(record, "video_id", str, place)
        if video in annotations.split:
            raise BadInput(f"{place} repeats {video}")
        annotations.split[video] = split_named(record.get("split"), place)
        url = field(record, "url", str, place) if "url" in record else ""
        annotations.group[video] = url.rpartition("?v=")[2] or None
    for number, record in enumerate(field(content, "sentences", list, str(path)), start=1):
        place = f"{path} sentences {number}"
        text = caption(field(record, "caption", str, place), place)
        annotations.captions[field(record, "video_id", str, place)].append(text)
    return annotations


def _read_captions(path: Path) -> dict[str, list[str]]:
    """Id -> captions of a list that has both, in its order. Raises BadInput that names the row."""
    captions: dict[str, list[str]] = defaultdict(list)
    for row in read_caption_rows(path):
        captions[stem_of(row.video)] += row.captions
    return captions
