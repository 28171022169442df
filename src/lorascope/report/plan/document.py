"""The written plan of a study: what is asked, how it is decided, what runs in which order and when it counts as done.

Generated from the study and its plan alone, before any result exists, so that it can be signed and kept with the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.metrics.quality import DEFAULT, QUALITY, common_direction
from lorascope.plan import deciding
from lorascope.plan.graph import resolved_training
from lorascope.plan.outlook import StudyPlan, Sum
from lorascope.plan.phases import GATES, PHASES, waits_for
from lorascope.plan.power import BASIS
from lorascope.report.page import canvas, svg, wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.templating import markdown_page
from lorascope.report.plan import wording as plan_wording
from lorascope.report.plan.gantt import draw_gantt
from lorascope.report.render import write_whole
from lorascope.stats.claims import edge
from lorascope.stats.hypotheses import Test, hypothesis_test
from lorascope.study.hypothesis import Hypothesis, Overhead, RelativeMargin
from lorascope.study.per_task import own_settings, protocols_in_words
from lorascope.study.tasks import unit_of

_DECIDED = {
    "non_inferior": "supported if the one-sided 95% bound of the difference lies {bounds}, refuted if it lies {beyond}",
    "equivalent": "supported if the 90% interval of the difference lies within ±{margin} (two one-sided tests)",
    "superior": "supported if the one-sided 95% bound of the difference lies {bounds}",
    "lower": "supported if the one-sided 95% bound of the ratio lies at or below {threshold}",
    "overhead": "supported if the one-sided 95% bound of the ratio lies at or below {threshold}",
}


def write_plan(plan: StudyPlan, path: Path, *, command: str, version: str) -> list[Path]:
    """Writes the plan as Markdown and its schedule as a figure next to it; the files written. command, version: what wrote
    it."""
    written = [path]
    figure_name = None
    if plan.schedule.makespan:
        drawn = canvas.with_caption(draw_gantt(plan, canvas.WIDE), title=gantt_title(plan), caption=gantt_caption(plan))
        for ending in ("png", "pdf"):
            target = path.with_name(f"{path.stem}-schedule.{ending}")
            write_whole(target, svg.figure_bytes(drawn, ending))
            written.append(target)
        figure_name = written[1].name
    write_whole(path, plan_markdown(plan, command=command, version=version, figure=figure_name).encode())
    return written


def plan_markdown(plan: StudyPlan, *, command: str, version: str, figure: str | None) -> str:
    """The document's text. figure: the file of the schedule, next to it (None: there is none)."""
    study = plan.graph.study
    return markdown_page(
        "plan.md.j2",
        study=study,
        version=version,
        command=command,
        design=_design(plan),
        methods=_methods(plan),
        hypotheses=_hypotheses(plan),
        phases=[_phase(plan, place) for place in range(len(PHASES))],
        kinds=kinds_table(plan),
        unknown=plan_wording.unknown_sentence(plan),
        schedule=plan_wording.schedule_sentences(plan),
        basis=plan_wording.basis_sentence(plan),
        disk=plan_wording.disk_sentence(plan),
        memory=_memory(plan),
        allocation=allocation_table(plan),
        figure=figure,
        figure_caption=gantt_caption(plan),
        power=[plan_wording.power_sentence(found) for found in plan.power],
        power_basis=BASIS,
        deciding=[] if plan.deciding is None else deciding.sentences(plan.deciding),
        deciding_basis="" if plan.deciding is None else plan.deciding.basis,
        num_runs=len(plan.graph.of_kind("train")),
        total=plan.total,
        checklist=_checklist(plan),
    )  # fmt: skip


def gantt_title(plan: StudyPlan) -> str:
    return f"Schedule of {plan.graph.study.name}"


def gantt_caption(plan: StudyPlan) -> str:
    """What the figure shows, so that it stands alone."""
    sentences = [
        f"Each bar is a job of one worker ({plan.machines.device}); ×n: n runs trained together.",
        *plan_wording.schedule_sentences(plan)[:-1],
        plan_wording.basis_sentence(plan),
    ]
    unknown = plan_wording.unknown_sentence(plan)
    return " ".join([*sentences, *([unknown] if unknown else [])])


