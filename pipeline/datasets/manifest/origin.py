"""dataset.json of a manifest: where its clips and videos come from, and sums of the other files."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from pipeline.config import plugins
from pipeline.records import Clock


class LeftOut(plugins.Settings):
    """What of one kind was passed over."""

    count: int
    first: str
    """Path under the root."""


class EditedFrom(plugins.Settings):
    """A manifest that another one was made from by an edit."""

    folder: str
    """Relative to the new manifest's folder if inside it, else absolute."""
    dataset: str
    digest: str
    made_by: Edit | None = None
    """How it was made from others itself."""


class Edit(plugins.Settings):
    """How a manifest was made from others: `stillframe manifest COMMAND`."""

    command: str
    options: dict[str, Any]
    """What was asked for, without what is left at its default."""
    sources: tuple[EditedFrom, ...]


class Origin(plugins.Settings):
    """dataset.json."""

    dataset: str
    settings: dict[str, Any]
    root: str
    """Folder of the videos: relative to the manifest's folder if inside it, else absolute."""
    labels: tuple[str, ...]
    classes: tuple[str, ...] = ()
    """Names of the classes of segments in targets.h5, in the order of their numbers."""
    rejected: dict[str, str]
    """source -> reason, for media that should be a clip and became none."""
    notes: dict[str, str] = Field(default_factory=dict)
    """source -> remark that asks nobody to mend anything."""
    left_out: dict[str, LeftOut] = Field(default_factory=dict)
    """Kind -> files and folders that are none of the user's own, or no videos, like thumbnails."""
    ignored: int
    """Number of files in the data set that are no media."""
    manifest_sha256: str
    targets_sha256: str | None = None
    targets_bytes: int | None = None
    """Both None: no clip has truth beyond its label, and there is no targets.h5."""
    texts_sha256: str | None = None
    """None: nothing is said or asked about any clip, and there is no texts.jsonl."""
    videos_sha256: str | None = None
    """None: built before there was a videos.jsonl."""
    clock: Clock = "file"
    """What seconds count from, in clips and truth. Manifests that lack it count by the file."""
    made_by: Edit | None = None
    """None: the manifest was built from a data set, and not made from other manifests."""
    plugin: dict[str, str] | None = None
    """Which plug-in the data set is; None where it ships with the package."""

    def to_json(self) -> str:
        """The text of dataset.json."""
        rare = {"made_by", "texts_sha256", "classes", "plugin"}
        table = self.model_dump(exclude={name for name in rare if not getattr(self, name)})
        return json.dumps(table, indent=2) + "\n"
