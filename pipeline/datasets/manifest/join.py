"""One manifest of several, whose videos may lie in different places and be of different data sets.

Sources are named from the folder that holds all of the videos, ids stay as they are unless two
manifests use one for different things, and truth, groups and splits are kept.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.splits import add_note, note_straddling
from pipeline.datasets.manifest.edit import EditedClips, EditedSettings, Taken, edit_of
from pipeline.datasets.manifest.manifest import Manifest, write
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip


class _Place(NamedTuple):
    """A manifest that is joined."""

    source: Manifest
    name: str
    """What is set before its ids where they are taken."""
    prefix: str
    """Its folder of videos, from that of all; empty where it is the same."""

    def path(self, clip: Clip) -> str:
        """The clip's video from the folder of all."""
        return f"{self.prefix}/{clip.source}" if self.prefix else clip.source


def join(sources: Sequence[Manifest], out: Path, *, labels: bool = True) -> Manifest:
    """A manifest of all clips of the sources, in their order; without `labels`: of none of them.

    A video that is in two of them is one video, under the id of the first; a clip that is the same
    in both, but for its truth, is taken once, from the first. Different videos, clips, or groups of
    different data sets that have one id get the name of their data set, or else of their
    manifest's folder, before it. Raises BadInput where sources do not go together.
    """
    _check(sources, labels)
    root = Path(os.path.commonpath([source.root for source in sources]))
    places = [
        _Place(
            source, name, "" if source.root == root else source.root.relative_to(root).as_posix()
        )
        for source, name in zip(sources, _names(sources), strict=True)
    ]
    notes: dict[str, str] = {}
    renamed = _renamed(places, labels, notes)
    taken: list[Taken] = []
    where: dict[Clip, Manifest] = {}
    ids: dict[str, list[int]] = defaultdict(list)
    twice: list[str] = []
    for place, clips in zip(places, renamed, strict=True):
        for original, clip in zip(place.source.clips, clips, strict=True):
            if where.setdefault(clip, place.source) is not place.source:
                twice.append(clip.clip_id)
                continue
            ids[clip.clip_id].append(len(taken))
            taken.append(Taken(clip, place.source, original))
    name_of = {id(place.source): place.name for place in places}
    for clip_id, numbers in ids.items():
        for number in numbers if len(numbers) > 1 else ():
            part = taken[number]
            new_id = f"{name_of[id(part.source)]}/{clip_id}"
            taken[number] = part._replace(clip=replace(part.clip, clip_id=new_id))
    if twice:
        add_note(notes, "clips", f"{len(twice)} are in several and taken once: {few(twice)}")
    note_straddling((part.clip for part in taken), notes)
    dataset = EditedClips(root, EditedSettings(), taken, notes)
    edit = edit_of("join", {"labels": None if labels else "left out"}, sources, out)
    data_sets = dict.fromkeys(source.origin.dataset for source in sources)
    return write("+".join(data_sets), dataset, out, edit)


def _check(sources: Sequence[Manifest], labels: bool) -> None:
    """Raises BadInput where there is nothing to join, or seconds or labels do not go together."""
    if len(sources) < 2 or len({source.folder for source in sources}) < len(sources):
        raise BadInput("join wants two different manifests or more")
    first = sources[0]
    for source in sources[1:]:
        if source.origin.clock != first.origin.clock:
            clocks = [f"{each.folder} by '{each.origin.clock}'" for each in (first, source)]
            raise BadInput(
                f"seconds are counted differently: {' and '.join(clocks)}",
                "build the older one again with: stillframe manifest DATASET ROOT",
            )
        if labels and bool(source.labels) != bool(first.labels):
            with_labels, without = (first, source) if first.labels else (source, first)
            raise BadInput(
                f"{with_labels.folder} has labels and {without.folder} has none",
                "leave them out with --no-labels, or give all labels: stillframe manifest relabel",
            )


def _names(sources: Sequence[Manifest]) -> list[str]:
    """A name of each: its data set's, or its folder's, or that with a number, the first kind that
    tells all of them apart."""
    for names in (
        [source.origin.dataset for source in sources],
        [source.folder.name for source in sources],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{source.folder.name}_{number}" for number, source in enumerate(sources, start=1)]


def _renamed(places: Sequence[_Place], labels: bool, notes: dict[str, str]) -> list[list[Clip]]:
    """The clips of every place with the sources, video ids and groups that they have in the joined
    manifest; clip ids are still their own."""
    id_of: dict[tuple[str, float | None], str] = {}
    videos: dict[str, set[tuple[str, float | None]]] = defaultdict(set)
    groups: dict[str | None, set[str]] = defaultdict(set)
    for place in places:
        for clip in place.source.clips:
            key = place.path(clip), clip.image_fps
            videos[id_of.setdefault(key, clip.video_id)].add(key)
            groups[clip.group].add(place.source.origin.dataset)
    clashing = {video_id for video_id, keys in videos.items() if len(keys) > 1}
    if clashing:
        names = ", ".join(place.name for place in places)
        text = (
            f"{count_text(len(clashing), 'name')} of different videos get the data set before them"
        )
        add_note(notes, "videos", f"{text} ({names}): {few(sorted(clashing))}")
    first_place: Mapping[tuple[str, float | None], str] = {
        (place.path(clip), clip.image_fps): place.name
        for place in reversed(places)
        for clip in place.source.clips
    }

    def renamed(place: _Place, clip: Clip) -> Clip:
        key = place.path(clip), clip.image_fps
        video_id, group = id_of[key], clip.group
        if video_id in clashing:
            video_id = f"{first_place[key]}/{video_id}"
        if group is not None and len(groups[group]) > 1:
            group = f"{place.name}/{group}"
        label = clip.label if labels else None
        return replace(clip, video_id=video_id, source=key[0], group=group, label=label)

    return [[renamed(place, clip) for clip in place.source.clips] for place in places]
