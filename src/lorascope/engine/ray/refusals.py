"""Machines that joined the cluster and did not pass the check: which of them are asked again, and when.

What one of them lacks may come (a mount, an answer, room on its disk), so it is asked again, after ever longer waits since
a machine that does not answer holds up the others meanwhile. Other versions than ours stay other versions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lorascope.engine.ray.checks import LastingProblem
from lorascope.engine.ray.cluster import Machine
from lorascope.errors import EnvironmentProblem

FIRST_WAIT_S = 60.0  # doubled by every refusal


@dataclass
class _Refusal:
    """ask_at: when to ask again, on the monotonic clock; None: never."""

    text: str
    num: int = 0
    ask_at: float | None = None


class Refusals:
    """By node id. A machine that was started again is another node of Ray's, and so is asked at once."""

    def __init__(self) -> None:
        self._by_node: dict[str, _Refusal] = {}

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._by_node

    def may_ask(self, node_id: str, *, now: float) -> bool:
        """Whether the machine may be asked (again) now."""
        refusal = self._by_node.get(node_id)
        return refusal is None or (refusal.ask_at is not None and now >= refusal.ask_at)

    def note(self, machine: Machine, problem: EnvironmentProblem | None, *, now: float) -> str | None:
        """Take in what a check of `machine`, made until `now`, found. What a person should be told, if it is news."""
        if problem is None:
            refused = self._by_node.pop(machine.node_id, None)
            return None if refused is None else f"{machine.name} passes the check now and takes part"
        refusal = self._by_node.setdefault(machine.node_id, _Refusal(text=""))
        is_news, refusal.text = refusal.text != str(problem), str(problem)
        refusal.num += 1
        is_lasting = isinstance(problem, LastingProblem)
        refusal.ask_at = None if is_lasting else now + FIRST_WAIT_S * 2 ** (refusal.num - 1)
        how_long = "for good" if is_lasting else "until it passes the check, which is made again from time to time"
        return f"{machine.name} joined the cluster and is left out {how_long}: {problem}" if is_news else None

    def forget_all_but(self, alive: Collection[str]) -> None:
        """Forget the machines that are no longer there."""
        self._by_node = {node_id: refusal for node_id, refusal in self._by_node.items() if node_id in alive}
