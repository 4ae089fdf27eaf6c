"""A run's answers drawn over the videos they were given for: .mp4 files and a contact sheet."""

from __future__ import annotations

import hashlib
import io
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.errors import BadInput, BadVideo, StillframeError
from pipeline.models.tasks.parts import fonts
from pipeline.models.tasks.parts.canvas import with_caption
from pipeline.models.video_model import with_truth
from pipeline.records import Clip
from pipeline.train.compatibility import check
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.windows.index import WindowRef
from pipeline.video.reader import FrameReader

WHOLE_CLIP_FPS = 5.0
"""Frames per second of a drawing whose window is a whole clip."""
DRAWN_PX = 384
"""Side of the squares that are drawn on, if the encoder saw smaller ones."""
SHEET_FRAMES = 4
"""Frames of a clip in a contact sheet."""
SHEET_PX = 1600
"""Width of a contact sheet at most, so that a screen shows all of it."""
NAME_BYTES = 100
"""Bytes of a clip's id in a file name. File systems take 255 in all, encrypted ones 143, and the
name has a hash, a suffix and, while it is written, an ending."""


class Drawing(NamedTuple):
    """One window with its answer and truth drawn over it."""

    clip: Clip
    pixels_THWC: np.ndarray
    """uint8."""
    fps: float
    """Frames per second of window time."""
    number: int
    """Number of this drawing among all that were asked for, from 1 on."""
    total: int
    """Number of drawings that were asked for."""


