"""The Python interface: load a study, run it, read its results. The command line calls nothing else.

study = lorascope.load("study.yaml")
lorascope.run(study)
results = lorascope.results(study)
results.measurements            # a pandas DataFrame, one row a measurement
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorascope.engine.events import Emit, fan_out
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.opening import StorePlace, open_store
from lorascope.engine.workers.devices import check_devices
from lorascope.errors import StudyError
from lorascope.pipeline import Outcome, Results, Workers, analysis_of, execute_all, metrics_of, run_study, write_report
from lorascope.plan.graph import Graph
from lorascope.plan.growing import Planner
from lorascope.plan.suitability import require_suitable
from lorascope.report.folder import folder_of
from lorascope.serving.forms import Dtype, Form
from lorascope.serving.interpreter import ask_engine
from lorascope.study.loading.load import load_study
from lorascope.study.measure import Workload
from lorascope.study.spec import Study
from lorascope.tracking.choice import chosen_trackers
from lorascope.tracking.console import shown_to_people

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store
    from lorascope.engine.store.packing import Packed
    from lorascope.plan.outlook import StudyPlan
    from lorascope.plan.status import StatusReader
    from lorascope.plan.verification import Verification
    from lorascope.serving.publish import Published
    from lorascope.stats.analysis import HypothesisResult

__all__ = [
    "Outcome", "Reanalysed", "Results", "Workers", "analyse", "calibrate", "export", "find_run", "graph", "load", "pack",
    "plan", "repair", "report", "results", "run", "status", "verify", "watch",
]  # fmt: skip

DEFAULT_STORE = Path("store")
DEFAULT_RESULTS = Path("results")
StepState = Literal["done", "running", "failed", "blocked", "missing"]


def as_path(place: str | Path | None) -> Path | None:
    """A place that may be given as text."""
    return None if place is None else Path(place).expanduser()


def load(path: str | Path, *, overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, with overrides such as "methods.lora.rank=16". Raises StudyError with file and line."""
    return load_study(path, overrides=overrides)


def graph(study: Study, *, store: StorePlace = DEFAULT_STORE, data_dir: str | Path | None = None) -> Graph:
    """Every step the study consists of (but its analysis, which depends on what gets finished), as far as its searches have
    come in the store. Computes nothing."""
    return Planner(study, open_store(store), data_dir=as_path(data_dir)).graph


def run(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    results: str | Path = DEFAULT_RESULTS,
    data_dir: str | Path | None = None,
    executor: str | Workers = "local",
    only: str | None = None,
    track: Sequence[str] | None = None,
    emit: Emit | None = None,
) -> Outcome:
    """Computes what the store lacks, analyses what is finished and writes the report to `results`/<study name>/.

    store: a directory, or "s3://BUCKET/PREFIX". executor: "local", "inline" or "ray", or `Workers` that say on which devices,
    or on which cluster, and which programs the study may have run. only: a glob on step ids and labels ("*mrpc*"); what they
    need is run too. track: trackers instead of the study's own, ["none"] for none. emit: receives every event, in place of
    the progress that is shown on a terminal and in a notebook; results/<study>/events.jsonl receives them too. May be killed
    at any time and called again.
    """
    require_suitable(study)
    workers = Workers(executor) if isinstance(executor, str) else executor
    trackers = chosen_trackers(study, track)
    opened = open_store(store)
    opened.check()
    engine, notes = None, []
    if study.measure.serving is not None:
        engine, note = ask_engine(study.measure.serving, opened, allowed=workers.programs)
        notes = [note] if note else []
    planner = Planner(study, opened, data_dir=as_path(data_dir), only=only, keeps_proposals=True, engine=engine)
    folder = folder_of(study, Path(results))
    folder.take()
    placed = workers.at(opened, data_dir=as_path(data_dir))
    with nullcontext(emit) if emit else shown_to_people() as told:
        return run_study(planner, opened, placed, folder=folder, trackers=trackers, emit=told, notes=notes)


def repair(study: Study, *, store: StorePlace = DEFAULT_STORE, data_dir: str | Path | None = None) -> list[str]:
    """Sets aside every finished step of the study that is not what was committed, so that the next `run` computes it again.
    What was found of each and where it lies now, a sentence each."""
    from lorascope.plan.verification import repaired

    opened = open_store(store)
    opened.check()
    found: list[str] = []
    repaired(lambda: Planner(study, opened, data_dir=as_path(data_dir)), opened, found.append)
    return found


