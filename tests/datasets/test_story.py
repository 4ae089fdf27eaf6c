"""The story of the built-in world: a frame tells of no event, lost order tells of no direction, no question of its answer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import plugins
from pipeline.datasets import world
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.datasets.synthetic import sentences, story
from pipeline.datasets.synthetic.story import Cast, Story, StoryShot, Thing, draw_story
from pipeline.errors import BadInput

SECONDS, TIME_S = 2.0, np.arange(24) / 12
ALL_CASTS = [cast for casts in story.CASTS for cast in casts]
PAIRS = list(permutations(story.LABELS, 2))
A = {name: place for place, name in enumerate(story.ATTRIBUTES)}


def phases(told: Story, time_s: np.ndarray = TIME_S) -> np.ndarray:
    return StoryShot(told, SECONDS).attributes(time_s)


def alone(shape: str, x: float = 0.5, y: float = 0.5, size: float = 0.5) -> Story:
    """One red thing of which a frame at time 0 has these attributes."""
    cast = Cast((Thing("red", shape),), 0)
    return replace(draw_story(0, 0), cast=cast, phase_OA=np.array([[x, y, size]]), order=[0])


def red(told: Story, size_px: int = 112) -> np.ndarray:
    """Pixels of the first frame (H, W) that are red."""
    frame_HWC = StoryShot(told, SECONDS).render(TIME_S[:1], size_px)[0].astype(int)
    return frame_HWC[..., 0] - frame_HWC[..., 1:].max(-1) > 60


# A single frame


def test_only_the_actor_changes_and_each_event_once_around_its_circle() -> None:
    time_s = np.array([0.0, 0.25, 0.75, 1.0, 1.5, 1.75])
    for index in range(30):
        told = draw_story(3, index)
        (first, first_way), (second, second_way) = (story.EVENTS[name] for name in told.events)
        wanted = np.repeat(told.phase_OA[None], 6, axis=0)
        wanted[:, told.cast.actor, A[first]] += first_way * np.array([0, 0.25, 0.75, 1, 1, 1])
        wanted[:, told.cast.actor, A[second]] += second_way * np.array([0, 0, 0, 0, 0.5, 0.75])
        apart = np.abs(phases(told, time_s) - wanted % 1)
        assert np.minimum(apart, 1 - apart).max() < 1e-12


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [draw_story(0, index) for index in range(4200)]


def test_attributes_are_uniform_whoever_acts_and_whatever_happens(stories: list[Story]) -> None:
    """With the shift above this is the whole argument: start and shift are independent, the start is uniform."""
    three = [told for told in stories if len(told.cast.things) == 3]
    phase_NV = np.stack([told.phase_OA.ravel() for told in three])
    count = len(phase_NV)
    expected = (np.arange(count) + 0.5) / count
    # Kolmogorov-Smirnov, 1.95 / sqrt(n): one false alarm in 1000.
    assert np.abs(np.sort(phase_NV, axis=0) - expected[:, None]).max() < 1.95 / np.sqrt(count)
    rank_NO = np.stack([np.argsort(told.order) for told in three])
    actor_NO = np.eye(3)[[told.cast.actor for told in three]]
    first_NE = np.eye(6)[[story.LABELS.index(told.events[0]) for told in three]]
    second_NE = np.eye(6)[[story.LABELS.index(told.events[1]) for told in three]]
    angle_NV = 2 * np.pi * phase_NV
    seen_NV = np.column_stack([np.cos(angle_NV), np.sin(angle_NV), rank_NO[:, :2]])
    told_NV = np.column_stack([actor_NO[:, 1:], first_NE[:, 1:], second_NE[:, 1:]])
    known = np.corrcoef(np.column_stack([seen_NV, told_NV]).T)
    seen = seen_NV.shape[1]
    assert np.abs(known[:seen, seen:]).max() < 5 / np.sqrt(count)
    waves = known[:18, :18] - np.eye(18)
    assert np.abs(waves).max() < 5 / np.sqrt(count)
    # In equal numbers: one, two and three things, and each of them as the actor.
    counts = Counter(len(told.cast.things) for told in stories)
    assert all(abs(counts[number] / len(stories) - 1 / 3) < 0.03 for number in (1, 2, 3))
    assert all(abs(actor_NO.mean(0) - 1 / 3) < 0.05)


def test_a_reader_of_single_frames_knows_who_is_there_and_guesses_what_happens() -> None:
    """Ridge regression on pixels and on how much there is of each colour."""
    count, half = 1000, 500
    told = [draw_story(1, index) for index in range(count)]
    frames = np.stack([StoryShot(one, SECONDS).render(np.array([0.75]), 32)[0] for one in told])
    frames = frames.astype(np.float32) / 255
    paint = np.array(list(story.COLOURS.values()), np.float32)
    like_NHWK = np.exp(-20 * ((frames[..., None, :] - paint) ** 2).sum(-1))
    pooled = frames.reshape(count, 8, 4, 8, 4, 3).mean((2, 4)).reshape(count, -1)
    most, mean = like_NHWK.max((1, 2)), like_NHWK.mean((1, 2))
    features = np.column_stack([pooled, most, mean, mean * pooled.mean(1)[:, None], np.ones(count)])

    def accuracy(answers: list[Any]) -> float:
        names = sorted(set(answers))
        number = np.array([names.index(answer) for answer in answers])
        train, test = features[:half], features[half:]
        weights = np.linalg.solve(
            train.T @ train + np.eye(train.shape[1]), train.T @ np.eye(len(names))[number[:half]]
        )
        return float(((test @ weights).argmax(1) == number[half:]).mean())

    def near(chance: float) -> Any:
        return pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / half))

    assert accuracy([any(thing.colour == "red" for thing in one.cast.things) for one in told]) > 0.9
    assert accuracy([one.events[0] for one in told]) == near(1 / 6)
    assert accuracy([one.events[1] for one in told]) == near(1 / 6)


# Frames in lost order


@pytest.mark.parametrize("attributes", [("x", "size"), ("y", "x"), ("size", "size")])
def test_a_bag_of_frames_is_the_same_for_all_events_of_two_attributes(
    attributes: tuple[str, str],
) -> None:
    alike = [
        pair
        for pair in PAIRS
        if sorted(story.EVENTS[name][0] for name in pair) == sorted(attributes)
    ]
    assert len(alike) == (8 if len(set(attributes)) == 2 else 2)
    bags, films = [], set()
    for pair in alike:
        shot = StoryShot(replace(draw_story(0, 1), events=pair), SECONDS)
        frames = shot.render(TIME_S, 32).astype(int)
        phase_TV = np.round(shot.attributes(TIME_S), 9).reshape(24, -1) % 1.0
        order = np.lexsort(phase_TV.T)
        bags.append((phase_TV[order], frames[order]))
        films.add(frames.tobytes())
    for phase_TV, frames in bags[1:]:
        assert np.array_equal(phase_TV, bags[0][0])
        assert np.abs(frames - bags[0][1]).max() <= 1
    assert len(films) == len(alike)


# Captions and questions


def test_captions_say_all_there_is_and_no_two_stories_share_one() -> None:
    rng = np.random.default_rng(0)
    meanings: dict[str, Hashable] = {}
    first = set()
    for cast, events in product(ALL_CASTS, PAIRS):
        said = sentences.captions(cast, events, rng)
        first.add(said[0])
        assert len(set(said)) == 3
        for caption in said:
            assert meanings.setdefault(caption, (cast, events)) == (cast, events)
            for thing in cast.things:
                assert f"a {thing.colour} {thing.shape}" in caption
    assert len(first) == 4680 and len(meanings) == 3 * 4680


def test_captions_and_questions_in_full() -> None:
    things = Thing("blue", "disc"), Thing("red", "square"), Thing("green", "triangle")
    cast, events = Cast(things, 1), ("left", "up")
    assert sentences.captions(cast, events, np.random.default_rng(0)) == (
        "a red square moves left, then moves up, beside a blue disc and a green triangle",
        "before it moves up, a red square moves left, beside a blue disc and a green triangle",
        "first a red square moves left, and then it rises, while a green triangle and a blue disc "
        "stay still",
    )
    lonely = sentences.captions(Cast(things[:1], 0), events, np.random.default_rng(1))
    assert lonely[0] == "a blue disc moves left, then moves up"
    assert [tuple(filter(None, texts)) for texts in sentences.questions(cast, events, np.random.default_rng(1))] == [
        ("how many things are there?", "three", "count"),
        ("what colour is the square?", "red", "colour"),
        ("what shape is the thing that moves or changes size?", "square", "what"),
        ("what does the square do last?", "moves up", "direction"),
        ("what does the square do before it moves up?", "moves left", "before_after"),
        ("does the square move up before it moves left?", "no", "order"),
    ]  # fmt: skip


def no_video(told: Story, question: str) -> Hashable:
    return question


def frame(told: Story, question: str) -> Hashable:
    """What one frame shows at best, beside the question."""
    return question, told.cast.things


def bag(told: Story, question: str) -> Hashable:
    """What all frames show if their order is lost. Whoever acts need then not be named."""
    names = r"the (\w+ (one|disc|square|triangle)|disc|square|triangle) "
    things, changes = told.cast.things, frozenset(story.EVENTS[event][0] for event in told.events)
    if question.startswith(("what does", "does")):
        return re.sub(names, "it ", question), changes
    return question, things, told.cast.actor


def best_accuracy(known: list[Hashable], answers: list[str | None]) -> float:
    """On the second half, of the answer that each thing known has most often in the first half."""
    seen: dict[Hashable, Counter[str | None]] = defaultdict(Counter)
    half = len(known) // 2
    for key, answer in zip(known[:half], answers[:half], strict=True):
        seen[key][answer] += 1
    often = Counter(answers[:half]).most_common(1)[0][0]
    said = [seen[key].most_common(1)[0][0] if key in seen else often for key in known[half:]]
    return float(np.mean([a == b for a, b in zip(said, answers[half:], strict=True)]))


CHANCES = {
    "count": (1 / 3, 1, 1),
    "colour": (1 / 4, 1, 1),
    "what": (7 / 24, 5 / 12, 1),
    "direction": (1 / 6, 1 / 6, 3 / 10),
    "before_after": (1 / 5, 1 / 5, 3 / 5),
    "order": (1 / 2, 1 / 2, 1 / 2),
}
"""kind -> the best accuracy without the video, from one frame, and from a bag of frames."""


@pytest.fixture(scope="module")
def asked(stories: list[Story]) -> dict[str, list[tuple[Story, ClipTexts]]]:
    """kind -> a question of each story."""
    by_kind: dict[str, list[tuple[Story, ClipTexts]]] = defaultdict(list)
    for index, told in enumerate(stories):
        for texts in sentences.questions(told.cast, told.events, np.random.default_rng((9, index))):
            by_kind[texts.kind or ""].append((told, texts))
    return by_kind


def test_every_kind_is_asked_of_every_story(
    stories: list[Story], asked: dict[str, list[tuple[Story, ClipTexts]]]
) -> None:
    several = sum(len(told.cast.things) > 1 for told in stories)
    assert {kind: len(those) for kind, those in asked.items()} == dict.fromkeys(
        CHANCES, len(stories)
    ) | {"what": several}


@pytest.mark.parametrize("kind", CHANCES)
def test_a_question_is_answered_as_often_as_is_said(
    asked: dict[str, list[tuple[Story, ClipTexts]]], kind: str
) -> None:
    answers = [texts.answer for _, texts in asked[kind]]
    for reader, chance in zip((no_video, frame, bag), CHANCES[kind], strict=True):
        known = [reader(told, texts.question or "") for told, texts in asked[kind]]
        within = 4 * np.sqrt(chance * (1 - chance) / (len(answers) / 2))
        # A few things known were never seen before.
        wanted = pytest.approx(chance, abs=within + 0.02)
        assert best_accuracy(known, answers) == wanted, reader.__name__


# Casts that are shared


def test_shared_casts_are_different_and_stay_for_all_pairs_of_events() -> None:
    told = [draw_story(4, index, casts=5) for index in range(6 * story.ROUND)]
    rounds = [told[start : start + story.ROUND] for start in range(0, len(told), story.ROUND)]
    for one in rounds:
        assert {other.cast for other in one} == {one[0].cast}
        assert sorted(other.events for other in one) == PAIRS
    assert len({one[0].cast for one in rounds}) == 5 and rounds[5][0].cast == rounds[0][0].cast
    shared = story.shared_casts(4)
    assert len(set(shared)) == story.MOST_SHARED == 36
    assert [len(cast.things) for cast in shared] == [1, 2, 3] * 12
    own = draw_story(4, 7)
    assert own.events == told[7].events
    assert np.array_equal(own.phase_OA[0], told[7].phase_OA[0])


# Pixels and boxes


@pytest.mark.parametrize("shape", story.SHAPES)
def test_boxes_hold_exactly_the_pixels_of_a_thing(shape: str) -> None:
    areas = []
    for x, y, size in ((0.5, 0.5, 0.9), (0.5, 0.5, 0.0), (0.02, 0.5, 0.5)):
        told = alone(shape, x, y, size)
        seen_HW = red(told)
        areas.append(seen_HW.mean() / story.disc_radius(told.phase_OA)[0] ** 2)
        # What has left at an edge lies in the other half.
        seen_HW[:, int(112 * ((x + 0.5) % 1)) :] &= x >= 0.5
        rows, columns = np.flatnonzero(seen_HW.any(1)), np.flatnonzero(seen_HW.any(0))
        bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        box = StoryShot(told, SECONDS).truth(TIME_S[:1])["boxes"][0, 0] * 112
        assert box == pytest.approx(bounds, abs=1.6 if shape == "triangle" else 0.8)
    assert areas == pytest.approx([np.pi] * 3, rel=0.06)


def test_a_thing_that_others_hide_has_no_box() -> None:
    cast = Cast((Thing("red", "disc"), Thing("blue", "square")), 0)
    phase_OA = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.99]])
    covered = replace(
        alone("disc"), cast=cast, events=("left", "up"), phase_OA=phase_OA, order=[0, 1]
    )
    boxes_OT4 = StoryShot(covered, SECONDS).truth(np.array([0.0, 0.5]))["boxes"]
    assert np.isnan(boxes_OT4[0, 0]).all() and np.isfinite(boxes_OT4[:, 1]).all()
    assert not red(covered).any()
    behind = StoryShot(replace(covered, order=[1, 0]), SECONDS).truth(np.array([0.0]))["boxes"]
    assert behind.shape == (2, 1, 4) and behind.dtype == np.float32 and np.isfinite(behind).all()


# On disk


def build(folder: Path, **settings: Any) -> manifest.Manifest:
    small = {"clips_per_class": 5, "frames": 2, "size_px": 32, "val_fraction": 0.4}
    return manifest.build("world", None, folder, {"scene": "story", **small, **settings})


def test_a_story_says_nothing_or_captions_or_questions_of_the_same_videos(tmp_path: Path) -> None:
    silent = build(tmp_path)
    assert silent.labels == story.LABELS and silent.texts == {}
    assert Counter((clip.label, clip.split) for clip in silent.clips) == {
        (label, split): count
        for label in story.LABELS
        for split, count in (("train", 3), ("val", 2))
    }
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    boxes = silent.targets("left_0003")
    assert sorted(boxes) == ["boxes", "boxes_time_s", "label"]
    assert boxes["label"] == story.LABELS.index("left")

    told = build(tmp_path, says="captions")
    assert told.clips == silent.clips and list(told.texts) == [clip.clip_id for clip in told.clips]
    one = draw_story(0, 3 * 6 + story.LABELS.index("left"))
    first = sentences.captions(one.cast, one.events, np.random.default_rng(0))[0]
    assert told.texts["left_0003"].captions[0] == first

    asked = build(tmp_path, says="questions")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()} == files
    assert asked.videos == silent.videos and len(asked.clips) > 5 * len(asked.videos)
    split = {clip.video_id: clip.split for clip in silent.clips}
    for clip in asked.clips:
        texts = asked.texts[clip.clip_id]
        assert clip.label == texts.answer and not texts.choices and texts.kind in CHANCES
        assert clip.split == split[clip.video_id]
        assert re.fullmatch(rf"{clip.video_id}/q[0-5]", clip.clip_id)
    again = asked.targets("left_0003/q1")
    assert sorted(again) == ["boxes", "boxes_time_s"]
    np.testing.assert_array_equal(again["boxes"], boxes["boxes"])


def test_texts_are_drawn_by_the_seed_and_change_with_it(tmp_path: Path) -> None:
    def said(seed: int) -> list[ClipTexts]:
        settings = world.Settings(scene="story", says="questions", seed=seed, frames=2, size_px=32)
        data = world.Dataset(tmp_path, settings)
        return [texts for name in ("left_0000", "up_0007") for texts in data._texts(name)]

    assert said(0) == said(0) != said(1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"says": "captions"},
            "says is a setting of scene 'story', found says = captions with scene 'plane'",
        ),
        (
            {"scene": "room", "casts": 3},
            "casts is a setting of scene 'story', found casts = 3 with scene 'room'",
        ),
        (
            {"scene": "story", "objects": 3},
            "objects is a setting of scene 'room', found objects = 3 with scene 'story'",
        ),
        (
            {"scene": "story", "frames": 25},
            "frames is an even number in scene 'story', half for each event, found frames = 25",
        ),
        (
            {"scene": "story", "casts": 37},
            "key 'casts': Input should be less than or equal to 36, found 37",
        ),
        (
            {"scene": "story", "says": "poems"},
            "key 'says': Input should be 'nothing', 'captions', 'questions' or 'events', found 'poems'",
        ),
    ],
)
def test_settings_that_make_no_story(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plugins.settings("dataset", "world", table, "world")
    assert caught.value.message == f"world: {message}"


def test_a_world_with_other_casts_is_another_one(tmp_path: Path) -> None:
    build(tmp_path, clips_per_class=1)
    with pytest.raises(BadInput, match="already holds another world .*: casts: 2 / 0$"):
        build(tmp_path, clips_per_class=1, casts=2)
