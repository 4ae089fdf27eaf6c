"""Groups that published data sets write into the names of their videos."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.datasets.formats.splits import GROUPS_NOTE, add_note
from pipeline.errors import count_text
from pipeline.records import Clip

KNOWN = {
    "UCF101": re.compile(r"(v_[A-Za-z]+_g\d+)_c\d+"),
    "UCF11": re.compile(r"(v_[a-z_]+_\d\d)_\d\d"),
    "HMDB51": re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+"),
    "NTU RGB+D": re.compile(r"S\d{3}C\d{3}(P\d{3})R\d{3}A\d{3}(?:_rgb)?"),
    "KTH": re.compile(r"(person\d\d)_[a-z]+_d\d(?:_uncomp)?"),
    "Kinetics": re.compile(r"([\w-]{11})_\d{6}_\d{6}"),
    "Diving48": re.compile(r"([\w-]{11})_\d{5}"),
}
"""Data set -> the whole name of a video without suffix, with the part that names its group: the
video that clips were cut from (UCF, HMDB51, Kinetics, Diving48), or the person (NTU RGB+D, KTH)."""


def known_group(source: str) -> tuple[str, str] | None:
    """(data set, group) of a video by its name; None where no known data set names its videos so.

    UCF and HMDB51 count their source videos for each class, which is part of the group's name.
    """
    path = PurePosixPath(source)
    for dataset, pattern in KNOWN.items():
        if match := pattern.fullmatch(path.stem) or pattern.fullmatch(path.name):
            return dataset, match[1]
    return None


def with_known_groups(clips: Iterable[Clip], notes: dict[str, str]) -> list[Clip]:
    """The clips with the groups that their names tell, except those that have one; `notes` says
    which data sets were recognised."""
    grouped, videos, groups = list[Clip](), dict[str, set[str]](), dict[str, set[str]]()
    for clip in clips:
        known = None if clip.group is not None else known_group(clip.source)
        if known is not None:
            dataset, group = known
            videos.setdefault(dataset, set()).add(clip.video_id)
            groups.setdefault(dataset, set()).add(group)
            clip = replace(clip, group=group)
        grouped.append(clip)
    for dataset in videos:
        found = f"{count_text(len(videos[dataset]), 'name')} of {dataset} in "
        found += f"{count_text(len(groups[dataset]), 'group')} ({sorted(groups[dataset])[0]}, ...)"
        add_note(notes, GROUPS_NOTE, f"{found}; --set group=PATTERN for others")
    return grouped
