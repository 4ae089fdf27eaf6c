"""Folders of a user, walked by one rule: what systems, cameras and network drives leave beside a
user's own files is passed over, and counted by kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pipeline.datasets.contract import DatasetPlugin
from pipeline.errors import BadInput
from pipeline.video.probe import IMAGE_SUFFIXES, MEDIA_SUFFIXES, TIMESTAMPS

HIDDEN, SYSTEM, THUMBNAILS = "hidden", "system", "thumbnails"
NAMED_LIKE_A_VIDEO, MIXED_SIZES = "pictures beside their video", "pictures of several sizes"
OTHERS = {
    "@eadir": THUMBNAILS,
    **dict.fromkeys(
        (
            "$recycle.bin", "#recycle", "@recycle", "recycler", "lost+found", "found.000",
            "system volume information", "#snapshot", "@recently-snapshot", "@tmp", "@sharebin",
            "__macosx", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db",
            "desktop.ini", "icon\r",
        ),
        SYSTEM,
    ),
}  # fmt: skip
"""Names, in small letters, that Windows, macOS, Linux, Synology and QNAP drives give to files and
folders of their own -> kind. Those that begin with a dot are `HIDDEN`."""
LOOKED_AT = 8
"""Pictures of a folder whose sizes are compared: all of a few thumbnails, some of a long video."""


def foreign_kind(name: str) -> str | None:
    """The kind of a file or folder that is none of the user's own, by its name; else None."""
    return HIDDEN if name.startswith(".") else OTHERS.get(name.lower())


def walk(
    root: Path,
    left_out: Callable[[str, str], None],
    unreadable: Callable[[OSError], None] | None = None,
    again: Callable[[str, str], None] = lambda *_: None,
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of the root and all below it, in order of
    names; links are followed, each folder once.

    Names that are `foreign_kind` are passed over. Taking names out of the list of folders leaves
    them unvisited. What happens on the way is told: `left_out(kind, path)` of what is passed over,
    `unreadable(error)` of a folder that cannot be listed, and `again(path, first path)` of one that
    a link leads to for the second time; paths are relative to the root.
    """
    first_path: dict[str, str] = {}
    for path, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(path).relative_to(root)
        first = first_path.setdefault(os.path.realpath(path), here.as_posix())
        if first != here.as_posix():
            again(here.as_posix(), first)
            folders.clear()
            continue
        for names in (folders, files):
            kinds = {name: foreign_kind(name) for name in sorted(names)}
            names[:] = [name for name, kind in kinds.items() if kind is None]
            for name, kind in kinds.items():
                if kind is not None:
                    left_out(kind, (here / name).as_posix())
        yield Path(path), folders, files


def list_files(dataset: DatasetPlugin) -> list[str]:
    """Every file below the root, sorted, as a path with forward slashes; see `walk`.

    Raises BadInput at a folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise BadInput(
            f"{error.filename} cannot be read: {error.strerror}",
            "fix access, or name a folder without it",
        )

    return sorted(
        (folder.relative_to(dataset.root) / name).as_posix()
        for folder, _, files in walk(dataset.root, dataset.leave_out, unreadable)
        for name in files
    )


def find_media(dataset: DatasetPlugin) -> list[str]:
    """Videos and image folders under the root, as sorted sources; see `walk`.

    An image folder holds two or more images and no video. It is left out where it is named like a
    video beside it, or where its images differ in size: these are thumbnails or an album. What is
    left out goes to `dataset.left_out`, files that are no media are counted in `dataset.ignored`,
    and a folder that cannot be read, or that a link leads to for the second time, goes to
    `dataset.rejected` with its reason. Raises BadInput if there is no media at all.
    """
    root, sources, ignored = dataset.root, list[str](), 0
    images_of: dict[Path, list[Path]] = {}
    videos_of: dict[Path, set[str]] = {}

    def unreadable(error: OSError) -> None:
        dataset.rejected[Path(error.filename).relative_to(root).as_posix()] = (
            f"cannot be read: {error.strerror}"
        )

    def again(path: str, first: str) -> None:
        name = "the root" if first == "." else first
        dataset.rejected[path] = f"the same folder as {name}, which is read already"

    for folder, _, names in walk(root, dataset.leave_out, unreadable, again):
        files = [folder / name for name in names]
        videos = [file for file in files if file.suffix.lower() in MEDIA_SUFFIXES]
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        videos_of[folder] = {name for video in videos for name in (video.name, video.stem)}
        sources += [video.relative_to(root).as_posix() for video in videos]
        ignored += len(files) - len(videos)
        if not videos and len(images) > 1 and folder != root:
            images_of[folder] = images
            ignored -= len(images) + (TIMESTAMPS in names)
    for folder, kind in _no_sequences(images_of, videos_of):
        dataset.leave_out(kind, folder.relative_to(root).as_posix())
        del images_of[folder]
    sources += [folder.relative_to(root).as_posix() for folder in images_of]
    if not sources and not dataset.rejected:
        raise _no_media(dataset, ignored)
    dataset.ignored = ignored
    return sorted(sources)


def _no_sequences(
    images_of: Mapping[Path, list[Path]], videos_of: Mapping[Path, set[str]]
) -> list[tuple[Path, str]]:
    """The image folders that are no videos, and why."""

    def kind(folder: Path) -> str | None:
        # Thumbnails of "clip.mp4" lie in "clip.mp4/" beside it, or one folder further down.
        beside = videos_of.get(folder.parent, set()) | videos_of.get(folder.parent.parent, set())
        if folder.name in beside:
            return NAMED_LIKE_A_VIDEO
        if (folder / TIMESTAMPS).is_file():  # whoever gives the times knows that it is a video
            return None
        return MIXED_SIZES if _differ_in_size(images_of[folder]) else None

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        kinds = zip(images_of, pool.map(kind, images_of), strict=True)
        return [(folder, kind) for folder, kind in kinds if kind]


def _differ_in_size(images: list[Path]) -> bool:
    """Whether images that can be read, the first, the last and some between them, differ in width
    or height."""
    last = len(images) - 1
    looked_at = {round(last * part / (LOOKED_AT - 1)) for part in range(LOOKED_AT)}
    sizes = set()
    for index in looked_at:
        try:
            with Image.open(images[index]) as image:
                sizes.add(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # Decoding will say what is wrong with it.
    return len(sizes) > 1


def _no_media(dataset: DatasetPlugin, ignored: int) -> BadInput:
    counts = {kind: len(paths) for kind, paths in dataset.left_out.items()}
    counts["other files"] = ignored
    found = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    looked = " ".join(sorted(MEDIA_SUFFIXES))
    return BadInput(
        f"no media found in {dataset.root} ({found})",
        f"looked for {looked} and for folders of images of one size",
    )
