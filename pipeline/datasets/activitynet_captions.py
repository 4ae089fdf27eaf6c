"""ActivityNet Captions: 15 000 YouTube videos of some two minutes, each with sentences on what
happens when; retrieval takes all sentences of a video as one paragraph.

Written against the release of Krishna et al. (2017) and the protocol of CLIP4Clip and Collaborative
Experts:

    root/**/v_QOlSCBRmfWY.mp4, QOlSCBRmfWY.mp4    the videos; any folder, any suffix
    root/**/train.json                            10 009 videos: {"v_QOlSCBRmfWY": {"duration",
                                                  "timestamps": [[start, end], ...], "sentences"}}
    root/**/val_1.json                            4917 videos, which papers report on: `test`

The truth of the official test split is held back. `val_2.json`, other sentences on the videos of
`val_1.json`, is not read, nor are `train_ids.json` and `val_ids.json`, which list the videos of the
others. `val` is drawn from the training videos, so that no choice looks at what is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described, caption
from pipeline.datasets.formats.annotations import few, field, load_json, numbers
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.errors import BadInput

FILES = {"train": "train.json", "test": "val_1.json"}
"""Split -> annotations."""
PREFIX = "v_"
ID_LETTERS = 11


class Settings(SplitSettings):
    """These settings say what a clip is."""

    paragraphs: bool = True
    """Whether a clip is a whole video with all its sentences as one caption. false: a clip is the
    stretch of one sentence."""


class Annotation(NamedTuple):
    """What is said of one video."""

    sentences: list[str]
    spans_s: np.ndarray
    """(sentences, 2) start and end, float64; empty where they are not asked for."""


class Dataset(CaptionedDataset):
    """One clip per video, named by its official id, or per sentence, named by that and a number."""

    Settings = Settings

    def described(self) -> list[Described]:
        """Train and test, each in the order of its file. Raises BadInput where annotations are
        missing or damaged."""
        paths = self.find_lists(FILES, "ActivityNet Captions")
        sources = self.find_videos(_youtube_id)
        described: list[Described] = []
        for split, path in paths.items():
            annotations = _read_annotations(path, with_spans=not self.settings.paragraphs)
            for video, each in annotations.items():
                source = sources.get(_youtube_id(video))
                whole = Described(
                    path, video, video, source, each.sentences, split, is_paragraph=True
                )
                described += [whole] if self.settings.paragraphs else _stretches(whole, each)
            if not self.settings.paragraphs:
                self._tell_spans(path, annotations)
        return described

    def _tell_spans(self, path: Path, annotations: dict[str, Annotation]) -> None:
        """Notes stretches that end before they begin, and those without length."""
        for problem, compare in (
            ("end before they begin and are read the other way round", np.greater),
            ("have no length and are left out", np.equal),
        ):
            ids = [
                f"{video}#{number:03d}"
                for video, each in annotations.items()
                for number in np.flatnonzero(compare(*each.spans_s.T))
            ]
            total = sum(len(each.sentences) for each in annotations.values())
            if ids:
                self.note_list(path, f"{len(ids)} of {total} sentences {problem}: {few(ids)}")


def _stretches(whole: Described, annotation: Annotation) -> Iterator[Described]:
    """A clip for each sentence whose stretch has a length."""
    spans = zip(annotation.sentences, np.sort(annotation.spans_s, axis=1).tolist(), strict=True)
    for number, (text, (start_s, stop_s)) in enumerate(spans):
        if start_s < stop_s:
            clip_id = f"{whole.clip_id}#{number:03d}"
            yield whole._replace(clip_id=clip_id, captions=[text], start_s=start_s, stop_s=stop_s)


def _read_annotations(path: Path, with_spans: bool) -> dict[str, Annotation]:
    """Official id -> what is said of the video, in the order of the file. Raises BadInput with the
    id."""
    annotations = {}
    for video, record in load_json(path, dict).items():
        place = f"{path} {video}"
        texts = [caption(text, place) for text in field(record, "sentences", list, place)]
        spans_s = np.empty((0, 2))
        if with_spans:
            spans_s = numbers(
                field(record, "timestamps", list, place), (None, 2), f"{place} timestamps"
            )
            if len(spans_s) != len(texts):
                raise BadInput(f"{place}: {len(spans_s)} timestamps for {len(texts)} sentences")
            if not (np.isfinite(spans_s).all() and (spans_s >= 0).all()):
                raise BadInput(f"{place}: timestamps must be seconds, 0 or more")
        annotations[video] = Annotation(texts, spans_s)
    return annotations


def _youtube_id(name: str) -> str:
    """A name without "v_", with which an id itself may begin."""
    return name.removeprefix(PREFIX) if len(name) == len(PREFIX) + ID_LETTERS else name
