"""Open questions: the answers that training knows are the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from pipeline.datasets.asked.asked_dataset import AskedDataset
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip


class OpenSettings(SplitSettings):
    """These settings say how many answers there are, and which videos are held out, where not the
    official ones."""

    answers: int = Field(default=4000, ge=2)
    """Answers that are labels: the most frequent of the training split, or all where it has fewer.
    Questions of `train` with other answers are left out; those of `val` and `test` stay without a
    label and count as wrong."""


class OpenDataset(AskedDataset):
    """Open questions. The settings are `OpenSettings`."""

    def labelled(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """The clips whose answer is in the vocabulary with it as their label, and those of `val`
        and `test` whose answer is not without one. Raises BadInput where no clip is in `train`."""
        answer_of = {clip.clip_id: self._texts[clip.clip_id].answer or "" for clip in clips}
        counts = Counter(answer_of[clip.clip_id] for clip in clips if clip.split == "train")
        if clips and not counts:
            raise BadInput(
                f"{self.root} holds no video of split 'train' of {self.title}: the answers to its "
                "questions are the labels of all others",
                "put the questions and videos of train below the folder, too",
            )
        vocabulary = most_frequent(counts, self.settings.answers)
        self._tell_others(clips, answer_of, vocabulary)
        return [
            replace(clip, label=answer) if answer in vocabulary else clip
            for clip, answer in zip(clips, answer_of.values(), strict=True)
            if answer in vocabulary or clip.split != "train"
        ]

    def _tell_others(
        self, clips: Sequence[Clip], answer_of: Mapping[str, str], vocabulary: set[str]
    ) -> None:
        """Notes how many clips have an answer that is no label, for each split."""
        total = Counter(clip.split for clip in clips)
        others: dict[str, list[str]] = {split: [] for split in total}
        for clip in clips:
            if answer_of[clip.clip_id] not in vocabulary:
                others[clip.split].append(answer_of[clip.clip_id])
        for split, answers in others.items():
            if answers:
                effect = "are left out" if split == "train" else "count as wrong"
                remark = (
                    f"{len(answers)} of {count_text(total[split], 'question')} of {split} have an "
                    f"answer beyond the {len(vocabulary)} most frequent of train and {effect}"
                )
                self.note("answers", f"{remark}: {few(list(dict.fromkeys(answers)))}")


def most_frequent(counts: Mapping[str, int], most: int) -> set[str]:
    """The `most` answers with the largest counts; of those with the same, the first by alphabet."""
    return set(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])
