"""Videos and captions of your own, in lists that anybody can write.

    root/captions.json     [{"video": "a.mp4", "caption": "a dog runs" or ["...", "..."]}, ...]
    root/captions.jsonl    one such object a line
    root/captions.csv      columns video (or video_id, or path) and caption (or sentence)

`split`, `start_s`, `stop_s` (seconds after the first frame) and `label` may stand beside them, and
all else is passed over. Several rows of one video, or of one stretch of it, are several captions of
one clip. The split of a row is its own, or that of its list's name (`train.json`, `my_test.csv`);
where no list states any, `val` is drawn. Lists of VindLU and UMT, of JSFusion and of the Perception
Encoder are read as they are; several sentences are several captions, also where they are meant as a
paragraph.

A list means the video whose path ends as it says, or the other way round, with or without a suffix.
A folder of two or more images is a video too, `image_fps` images a second.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.datasets.captioned.caption_rows import SUFFIXES, CaptionRow, read_caption_rows
from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described
from pipeline.datasets.formats.clip_list import Row
from pipeline.datasets.formats.splits import Names, SplitSettings, find_list
from pipeline.datasets.lists.entries import split_of_file
from pipeline.datasets.lists.listed_media import ListedMedia
from pipeline.errors import BadInput


class Settings(SplitSettings):
    """These settings say where the captions are."""

    lists: Names = ()
    """JSON, JSON Lines or CSV files, relative to the root or to the working folder. None named:
    those that lie in the root itself."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between several captions in one cell of a CSV file, as @ in those of the
    Perception Encoder. None: a cell is one caption."""
    image_fps: float = Field(default=25.0, gt=0, le=1000)
    """Frame rate of image folders."""


class Dataset(CaptionedDataset):
    """One clip per video, or per stretch of one, named by its path."""

    Settings = Settings
    drawn = 0.2

    def described(self) -> list[Described]:
        """In the order of the lists. Raises BadInput where one is damaged, or rows of one clip
        disagree."""
        self.image_fps = self.settings.image_fps
        rows = [
            (path, row)
            for path in self._paths()
            for row in read_caption_rows(path, self.settings.separator)
        ]
        media = ListedMedia(self, {row.video for _, row in rows})
        source_of = {row.video: media.find(row.video) for _, row in rows}
        clips: dict[str, tuple[Described, list[str], str]] = {}
        for path, row in rows:
            each = _described(path, row, source_of[row.video])
            first, captions, place = clips.setdefault(each.clip_id, (each, [], row.place))
            captions += row.captions
            for key in ("label", "split"):
                found, before = getattr(each, key), getattr(first, key)
                if found != before:
                    raise BadInput(
                        f"{row.place}: {row.video} has {key} '{found}', and '{before}' in {place}"
                    )
        media.note(self, {source for source in source_of.values() if source})
        return [each._replace(captions=captions) for each, captions, _ in clips.values()]

    def video_id(self, source: str) -> str:
        """The path, as in other data sets of your own."""
        return source

    def _paths(self) -> list[Path]:
        names = self.settings.lists
        if names:
            found = (find_list(self.given_root, name, "lists") for name in names)
            return list(dict.fromkeys(found))
        paths = sorted(self.root.iterdir())
        paths = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not paths:
            raise BadInput(
                f"{self.root} holds no list of captions ({' '.join(sorted(SUFFIXES))})",
                "name the lists: --set lists=captions.json",
            )
        return paths


def _described(path: Path, row: CaptionRow, source: str | None) -> Described:
    split = row.split or split_of_file(path.stem)
    clip = Row(source or row.video, row.label, split, row.start_s, row.stop_s)
    return Described(
        path,
        clip.clip_id,
        row.video,
        source,
        row.captions,
        split,
        row.start_s,
        row.stop_s,
        row.label,
    )
