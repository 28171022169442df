"""What a worker keeps loaded between steps, for what consecutive steps share: a base model, a tokenizer, a probe.

The one idea: each owner declares what it keeps as a `Kept`, and only who has the declaration can reach it. The
declaration says how many are kept and whether others may have them dropped, so nobody needs to know another's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Kept(Generic[T]):
    """One kind of thing that is kept warm, each under a key. name: for people.

    most: how many keys at a time; what came first goes first, before the new one is made (None: all). is_spare: a step
    that needs memory may have it dropped, since whoever needs it next can make it again.
    """

    name: str
    most: int | None = None
    is_spare: bool = False


class Warm:
    """Lives as long as its worker. Emptied when a step fails, since what it left may be half changed."""

    def __init__(self) -> None:
        self._found: dict[Kept[Any], dict[Hashable, Any]] = {}

    def keep(self, kept: Kept[T], key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under `key`, made now if it is not there."""
        found = self._found.setdefault(kept, {})
        if key not in found:
            while kept.most is not None and len(found) >= kept.most:
                del found[next(iter(found))]
            found[key] = make()
        return found[key]

    def has(self, kept: Kept[Any], key: Hashable) -> bool:
        """Whether something is kept under `key`."""
        return key in self._found.get(kept, {})

    def last_key(self, kept: Kept[Any]) -> Hashable:
        """The key of what was made last; None if nothing is kept."""
        return next(reversed(self._found.get(kept, {})), None)

    def drop(self, kept: Kept[Any]) -> None:
        """Let go of everything kept as `kept`."""
        self._found.pop(kept, None)

    def make_room(self) -> None:
        """Let go of all that its owners declared spare."""
        for kept in [kept for kept in self._found if kept.is_spare]:
            self.drop(kept)

    def clear(self) -> None:
        """Let go of everything."""
        self._found.clear()
