"""What is said and asked about a story: captions, and questions with their answers.

**Captions.** The first of three says all there is, always in the same words, so that there are 4680
of them: 156 casts with an actor, times 30 pairs of events. The other two say the same in two of
three other turns of phrase, with synonyms, and tell the second event first as often as not.

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


def captions(cast: Cast, events: tuple[str, str], rng: np.random.Generator) -> tuple[str, ...]:
    """Three captions of a story, all different; `rng` draws the words of the last two."""
    actor = _a(cast.things[cast.actor])
    others = [thing for place, thing in enumerate(cast.things) if place != cast.actor]
    first, second = (SAYINGS[event][0] for event in events)
    beside = f", beside {_listed(others)}" if others else ""
    said = [f"{actor} {first}, then {second}{beside}"]
    for turn in rng.permutation(3)[:2]:
        first, second = (str(rng.choice(SAYINGS[event])) for event in events)
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

    actor, someone = cast.things[cast.actor], cast.things[rng.integers(len(cast.things))]
    it = f"the {rng.choice([actor.colour, actor.shape, ' '.join(actor)])}"
    first, second = (SAYINGS[event][0] for event in events)
    texts = [
        asked("count", "how many things are there?", NUMBERS[len(cast.things) - 1]),
        asked("colour", f"what colour is the {someone.shape}?", someone.colour),
    ]
    if len(cast.things) > 1:
        aspect = str(rng.choice(Thing._fields))
        question = f"what {aspect} is the thing that moves or changes size?"
        texts.append(asked("what", question, getattr(actor, aspect)))
    word, answer = (("first", first), ("last", second))[rng.integers(2)]
    texts.append(asked("direction", f"what does {it} do {word}?", answer))
    word, known, answer = (("before", second, first), ("after", first, second))[rng.integers(2)]
    texts.append(asked("before_after", f"what does {it} do {word} it {known}?", answer))
    word, earlier, later = (("before", first, second), ("after", second, first))[rng.integers(2)]
    is_so = bool(rng.integers(2))
    done, known = (earlier, later) if is_so else (later, earlier)
    question = f"does {it} {_base(done)} {word} it {known}?"
    texts.append(asked("order", question, "yes" if is_so else "no"))
    return tuple(texts)


def _a(thing: Thing) -> str:
    return f"a {thing.colour} {thing.shape}"


def _listed(things: list[Thing]) -> str:
    return " and ".join(map(_a, things))


def _company(others: list[Thing], rng: np.random.Generator) -> str:
    if not others:
        return ""
    stay = "stays" if len(others) == 1 else "stay"
    listed = _listed(others)
    return str(
        rng.choice([f", beside {listed}", f", next to {listed}", f", while {listed} {stay} still"])
    )


def _base(saying: str) -> str:
    """ "moves left" -> "move left"."""
    verb, *rest = saying.split()
    return " ".join((verb.removesuffix("s"), *rest))
