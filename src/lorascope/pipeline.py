"""How a study is carried out, once it is planned and there are workers: steps, trackers, optima, analysis, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.engine.events import Emit, Notice, ReportWritten, StudyFinished, StudyGrew, StudyStarted, fan_out
from lorascope.engine.failure import Failure
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.errors import StudyError
from lorascope.plan.announce import announcing
from lorascope.plan.graph import Graph
from lorascope.plan.growing import Planner, news
from lorascope.plan.steps.results import analysis_step
from lorascope.registry import EXECUTORS, nearest, resolve
from lorascope.report.folder import Folder, make_room, study_text
from lorascope.search.literals import optimum_yaml
from lorascope.study.html import html_line, html_page, html_table
from lorascope.study.hyperparameters import optimum_name
from lorascope.tracking.feed import TrackerFeed
from lorascope.tracking.jsonl import JsonlSink
from lorascope.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.engine.executor import Executor
    from lorascope.engine.store.directory import Store
    from lorascope.stats.analysis import Analysis, HypothesisResult
    from lorascope.study.spec import Study
    from lorascope.study.track import AnyTrackerSpec


@dataclass(frozen=True)
class Outcome:
    """What `run` did. done: computed now; cached: found in the store; failed: id -> failure; blocked: id -> id of the
    failed step it waits for. report: the page to open, None if no run was scored. seconds: wall-clock time. metrics:
    hypothesis -> what its estimate is of."""

    done: Sequence[str]
    cached: Sequence[str]
    failed: Mapping[str, Failure]
    blocked: Mapping[str, str]
    seconds: float
    report: Path | None
    verdicts: Sequence[HypothesisResult]
    metrics: Mapping[str, str | None] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        settled = {"computed": self.done, "from the store": self.cached, "failed": self.failed, "not run": self.blocked}
        counts = ", ".join(f"{len(steps)} {what}" for what, steps in settled.items() if steps)
        parts = [html_line(f"steps: {counts or 'none'}; {self.seconds:,.0f} s")]
        parts += [html_line(f"failed: {step_id}: {failure.text}") for step_id, failure in self.failed.items()]
        parts += [verdicts_html(self.verdicts, self.metrics)] if self.verdicts else []
        parts += [html_line(f"report: {self.report}")] if self.report else []
        return html_page("Outcome", *parts)


@dataclass(frozen=True)
class Results:
    """A finished study: its analysis artifact, read on demand."""

    artifact: Artifact

    @cached_property
    def measurements(self) -> pd.DataFrame:
        """The long table: run, model, task, method, seed, split, example_id, site, layer, metric, value, unit."""
        import pandas as pd

        return pd.read_parquet(self.artifact.file("measurements.parquet"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row an arm: model, task, arm, metric, mean over seeds, sd, low and high of its interval, seeds, examples."""
        import pandas as pd

        rows = [
            {
                "model": score.model, "task": score.task, "arm": score.method, "metric": score.metric, "mean": score.mean,
                "sd": score.sd, "low": score.interval.low if score.interval else None,
                "high": score.interval.high if score.interval else None, "seeds": len(score.seeds),
                "examples": score.num_examples,
            }
            for score in self.analysis.scores
        ]  # fmt: skip
        columns = ["model", "task", "arm", "metric", "mean", "sd", "low", "high", "seeds", "examples"]
        return pd.DataFrame(rows, columns=columns)

    def _repr_html_(self) -> str:
        from lorascope.report.page import wording

        rows = [
            (s.model, wording.name(s.task), wording.name(s.method), wording.metric_style(s.metric).label,
             wording.score(s.metric, s.mean), wording.score_range(s.metric, s.interval), len(s.seeds))
            for s in self.analysis.scores
        ]  # fmt: skip
        table = html_table(("model", "task", "arm", "metric", "mean", "95% interval", "seeds"), rows)
        verdicts = self.analysis.hypotheses
        parts = [verdicts_html(verdicts, metrics_of(self.analysis))] if verdicts else []
        return html_page("Results", table, *parts)

    @cached_property
    def serving(self) -> pd.DataFrame:
        """What serving measured, in columns of its own: model, arm, repeat, workload, loop, level, choice, sampling, setting,
        metric, value, unit. No row where nothing was served."""
        from lorascope.stats.serving.table import read_served

        return read_served(self.artifact.checked_path)

    @cached_property
    def analysis(self) -> Analysis:
        """Scores, comparisons, hypotheses with their verdicts."""
        import json

        from lorascope.stats.analysis import Analysis

        return Analysis.from_json(json.loads(self.artifact.file("analysis.json").read_text()))