def kinds_table(plan: StudyPlan) -> Table:
    """Steps by kind: how many, how long, what that rests on."""
    rows = [
        (part.name, str(part.total), str(part.cached), str(part.to_run), plan_wording.time_of(part),
         plan_wording.memory_of(part), plan_wording.disk_of(part), "; ".join(part.bases))
        for part in [*plan.kinds(), plan.total]
    ]  # fmt: skip
    rows[-1] = (*rows[-1][:-1], "")
    numeric = {"total", "cached", "to run"}
    headings = ("steps", "total", "cached", "to run", "worker time", "peak memory", "disk", "estimated from")
    return Table(
        "plan_kinds", "Steps by kind", tuple(Column(heading, heading in numeric) for heading in headings), tuple(rows),
        note="Worker time is summed over steps; each of several runs trained together counts with its share. Peak memory "
        "is the largest of one worker.",
    )  # fmt: skip


def allocation_table(plan: StudyPlan) -> Table | None:
    """Worker by worker: what it runs, from when to when."""
    by_id = {planned.step.id: planned for planned in plan.steps}
    rows = []
    for placed in sorted(plan.schedule.placed, key=lambda p: (p.worker, p.start)):
        if not placed.job.seconds:
            continue
        first = by_id[placed.job.steps[0]]
        together = f" and {len(placed.job.steps) - 1} more" if len(placed.job.steps) > 1 else ""
        what = f"{first.step.kind}: {first.label}" if str(first.label) else first.step.kind
        start, end = (wording.duration(s) if s else "0 s" for s in (placed.start, placed.end))
        rows.append((plan.machines.name(placed.worker), what + together, start, end))
    if not rows:
        return None
    columns = (Column("worker"), Column("what"), Column("from", True), Column("to", True))
    return Table("plan_allocation", "Allocation", columns, tuple(rows))


def _design(plan: StudyPlan) -> Table:
    study = plan.graph.study
    train = study.train
    stopping = f"after {train.early_stopping.patience} evaluations without gain" if train.early_stopping else "none"
    caps = {split: getattr(study.data, f"{split}_examples") for split in ("train", "validation", "test")}
    reads_tokens = any(unit_of(task) == "token" for task in study.tasks)
    longest = f"{train.max_length} tokens at most, " if reads_tokens else ""
    rows = [
        ("models", wording.listing(model.name for model in study.models)),
        ("tasks", wording.listing(wording.name(task.name) for task in study.tasks)),
        ("seeds", ", ".join(seeds.label for seeds in study.seeds)),
        ("protocol", protocols_in_words(study).partition(" ")[2]),
        ("examples at most", ", ".join(f"{split} {cap:,}" for split, cap in caps.items() if cap) or "all"),
        ("training", f"{train.epochs:g} epochs, batches of {train.batch_size}, {longest}"
         f"{train.precision}, {train.schedule} schedule, warm-up {wording.fraction(train.warmup, 0)}"),
        *(("settings of a task", text) for task in study.tasks if (text := own_settings(task))),
        ("early stopping", stopping),
        ("measured besides", wording.listing(k for k in ("drift", "serving") if getattr(study.measure, k)) or "nothing"),
    ]  # fmt: skip
    return Table("plan_design", "Design", (Column("what"), Column("value")), tuple(rows))


def _methods(plan: StudyPlan) -> Table:
    study = plan.graph.study
    rows = []
    for method in study.methods:
        found: dict[str, str] = {}
        if method.hyperparameters is not None:
            found |= dict.fromkeys(("learning_rate", "train"), "from a file")
        elif study.search is not None:
            found |= dict.fromkeys(study.search.space_of(method), "searched")
        own = method.model_dump(mode="json", exclude={"name", "kind", "train", "learning_rate", "hyperparameters"})
        train = resolved_training(study, method)
        settings = ", ".join(f"{key} {found.get(key, value)}" for key, value in own.items()) or "every weight"
        updates = [found.get(key, found.get("train", value)) for key, value in
                   (("epochs", f"{train.epochs:g}"), ("batch_size", str(train.batch_size)))]  # fmt: skip
        rows.append(
            (
                method.name,
                found.get("learning_rate", f"{method.learning_rate:g}"),
                settings.replace("'", ""),
                " x ".join(updates),
            )
        )
    columns = (Column("method"), Column("learning rate", True), Column("settings"), Column("epochs x batch", True))
    return Table("plan_methods", "Methods", columns, tuple(rows))


def _hypotheses(plan: StudyPlan) -> list[Mapping[str, str]]:
    primary = tuple(dict.fromkeys(task.metric for task in plan.power if task.metric)) or ("the primary score",)
    found = []
    for name, hypothesis in plan.graph.study.hypotheses.items():
        metrics = primary if hypothesis.on == "primary" else (hypothesis.on,)
        test = hypothesis_test(hypothesis, metrics)
        scope = hypothesis.at if isinstance(hypothesis, Overhead) else hypothesis.over
        claim = f"{test.claim} {test.scope[0 if scope == 'every' else 1]}"
        found.append({"name": name, "claim": claim, "decided": _decided(hypothesis, test, metrics)})
    return found


