"""The built-in world: short clips whose class no single frame can tell, with exact truth for every
task.

Three kinds of scene, each a file in `synthetic/`: a `plane` with one object before a still camera,
where the class is how the object moves or changes; a `room` with several objects and a moving
camera, where the class is how the camera moves; and a `story` of up to three things, one of which
does one thing and then another, where the class is the first of them. The room has dials that make
it harder, and is what tracking, depth and camera pose are learned from. Of the story there are
captions, or questions with answers, or the two events with their times.

In all, the class is a phase that turns one way or the other on a circle from a uniform start, so
that every single frame is distributed alike in all classes. The video codec keeps this property:
every frame is coded alone with a fixed quantiser, so a decoded frame is a function of the rendered
frame and of nothing else.

Frames are square; the camera's focal length is one frame side, its principal point the frame's
centre.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import av
import numpy as np
from pydantic import Field, model_validator

from pipeline.config import plugins
from pipeline.config.toml_tables import differences
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.datasets.synthetic import plane, room, sentences, story
from pipeline.errors import BadInput
from pipeline.records import Clip

SCENES = {"plane": plane, "room": room, "story": story}
BLOCK_PIXELS = 2**20
"""Pixels of the frames that are rendered together, so that memory does not grow with the clip's
length."""
ROOM_SETTINGS = tuple(field.name for field in fields(room.Dials))
STORY_SETTINGS = ("casts", "says")
Dial = Annotated[float, Field(ge=0, le=1)]


class Settings(plugins.Settings):
    """These settings say what is rendered: how many clips, how long, and how hard to follow."""

    clips_per_class: int = Field(default=50, ge=1)
    """Clips of each class, of which the plane has 8, the room 6 and the story 6; every clip is a
    video of its own. With questions these are videos, each of which has 5 or 6 clips, one for each
    question."""
    frames: int = Field(default=24, ge=2)
    """Frames per clip; an even number in the story, of which each event takes half."""
    fps: int = Field(default=12, ge=1, le=240)
    """Frames per second."""
    size_px: int = Field(default=112, ge=32, le=1024, multiple_of=2)
    """Side of the square frames; 112 is a whole number of 14 and of 16 pixel patches."""
    val_fraction: float = Field(default=0.3, ge=0, lt=1)
    """Share of each class, rounded, that goes to the split `val`; the rest is `train`."""
    seed: plugins.Seed = 0
    """Draws every scene."""
    scene: Literal["plane", "room", "story"] = "plane"
    """The scene that the videos show; `says` and `casts` are of the story, all settings below them
    of the room."""
    says: Literal["nothing", "captions", "questions", "events"] = "nothing"
    """What is said of each story: nothing; three captions; questions, whose right answer is then
    the label; or which event happens when, as truth of every frame."""
    casts: int = Field(default=0, ge=0, le=story.MOST_SHARED)
    """Casts that the stories share, each for 30 clips in turn, which show every two events in every
    order: captions of these differ in nothing else. 0: every story has a cast of its own."""
    objects: int = Field(default=2, ge=1, le=4)
    """Tracked objects; each is a ball or a box with a texture of its own."""
    rooms: int = Field(default=0, ge=0)
    """Rooms, each with objects of its own, that the clips share in turn; 0: every clip has its own.
    With few, what things look like tells where and how far they are, and little data goes a long
    way."""
    occlusion: Dial = 0.0
    """Boards slide in front of the objects. Each object is fully behind its own board for 0.75 of
    the time at 1.0, for a proportional share below, and partly for some time before and after; the
    board of another may cover it too. None at 0."""
    deformation: Dial = 0.0
    """Objects change shape smoothly: each axis breathes, a third of a period apart; at 1.0 between
    2 / 3 and 3 / 2 of its length."""
    viewpoint: Dial = 0.0
    """Drift of the camera beside the motion that is its class: along each axis within 3 cm at 0 and
    40 cm at 1.0, to the sides and up and down within 1.5 degrees at 0 and 15 degrees at 1.0,
    rolling half as much."""
    speed: Dial = 0.0
    """Everything moves 3 ** speed times as fast, camera, objects and boards: three times at 1.0,
    along the same paths. A camera then circles up to 1.8 times a second: at 4 frames per second of
    a window, half a circle a frame hides its way."""
    distractors: Dial = 0.0
    """Look-alikes: same shape, size and texture as a tracked object, paths of their own, no boxes
    or points. There are round(4 * distractors): 4 at 1.0."""

    @model_validator(mode="after")
    def _of_the_scene(self) -> Self:
        for scene, names in (("room", ROOM_SETTINGS), ("story", STORY_SETTINGS)):
            for name in names:
                value = getattr(self, name)
                if self.scene != scene and value != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is a setting of scene '{scene}', found {name} = {value} with "
                        f"scene '{self.scene}'"
                    )
        if self.scene == "story" and self.frames % 2:
            raise ValueError(
                "frames is an even number in scene 'story', half for each event, found frames = "
                f"{self.frames}"
            )
        return self


class Dataset(DatasetPlugin):
    """Renders `videos/<label>_<number>.mp4` under `root`, and `world.json`, which says what they
    were rendered from."""

    Settings = Settings
    renders = True

    def __init__(
        self, root: Path, settings: Any, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(root, settings, on_progress)
        self._labels = SCENES[settings.scene].LABELS
        names = (
            f"{label}_{number:04d}"
            for number in range(settings.clips_per_class)
            for label in self._labels
        )
        self._index = {name: index for index, name in enumerate(names)}
        self._time_s = np.arange(settings.frames) / settings.fps

    def clips(self) -> Iterator[Clip]:
        """Renders what is not there yet, then yields the classes in turn. Raises BadInput if `root`
        holds another world."""
        self._claim_root()
        if self.settings.says == "events":
            self.classes = story.LABELS
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
            for done, _ in enumerate(pool.map(self._render, self._index), start=1):
                self.on_progress(done, len(self._index))
        train = self.settings.clips_per_class - round(
            self.settings.clips_per_class * self.settings.val_fraction
        )
        for name, index in self._index.items():
            clip = Clip(
                clip_id=name,
                video_id=name,
                source=f"videos/{name}.mp4",
                split="train" if index // len(self._labels) < train else "val",
                stop_s=self.settings.frames / self.settings.fps,
                label=self._label(name),
            )
            if self.settings.says != "questions":
                yield clip
                continue
            for number, texts in enumerate(self._texts(name)):
                yield replace(clip, clip_id=f"{name}/q{number}", label=texts.answer)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """The arrays of `truth`, at the times of the frames, and `label` () where it is a class of
        the scene; computed from the seed, not from the video."""
        targets = self._shot(clip.video_id).truth(self._time_s)
        times = {f"{name}_time_s": self._time_s for name in targets if name != "visible"}
        if self.settings.says != "questions":
            targets["label"] = np.array(self._labels.index(self._label(clip.video_id)))
        if self.settings.says == "events":
            half_s = self.settings.frames / self.settings.fps / 2
            targets["segments_s"] = half_s * np.array([[0.0, 1.0], [1.0, 2.0]])
            events = self._story(clip.video_id).events
            targets["segment_class"] = np.array([story.LABELS.index(event) for event in events])
        return {**targets, **times}

    def texts(self, clip: Clip) -> ClipTexts:
        """What the setting `says` wants."""
        if self.settings.says in ("nothing", "events"):
            return ClipTexts()
        number = int(clip.clip_id.rpartition("/q")[2]) if self.settings.says == "questions" else 0
        return self._texts(clip.video_id)[number]

    def _texts(self, name: str) -> tuple[ClipTexts, ...]:
        """The captions of a story, or all its questions."""
        told = self._story(name)
        rng = np.random.default_rng((self.settings.seed, self._index[name], 1))
        if self.settings.says == "questions":
            return sentences.questions(told.cast, told.events, rng)
        return (ClipTexts(captions=sentences.captions(told.cast, told.events, rng)),)

    def _label(self, name: str) -> str:
        return self._labels[self._index[name] % len(self._labels)]

    def _story(self, name: str) -> story.Story:
        return story.draw_story(self.settings.seed, self._index[name], self.settings.casts)

    def _shot(self, name: str) -> plane.PlaneShot | room.RoomShot | story.StoryShot:
        settings, index, label = self.settings, self._index[name], self._label(name)
        if settings.scene == "plane":
            return plane.PlaneShot(settings.seed, index, label)
        stop_s = settings.frames / settings.fps
        if settings.scene == "story":
            return story.StoryShot(self._story(name), stop_s)
        dials = room.Dials(**settings.model_dump(include=set(ROOM_SETTINGS)))
        return room.RoomShot(settings.seed, index, label, dials, stop_s)

    def _render(self, name: str) -> None:
        path = self.root / "videos" / f"{name}.mp4"
        if path.exists():
            return
        shot, size_px = self._shot(name), self.settings.size_px
        block = min(max(BLOCK_PIXELS // size_px**2, 1), 8)
        times = (
            self._time_s[start : start + block] for start in range(0, len(self._time_s), block)
        )
        frames = (frame for time_s in times for frame in shot.render(time_s, size_px))
        aside = path.with_suffix(".partial")
        encode(aside, frames, size_px, self.settings.fps)
        aside.replace(path)

    def _claim_root(self) -> None:
        """Writes `world.json`, or checks that the one there says the same: two worlds never mix in
        one folder."""
        # Splits and texts are a matter of the manifest, not of the pixels; the plane is the scene
        # of worlds that name none.
        scene = self.settings.scene
        left_out = {"val_fraction", "says"}
        left_out |= {"scene"} if scene == "plane" else set()
        left_out |= set(ROOM_SETTINGS) if scene != "room" else set()
        left_out |= {"casts"} if scene != "story" else set()
        rendering = SCENES[scene].RENDERING
        table = {"rendering": rendering, **self.settings.model_dump(mode="json", exclude=left_out)}
        path = self.root / "world.json"
        if path.exists():
            table_there = _read_table(path)
            if table_there != table:
                changed = "; ".join(differences(table, table_there))
                raise BadInput(
                    f"{self.root} already holds another world (wanted / found): {changed}",
                    "render into another folder, or delete this one first",
                )
        (self.root / "videos").mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(table, indent=2) + "\n")
        aside.replace(path)


def _read_table(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadInput where the file holds none."""
    try:
        table = json.loads(path.read_text())
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise BadInput(
            f"{path} is damaged: it does not say which world lies here",
            f"delete it together with {path.parent / 'videos'}, or render into another folder",
        )
    return table


def encode(path: Path, frames: Iterable[np.ndarray], size_px: int, fps: int) -> None:
    """Writes uint8 RGB frames as H.264 in mp4: every frame intra-coded with one quantiser.

    One thread and no dates: the same frames give the same bytes.
    """
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"qp": "18", "g": "1", "preset": "veryfast"}
        )
        stream.height = stream.width = size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels_HWC in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        container.mux(stream.encode(None))
