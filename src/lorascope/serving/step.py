"""The `serving` step: the runs of one model behind an engine, arm beside arm.

It prepares what each arm serves, computes offline what each must answer, and then runs the protocol (protocol.py). What it
commits, serving/record.py knows: the figures of every process, every request, and of each process its engine, settings, gates
and failure, with the trials of a search for a faster setting. The checkpoints an engine loads are made for it and not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.serving.arms import GATE_TOKENS, Arms
from lorascope.serving.exchange import EngineConfig
from lorascope.serving.interpreter import PYTHON_LOCATION, TABLES_LOCATION, engine_kind
from lorascope.serving.load import FEWEST_BATCHES, generator_of, synthetic_prompts
from lorascope.serving.precision import MergePrecision
from lorascope.serving.protocol import FINAL, ServingComparison, groups_started_together, run_processes
from lorascope.serving.record import ServingResult, named, write_serving
from lorascope.serving.trained import SERVED_HEAD
from lorascope.serving.tuning import Search, search_levers
from lorascope.study.measure import ServingSpec, Workload
from lorascope.tasks.description import task_from_result
from lorascope.training.preparation import processor_for

_PROMPTS_AT_MOST = 2000
_OPEN_LOOP_REQUESTS_AT_ONCE = 64


def measure_serving(context: StepContext) -> dict[str, Any]:
    """params: model, methods (adapter, full), serving, engine, kernel_tables, tasks; deps: adapter:0, adapter:1, ... and full
    (train steps), data:TASK and tokens:TASK of the tasks whose adapters are served.

    Raises StudyError for tasks that cannot be served by one head, EnvironmentProblem where no arm could be served.
    """
    params = context.step.params
    spec = ServingSpec.model_validate({**params["serving"], "engine": engine_kind(params["engine"])})
    _check_heads(context)
    compared = {workload: _compare(context, spec, workload) for workload in spec.workloads}
    found = [process for of_workload in compared.values() for process in of_workload.processes]
    _report_failures(context, found)
    if not any(process["figures"] for process in found):
        raise EnvironmentProblem(_why_none(found), hint="the log named above says more; see docs/serving.md")
    searches = {workload: each.search for workload, each in compared.items() if each.search is not None}
    write_serving(
        context.out,
        found,
        requests=_requests_table(context, found),
        trials=[trial.to_json() for search in searches.values() for trial in search.trials],
    )
    return ServingResult(
        engine=params["engine"],
        device=context.device.partition(":")[0],
        arms=list(dict.fromkeys(process["arm"] for process in found)),
        repeats=spec.repeats,
        num_processes=len(found),
        num_failed=sum(process["failure"] is not None for process in found),
        num_gates=sum(len(process["gates"]) for process in found),
        gates_failed=sorted({p["arm"] for p in found for gate in p["gates"] if not gate["passed"]}),
        tuned={workload: search.chosen and search.chosen.name for workload, search in searches.items()},
        merging=[
            {"workload": workload, **asdict(row)}
            for workload, each in compared.items()
            for row in (each.merging.rows if each.merging else ())
        ],
    ).to_json()


@dataclass(frozen=True)
class _Compared:
    """What was found in one workload. search: where the study tunes. merging: what it changes, where `merged` is served."""

    processes: list[dict[str, Any]]
    search: Search | None
    merging: MergePrecision | None


def _compare(context: StepContext, spec: ServingSpec, workload: Workload) -> _Compared:
    """Every process of one workload."""
    prompts = _prompts(context, spec)
    arms = Arms(context, spec, workload=workload, prompts=prompts, directory=context.work / "served" / workload)
    merging = arms.merge_precision() if "merged" in spec.arms else None
    _let_go_of_the_device(context)
    longest = max(len(prompt) for prompt in prompts)
    outputs = max(spec.output_tokens, GATE_TOKENS) if workload == "generation" else 0
    comparison = ServingComparison(
        spec=spec,
        workload=workload,
        arms=arms.arms,
        prompts=prompts,
        check=arms.check,
        engine=spec.engine,
        python=Path(context.step.locations.get(PYTHON_LOCATION, sys.executable)),
        config=EngineConfig(
            workload=workload,
            model=next(iter(arms.arms.values())).model,
            adapters={},
            dtype="bfloat16" if spec.precision == "bf16" else "float32",
            device=context.device,
            max_length=longest + max(outputs, 1),
            max_batch=max(*spec.batch_sizes, _OPEN_LOOP_REQUESTS_AT_ONCE if spec.request_rates else 1),
            max_rank=arms.max_rank,
            options={"gpu_memory_utilization": _gpu_share(spec)} if _uses_gpu_share(context, spec) else {},
            fitted_cache=spec.engines_at_once > 1,
        ),
        directory=context.work / "processes",
        kernel_tables=Path(tables) if (tables := context.step.locations.get(TABLES_LOCATION)) else None,
    )
    comparison.directory.mkdir(parents=True, exist_ok=True)
    search = search_levers(comparison) if spec.tune else None
    if search is not None:
        _report_search(context, search)
        comparison = replace(comparison, tuned=search.chosen)
    return _Compared(_measured(context, comparison), search, merging)


def _measured(context: StepContext, comparison: ServingComparison) -> list[dict[str, Any]]:
    """What every process of a workload found, group by group of those that are started together."""
    spec = comparison.spec
    processes = list(comparison.processes())
    before = len(processes) * spec.workloads.index(comparison.workload)
    at_hand = {process for process in processes if comparison.path(process).exists()}
    found, served, given_up, num_handled = [], set(), set(), 0
    for group in groups_started_together(processes, at_once=spec.engines_at_once):
        wanted = [p for p in group if (p.arm, p.setting) not in given_up]
        num_handled += len(group) - len(wanted)
        for num_ended, (process, told) in enumerate(run_processes(comparison, wanted), start=1):
            found.append(told)
            if told["figures"]:
                served.add((process.arm, process.setting))
            elif _is_final(told) or (process.arm, process.setting) not in served:
                given_up.add((process.arm, process.setting))
            num_handled += 1
            context.emit(
                StepProgress(
                    step=context.step.id,
                    done=before + num_handled,
                    total=len(processes) * len(spec.workloads),
                    unit="engine",
                    is_even=num_ended == len(wanted) and process not in at_hand,
                )
            )
    return found


def _gpu_share(spec: ServingSpec) -> float:
    """Of the device's memory, each engine's: those that wait keep theirs."""
    return spec.gpu_memory_fraction / spec.engines_at_once


def _is_final(process: Mapping[str, Any]) -> bool:
    """It cannot be served, or computes something else: another repeat would show no more."""
    return process["failure"] is None or process["failure"]["kind"] in FINAL


def _uses_gpu_share(context: StepContext, spec: ServingSpec) -> bool:
    return spec.engine != "transformers" and context.device.startswith("cuda")


def _check_heads(context: StepContext) -> None:
    """Raises StudyError if one head cannot serve all tasks whose adapters are served."""
    tasks = [task_from_result(context.deps[f"data:{name}"].result) for name in context.step.params["tasks"]]
    for task in tasks:
        if task.head.auto_class != SERVED_HEAD:
            raise StudyError(
                f"the task `{task.name}` is served by no engine yet: its output is not one class a prompt",
                where="measure.serving",
                hint="leave `measure.serving` out, or keep classification tasks of texts alone in this study",
            )
    sizes = {task.name: task.head.config["num_labels"] for task in tasks}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise StudyError(
            f"adapters of tasks with different numbers of classes ({found}) cannot share one model's head",
            where="measure.serving.arms",
            hint="an engine loads one head shape: keep tasks with equal numbers of classes in this study, or serve fewer "
            "adapters than it takes to reach the other task",
        )


def _prompts(context: StepContext, spec: ServingSpec) -> list[list[int]]:
    """Token ids: synthetic, or the tasks' test examples in turn, in an order of their own."""
    if spec.prompt_tokens is not None:
        count = min(max(spec.requests, FEWEST_BATCHES * max(spec.batch_sizes)), _PROMPTS_AT_MOST)
        task = task_from_result(context.deps[f"data:{context.step.params['tasks'][0]}"].result)
        vocabulary = len(processor_for(context, task))
        return synthetic_prompts(spec.prompt_tokens, vocabulary=vocabulary, count=count)
    drawn = []
    for name in context.step.params["tasks"]:
        columns = ColumnStore.open(context.deps[f"tokens:{name}"].file("test"))
        rows = generator_of(f"prompts of {name}", 0).permutation(len(columns))[:_PROMPTS_AT_MOST]
        drawn.append([ids.tolist() for ids in columns.gather(rows)["input_ids"]])
    return [prompt for turn in zip(*drawn, strict=False) for prompt in turn][:_PROMPTS_AT_MOST]


