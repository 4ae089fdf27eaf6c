"""MSVD, the Microsoft video description corpus: 1970 short stretches of YouTube videos, each with
about 40 sentences.

Written against the splits of Venugopalan et al. (2015), as CLIP4Clip and Collaborative Experts ship
them, and the English descriptions of the corpus:

    root/**/-4wsuPCjDBc_5_15.avi               the videos (YouTubeClips.tar); any folder, any suffix
    root/**/{train,val,test}_list.txt          1200, 100 and 670 ids, one a line
    root/**/AllVideoDescriptions.txt           "id sentence" lines, below a few that begin with '#'
    root/**/captions_msvd.json                 or {id: [sentence, ...]}, as X-Pool ships them

`raw-captions.pkl`, which comes with the splits, is a pickle and is not read. All sentences of a
video are captions of it, the same one as often as people wrote it: retrieval scores every one. A
group is the YouTube video that stretches were cut from.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described, caption
from pipeline.datasets.captioned.list_files import COMMENT, read_ids, text_lines
from pipeline.datasets.formats.annotations import field, find_file, load_json
from pipeline.datasets.formats.splits import SPLITS, SplitSettings
from pipeline.errors import BadInput

CAPTIONS = ("AllVideoDescriptions.txt", "captions_msvd.json")
PICKLE = "raw-captions.pkl"
BESIDE = (
    "put AllVideoDescriptions.txt (lines of: id sentence) or captions_msvd.json ({id: [sentence, "
    "...]}) into a folder with the lists"
)


class Settings(SplitSettings):
    """These settings say which videos are held out, where not the official ones."""


class Dataset(CaptionedDataset):
    """One clip per video, named by its official id."""

    Settings = Settings

    def described(self) -> list[Described]:
        """Train, val, test, each in the order of its list. Raises BadInput where lists or captions
        are missing or damaged."""
        paths = self.find_lists({split: f"{split}_list.txt" for split in SPLITS}, "MSVD")
        ids_of = {path: (split, read_ids(path)) for split, path in paths.items()}
        path, captions = self._captions_file()
        listed = dict.fromkeys(video for _, ids in ids_of.values() for video in ids)
        self.note_unlisted(path, captions, listed)
        sources = self.find_videos()
        return [
            Described(
                path,
                video,
                video,
                sources.get(video),
                captions.get(video, ()),
                split,
                group=_group_of(video),
            )
            for path, (split, ids) in ids_of.items()
            for video in ids
        ]

    def _captions_file(self) -> tuple[Path, dict[str, list[str]]]:
        path = find_file(self.root, self.files, CAPTIONS)
        if path is None:
            pickle = find_file(self.root, self.files, [PICKLE])
            if pickle is None:
                raise BadInput(f"{self.root} holds no captions of MSVD", BESIDE)
            raise BadInput(
                f"{pickle} is a pickle, which can run code of whoever made it, and is not read",
                BESIDE,
            )
        return path, _read_json(path) if path.suffix == ".json" else _read_descriptions(path)


def _read_descriptions(path: Path) -> dict[str, list[str]]:
    """Id -> sentences of AllVideoDescriptions.txt. Raises BadInput with the line's number."""
    captions: dict[str, list[str]] = defaultdict(list)
    for number, line in text_lines(path):
        words = line.split(maxsplit=1)
        if not words[0].startswith(COMMENT):
            text = words[1] if len(words) > 1 else ""
            captions[words[0]].append(caption(text, f"{path} line {number}"))
    return captions


def _read_json(path: Path) -> dict[str, list[str]]:
    """Id -> sentences of captions_msvd.json. Raises BadInput with the id."""
    content = load_json(path, dict)
    return {
        video: [caption(text, f"{path} {video}") for text in field(content, video, list, str(path))]
        for video in content
    }


def _group_of(video: str) -> str | None:
    """The YouTube video: `-4wsuPCjDBc` of `-4wsuPCjDBc_5_15`."""
    parts = video.rsplit("_", 2)
    return parts[0] or None if len(parts) == 3 else None
