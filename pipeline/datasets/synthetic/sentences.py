"""What is said and asked about a story: captions, and questions with their answers.

**Captions.** The first of three says all there is, always in the same words, so that there are 4680
of them: 156 casts with an actor, times 30 pairs of events. The other two say the same with
synonyms, in two of three other turns of phrase, of which two tell the second event first.

**Questions.** How often the answer is right that is best without the video, from one frame, and
from all frames in lost order, over many stories with casts of their own:

    kind           asks                                   no video   frame   bag of frames
    count          how many things there are                 1/3       1           1
    colour         the colour of a shape that is there       1/4       1           1
    what           colour or shape of the actor              7/24     5/12         1
    direction      what the actor does first, or last        1/6      1/6         3/10
    before_after   what it does before, or after, this       1/5      1/5         3/5
    order          whether it does this before that          1/2      1/2         1/2

No question tells of its answer: what it names is drawn from things and events that are alike in
number, and each answer that its kind allows is as likely. `what` is asked where there are two or
three things. An actor is named by its colour, its shape or both, as each names it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.datasets.synthetic.story import Cast, Thing

SAYINGS = {
    "down": ("moves down", "goes down", "sinks"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "left": ("moves left", "goes left", "slides to the left"),
    "right": ("moves right", "goes right", "slides to the right"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "up": ("moves up", "goes up", "rises"),
}
"""event -> ways to say it; the first one is the answer to questions."""
NUMBERS = ("one", "two", "three")
Option = TypeVar("Option")


def captions(cast: Cast, events: tuple[str, str], rng: np.random.Generator) -> tuple[str, ...]:
    """Three captions of a story, all different; `rng` draws the words of the last two."""
    actor = _a(cast.things[cast.actor])
    others = [thing for place, thing in enumerate(cast.things) if place != cast.actor]
    first, second = (SAYINGS[event][0] for event in events)
    beside = f", beside {_listed(others)}" if others else ""
    said = [f"{actor} {first}, then {second}{beside}"]
    for turn in rng.permutation(3)[:2]:
        first, second = (_one_of(SAYINGS[event], rng) for event in events)
        told = (
            f"first {actor} {first}, and then it {second}",
            f"{actor} {second} after it {first}",
            f"before it {second}, {actor} {first}",
        )[turn]
        said.append(told + _company([others[place] for place in rng.permutation(len(others))], rng))
    return tuple(said)


def questions(
    cast: Cast, events: tuple[str, str], rng: np.random.Generator
) -> tuple[ClipTexts, ...]:
    """One question of each kind, with its answer; `rng` draws what is asked, and in which words."""

    def asked(kind: str, question: str, answer: str) -> ClipTexts:
        return ClipTexts(question=question, answer=answer, kind=kind)

    actor, someone = cast.things[cast.actor], _one_of(cast.things, rng)
    it = f"the {_one_of((f'{actor.colour} one', actor.shape, ' '.join(actor)), rng)}"
    first, second = (SAYINGS[event][0] for event in events)
    texts = [
        asked("count", "how many things are there?", NUMBERS[len(cast.things) - 1]),
        asked("colour", f"what colour is the {someone.shape}?", someone.colour),
    ]
    if len(cast.things) > 1:
        aspect = _one_of(Thing._fields, rng)
        question = f"what {aspect} is the thing that moves or changes size?"
        texts.append(asked("what", question, getattr(actor, aspect)))
    word, answer = _one_of((("first", first), ("last", second)), rng)
    texts.append(asked("direction", f"what does {it} do {word}?", answer))
    word, known, answer = _one_of((("before", second, first), ("after", first, second)), rng)
    texts.append(asked("before_after", f"what does {it} do {word} it {known}?", answer))
    word, earlier, later = _one_of((("before", first, second), ("after", second, first)), rng)
    done, known, answer = _one_of(((earlier, later, "yes"), (later, earlier, "no")), rng)
    texts.append(asked("order", f"does {it} {_base(done)} {word} it {known}?", answer))
    return tuple(texts)


def _one_of(options: Sequence[Option], rng: np.random.Generator) -> Option:
    return options[int(rng.integers(len(options)))]


def _a(thing: Thing) -> str:
    return f"a {thing.colour} {thing.shape}"


def _listed(things: list[Thing]) -> str:
    return " and ".join(map(_a, things))


def _company(others: list[Thing], rng: np.random.Generator) -> str:
    if not others:
        return ""
    stay = "stays" if len(others) == 1 else "stay"
    listed = _listed(others)
    ways = f", beside {listed}", f", next to {listed}", f", while {listed} {stay} still"
    return _one_of(ways, rng)


def _base(saying: str) -> str:
    """ "moves left" -> "move left"."""
    verb, *rest = saying.split()
    return " ".join((verb.removesuffix("s"), *rest))