@dataclass(frozen=True)
class Workers:
    """Who computes the steps of a study. executor: a key of `registry.EXECUTORS`. devices: one worker each, a device named
    twice gets two; None: all accelerators, else the CPU. address: of the Ray cluster, "host:port"; None: the one that this
    machine is part of. programs: those that a study may name as the interpreter of its engine, and have run. Raises
    StudyError for an executor that there is not, and an address that has no effect.
    """

    executor: str = "local"
    devices: Sequence[str] | None = None
    address: str | None = None
    programs: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            match = nearest(self.executor, EXECUTORS)
            meant = f": did you mean `{match}`?" if match else ""
            text = f"--executor: unknown executor `{self.executor}`{meant}"
            raise StudyError(text, hint=f"allowed: {', '.join(EXECUTORS)}")
        if self.address is not None and self.executor != "ray":
            text = f"--address {self.address} has no effect on the {self.executor} executor"
            raise StudyError(text, hint="add `--executor ray`")

    def at(self, store: Store, *, data_dir: Path | None) -> Executor:
        """The executor over this store."""
        settings = {"devices": self.devices or None, "address": self.address}
        given = {key: value for key, value in settings.items() if value}
        return resolve(EXECUTORS, self.executor)(store, data_dir=data_dir, **given)


def run_study(
    planner: Planner,
    store: Store,
    workers: Executor,
    *,
    folder: Folder,
    trackers: Sequence[AnyTrackerSpec],
    emit: Emit | None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Computes what the store lacks of the plan, analyses it and writes the report to `folder`; ends the workers.

    trackers: what events go to, in addition to the folder's events.jsonl and `emit`. notes: told before anything runs.
    """
    started = time.monotonic()
    study = planner.graph.study
    with _listening(planner, store, folder=folder.path, trackers=trackers, emit=emit) as tell:
        where = [f"the results are in {folder.path}: {folder.why}"] if folder.why else []
        for text in [*where, *notes]:
            tell(Notice(level="info", text=text))
        outcome, last = _compute(planner, store, workers, folder=folder.path, tell=tell)
        outcome = replace(outcome, seconds=time.monotonic() - started)
        tell(_finished(study.name, outcome))
        if last is None or not store.has(last.id):
            return outcome
        artifact = store.artifact(last.id)
        page = write_report(artifact, study, folder.path, emit=tell)
        analysis = Results(artifact).analysis
        verdicts, metrics = analysis.hypotheses, metrics_of(analysis)
        tell(ReportWritten(path=str(page), verdicts={result.name: result.verdict for result in verdicts}))
        return replace(outcome, report=page, verdicts=verdicts, metrics=metrics, seconds=time.monotonic() - started)


def verdicts_html(verdicts: Sequence[HypothesisResult], metrics: Mapping[str, str | None]) -> str:
    """A table of verdicts, in the report's units. metrics: hypothesis -> what its estimate is of."""
    from lorascope.report.page import wording

    rows = [(r.name, r.verdict, wording.estimate_text(r, metrics.get(r.name)), r.claim) for r in verdicts]
    return html_table(("hypothesis", "verdict", "estimate, interval", "claim"), rows)


def metrics_of(analysis: Analysis) -> dict[str, str | None]:
    """Hypothesis -> what its estimate is of."""
    return {result.name: analysis.metric_of(result) for result in analysis.hypotheses}


@contextmanager
def _listening(
    planner: Planner, store: Store, *, folder: Path, trackers: Sequence[AnyTrackerSpec], emit: Emit | None
) -> Iterator[Emit]:
    """Where events go: the log, `emit`, and the trackers, which are told of runs by name."""
    study = planner.graph.study.name
    with JsonlSink(folder / "events.jsonl") as log, ExitStack() as tracking:
        told = fan_out(log, emit) if emit else fan_out(log)
        feeds = [
            TrackerFeed(spec, study=study, directory=folder / "tracking" / spec.kind, store=store.place, tell=told)
            for spec in trackers
        ]
        for feed in feeds:
            tracking.enter_context(feed)
        yield announcing(fan_out(told, *feeds), lambda: planner.graph)


def _compute(
    planner: Planner, store: Store, workers: Executor, *, folder: Path, tell: Emit
) -> tuple[Outcome, Step | None]:
    """What became of every step, and the step of the analysis, None if nothing can be analysed."""
    from lorascope.engine.scheduler import execute

    steps = planner.steps
    in_store = store.present(step.id for step in steps)
    if len(in_store) < len(steps):
        workers.prepare()
    with closing(workers):
        name, kinds = planner.graph.study.name, _kinds(steps, in_store)
        tell(StudyStarted(study=name, num_steps=len(steps), num_cached=len(in_store), kinds=kinds))
        computed = execute(
            steps, store=store, executor=workers, emit=tell, more=partial(_grow, planner, tell, in_store)
        )
        _write_optima(planner.graph, folder / "optimal")
        last = analysis_of(planner.graph, store, failures=computed.failed)
        analysed = execute([last] if last else [], store=store, executor=workers, emit=tell)
    planned = {step.id for step in planner.steps}  # a step that another took the place of is not missed
    outcome = Outcome(
        done=[*computed.done, *analysed.done],
        cached=[*computed.cached, *analysed.cached],
        failed={**computed.failed, **analysed.failed},
        blocked={step_id: by for step_id, by in computed.blocked.items() if step_id in planned},
        seconds=0.0,
        report=None,
        verdicts=(),
    )
    return outcome, last


def execute_all(steps: Sequence[Step], *, store: Store, executor: Executor, emit: Emit) -> None:
    """Steps that are no study's of their own. Raises the first failure."""
    from lorascope.engine.scheduler import execute

    in_store = store.present(step.id for step in steps)
    kinds = _kinds(steps, in_store)
    emit(StudyStarted(study="calibration", num_steps=len(steps), num_cached=len(in_store), kinds=kinds))
    outcome = execute(steps, store=store, executor=executor, emit=emit)
    for failure in outcome.failed.values():
        raise failure.to_error()


def analysis_of(planned: Graph, store: Store, *, failures: Mapping[str, Failure]) -> Step | None:
    """The step that analyses what is finished; None if nothing is."""
    there = store.present(step.id for step in planned.steps)
    finished = [step.id for step in planned.steps if step.id in there]
    return analysis_step(planned, finished=finished, failures=failures)


def _finished(study: str, outcome: Outcome) -> StudyFinished:
    return StudyFinished(
        study=study,
        num_done=len(outcome.done),
        num_cached=len(outcome.cached),
        num_failed=len(outcome.failed),
        num_blocked=len(outcome.blocked),
        seconds=outcome.seconds,
    )


def _kinds(steps: Sequence[Step], in_store: Collection[str]) -> dict[str, int]:
    """Kind -> number of the steps that are to be computed."""
    return dict(Counter(step.kind for step in steps if step.id not in in_store))


def _grow(planner: Planner, emit: Emit, in_store: Collection[str]) -> Sequence[Step]:
    """The steps that a finished round of a search makes possible. in_store: the steps that were there at the start."""
    before = planner.graph
    if steps := planner.more():
        kinds = _kinds(steps, in_store)
        emit(StudyGrew(num_steps=len(steps), text=news(before, planner.graph), kinds=kinds))
    return steps


def _write_optima(planned: Graph, directory: Path) -> None:
    """The optimum of every search that is over, each as a file that a study can take up."""
    from lorascope.engine.store.durable import write_file

    spec = planned.study.search
    for search in planned.searches:
        label = {"model": str(search.label.model), "task": str(search.label.task), "method": str(search.label.method)}
        if spec is None or search.optimum is None:
            continue
        text = optimum_yaml(search.found, spec, study=planned.study.name, label=label, kind=search.method.kind)
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / optimum_name(planned.study, **label), text, flush=False)


def write_report(artifact: Artifact, study: Study, directory: Path, *, emit: Emit, again: bool = False) -> Path:
    """The report of this analysis, with the study next to it; rendered only if the one there is of another analysis, study or
    lorascope, or if it should be done `again`."""
    stamp, page = directory / ".analysis", directory / "report.html"
    identity = f"{artifact.id} {__version__}"
    is_same = stamp.exists() and stamp.read_bytes() == identity.encode()
    kept = make_room(directory, study_text(study, directory))
    if kept is not None:
        emit(Notice(level="info", text=f"the report as it was before is kept in {kept}"))
    elif page.exists() and is_same and not again:
        return page
    from lorascope.report.render import render_report

    page = render_report(artifact.checked_path, directory)
    stamp.write_text(identity)
    return page
