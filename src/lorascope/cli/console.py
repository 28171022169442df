"""The event stream for people: a live view on a terminal, plain lines everywhere else.

Both render `StudyProgress`; neither knows what a step does. They write to standard error, so that `--json` on standard
output stays clean.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorascope.cli.progress import StepUnderWay, StudyProgress, in_words
from lorascope.engine.events import (
    Emit,
    Event,
    Notice,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
    StudyGrew,
    StudyStarted,
)
from lorascope.printable import printable

PLAIN_INTERVAL_S = 15.0
PIPED_WIDTH = 200
_BAR_WIDTH = 30
_MOST_RUNNING_SHOWN = 12


def output() -> Console:
    """Standard output. In a pipe or a file lines are not broken at the width of some terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


@contextmanager
def rendering(console: Console) -> Iterator[Emit]:
    """Renders every event given to the yielded function, in the manner that suits `console`, until the block ends."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    view = LiveView(console)
    with Live(console=console, get_renderable=view.render, refresh_per_second=4, transient=True):
        yield view


class PlainLines:
    """One line when a step starts, finishes, fails; a worker's progress at most every `PLAIN_INTERVAL_S`."""

    def __init__(self, console: Console, *, progress: StudyProgress | None = None) -> None:
        self.console = console
        self.progress = progress or StudyProgress()
        self._lock = threading.Lock()
        self._last_line_at: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            running = dict(self.progress.running)
            self.progress.apply(event)
            if line := self._line(event, running):
                self.console.print(printable(line), highlight=False, soft_wrap=True)

    def _line(self, event: Event, running: dict[str, StepUnderWay]) -> str | None:
        progress, step = self.progress, escape(event.step or "")
        count = rf"\[{progress.settled}/{progress.total}]"
        if isinstance(event, StepStarted):
            self._last_line_at[event.worker] = progress.clock()
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"{count} {step} started{again}"
        if isinstance(event, StepFinished):
            return f"{count} {step} done in {in_words(event.seconds)}"
        if isinstance(event, StepProgress) and event.step in running:
            worker = running[event.step].worker
            if progress.clock() - self._last_line_at[worker] < PLAIN_INTERVAL_S:
                return None
            self._last_line_at[worker] = progress.clock()
            under_way = next(step for step in progress.running_by_worker if step.worker == worker)
            return f"{count} {escape(under_way.name)}: {under_way.describe()}{_time_left(progress)}"
        return _lasting_line(event)


class LiveView:
    """A bar for the whole study, a line for what each worker does; what must not be missed is printed above them."""

    def __init__(self, console: Console, *, progress: StudyProgress | None = None) -> None:
        self.console = console
        self.progress = progress or StudyProgress()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.progress.apply(event)
        if line := _lasting_line(event):
            self.console.print(printable(line), highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """What the terminal shows now."""
        with self._lock:
            progress, running = self.progress, self.progress.running_by_worker
            overall = Table.grid(padding=(0, 1))
            overall.add_row(
                Text(progress.study or "planning", style="bold"),
                ProgressBar(total=max(1, progress.total), completed=progress.settled, width=_BAR_WIDTH),
                Text(f"{progress.settled}/{progress.total} steps"),
                Text(f"{in_words(progress.elapsed)}{_time_left(progress)}", style="dim"),
            )
            steps = Table.grid(padding=(0, 2))
            for step in running[:_MOST_RUNNING_SHOWN]:
                steps.add_row(
                    Text(f"  {step.name}", overflow="ellipsis", no_wrap=True),
                    ProgressBar(total=step.total, completed=step.done, width=_BAR_WIDTH // 2) if step.total else "",
                    Text(step.describe(), style="dim"),
                    Text(in_words(progress.clock() - step.since), style="dim"),
                )
            hidden = len(running) - _MOST_RUNNING_SHOWN
            return Group(overall, steps, Text(f"  and {hidden} more") if hidden > 0 else Text())


def _lasting_line(event: Event) -> str | None:
    """What is worth a line in either view: the beginning, notices, failures. What these block is counted at the end."""
    step = escape(event.step or "")
    if isinstance(event, StudyStarted):
        left = event.num_steps - event.num_cached
        todo = f"{left} to compute" if left else "nothing to compute"
        steps = f"{event.num_steps} step{'' if event.num_steps == 1 else 's'}"
        return f"[bold]{escape(event.study)}[/]: {steps}, {event.num_cached} in the store, {todo}"
    if isinstance(event, StudyGrew):
        return f"search: {escape(event.text)}"
    if isinstance(event, Notice):
        label = "[yellow]warning[/]" if event.level == "warning" else "note"
        return f"{label}: {step + ': ' if step else ''}{escape(event.text)}"
    if isinstance(event, StepFailed):
        again = " (will be tried again)" if event.retry else ""
        first = event.text.partition("\n")[0]  # the remedy follows at the end of the run
        return f"[bold red]failed[/]: {step}{again}: {escape(first)}"
    return None


def _time_left(progress: StudyProgress) -> str:
    estimate = progress.remaining()
    return f"; {estimate}" if estimate else ""
