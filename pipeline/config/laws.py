"""Laws of plug-ins: what the contract of a kind asks for beyond names and types.

Each kind has its laws in the file `_laws.py` beside its contract. The tests hold every plug-in that
ships to them, and `stillframe check-plugin` any other one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.errors import BadInput

Subject = TypeVar("Subject")


class BrokenLaw(BadInput):
    """A plug-in does not do what its contract asks for: the message says what it did."""


class NotChecked(Exception):
    """What a law asks about is not there to be checked: the message says why."""


@dataclass(frozen=True)
class Law(Generic[Subject]):
    """One law of a kind of plug-in."""

    name: str
    """A word or two, for tests."""
    says: str
    """What holds, in a sentence without its full stop."""
    check: Callable[[Subject], None]
    """Raises BrokenLaw, or whatever the plug-in itself raises; NotChecked where it does not
    apply."""
    is_slow: bool
    """Whether it takes seconds."""


class Laws(list[Law[Subject]]):
    """The laws of a kind, in the order in which they are checked."""

    def add(
        self, says: str, *, is_slow: bool = False
    ) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
        """Makes a function a law, which says what holds."""

        def keep(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
            self.append(Law(check.__name__.strip("_"), says, check, is_slow))
            return check

        return keep


def demand(holds: object, said: str) -> None:
    """Raises BrokenLaw with what was found, unless it holds."""
    if not holds:
        raise BrokenLaw(said)


def require_refused(act: Callable[[], object], what: str) -> BadInput:
    """The BadInput that a plug-in refuses `what` with. Raises BrokenLaw where it does not."""
    try:
        act()
    except BadInput as error:
        return error
    except Exception as error:
        raise BrokenLaw(f"{what} raises {type(error).__name__}, wanted BadInput") from error
    raise BrokenLaw(f"{what} is taken, wanted BadInput")


def require_plain_json(value: Any, what: str) -> None:
    """Raises BrokenLaw unless a value is something, and comes back from JSON as it was."""
    try:
        again = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise BrokenLaw(f"{what} is no plain JSON: {error}") from error
    demand(value and again == value, f"{what} is {value!r}, wanted plain JSON that says something")