def plan(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    data_dir: str | Path | None = None,
    machines: int = 1,
    workers_each: int | None = None,
    devices: Sequence[str] | None = None,
    like: str | Path | None = None,
) -> StudyPlan:
    """What the study consists of, what of it is in the store, and what the rest will take, laid out on machines. Computes
    nothing.

    machines: alike; workers_each: GPUs, or workers, on each (None: as many as this one has). devices: as for `run`; their
    kind says which records count (None: this machine's, or those that the store was made on). like: a results folder, whose
    effects and variances say how likely each claim is to be decided (None: stated assumptions do).
    """
    from lorascope.analysis.again import analyse_folder
    from lorascope.engine.workers.devices import find_devices
    from lorascope.plan.data_checks import look_at_data
    from lorascope.plan.history import read_history
    from lorascope.plan.outlook import Machines, plan_study, with_chances

    if machines < 1 or (workers_each is not None and workers_each < 1):
        raise StudyError(
            "a plan needs at least one machine with one worker", hint="give --machines and --gpus-per-machine 1 or more"
        )
    require_suitable(study)
    opened = open_store(store)
    planned = Planner(study, opened, data_dir=as_path(data_dir)).outlook()
    here = list(devices or find_devices())
    history = read_history(opened, device=here[0].partition(":")[0], is_binding=bool(devices))
    sharing = 1 if workers_each else max(Counter(here).values())
    places = Machines(machines, workers_each or len(here), history.device, sharing)
    finished = None if like is None else (str(like), analyse_folder(Path(like)).analysis)
    found = plan_study(planned, opened, history, machines=places, like=finished)
    return (
        found if found.deciding else with_chances(found, look_at_data(study, data_dir=as_path(data_dir)), like=finished)
    )


def calibrate(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    data_dir: str | Path | None = None,
    devices: Sequence[str] | None = None,
    emit: Emit | None = None,
) -> None:
    """Times what a plan needs: the study's own preparation and gates, a few updates of every arm, and each measurement of
    runs once. On one worker of this machine; what is finished is kept. Raises StepFailure if a part of it failed.
    """
    from lorascope.engine.provenance import machine
    from lorascope.engine.workers.devices import find_devices
    from lorascope.plan.calibration import calibration_steps, preparation_steps

    if devices:
        check_devices(devices)
    device = (devices or find_devices())[0]
    opened = open_store(store)
    opened.check()
    planned = Planner(study, opened, data_dir=as_path(data_dir)).outlook()
    emit = emit or fan_out()
    with closing(Workers(devices=[device]).at(opened, data_dir=as_path(data_dir))) as worker:
        execute_all(preparation_steps(planned), store=opened, executor=worker, emit=emit)
        results = {step.id: opened.artifact(step.id).result for step in planned.of_kind("tokens")}
        steps = calibration_steps(planned, machine=machine(device=device), results=results)
        execute_all(steps, store=opened, executor=worker, emit=emit)


def _finished_analysis(study: Study, store: Store, data_dir: str | Path | None) -> Artifact:
    planned = Planner(study, store, data_dir=as_path(data_dir)).graph
    failures = store.failures(step.id for step in planned.steps)
    last = analysis_of(planned, store, failures=failures)
    if last is None or not store.has(last.id):
        raise StudyError(
            f"study {study.name} has no finished analysis in {store.place}",
            hint="run it first: `lorascope run STUDY`, with the same --store, --data and --set",
        )
    return store.artifact(last.id)


def results(study: Study, *, store: StorePlace = DEFAULT_STORE, data_dir: str | Path | None = None) -> Results:
    """The results of a study that has been run. Raises StudyError if the store has none."""
    return Results(_finished_analysis(study, open_store(store), data_dir))


def report(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    results: str | Path = DEFAULT_RESULTS,
    data_dir: str | Path | None = None,
) -> Path:
    """Renders the report of a study that has been run, again, and returns the path of its page."""
    artifact = _finished_analysis(study, open_store(store), data_dir)
    folder = folder_of(study, Path(results))
    folder.take()
    return write_report(artifact, study, folder.path, emit=fan_out(), again=True)


@dataclass(frozen=True)
class Reanalysed:
    """report: the page. metrics: hypothesis -> what its estimate is of. lacks: what the folder does not hold, and what follows
    from that."""

    report: Path
    verdicts: Sequence[HypothesisResult]
    metrics: Mapping[str, str | None]
    conclusion: str | None
    lacks: Sequence[str]


def analyse(directory: str | Path, *, study: Study | None = None, to: str | Path | None = None) -> Reanalysed:
    """Redoes the statistics and the report of a finished study from the folder of its report alone, without the store.

    study: in place of the one that the folder states, for hypotheses as they were declared elsewhere. to: where the report
    is written; default: in `directory`, where the report that is there is kept as `previous` if the statistics differ.
    Raises StudyError where the folder has no measurements or states no study.
    """
    from lorascope.analysis.again import analyse_folder
    from lorascope.report.again import write_again

    directory = Path(directory)
    redone = analyse_folder(directory, study=study)
    page = write_again(redone.analysis, redone.facts, directory, to=Path(to) if to else directory, study=study)
    found = redone.analysis
    conclusion = None if found.conclusion is None else f"{found.conclusion['text']}: {found.conclusion['verdict']}"
    return Reanalysed(page, found.hypotheses, metrics_of(found), conclusion, redone.lacks)


