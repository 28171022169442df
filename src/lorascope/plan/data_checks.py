"""The data of a study, opened before anything starts: columns, classes, examples of each split, and what they can decide.

The one idea: the same code that the `data` step runs reads and splits the files here, so what it would refuse after the start
is refused before it. What is not on this machine is listed as not checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorascope.data.sources import SourceDescription, describe_source, task_key
from lorascope.errors import DataError, EnvironmentProblem, StudyError
from lorascope.plan.power import smallest_margin
from lorascope.printable import printable
from lorascope.registry import TASKS, resolve
from lorascope.study.hypothesis import Equivalent, NonInferior
from lorascope.study.loading.document import Mistake
from lorascope.study.spec import Study, TaskSpec
from lorascope.study.tasks.labels import f1_title

_SHOWN = 60
LARGEST_BYTES = 200_000_000
"""Files that are larger together are opened when the study runs: a check must answer at once."""


@dataclass(frozen=True)
class TaskData:
    """The data of one task as the study splits them. columns: what an example is read from. classes: empty for a task without
    any. num_examples: by split."""

    task: str
    protocol: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    num_examples: Mapping[str, int]
    metrics: tuple[str, ...]

    def __str__(self) -> str:
        """ "sms: columns text, label; 2 classes: ham, spam; 270 train, 30 validation, 30 test examples; F1 (spam)"."""
        parts = [f"columns {', '.join(self.columns)}"]
        if self.classes:
            shown = ", ".join(_shown(name) for name in self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            parts.append(f"{len(self.classes)} classes: {shown}")
        parts.append(", ".join(f"{count:,} {split}" for split, count in self.num_examples.items()) + " examples")
        parts.append(f"protocol {self.protocol}")
        if "f1" in self.metrics and self.classes:
            parts.append(f1_title(self.classes))
        return f"{self.task}: {'; '.join(parts)}"


@dataclass(frozen=True)
class DataFindings:
    """tasks: those whose files were opened. mistakes: what the `data` steps would refuse. warnings, not_checked: sentences."""

    tasks: Sequence[TaskData]
    mistakes: Sequence[Mistake]
    warnings: Sequence[str]
    not_checked: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        return {"data": [asdict(task) for task in self.tasks], "warnings": list(self.warnings)}


def look_at_data(study: Study, *, data_dir: Path | None) -> DataFindings:
    """What the files of the study's tasks hold; nothing is computed or kept."""
    tasks, mistakes, not_checked = [], [], []
    for index, task in enumerate(study.tasks):
        try:
            found = _of_task(study, task, data_dir=data_dir)
        except EnvironmentProblem as problem:
            not_checked.append(f"not checked: the examples of {task.name} ({problem.message})")
        except (DataError, StudyError) as error:
            where = f"{error.where}: " if error.where and not error.where.startswith("tasks") else ""
            mistakes.append(Mistake(("tasks", index), f"tasks[{index}]: {where}{error.message}", error.hint))
        else:
            if isinstance(found, TaskData):
                tasks.append(found)
            elif found is not None:
                not_checked.append(found)
    return DataFindings(tasks, mistakes, list(_warnings(study, tasks)), not_checked)


def _of_task(study: Study, task: TaskSpec, *, data_dir: Path | None) -> TaskData | str | None:
    """The data of a task; a sentence where they cannot be opened here; None for one that has no files."""
    protocol = task.protocol or study.protocol
    source = describe_source(task, data_dir=data_dir, protocol=protocol)
    if "hub" in source.fingerprint:
        return f"not checked: the examples of {task.name}, which are on the hub and not in a data directory (--data)"
    if "files" not in source.fingerprint:
        return None
    if _size(source) > LARGEST_BYTES:
        return f"not checked: the examples of {task.name}: their files are larger than {LARGEST_BYTES / 1e6:.0f} MB together"
    return _read(study, task, source, protocol=protocol)


def _shown(name: str) -> str:
    """The name of a class, for a line of the console."""
    return printable(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _size(source: SourceDescription) -> int:
    return sum(Path(source.locations[role]).stat().st_size for role in source.fingerprint["files"])


def _read(study: Study, task: TaskSpec, source: SourceDescription, *, protocol: str) -> TaskData:
    from lorascope.data.splits import make_splits  # pandas takes a while to load: not for --help

    kind = resolve(TASKS, task_key(task))
    raw = kind.read(task, source=source, protocol=protocol)
    splits = make_splits(raw, study.data, task=task.name, test_rows=task.test_rows)
    classes = () if raw.strata is None else raw.strata.names
    label = getattr(task, "label", None) or (None if raw.strata is None else raw.strata.column)
    return TaskData(
        task.name,
        protocol,
        (*raw.content, *([label] if label else [])),
        classes,
        {name: len(frame) for name, frame in splits.frames.items()},
        tuple(raw.task.get("metrics", ())),
    )


def _warnings(study: Study, tasks: Sequence[TaskData]) -> Iterator[str]:
    """Margins that the test sets are too small for, assuming what plan.power assumes of seeds and disagreement."""
    for name, claim in study.hypotheses.items():
        if not isinstance(claim, NonInferior | Equivalent) or not isinstance(claim.margin, float):
            continue
        least = {
            task.task: smallest_margin(
                len(study.seeds), task.num_examples["test"], two_sided=isinstance(claim, Equivalent)
            )
            for task in tasks
            if _counts_examples(task, claim.on)
        }
        sizes = {task.task: task for task in tasks}
        if claim.over == "average":
            if len(least) == len(study.tasks) > 1:
                joint = math.sqrt(sum(value**2 for value in least.values())) / len(least)
                if joint > claim.margin:
                    total = sum(sizes[task].num_examples["test"] for task in least)
                    yield f"{total:,} test rows in all; {_undecided(name, claim.margin, joint)}"
                continue
            if len(study.tasks) > 1:
                continue
        for task, value in least.items():
            if value > claim.margin:
                counts = sizes[task].num_examples
                rows = f"{task}: {sum(counts.values()):,} rows: {counts['test']:,} test rows"
                yield f"{rows}; {_undecided(name, claim.margin, value)}"


def _counts_examples(task: TaskData, on: str) -> bool:
    """Whether a claim is on a share of right examples, which the assumptions are about."""
    metric = on if on != "primary" else next(iter(task.metrics), "accuracy")
    return metric in ("accuracy", "f1")


def _undecided(name: str, margin: float, least: float) -> str:
    return (
        f"a margin of {100 * margin:g} points ({name}) cannot be decided if the arms are equal; the smallest that can is about "
        f"{100 * least:.1f}"
    )
