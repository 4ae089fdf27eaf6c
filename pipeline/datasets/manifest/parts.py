"""A manifest in parts: many small manifests under one index, for more clips than one process should
hold.

    parts.json        the parts in their order: their clips, videos, splits, labels and digests
    00000/ 00001/ ... manifests of their own, each as `manifest` describes them

Every part can be used by itself. A video lies in one part with all of its clips, and no two parts
have a clip or a video of the same name. Whoever reads works on one part after the other, and needs
memory for one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.config.json_files import read_json
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.checks import check_root
from pipeline.datasets.manifest.jsonl import Wanted
from pipeline.datasets.manifest.manifest import PARTS, Manifest
from pipeline.datasets.manifest.origin import Origin
from pipeline.errors import BadInput
from pipeline.records import Clip

PARTS_FORMAT = 1
Count = Annotated[int, Field(ge=0, lt=2**48)]


class Part(Settings):
    """What the index says of one part."""

    clips: Count
    videos: Count
    splits: dict[str, Count]
    """Split -> its clips, in the order in which the part names them."""
    labels: tuple[Count, ...]
    """Numbers of the labels that it has, ascending; empty where clips have none."""
    digest: str
    """That of its manifest."""


class PartsIndex(Settings):
    """The content of parts.json."""

    format_version: int
    labels: tuple[str, ...]
    """Labels of all parts, sorted; a label's number is its place here."""
    classes: tuple[str, ...]
    """Names of the classes of segments, which all parts number alike."""
    parts: tuple[Part, ...]
    checksum: str
    """SHA-256 of this file, see `sealed_json`."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of the parts in their order, which are hexadecimal digits."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    @cached_property
    def clips(self) -> int:
        """Clips of all parts."""
        return sum(part.clips for part in self.parts)

    @cached_property
    def videos(self) -> int:
        """Videos of all parts."""
        return sum(part.videos for part in self.parts)

    @cached_property
    def splits(self) -> dict[str, int]:
        """Split -> its clips in all parts."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(part.splits)
        return dict(counts)


@dataclass(frozen=True)
class PartedManifest:
    """A manifest in parts, of which the index alone is held."""

    folder: Path
    index: PartsIndex
    root: Path | None = None
    """Where the videos are now, if they were moved."""

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> PartedManifest:
        """Reads the index, and no part. Raises BadInput where it is missing or damaged."""
        folder = folder.resolve()
        if root is not None:
            check_root(root)
        return cls(folder, read_parts_index(folder), root)

    @property
    def digest(self) -> str:
        return self.index.digest

    @cached_property
    def origin(self) -> Origin:
        """Where the clips and videos come from, as the first part says."""
        return self.part(0).origin

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.index.splits)

    @property
    def labels(self) -> Sequence[str]:
        return self.index.labels

    def part(self, number: int, wanted: Wanted | None = None) -> Manifest:
        """A part, read and checked as `Manifest.load` does it. Raises BadInput that names it where
        it is not the one that the index means."""
        folder = self.folder / part_name(number)
        again = "put back what was there, or make the parts again: stillframe manifest parts"
        if not folder.is_dir():
            raise BadInput(f"part {folder} is missing, which {self.folder / PARTS} lists", again)
        manifest = Manifest.load(folder, self.root, wanted)
        listed = self.index.parts[number].digest
        if manifest.digest != listed:
            raise BadInput(
                f"{manifest.folder} is another manifest than {self.folder / PARTS} lists: its "
                f"digest is {manifest.digest}, wanted {listed}",
                again,
            )
        return manifest

    def pieces(
        self,
        splits: Sequence[str] = (),
        labels: Sequence[str] = (),
        wanted: Wanted | None = None,
    ) -> Iterator[Manifest]:
        """One part after the other, without those that have no clip in the `splits` or with the
        `labels`, each with the clips of `wanted` videos alone; what is not given asks for
        nothing."""
        numbers = {self.index.labels.index(label) for label in labels}
        for number, part in enumerate(self.index.parts):
            if (splits and part.splits.keys().isdisjoint(splits)) or (
                numbers and numbers.isdisjoint(part.labels)
            ):
                continue
            yield self.part(number, wanted)


def part_name(number: int) -> str:
    """The folder of a part, in that of all."""
    return f"{number:05d}"


def load_any(folder: Path, root: Path | None = None) -> Manifest | PartedManifest:
    """The manifest in a folder, whole or in parts. Raises BadInput."""
    is_parted = (folder / PARTS).is_file()
    return PartedManifest.load(folder, root) if is_parted else Manifest.load(folder, root)


def read_parts_index(folder: Path) -> PartsIndex:
    """parts.json of a folder. Raises BadInput where it is missing or damaged."""
    hint = "make the parts again: stillframe manifest parts"
    return read_json(PartsIndex, folder / PARTS, hint, range(PARTS_FORMAT, PARTS_FORMAT + 1))


def only(manifest: Manifest, clips: Sequence[Clip]) -> Manifest:
    """A manifest with some of its clips, which holds nothing of the others in memory."""
    chosen = replace(manifest, clips=tuple(clips))
    # As if they had been read: what was read of all clips is let go with the whole manifest.
    chosen.__dict__["facts"] = {
        video.video_id: manifest.facts[video.video_id]
        for video in chosen.videos
        if video.video_id in manifest.facts
    }
    ids = {clip.clip_id for clip in clips}
    chosen.__dict__["texts"] = {name: said for name, said in manifest.texts.items() if name in ids}
    return chosen
