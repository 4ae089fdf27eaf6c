"""What must hold of the clips of a manifest, and of the folders of its videos and of itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.datasets.manifest.jsonl import REBUILD
from pipeline.errors import BadInput
from pipeline.records import Clip


def check_clips(
    clips: Iterable[Clip],
    where: str,
    unit: str,
    is_answered: Callable[[Clip], bool] = lambda _: False,
) -> None:
    """Raises BadInput unless ids are unique, videos agree, sources are relative, and all clips or
    none have labels.

    Labels of questions are the answers that training knows: a clip that is not trained on may lack
    one where it `is_answered` in words. An error names the clip as `where unit number`, counted
    from 1.
    """
    first: dict[str, int] = {}
    video_clip: dict[str, Clip] = {}
    labelled = unlabelled = 0
    hint = "label all clips or none"
    for number, clip in enumerate(clips, start=1):
        if first.setdefault(clip.clip_id, number) != number:
            raise BadInput(
                f"{where} {unit} {number}: clip_id '{clip.clip_id}' is taken by {unit} "
                f"{first[clip.clip_id]}"
            )
        first_clip = video_clip.setdefault(clip.video_id, clip)
        if first_clip is not clip:
            _check_same_video(clip, first_clip, f"{where} {unit} {number}")
        elif clip.source.startswith("/") or ".." in clip.source.split("/"):
            raise BadInput(
                f"{where} {unit} {number}: source must lie under the root, found '{clip.source}'"
            )
        if clip.label is not None:
            labelled = labelled or number
        elif clip.split == "train" or not is_answered(clip):
            unlabelled = unlabelled or number
            if is_answered(clip):
                hint = "questions are split when their manifest is built: stillframe manifest"
        if labelled and unlabelled:
            raise BadInput(
                f"{where}: {unit} {labelled} has a label and {unit} {unlabelled} has none",
                hint,
            )
    if not first:
        raise BadInput(f"{where} holds no clips", REBUILD)


def _check_same_video(clip: Clip, first_clip: Clip, where: str) -> None:
    if first_clip.split != clip.split:
        raise BadInput(
            f"{where}: video '{clip.video_id}' is in split '{clip.split}' here and in "
            f"'{first_clip.split}' before"
        )
    if first_clip.video != clip.video:
        raise BadInput(
            f"{where}: video '{clip.video_id}' is {clip.video} here and {first_clip.video} before"
        )


def check_writable(folder: Path) -> None:
    """Raises BadInput if `folder` is a file or lies below one."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise BadInput(
            f"{folder} cannot be made: {nearest} is a file, not a folder", "name another folder"
        )


def check_root(root: Path) -> None:
    if root.is_dir():
        return
    problem = "is a file, not a folder" if root.exists() else "does not exist"
    siblings = (
        [path.name for path in root.parent.iterdir() if path.is_dir()]
        if root.parent.is_dir()
        else []
    )
    near = difflib.get_close_matches(root.name, sorted(siblings), n=1, cutoff=0.5)
    raise BadInput(
        f"folder of videos {root} {problem}",
        f"did you mean {root.parent / near[0]}?" if near else "",
    )
