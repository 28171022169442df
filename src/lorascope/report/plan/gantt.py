"""Who does what, when: one row a worker, one bar a job, coloured by phase; the bound that no schedule beats as a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.plan.outlook import StudyPlan
from lorascope.plan.phases import PHASES, phase_of
from lorascope.report.page import canvas, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.32
_LEFT = 1.35
_UNITS = (("seconds", 1.0, 120), ("minutes", 60.0, 7200), ("hours", 3600.0, float("inf")))
_LABEL_FROM_INCHES = 0.55


def draw_gantt(plan: StudyPlan, width: float) -> Figure:
    """Figure of a plan's schedule. Workers without a job are counted below, not drawn; steps of unknown time are left out."""
    drawn = [placed for placed in plan.schedule.placed if placed.job.seconds > 0]
    used = sorted({placed.worker for placed in drawn})
    figure, (axes,) = canvas.panels(width, [max(1, len(used)) * _ROW + 0.1], columns=1, left=_LEFT, right=0.3)
    end = max(plan.schedule.makespan, plan.schedule.bound) or 1.0
    unit, size = next((name, size) for name, size, limit in _UNITS if end < limit)
    axes.set_xlim(0, end / size)
    axes.set_ylim(len(used) - 0.4, -0.6)
    rows = {worker: row for row, worker in enumerate(used)}
    kinds = {planned.step.id: planned for planned in plan.steps}
    for placed in drawn:
        kind = kinds[placed.job.steps[0]].step.kind
        tint = _tint(phase_of(kind).name)
        start, length = placed.start / size, placed.job.seconds / size
        axes.barh(
            [rows[placed.worker]],
            [length],
            left=[start],
            height=0.72,
            color=tint,
            alpha=0.82,
            edgecolor="white",
            linewidth=0.6,
        )
        if length / (end / size) * (width - _LEFT) >= _LABEL_FROM_INCHES:
            together = f" ×{len(placed.job.steps)}" if len(placed.job.steps) > 1 else ""
            _inside(axes, f"{kind}{together}", x=start + length / 2, y=rows[placed.worker])
    axes.axvline(plan.schedule.bound / size, color=canvas.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(used)), [plan.machines.name(worker) for worker in used])
    idle = plan.machines.workers - len(used)
    note = f", {wording.plural(idle, 'worker')} idle throughout" if idle else ""
    canvas.axis_label(axes, f"{unit} from the start{note}; dashed: no schedule can end before")
    phases = {phase_of(kinds[placed.job.steps[0]].step.kind).name for placed in drawn}
    _legend(axes, [phase.name for phase in PHASES if phase.name in phases])
    return figure


def _tint(phase: str) -> str:
    names = [known.name for known in PHASES]
    return canvas.METHOD_COLOURS[names.index(phase) % len(canvas.METHOD_COLOURS)]


def _inside(axes: Axes, text: str, *, x: float, y: float) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=canvas.FONT - 1.5, color="white", clip_on=True)


def _legend(axes: Axes, phases: list[str]) -> None:
    from matplotlib.patches import Patch

    axes.legend(
        handles=[Patch(color=_tint(phase), alpha=0.82, label=phase) for phase in phases],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(phases), frameon=False, borderpad=0, borderaxespad=0.4,
        fontsize=canvas.FONT - 1, labelcolor=canvas.INK, handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip
