"""Your own labelled videos: one folder per label, a CSV file, or lists of a published data set.

    root/<label>/**/*.mp4               the folder is the label; the split is drawn, the same on
                                        every machine
    root/{train,val,test}/<label>/**/*  the first folder is the split
    root/**/*                           with `labelled = false`: clips without labels
    root/labels.csv                     columns path, label and, if wanted, split, start_s, stop_s,
                                        in seconds after the first frame of the video, and group

`lists` are read as they were released: split files of UCF101 and HMDB51; Kinetics, ActivityNet,
Moments in Time, Jester, Something-Something and Diving48 in CSV or JSON; mmaction's `path class`
and `path frames class`; tables with a column of paths and one of classes.

A folder that holds two or more images of one size, and no video, is one video too, `image_fps`
images a second. Hidden files, thumbnails and folders of the system are passed over.
A clip's id is its path under the root, suffix and all, so that `a.mp4` and `a.mov` stay two clips.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import probe_all
from pipeline.datasets.formats.clip_list import SPLITS, Row, outside, read_csv
from pipeline.datasets.formats.folders import find_media
from pipeline.datasets.formats.known_groups import with_known_groups
from pipeline.datasets.formats.splits import (
    SPLITS_NOTE,
    Names,
    SplitSettings,
    add_note,
    split_clips,
)
from pipeline.datasets.lists.action_lists import fitting, read_lists
from pipeline.errors import BadInput
from pipeline.records import Clip
from pipeline.video.probe import Probe

DRAWN = 0.2
"""Share of each label's groups that goes to `val`, where neither folders, CSV file nor settings
name the splits."""


class Settings(SplitSettings):
    """These settings say how labels and splits are read."""

    csv: str | None = None
    """Path of a CSV file, relative to the root or the working folder; None: the folders are the
    labels."""
    lists: Names = ()
    """Lists of a published data set, or folders that hold them, relative to the root or the working
    folder. Their names, or their lines, say which split they are."""
    classes: str | None = None
    """File that names the classes of lists which number them. None: one among `lists`, or else the
    folders, where these agree with the numbers."""
    fold: int | None = Field(default=None, ge=1)
    """Which of several official divisions into train and test the lists are of (UCF101 and HMDB51
    have 1, 2 and 3). None: the first that is there."""
    labelled: bool = True
    """Whether folders are labels. false: every video is a clip without a label, wherever it lies,
    as for pre-training."""
    image_fps: float = Field(default=25.0, gt=0, le=1000)
    """Frame rate of image folders."""


class Dataset(DatasetPlugin):
    """Clips that cover whole videos or, from a CSV file, stretches of them."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Sorted by path, or in the order of the CSV file. Raises BadInput where folders or CSV
        file are unclear."""
        rows = self._rows()
        facts = probe_all(
            self, list(dict.fromkeys(row.source for row in rows)), self.settings.image_fps
        )
        rows = [
            row for row in fitting(self, rows, facts) if self._is_inside(row, facts[row.source])
        ]
        clips = [self._clip(row) for row in rows]
        splits = {row.split for row in rows}
        settings, drawn = self.settings, DRAWN if splits == {None} else None
        if settings.csv and any(row.group for row in rows):  # group is a column, and no pattern
            settings = settings.model_copy(update={"group": None})
        if settings.group is None:
            clips = with_known_groups(clips, self.notes)
        if self.settings.lists and splits == {"train", "test"} and "val" not in settings.asked:
            settings = settings.model_copy(update={"val_fraction": DRAWN})
            add_note(
                self.notes,
                SPLITS_NOTE,
                f"the lists have train and test: val is {DRAWN:g} of the groups of train "
                "(--set val_fraction=0 leaves them)",
            )
        yield from split_clips(clips, settings, self.notes, self.given_root, drawn, self.rejected)

    def _rows(self) -> list[Row]:
        """The clips to be: of lists, of the CSV file or of the folders."""
        settings = self.settings
        if settings.csv and settings.lists:
            raise BadInput("csv and lists both say which clips there are: give one of them")
        if settings.csv:
            return list(read_csv(self, settings.csv, settings.group))
        if settings.lists:
            return read_lists(self, settings.lists, settings.classes, settings.fold)
        return self._from_folders()

    def _clip(self, row: Row) -> Clip:
        image_fps = self.settings.image_fps if (self.root / row.source).is_dir() else None
        return Clip(
            row.clip_id,
            row.source,
            row.source,
            row.split or "train",
            row.start_s,
            row.stop_s,
            row.label,
            image_fps=image_fps,
            group=row.group,
        )

    def _is_inside(self, row: Row, facts: Probe) -> bool:
        """Whether the row's stretch holds any of the video; if not, it is rejected under the id of
        its clip."""
        reason = outside(row.start_s, facts)
        if reason is not None:
            self.rejected[row.clip_id] = reason
        return reason is None

    def _from_folders(self) -> list[Row]:
        sources = find_media(self)
        top = {parts[0] for source in sources if len(parts := PurePosixPath(source).parts) > 1}
        splits = top & set(SPLITS)
        # A label may well be called "train": splits are meant when there are two of them, or
        # nothing else.
        has_splits = len(splits) > 1 or (bool(splits) and splits == top)
        if has_splits and splits != top:
            raise BadInput(
                f"{self.root} mixes split folders ({', '.join(sorted(splits))}) "
                f"and others ({', '.join(sorted(top - splits)[:5])})",
                "put every label folder inside train, val or test, or none of them",
            )
        rows = []
        for source in sources:
            folders = PurePosixPath(source).parts[:-1]
            if not self.settings.labelled:
                rows.append(Row(source, None, folders[0] if has_splits and folders else None))
            elif len(folders) > has_splits:
                rows.append(Row(source, folders[has_splits], folders[0] if has_splits else None))
            else:
                self.rejected[source] = "lies in no label folder"
        if sources and not rows:
            raise BadInput(
                f"{self.root} has videos, such as {sources[0]}, and no folders that are labels",
                "put the videos of each label into a folder, list them in a CSV file with the "
                "columns path,label (--set csv=FILE), or use them without labels: --set "
                f"labelled=false, or stillframe manifest playback {shlex.quote(str(self.root))}",
            )
        return rows
