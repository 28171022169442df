"""What is under way: steps, the gangs they are computed in, and how fast they go, as far as the log tells."""

from __future__ import annotations

from dataclasses import dataclass

_ONE_LOOK_S = 2.0


@dataclass(frozen=True)
class RunningStep:
    """A step under way. label: in this study, None of a step that is not of it (a calibration, another study). done,
    total, unit: as far as its last news, told at told_at_s (Unix time, of its worker's clock); loss: the last training loss
    it told. pace: units a second since it was begun or taken up again, as `PaceMeter` has it."""

    step_id: str
    label: str | None
    done: float | None = None
    total: float | None = None
    unit: str = ""
    loss: float | None = None
    told_at_s: float | None = None
    pace: float | None = None


@dataclass(frozen=True)
class RunningGang:
    """What one worker has taken up together. since_s: Unix time, of the store's clock."""

    kind: str
    host: str
    pid: int
    since_s: float
    members: tuple[RunningStep, ...]

    @property
    def is_of_study(self) -> bool:
        return any(member.label is not None for member in self.members)

    @property
    def at_work(self) -> list[RunningStep]:
        """The members that are trained now: those of a gang tell their news at one time, and one that was divided (as "
        "it does not pay, or for lack of memory) trains in turns. All, while nobody has told anything."""
        told = [member.told_at_s for member in self.members if member.told_at_s is not None]
        if not told:
            return list(self.members)
        return [m for m in self.members if m.told_at_s is not None and m.told_at_s > max(told) - _ONE_LOOK_S]

    @property
    def update_seconds(self) -> float | None:
        """Of one update of all that are at work; None if one of them has not told enough."""
        paces = [member.pace for member in self.at_work]
        return None if None in paces else 1 / min(pace for pace in paces if pace is not None)