def draw(
    run: Run,
    context: RunContext,
    count: int,
    split: str = "val",
    checkpoint: str = "last",
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Writes `drawings` as `drawn-<split>/<clip>.mp4` and `drawn-<split>.png` into the run folder;
    returns the sheet's path. `say` is told of each video that could not be written, and of letters
    of labels that no font has."""
    clips, folder, taken = [], run.path / f"drawn-{split}", set[str]()
    if folder.is_symlink():
        raise BadInput(
            f"{folder} is a symbolic link, and a run is drawn in its own folder alone",
            "put a real folder in place of the link",
        )
    if missing := fonts.missing_letters(context.manifest.labels):
        say(missing)
    for drawing in drawings(run, context, count, split, checkpoint, say):
        path = folder / file_name(drawing.clip.clip_id, ".mp4", taken)
        try:
            write_video(path, drawing.pixels_THWC, drawing.fps)
        except StillframeError as error:
            say(f"clip {drawing.clip.clip_id}: {error.with_hint}")
        clips.append(drawing.pixels_THWC)
        if on_progress:
            on_progress(drawing.number, drawing.total)
    sheet = run.path / f"drawn-{split}.png"
    contact_sheet(sheet, clips)
    return sheet


def file_name(clip_id: str, suffix: str, taken: set[str]) -> str:
    """A file name for a clip that is none of `taken`, to which it is added: its id with `__` for
    every `/`, and letters that a file system may refuse written as in an address (`%0A`). An id
    that ends in the suffix gets no second one. A longer id than `NAME_BYTES` is cut, and it, or one
    whose name is taken, ends in a hash of all of it.
    """
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    shown = clip_id[: -len(suffix)] if suffix and clip_id.lower().endswith(suffix) else clip_id
    parts = [
        letter
        if not letter.isascii() and letter.isprintable() and is_utf8
        else quote(letter, safe=" #@+", errors="surrogateescape")
        for letter in shown.replace("/", "__")
    ]
    ends = list(accumulate(len(part.encode()) for part in parts))
    whole = "".join(parts)
    if (ends and ends[-1] > NAME_BYTES) or f"{whole}{suffix}" in taken:
        digest = hashlib.sha256(clip_id.encode(errors="surrogateescape")).hexdigest()[:12]
        whole = f"{''.join(parts[: bisect_right(ends, NAME_BYTES)])}~{digest}"
    taken.add(f"{whole}{suffix}")
    return f"{whole}{suffix}"


def drawings(
    run: Run,
    context: RunContext,
    count: int,
    split: str = "val",
    checkpoint: str = "last",
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Drawing]:
    """The middle window of `count` clips, spread evenly over `split`, with the answer of the task's
    first form.

    The videos are decoded again, in the sandbox. `say` is told of each that cannot be, with the
    reason; raises BadVideo where that is so for all of them.
    """
    cache, manifest, device = context.cache, context.manifest, context.device
    check([run.recipe], cache, manifest, [run])
    model, task = load_model(run, cache.shape, checkpoint, device)
    windows = context.windows(split, run.recipe, task, model.layers)
    indices = evenly_spaced(len(windows), count)
    form = task.forms[0]
    failures: dict[str, BadVideo] = {}
    with drawing_reader(manifest.root) as reader:
        for number, index in enumerate(indices, start=1):
            batch, clip = windows.read([WindowRef(index, 0.5)]), windows.clip(index)
            try:
                pixels_THWC = squares(reader, cache, clip, batch.time_s_BT[0])
            except BadVideo as error:
                failures[clip.clip_id] = error
                continue
            device_batch = windows.on_device(batch, device)
            answer = model.answers(device_batch, task)[form][0]
            whole = with_truth(batch, device_batch, task, model.layers[-1])
            targets = {name: array[0] for name, array in whole.targets.items()}
            drawn_THWC = task.draw(pixels_THWC, answer, targets)
            step_s = windows.index.clip_rows[index].step_s
            fps = WHOLE_CLIP_FPS if run.recipe.windows.step() is None else clip.speed / step_s
            after_s_T = batch.time_s_BT[0] - windows.index.clip_rows[index].first_s
            captions = [f"{time_s:.2f} s   {clip.clip_id}" for time_s in after_s_T]
            captioned = [with_caption(*pair) for pair in zip(drawn_THWC, captions, strict=True)]
            yield Drawing(clip, np.stack(captioned), fps, number, len(indices))
    if len(failures) == len(indices):
        raise next(iter(failures.values()))
    for clip_id, failure in failures.items():
        say(f"clip {clip_id}: {failure.with_hint}")


def evenly_spaced(total: int, count: int) -> list[int]:
    """Up to `count` of the indices 0 .. total - 1, evenly spread, ends included."""
    indices = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return list(map(int, np.unique(indices)))


def drawing_reader(root: Path) -> FrameReader:
    """Reads the frames of videos below `root` to be drawn on: on the CPU, whatever trains."""
    return FrameReader(root, torch.device("cpu"))


def squares(reader: FrameReader, cache: Cache, clip: Clip, time_s_T: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W, 3): the frames at the given times, as the encoder saw them, but at least
    `DRAWN_PX` large. Raises BadVideo, with the video's path and the reason."""
    path, settings = reader.root / clip.source, cache.cache_spec.frames
    # Drawn for people: the same part of the frame, antialiased and in whole levels.
    to_draw = {"size_px": max(DRAWN_PX, settings.size_px), "antialias": True}
    larger = settings.model_copy(update=to_draw)
    try:
        squares_TCHW = reader.at_times(clip.video, larger, time_s_T)
    except (OSError, BadVideo) as error:
        raise BadVideo(
            f"video {path} cannot be drawn on: {error}",
            "put the videos back where they were at extraction",
        ) from error
    return squares_TCHW.permute(0, 2, 3, 1).numpy()


def write_video(path: Path, pixels_THWC: np.ndarray, fps: float, crf: int = 18) -> None:
    """Writes uint8 RGB frames as a `VideoFile`. Raises StillframeError, which names the file."""
    try:
        with VideoFile(path, fps, crf) as file:
            for pixels_HWC in pixels_THWC:
                file.append(pixels_HWC)
    except (OSError, av.FFmpegError) as error:
        raise StillframeError(
            f"{path} cannot be written: {error.strerror}", "free space or fix access"
        ) from error


class VideoFile:
    """An H.264 .mp4, written frame by frame; it appears under its name when it is whole."""

    def __init__(self, path: Path, fps: float, crf: int = 18) -> None:
        """`crf`: what quality costs; 18 can hardly be told from the original, 28 takes about a
        quarter of its bytes."""
        self.path, self.fps, self.crf = path, fps, crf
        self._aside = path.with_name(f".{path.name}.partial")
        self._stream: VideoStream | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._aside.unlink(missing_ok=True)  # a link of that name would be written through
        self._file = av.open(self._aside, "w", format="mp4")
        return self

    def append(self, pixels_HWC: np.ndarray) -> None:
        """uint8 RGB, all of one size; an odd side repeats its last row or column, as the codec
        wants even ones."""
        height, width = pixels_HWC.shape[:2]
        even = np.pad(pixels_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._file.add_stream(
                "libx264", rate=rate, options={"crf": str(self.crf), "preset": "veryfast"}
            )
            self._stream.height, self._stream.width = even.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._file.mux(self._stream.encode(None))
        self._file.close()
        if kind is None and self._stream is not None:
            self._aside.replace(self.path)
        else:
            self._aside.unlink(missing_ok=True)


def contact_sheet(path: Path, clips: Sequence[np.ndarray]) -> None:
    """One row for each clip, (T, H, W, 3) uint8: frames spread evenly over it, the last always
    among them."""
    rows = []
    for pixels_THWC in clips:
        shown = evenly_spaced(len(pixels_THWC), SHEET_FRAMES)
        rows.append(_narrow(np.concatenate(list(pixels_THWC[shown]), axis=1)))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate(
        [
            np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
    )
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, format="PNG")
    write_atomically(path, data.getvalue())


def _narrow(pixels_HWC: np.ndarray) -> np.ndarray:
    """The picture, made smaller where it is wider than `SHEET_PX`."""
    height, width = pixels_HWC.shape[:2]
    if width <= SHEET_PX:
        return pixels_HWC
    size = SHEET_PX, round(height * SHEET_PX / width)
    return np.array(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))
