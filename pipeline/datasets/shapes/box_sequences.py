"""Clips of videos and image folders whose boxes lie in text files beside them.

What a data set of this shape does not share with others, `BoxSettings` says: where frames and truth
are, and what stands in a line. One sequence that cannot be read never stops the others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, normalised_boxes, present, probe_all
from pipeline.datasets.formats.splits import SPLITS, split_dataset
from pipeline.datasets.shapes.box_columns import (
    Columns,
    Condition,
    RowReader,
    Rows,
    read_flags,
)
from pipeline.datasets.shapes.box_lists import Span
from pipeline.datasets.shapes.box_settings import BoxSettings
from pipeline.datasets.shapes.patterns import FIELD, find
from pipeline.errors import BadInput, BadVideo
from pipeline.records import Clip
from pipeline.video.probe import IMAGE_SUFFIXES, MEDIA_SUFFIXES, Probe, list_images, open_video

DRAWN = 0.2
"""Share of the sequences that goes to `val`, where neither the data set nor a setting says it."""


@dataclass
class _Sequence:
    """What is known of a sequence before its truth is read."""

    name: str
    video: str
    source: str
    fields: Mapping[str, str]
    fps: float
    span: Span | None
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Timeline:
    """The frames of one video."""

    time_s: np.ndarray
    """(F,) after the first frame."""
    end_s: float
    numbers: list[int] | None
    """The number in every image's name; None for a video."""


