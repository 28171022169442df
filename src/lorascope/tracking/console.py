"""The event stream for people: a live view on a terminal and in a notebook, plain lines everywhere else.

Both render `StudyProgress`; neither knows what a step does. They write to standard error, so that `--json` on standard
output stays clean.
"""

from __future__ import annotations

import html
import io
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorascope.engine.events import (
    Emit,
    Event,
    Notice,
    ReportWritten,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
    StudyFinished,
    StudyGrew,
    StudyStarted,
)
from lorascope.printable import printable
from lorascope.tracking.progress import StepUnderWay, StudyProgress, in_words

PLAIN_INTERVAL_S = 15.0
PIPED_WIDTH = 200
_NOTEBOOK_WIDTH = 120
_NOTEBOOK_INTERVAL_S = 0.5
_BAR_WIDTH = 30
_MOST_RUNNING_SHOWN = 12


def output() -> Console:
    """Standard output. In a pipe or a file lines are not broken at the width of some terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


@contextmanager
def rendering(console: Console) -> Iterator[Emit]:
    """Renders every event given to the yielded function, in the manner that suits `console`, until the block ends."""
    if console.is_jupyter:
        yield NotebookView()
        return
    if not console.is_terminal:
        yield PlainLines(console)
        return
    view = LiveView(console)
    with Live(console=console, get_renderable=view.render, refresh_per_second=4, transient=True):
        yield view


@contextmanager
def shown_to_people() -> Iterator[Emit | None]:
    """What renders events for a person who sits at a terminal or a notebook; None where nobody is known to look."""
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield None
        return
    with rendering(console) as emit:
        yield emit


class NotebookView:
    """One output of a notebook's cell that is written again and again, at most every `_NOTEBOOK_INTERVAL_S`: the view of a
    terminal, below the lines that must not be missed. Needs no widgets."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = io.StringIO()
        self._view = LiveView(_text_console(self._lines))
        self._clock, self._shown_at, self._handle = clock, -math.inf, None

    def __call__(self, event: Event) -> None:
        self._view(event)
        if isinstance(event, StudyFinished | ReportWritten) or self._clock() - self._shown_at >= _NOTEBOOK_INTERVAL_S:
            self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports] - a notebook has it

        self._shown_at = self._clock()
        page = HTML(f"<pre>{html.escape(self.text())}</pre>")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def text(self) -> str:
        """What the cell shows now."""
        now = io.StringIO()
        _text_console(now).print(self._view.render())
        return self._lines.getvalue() + now.getvalue()


def _text_console(file: io.StringIO) -> Console:
    """Writes text and nothing else, in a notebook too."""
    return Console(file=file, width=_NOTEBOOK_WIDTH, force_jupyter=False, force_terminal=False)


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