def _decided(hypothesis: Hypothesis, test: Test, metrics: Sequence[str]) -> str:
    """metrics: of a claim about quality; one whose data are not prepared is taken for one in points."""
    kind = next(kind for kind in _DECIDED if hasattr(hypothesis, kind))
    known = metrics if all(name in QUALITY for name in metrics) else (DEFAULT,)
    margin = getattr(hypothesis, "margin", 0.0)
    if isinstance(margin, RelativeMargin):
        return f"supported if the one-sided 95% bound of the ratio of means lies {test.bounds}"
    is_higher = common_direction(known) != "lower"
    inside, outside = ("above", "below") if is_higher else ("below", "above")
    return _DECIDED[kind].format(
        margin=edge(known, margin).removeprefix("+"),
        bounds=f"{inside} {edge(known, -margin if is_higher else margin)}",
        beyond=outside,
        threshold=f"{100 * (test.threshold or 0.0):g}%",
    )


def _phase(plan: StudyPlan, place: int) -> Mapping[str, Any]:
    phase = PHASES[place]
    needed = waits_for(plan.graph)
    kinds = [part for part in plan.kinds() if part.name in phase.kinds]
    waits = [
        f"each `{part.name}` step waits for its {wording.listing(f'`{kind}`' for kind in needed[part.name])}"
        for part in kinds
        if needed.get(part.name)
    ]
    if phase.name == "analysis":
        waits = ["it waits for every other step, or for its failure"]
    rows = tuple((part.name, gate) for part in kinds for gate in GATES.get(part.name, ()))
    name = f"plan_criteria_{place + 1}"
    criteria = (
        Table(name, "Validation criteria", (Column("step"), Column("counts as done when")), rows) if rows else None
    )
    return {"phase": phase, "number": place + 1, "parts": kinds, "waits": waits, "criteria": criteria,
            "sum": _phase_sum(plan, place)}  # fmt: skip


def _phase_sum(plan: StudyPlan, place: int) -> str:
    found: Sum | None = next((part for part in plan.phases() if part.name == PHASES[place].name), None)
    if found is None:
        return ""
    steps = f"{wording.plural(found.total, 'step')}, {found.cached} in the store, {found.to_run} to run"
    return steps + (f"; worker time: {plan_wording.time_of(found)}" if found.to_run else "")


def _memory(plan: StudyPlan) -> str:
    known = [part for part in plan.kinds() if part.to_run and part.memory_bytes is not None]
    if not known:
        return "Peak memory of a worker: unknown."
    most = max(known, key=lambda part: part.memory_bytes or 0)
    peak = f"Peak memory of a worker: {wording.bytes_text(most.memory_bytes)}, in the {most.name} steps."
    undecided = plan_wording.memory_sentence(plan)
    return f"{peak} {undecided}" if undecided else peak


def _checklist(plan: StudyPlan) -> list[str]:
    study = plan.graph.study
    models = [f"{step.params['model'].get('hub') or step.params['model'].get('package') or 'local files'}"
              for step in plan.graph.of_kind("tokens")]  # fmt: skip
    return [
        f"The study file is under version control, unchanged since this plan (study `{study.name}`).",
        f"Models are pinned by commit, package version or checksum ({wording.listing(dict.fromkeys(models))}).",
        "Data are pinned by checksum; the ids of every split are hashed in the records of the `data` steps.",
        f"Seeds are declared here, before any result: {', '.join(seeds.label for seeds in study.seeds)}; initialisation, data "
        "order and dropout each have their own.",
        "Hypotheses, margins and the conclusion's formula are declared here; a changed one makes another analysis.",
        "Selection and early stopping see the validation set only; the test set is opened once a run."
        if all((task.protocol or study.protocol) != "paper" for task in study.tasks)
        else "Protocol `paper`: the development set selects and reports, so scores are too high: use it only to compare "
        "with published tables.",
        "Every record names versions, device, host (hashed), times and the commit of the code.",
        "`lorascope verify STUDY` finds every artifact as it was committed.",
        "A second `lorascope run STUDY` computes nothing: all steps are found in the store.",
        "The report is rendered from the analysis artifact alone, and kept with measurements.parquet.",
    ]