def status(
    study: Study, *, store: StorePlace = DEFAULT_STORE, data_dir: str | Path | None = None
) -> list[tuple[Step, StepState]]:
    """Every step with its state. "blocked": something it depends on failed."""
    opened = open_store(store)
    states: dict[str, StepState] = {}
    planned = Planner(study, opened, data_dir=as_path(data_dir)).graph
    ids = [step.id for step in planned.steps]
    there, failures = opened.present(ids), opened.failures(ids)
    with opened.guard():
        held = {step_id for step_id in opened.locked() if opened.lock(step_id).holder() is not None}
    for step in planned.steps:
        if step.id in there:
            states[step.id] = "done"
        elif step.id in held:
            states[step.id] = "running"
        elif step.id in failures:
            states[step.id] = "failed"
        elif any(states.get(dep) in ("failed", "blocked") for dep in step.deps.values()):
            states[step.id] = "blocked"
        else:
            states[step.id] = "missing"
    return [(step, states[step.id]) for step in planned.steps]


def watch(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    results: str | Path = DEFAULT_RESULTS,
    data_dir: str | Path | None = None,
) -> StatusReader:
    """Reads how far a study is, as often as it is asked: `watch(study).read()`. From the store, and from the log in
    `results`, which is where a run on this or another machine was told to write it."""
    from lorascope.plan.status import StatusReader

    opened = open_store(store)
    planner = Planner(study, opened, data_dir=as_path(data_dir))
    return StatusReader(planner.current, opened, folder_of(study, Path(results)).path / "events.jsonl")


def verify(study: Study, *, store: StorePlace = DEFAULT_STORE, data_dir: str | Path | None = None) -> Verification:
    """Compares every finished step of the study with its record: what is wrong, and how many of how many steps were
    compared. Where nothing is finished, nothing is good (`is_good`)."""
    from lorascope.plan.verification import verify_study

    opened = open_store(store)
    return verify_study(Planner(study, opened, data_dir=as_path(data_dir)), opened)


def pack(store: StorePlace, to: str | Path, *, without_weights: bool = False, piece_bytes: int | None = None) -> Packed:
    """Writes the finished steps of a store as a tar file, or as pieces of it for transport (`to`.000, `to`.001, ...), which
    `cat` joins. without_weights: weight files are left out, and the records say so; such a step stays finished.

    Raises StudyError where there is nothing to pack or `to` is there already, CorruptArtifact for a damaged step.
    """
    from lorascope.engine.store.packing import pack_store

    return pack_store(open_store(store), Path(to), without_weights=without_weights, piece_bytes=piece_bytes)


def find_run(
    study: Study,
    *,
    store: StorePlace = DEFAULT_STORE,
    data_dir: str | Path | None = None,
    model: str | None = None,
    task: str | None = None,
    arm: str | None = None,
    seed: str | int | None = None,
    best: bool = False,
) -> str:
    """The id of one finished run, for `export`. What is not given may be anything, if one run is meant; best: of several of
    one task, the one that scored best on validation. Raises StudyError where none or several are meant."""
    from lorascope.plan.choosing import choose_run
    from lorascope.plan.labels import RunLabel

    opened = open_store(store)
    wanted = RunLabel(model, task, arm, None if seed is None else str(seed))
    return choose_run(Planner(study, opened, data_dir=as_path(data_dir)).graph, opened, wanted, best=best)


def export(
    run: str,
    *,
    store: StorePlace = DEFAULT_STORE,
    form: Form | None = None,
    to: str | Path | None = None,
    workload: Workload = "classification",
    dtype: Dtype = "float32",
) -> Published:
    """Writes a finished run as a directory that transformers, peft and vLLM load. run: the id of its `train` step, or how
    it begins. form: default: the adapter where one was trained, else the full model. to: default: ./RUN-FORM.

    Raises StudyError for a run that is not there or has no such form, EnvironmentProblem where its base is gone or the
    directory cannot be written.
    """
    from lorascope.engine.find import find_artifact

    found = find_artifact(run, open_store(store), kind="train")  # a wrong id is answered before torch is loaded
    from lorascope.engine.workers.devices import find_devices
    from lorascope.serving.publish import publish_run

    return publish_run(
        found.id, store=store, form=form, to=as_path(to), workload=workload, dtype=dtype, device=find_devices()[0]
    )
