"""LSMDC, the large scale movie description challenge: 128 000 short clips of some 200 movies, most
with one sentence.

Written against the annotations of the 2016 challenge, of which retrieval uses three files:

    root/**/<movie>/<movie>_00.03.25.338-00.03.28.153.avi   the clips, one file each; any folder,
                                                             any suffix
    root/**/LSMDC16_annos_training.csv                       101 079 clips
    root/**/LSMDC16_annos_val.csv                            7408 clips
    root/**/LSMDC16_challenge_1000_publictect.csv            1000 clips: `test`

A line is clip id, aligned start and end, extracted start and end, and sentence, split by tabs;
there is no header, and quotation marks are letters. The times are those in the movie, from which
the clips have been cut. A clip id may have several lines, and so several captions. A group is a
movie. The "public test" of 10 053 clips (LSMDC16_annos_test.csv) is not read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described, caption
from pipeline.datasets.captioned.list_files import text_lines
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.errors import BadInput

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
"""Split -> annotations."""
FIELDS = 6
CLIP_ID = re.compile(r"(?P<movie>.+)_\d\d\.\d\d\.\d\d\.\d{3}-\d\d\.\d\d\.\d\d\.\d{3}")


class Settings(SplitSettings):
    """These settings say which clips are held out, where not the official ones."""


class Dataset(CaptionedDataset):
    """One clip per file, named by its official id."""

    Settings = Settings

    def described(self) -> list[Described]:
        """Train, val, test, each in the order of its file. Raises BadInput where annotations are
        missing or damaged."""
        paths = self.find_lists(FILES, "LSMDC")
        sources = self.find_videos()
        return [
            Described(path, clip, clip, sources.get(clip), sentences, split, group=_movie_of(clip))
            for split, path in paths.items()
            for clip, sentences in _read_sentences(path).items()
        ]


def _read_sentences(path: Path) -> dict[str, list[str]]:
    """Clip id -> its sentences, in the order of the file. Raises BadInput with the line's
    number."""
    sentences: dict[str, list[str]] = defaultdict(list)
    for number, line in text_lines(path):
        fields = line.split("\t")
        if len(fields) != FIELDS or not fields[0].strip():
            raise BadInput(
                f"{path} line {number}: wanted a clip id, four times and a sentence, split by "
                f"tabs; found '{line[:60]}'"
            )
        sentences[fields[0].strip()].append(caption(fields[-1], f"{path} line {number}"))
    return sentences


def _movie_of(clip: str) -> str | None:
    """The movie that a clip is of, as its id says."""
    match = CLIP_ID.fullmatch(clip)
    return match["movie"] if match else None