def _let_go_of_the_device(context: StepContext) -> None:
    """What this worker keeps loaded would take memory and caches from the engine that is measured."""
    import gc

    import torch

    context.warm.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --------------------------------------------------------------------------------------------------------- what is kept


def _requests_table(context: StepContext, found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frames = []
    for process in found:
        path = context.work / "processes" / f"{process_name(process)}.parquet"
        if path.exists():
            frames.append(pd.read_parquet(path).assign(**named(process)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def process_name(process: Mapping[str, Any]) -> str:
    return f"{process['workload']}-{process['repeat']}-{process['arm']}-{process['setting']}"


def _report_failures(context: StepContext, found: Sequence[Mapping[str, Any]]) -> None:
    """What was not measured, said while it runs; the artifact and the report say it too."""
    for process in found:
        where = f"{process['arm']} ({process['workload']}, repeat {process['repeat'] + 1})"
        for lost in process["lost"][: None if process["failure"] is None else -1]:
            context.emit(_warning(context, f"{where}: the engine was lost ({lost}); it was started again"))
        if process["failure"] is not None:
            context.emit(_warning(context, f"{where} was not served: {process['failure']['text']}"))
        for gate in process["gates"]:
            if not gate["passed"]:
                context.emit(_warning(context, f"{where} is not timed: {gate['what']}: {gate['detail']}"))


def _report_search(context: StepContext, search: Search) -> None:
    """What was tried to no end, and what was found."""
    for trial in search.trials:
        if trial.outcome in ("unknown", "failed", "unproven"):
            text = f"{' + '.join(trial.levers) or 'the default setting'} was not tried: {trial.reason}"
            context.emit(_warning(context, f"tuning ({trial.workload}): {text}"))
    found = f"the fastest setting is {search.chosen.name}" if search.chosen else "nothing was faster than the default"
    context.emit(Notice(step=context.step.id, level="info", text=f"tuning ({search.trials[0].workload}): {found}"))


def _warning(context: StepContext, text: str) -> Notice:
    return Notice(step=context.step.id, level="warning", text=text)


def _why_none(found: Sequence[Mapping[str, Any]]) -> str:
    reasons = [f"{p['arm']}: {p['failure']['text']} (log: {p['failure']['log']})" for p in found if p["failure"]]
    reasons += [f"{p['arm']}: {g['what']}: {g['detail']}" for p in found for g in p["gates"] if not g["passed"]]
    return f"no arm could be served. {'; '.join(dict.fromkeys(reasons))}"
