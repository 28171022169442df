"""How fast a step goes, from its news."""

from __future__ import annotations

from dataclasses import dataclass

from lorascope.engine.events import StepProgress

_LEAST_PROGRESS = 0.05


@dataclass
class PaceMeter:
    """How fast a step goes, from the news it has told since it was last begun. What was done before the first of them, by
    an attempt that was killed, by the stage before or by the updates that compile and capture, took none of this time.
    first, last: (time in seconds, done) of the news between which time is in proportion to what is done."""

    first: tuple[float, float] | None = None
    last: tuple[float, float] | None = None
    total: float | None = None

    def hear(self, news: StepProgress, *, at_s: float) -> None:
        self.total = news.total
        if news.is_even:
            self.last = at_s, news.done
            self.first = self.first or self.last

    @property
    def pace(self) -> float | None:
        """Units a second; None until a twentieth of what was left at the first news is done."""
        if self.first is None or self.last is None or not self.total:
            return None
        (since, begun), (now, done) = self.first, self.last
        if now <= since or done <= begun or done - begun < _LEAST_PROGRESS * (self.total - begun):
            return None
        return (done - begun) / (now - since)