class BoxDataset(DatasetPlugin):
    """One clip per sequence. A plug-in defines `Settings`, below `BoxSettings`."""

    @property
    def layout(self) -> BoxSettings:
        """Where the files are, and what stands in them."""
        layout: BoxSettings = self.settings
        return layout

    @property
    def known_spans(self) -> Mapping[str, Span]:
        """Sequences that are known to be a part of a video."""
        return {}

    def clips(self) -> Iterator[Clip]:
        """Sorted by sequence. Raises BadInput if there are no frames where the settings say."""
        sequences = self._sequences()
        if not sequences:
            raise self.nothing_found()
        by_fps: dict[float, dict[str, None]] = defaultdict(dict)
        for sequence in sequences:
            by_fps[sequence.fps][sequence.source] = None
        for fps, sources in by_fps.items():
            probe_all(self, list(sources), fps)
        self._truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._rows = RowReader(
            Columns.parse(self.layout.columns, "columns"),
            self.layout.separator,
            self.layout.header_lines,
            [Condition.parse(text, "keep") for text in self.layout.keep],
        )
        clips = []
        for sequence in sequences:
            probed = self.probed.get(sequence.source)
            clip = probed and self._clip(sequence, probed)
            if clip:
                clips.append(clip)
        lost = [each.name for each in sequences if not self.own_split(each.name, each.fields)]
        drawn = DRAWN if len(lost) == len(sequences) else None
        if lost and drawn is None:
            text = f"{len(lost)} of {len(sequences)} sequences lie in no folder of a split and are"
            self.note(self.layout.frames, f"{text} train: {few(lost)}")
        yield from split_dataset(self, clips, drawn)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes of every annotated frame."""
        boxes, time_s = self._truth[clip.clip_id]
        return {"boxes": boxes, "boxes_time_s": time_s}

    def own_split(self, sequence: str, fields: Mapping[str, str]) -> str | None:
        """The split that the data set itself gives to a sequence: that of the field `{split}`, None
        where there is none."""
        named = fields.get("split", "").lower()
        return next((split for split in SPLITS if named.startswith(split)), None)

    def group_of(self, sequence: str, video: str) -> str | None:
        """The group of a sequence: its video, where it is a part of one."""
        return video if sequence != video else None

    def nothing_found(self) -> BadInput:
        """The error where there are no frames."""
        return BadInput(
            f"{self.root} holds no sequences at {self.layout.frames}",
            "wanted image folders or videos there: name another pattern with --set frames=...",
        )

    # What there is

    def _sequences(self) -> list[_Sequence]:
        """All sequences that have frames, by name, with the files of their truth."""
        spans = self._spans()
        parts_of: dict[str, list[str]] = defaultdict(list)
        for name, (video, *_) in spans.items():
            if name.lower() != video.lower():
                parts_of[video.lower()].append(name)
        own_span = {name.lower(): span for name, span in spans.items()}
        is_open = re.search(r"[{*]", self.layout.frames.rpartition("/")[2])
        found: dict[str, _Sequence] = {}
        self._without_rate: list[str] = []
        for place in find(self.root, self.layout.frames):
            if not (place.path.is_dir() or place.path.suffix.lower() in MEDIA_SUFFIXES):
                continue
            video, source = place.fields["sequence"], place.path.relative_to(self.root).as_posix()
            here = []
            for name in (video, *parts_of[video.lower()]):
                fields = place.fields | {"sequence": name}
                files = [each.path for each in find(self.root, self.layout.truth, fields)]
                span = own_span.get(name.lower())
                fps = self._fps(fields)
                here.append(_Sequence(name, video, source, fields, fps, span, files))
            annotated = [each for each in here if each.files]
            if not annotated and is_open and place.path.is_dir() and not _holds_images(place.path):
                continue  # some other folder that the pattern fits, such as that of the truth
            # A video of which nothing is annotated is told of once, under its own name.
            for sequence in annotated or here[:1]:
                if sequence.name in found:
                    first = found[sequence.name].source
                    self.reject(source, f"there is a sequence '{sequence.name}' at {first}")
                else:
                    found[sequence.name] = sequence
        self._note_truth_without_frames(found)
        if self._without_rate:
            text = f"{len(self._without_rate)} of its files say no rate that is taken, so it is "
            self.note(
                f"{self.layout.fps_file}",
                f"{text}{self.layout.image_fps:g}: {few(self._without_rate)}",
            )
        return [found[name] for name in self._listed(found)]

    def _note_truth_without_frames(self, found: Mapping[str, _Sequence]) -> None:
        used = {path for sequence in found.values() for path in sequence.files}
        lost = [
            place.path.relative_to(self.root).as_posix()
            for place in find(self.root, self.layout.truth)
            if place.path not in used
        ]
        if lost:
            total = len(lost) + len(used)
            self.notes[self.layout.truth] = (
                f"{len(lost)} of {total} files of truth have no frames at "
                f"{self.layout.frames}: {few(lost)}"
            )

    def _spans(self) -> dict[str, Span]:
        if self.layout.spans is None:
            return dict(self.known_spans)
        return read_spans(self.root / self.layout.spans)

    def _listed(self, found: Mapping[str, _Sequence]) -> list[str]:
        """The names of those that the lists of `only` name, and of those for which there is no
        list; what lists name and is not there is noted."""
        if self.layout.only is None:
            return sorted(found)
        names: dict[Path, set[str]] = {}
        listed = []
        for name in sorted(found):
            files = [each.path for each in find(self.root, self.layout.only, found[name].fields)]
            for file in files:
                if file not in names:
                    lines = [line.strip() for line in _lines(file)]
                    names[file] = {line for line in lines if line and not line.startswith("#")}
            if not files or any(name in names[file] for file in files):
                listed.append(name)
        for file, wanted in names.items():
            missing = sorted(wanted - found.keys())
            if missing:
                text = f"{len(missing)} of the {len(wanted)} it lists are not there: {few(missing)}"
                self.note(file.relative_to(self.root).as_posix(), text)
        if not names:
            self.note(self.layout.only, "is not there, all sequences are used")
        return listed

    def _fps(self, fields: Mapping[str, str]) -> float:
        fps: float = self.layout.image_fps
        if self.layout.fps_file is not None:
            pattern, _, key = self.layout.fps_file.rpartition(":")
            for file in find(self.root, pattern, fields):
                said = re.compile(rf"\s*{re.escape(key)}\s*[:=]\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
                values = [match[1] for line in _lines(file.path) if (match := said.match(line))]
                if values and 0 < float(values[0]) <= 1000:
                    return float(values[0])
                self._without_rate.append(file.path.relative_to(self.root).as_posix())
        return fps

    # Truth of one sequence

    def _clip(self, sequence: _Sequence, probed: Probe) -> Clip | None:
        """The clip of a sequence; None, and rejected, where its truth cannot be used."""
        split = self.own_split(sequence.name, sequence.fields) or SPLITS[0]
        if split == "test" and not sequence.files:
            self.note(sequence.source, "is of a test set, whose boxes are not published")
            return None
        try:
            frames = self._timeline(sequence)
            own = _annotated(sequence, len(frames.time_s))
            boxes, rows = self._boxes(sequence, probed, frames, own, split)
        except (BadInput, BadVideo) as error:
            self.reject(sequence.source, error.message)
            return None
        self._truth[sequence.name] = boxes, frames.time_s[rows]
        is_first_alone = split == "test" and len(rows) == 1
        start, stop = (own[0], own[-1]) if is_first_alone else (rows[0], rows[-1])
        is_folder, count = frames.numbers is not None, len(frames.time_s)
        stop_s: float | None = float([*frames.time_s, frames.end_s][stop + 1])
        if not is_folder and stop == count - 1:
            stop_s = None
        return Clip(
            sequence.name,
            sequence.video,
            sequence.source,
            split,
            float(frames.time_s[start]),
            stop_s,
            image_fps=sequence.fps if is_folder else None,
            group=self.group_of(sequence.name, sequence.video),
        )

    def _timeline(self, sequence: _Sequence) -> _Timeline:
        """Raises BadVideo."""
        path = self.root / sequence.source
        if path.is_dir():
            images, time_s, end_s = list_images(path, sequence.fps)
            digits = [re.findall(r"\d+", image.stem) for image in images]
            numbers = [int(words[-1]) if words else -1 for words in digits]
            return _Timeline(time_s - time_s[0], end_s - float(time_s[0]), numbers)
        time_s, end_s = shown_at(path)
        return _Timeline(time_s, end_s, None)

    def _boxes(
        self, sequence: _Sequence, probed: Probe, frames: _Timeline, own: range, split: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (O, F, 4) and the F frames of the video, in order, that have a line in some file.
        Raises BadInput where none has, or a file is damaged."""
        tracks: list[tuple[np.ndarray, np.ndarray]] = []
        for path in sequence.files:
            source = path.relative_to(self.root).as_posix()
            try:
                rows = self._rows.read(path)
                absent = ~rows.is_kept | self._flagged(sequence, len(rows.line))
            except BadInput as error:
                raise BadInput(f"{path.name} {error.message}") from error
            if not len(rows.line):
                self.note(source, "is empty")
                continue
            at = self._frames_of(rows, frames, own, source, split)
            xyxy = self._normalised(rows.xyxy, probed)
            self._note_absent(source, rows, xyxy, absent, at)
            xyxy[absent] = np.nan
            own_tracks = _by_object(xyxy, at, rows.objects)
            again = sum(
                np.count_nonzero(row >= 0) - len(set(row[row >= 0])) for _, row in own_tracks
            )
            if again:
                self.note(source, f"{again} lines repeat a frame of their object, the last counts")
            tracks += own_tracks
        used = np.unique(np.concatenate([at for _, at in tracks] or [np.empty(0, np.int64)]))
        used = used[used >= 0]
        if not len(used):
            said = {**sequence.fields, "sequence": sequence.name}
            name = self.layout.truth.rpartition("/")[2]
            name = FIELD.sub(lambda field: said.get(field[1], field[0]), name)
            raise BadInput(f"has no {name} with boxes" + " of its frames" * bool(tracks))
        boxes = np.full((len(tracks), len(used), 4), np.nan, np.float32)
        for row, (xyxy, at) in enumerate(tracks):
            boxes[row, np.searchsorted(used, at[at >= 0])] = xyxy[at >= 0]
        if not present(boxes).any():
            raise BadInput("shows no object")
        if "id" in self._rows.at:  # objects that `keep` leaves nothing of are none
            boxes = boxes[present(boxes).any(1)]
        return boxes, used

    def _normalised(self, xyxy: np.ndarray, probed: Probe) -> np.ndarray:
        xyxy = xyxy - self.layout.first_pixel
        if self.layout.inclusive:
            xyxy[:, 2:] += 1
        size = (1.0, 1.0) if self.layout.fractions else (probed.width, probed.height)
        return normalised_boxes(xyxy, *size)

    def _frames_of(
        self, rows: Rows, frames: _Timeline, own: range, source: str, split: str
    ) -> np.ndarray:
        """(N,) the frame of the video that each line is of; -1 where it is of none."""
        count, step = len(rows.line), self.layout.rows_per_frame
        if rows.frame is None:
            number = np.arange(count)
            given = -(-count // step)
            if given != len(own) and not (split == "test" and given == 1):
                text = f"{count} boxes for {len(own)} images, only what has both is used"
                self.note(source, text)
        elif self.layout.frame_numbers == "names":
            place = {name: frame for frame, name in enumerate(frames.numbers or ())}
            number = np.array([place.get(name, own.start - 1) for name in rows.frame.tolist()])
            number = (number - own.start) * step
        else:
            number = rows.frame - (self.layout.frame_numbers == "from_1")
        at = own.start + number // step
        is_there = (at >= own.start) & (at < own.stop)
        if rows.frame is not None and not is_there.all():
            lost = rows.line[~is_there]
            text = f"{len(lost)} of {count} boxes are of frames that are not there: lines "
            self.note(source, text + few(lost.tolist()))
        return np.where(is_there & (number % step == 0), at, -1)

    def _flagged(self, sequence: _Sequence, count: int) -> np.ndarray:
        """(N,) bool: which lines `absent_files` call absent. Raises BadInput where a file has
        another number of flags."""
        absent = np.zeros(count, bool)
        for text in self.layout.absent_files:
            rule = Condition.parse(text, "absent_files")
            for file in find(self.root, rule.name, sequence.fields):
                try:
                    flags = read_flags(file.path, rule)
                except BadInput as error:
                    raise BadInput(f"and {file.path.name}: {error.message}") from error
                if len(flags) != count:
                    raise BadInput(f"has {count} lines, and {file.path.name} {len(flags)} numbers")
                absent |= flags
        return absent

    def _note_absent(
        self, source: str, rows: Rows, xyxy: np.ndarray, absent: np.ndarray, at: np.ndarray
    ) -> None:
        """Remarks on boxes that are there, as the file says, and have no area."""
        odd = rows.line[~present(xyxy) & ~absent & (at >= 0)]
        if len(odd):
            count = f"{len(odd)} of {np.count_nonzero(at >= 0)}"
            lost = f"{count} boxes have no area inside the frame and count as absent"
            self.note(source, f"{lost}: lines {few(odd.tolist())}")


def _by_object(
    xyxy: np.ndarray, at: np.ndarray, objects: list[str] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The lines of every object: boxes (n, 4) and frames (n,)."""
    if objects is None:
        return [(xyxy, at)]
    lines: dict[str, list[int]] = defaultdict(list)
    for line, name in enumerate(objects):
        lines[name].append(line)
    natural = sorted(lines, key=lambda name: (len(name.split(".")[0]), name))
    return [(xyxy[lines[name]], at[lines[name]]) for name in natural]


def _annotated(sequence: _Sequence, frames: int) -> range:
    """The frames of its video that a sequence is. Raises BadInput where they are not there."""
    if sequence.span is None:
        return range(frames)
    video, first, last = sequence.span
    if last <= frames:
        return range(first - 1, last)
    if video.lower() == sequence.name.lower():  # a copy that holds the annotated part alone
        return range(frames)
    raise BadInput(
        f"{sequence.name} is frames {first} to {last} of {video}, which has {frames} here"
    )


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _lines(path: Path) -> list[str]:
    """Lines of a small text file. Raises BadInput if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def read_spans(path: Path) -> dict[str, Span]:
    """Sequence -> its video, first and last frame. Raises BadInput.

    A line has a sequence, its video, and the first and last frame; UAV123's configSeqs.m is read as
    well, whose lines name `'path'`, `'startFrame'` and `'endFrame'`.
    """
    spans: dict[str, Span] = {}
    for number, line in enumerate(_lines(path), start=1):
        if path.suffix == ".m":
            facts = dict(re.findall(r"'(\w+)'\s*,\s*'?([^',]+)'?", line))
            if not {"name", "path", "startFrame", "endFrame"} <= facts.keys():
                continue
            folder = re.split(r"[\\/]+", facts["path"].rstrip("\\/"))[-1]
            words = [facts["name"], folder, facts["startFrame"], facts["endFrame"]]
        else:
            words = re.split(r"[,;\s]+", line.strip())
            if not line.strip() or line.startswith("#"):
                continue
        if len(words) != 4 or not all(word.isdecimal() for word in words[2:]):
            raise BadInput(
                f"{path} line {number}: wanted sequence, video, first and last frame, found "
                f"'{line[:40]}'"
            )
        name, video, first, last = words[0], words[1], int(words[2]), int(words[3])
        if not 1 <= first <= last:
            raise BadInput(f"{path} line {number}: wanted 1 <= first <= last, found '{line[:40]}'")
        spans[name] = video, first, last
    if not spans:
        raise BadInput(f"{path} names no sequences")
    return spans


def shown_at(path: Path) -> tuple[np.ndarray, float]:
    """(F,) seconds after the first frame at which the frames of a video are shown, from its
    packets, and when the last one ends. Raises BadVideo."""
    container, stream = open_video(path)
    with container:
        try:
            packets = [
                (packet.pts, packet.duration or 0)
                for packet in container.demux(stream)
                if packet.pts is not None and not packet.is_discard
            ]
        except av.FFmpegError as error:
            raise BadVideo(f"{path.name}: cannot be read to its end ({error.strerror})") from error
        if not packets or stream.time_base is None:
            raise BadVideo(f"{path.name}: holds no frames with times")
        ticks = np.array(sorted(packets))
        seconds = (ticks[:, 0] - ticks[0, 0]) * float(stream.time_base)
        return seconds, float(seconds[-1] + ticks[-1, 1] * float(stream.time_base))
