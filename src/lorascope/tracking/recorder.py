"""From the stream of events to runs in a tracker: the same for every tracker.

Each run of the study is one run there, from its first update to its score on the test set, in the group of its phase; so
is each baseline, gate and measurement, and the study itself. Which of the tracker's runs a step became is written down,
so that a study that goes on after a kill goes on in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lorascope.engine.events import (
    CurvePoint,
    Event,
    ReportWritten,
    StepBlocked,
    StepFailed,
    StepFinished,
    StepPlanned,
    StepProgress,
    StepStarted,
    StudyFinished,
    StudyStarted,
)
from lorascope.tracking.tracker import OpenRun, RunStatus, TrackedRun, Tracker

STUDY_GROUP = "study"

Uploading = Callable[[str], AbstractContextManager[None]]


class Recorder:
    """ledger: the file that remembers runs by step. artifacts: which of "report" and "weights" the tracker is to keep;
    find_artifact: step id -> the folder it committed. uploading: a context in which files are handed over, and the runs they
    belong to closed, which is when some trackers wait for them; given the name of the run."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        ledger: Path,
        artifacts: Collection[str] = (),
        find_artifact: Callable[[str], Path],
        uploading: Uploading = nullcontext,
    ) -> None:
        self._tracker, self._ledger, self._uploading = tracker, ledger, uploading
        self._artifacts, self._find_artifact = artifacts, find_artifact
        self._known = _read_ledger(ledger)
        self._planned: dict[str, StepPlanned] = {}
        self._parts: dict[str, set[str]] = {}  # step -> the steps that are still to complete it
        self._running: dict[str, _Curve] = {}
        self._study: _Curve | None = None
        self._settled = {"done": 0, "failed": 0}

    def __call__(self, event: Event) -> None:
        match event:
            case StudyStarted():
                run = TrackedRun(
                    event.study, STUDY_GROUP, "study", {"steps": event.num_steps}, self._known.get("study")
                )
                self._study = self._open("study", run)
            case StepPlanned(step=str(step)):
                self._planned[step] = event
                if event.part_of is not None:
                    self._parts.setdefault(event.part_of, set()).add(step)
            case StepStarted(step=str(step)):
                self._run_of(step)
            case CurvePoint(step=str(step)) if run := self._run_of(step):
                run.add({event.name: event.value}, at=event.at)
            case StepProgress(step=str(step), unit="update") if event.rates and (run := self._run_of(step)):
                run.add(
                    {name.replace("/s", "_per_second"): rate for name, rate in event.rates.items()}, at=int(event.done)
                )
            case StepFinished(step=str(step)):
                self._count("done")
                self._finish(step, event)
            case StepFailed(step=str(step), retry=False):
                self._count("failed")
                self._fail(step, event)
            case StepBlocked(step=str(step)):
                self._settle_part(step)
            case StudyFinished() if self._study:
                counts = {"cached": event.num_cached, "failed": event.num_failed, "blocked": event.num_blocked}
                self._study.summarise({"done": event.num_done, **counts, "seconds": event.seconds})
            case ReportWritten() if self._study:
                self._study.summarise({f"verdict/{name}": verdict for name, verdict in event.verdicts.items()})
                if "report" in self._artifacts:
                    folder = Path(event.path).parent
                    self._study.attach(_report_in(folder), name=f"{folder.name}-report", kind="report")
                self._study.status = "finished"
            case _:
                pass

    def close(self) -> None:
        """Closes what is still open: runs whose steps were interrupted, or are completed by somebody else."""
        for run in [*self._running.values(), *([self._study] if self._study else [])]:
            run.close()
        self._running.clear()

    def _run_of(self, step: str) -> _Curve | None:
        """The run that shows this step, opened if it is not; None for a step of which there is nothing to show."""
        planned = self._planned.get(step)
        if planned is not None and planned.part_of is not None:
            return self._run_of(planned.part_of)
        if planned is None or planned.phase is None:
            return None
        if step not in self._running:
            kind = step.partition("-")[0]
            config = {**planned.labels, "step": step, "settings": planned.settings}
            run = TrackedRun(planned.name, planned.phase, kind, config, self._known.get(step))
            self._running[step] = self._open(step, run)
        return self._running[step]

    def _open(self, step: str, run: TrackedRun) -> _Curve:
        opened = self._tracker.open(run)
        if opened.id != run.known_as:
            with self._ledger.open("a", encoding="utf-8") as ledger:
                ledger.write(json.dumps({"step": step, "run": opened.id}) + "\n")
        return _Curve(opened, self._uploading)

    def _finish(self, step: str, event: StepFinished) -> None:
        run = self._run_of(step)
        if run is None:
            return
        planned = self._planned[step]
        if planned.part_of is None:
            run.summarise({**event.figures, "seconds": event.seconds})
            run.status = "finished"
            if "weights" in self._artifacts and (weights := _files_in(self._find_artifact(step) / "export")):
                run.attach(weights, name=step, kind="weights")
            self._close_if_complete(step)
        else:
            run.summarise(event.figures)
            self._settle_part(step)

    def _fail(self, step: str, event: StepFailed) -> None:
        run = self._run_of(step)
        if run is None:
            return
        planned = self._planned[step]
        run.summarise({"failure": event.text})
        run.status = "failed"
        self._running.pop(planned.part_of or step)
        run.close()

    def _settle_part(self, step: str) -> None:
        planned = self._planned.get(step)
        if planned is not None and planned.part_of is not None:
            self._parts[planned.part_of].discard(step)
            self._close_if_complete(planned.part_of)

    def _close_if_complete(self, step: str) -> None:
        """A run is over when its step is and so are those that complete it. One trained by an earlier process is over
        when it is scored."""
        run = self._running.get(step)
        if run is not None and not self._parts.get(step):
            del self._running[step]
            run.status = "finished"
            run.close()

    def _count(self, outcome: str) -> None:
        self._settled[outcome] += 1
        if self._study is not None:
            points = {f"steps/{name}": float(count) for name, count in self._settled.items()}
            self._study.add(points, at=sum(self._settled.values()))


class _Curve:
    """An open run, whose points of one update are logged together: they arrive one by one."""

    def __init__(self, run: OpenRun, uploading: Uploading) -> None:
        self._run, self._uploading = run, uploading
        self.status: RunStatus = "interrupted"
        self._has_files = False
        self._at = 0
        self._values: dict[str, float] = {}

    def add(self, values: Mapping[str, float], *, at: int) -> None:
        if at != self._at:
            self._log()
        self._at = at
        self._values.update(values)

    def summarise(self, values: Mapping[str, float | str]) -> None:
        self._log()
        self._run.summarise(values)

    def attach(self, files: Mapping[str, Path], *, name: str, kind: str) -> None:
        self._has_files = True
        with self._uploading(self._run.id):
            self._run.attach(files, name=name, kind=kind)

    def close(self) -> None:
        self._log()
        with self._uploading(self._run.id) if self._has_files else nullcontext():
            self._run.close(self.status)

    def _log(self) -> None:
        if self._values:
            self._run.log(self._values, at=self._at)
            self._values = {}


def _files_in(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _report_in(folder: Path) -> dict[str, Path]:
    """The report, its tables and figures: the folder of results less what trackers and the log write there."""
    beside = ("tracking", "events.jsonl", ".analysis")
    return {name: path for name, path in _files_in(folder).items() if Path(name).parts[0] not in beside}


def _read_ledger(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {entry["step"]: entry["run"] for entry in entries}
