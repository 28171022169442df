"""Every field of a study in a sentence: what it is, and why its default is what it is.

The one source of the JSON schema's descriptions and of the tables in docs/writing-a-study.md. Kept apart from `spec`
so that reading a study does not pay for its documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lorascope.metrics import cost, serving
from lorascope.metrics.quality import QUALITY
from lorascope.study import hypothesis, measure, ranges, search, spec, track, train
from lorascope.study.base import Spec
from lorascope.study.methods import method_specs
from lorascope.study.tasks.base import TaskTrain
from lorascope.study.tasks.classification import FileTask
from lorascope.study.tasks.named import NamedTask

Fields = Mapping[str, str]

_MODEL: Fields = {
    "name": "A registered name (`lorascope ls models`), or a name of your own together with `source`.",
    "source": "Where the checkpoint comes from; absent for a registered name.",
    "pickle": "`allow` reads weights that lie in a pickle (`pytorch_model.bin`), of which nothing but tensors is loaded. "
    "Default: they are refused, because unpickling can run any program.",
}
_HUB: Fields = {
    "hub": "Repository id on the Hugging Face hub, OWNER/NAME.",
    "revision": "Commit hash. A branch name would let the model change under the study.",
}
_PATH: Fields = {"path": "Checkpoint directory, relative to the study file. Its files' checksums are its identity."}
_PACKAGE: Fields = {
    "package": "Name of an installed distribution that carries a checkpoint.",
    "module": "The importable module inside it.",
    "file": "A GGUF file or a checkpoint directory, relative to the module.",
}
_DATA: Fields = {
    "train_examples": "At most so many training examples for each task; the balance of classes is kept. Default: all of them.",
    "validation_examples": "The same for the validation set.",
    "test_examples": "The same for the test set. Fewer examples widen every interval.",
    "validation_fraction": "Share of train that is carved out for selection if a task has no validation set. "
    "10%: on GLUE's small tasks about 250 to 370 examples, enough to choose an epoch.",
    "split_seed": "Seed of the carving and of the caps. It is not one of the runs' seeds: all runs share one split.",
}
_EARLY_STOPPING: Fields = {
    "patience": "Stop after this many evaluations in a row without a better validation score.",
}
_TRAIN: Fields = {
    "epochs": "Passes over the training set; may be a fraction. 3 is the habit since BERT (Devlin et al. 2019).",
    "batch_size": "Examples for each update. GLUE results are usually trained with 16 or 32.",
    "micro_batch_size": "Examples for each forward pass; a batch is accumulated from several passes. Lower it when memory runs "
    "out: the result is the same. Default: the whole batch at once.",
    "max_length": "Tokens; longer examples are cut, and the share cut is reported. Batches are padded to their longest "
    "example only, so a generous limit costs nothing.",
    "precision": "`fp32` (default: the reference) or `bf16` (faster on accelerators that have it).",
    "schedule": "Learning rate after warm-up: `linear` to zero (default), `cosine` to zero, or `constant`.",
    "warmup": "Fraction of all updates over which the rate rises from zero. 6% as in RoBERTa and LoRA.",
    "weight_decay": "AdamW's decoupled decay (Loshchilov and Hutter 2019).",
    "adam_betas": "AdamW's two averaging factors.",
    "adam_epsilon": "AdamW's epsilon.",
    "gradient_clip": "Largest norm of the gradient of an update; `null` turns clipping off.",
    "evaluations_per_epoch": "How often the validation score is taken; the best of these checkpoints is the result.",
    "early_stopping": "`{patience: 3}` by default; `null` runs every epoch.",
    "gang": "Runs trained together in one process: `auto` (default: as many as the device trains well), a largest "
    "number, or `off` for each alone. Gangs are faster and give the same results; not part of a run's identity.",
}
_SEEDS: Fields = {
    "initialisation": "Seed of the adapter and the new head.",
    "order": "Seed of the order of the training examples.",
    "dropout": "Seed of every dropout layer.",
}


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_ON = f"`primary` (each task's first metric), or a metric that every task has: of {_names(QUALITY)}."
_OVER = "`every`: the claim must hold on each (model, task); `average`: on their mean."
_MARGIN = (
    "In the metric's own unit: 3% is three points of accuracy, 0.5 half a unit of perplexity. Or `{relative: 3%}`: at least "
    "97% of what the other reaches, by the ratio of means. Declared before the results are seen."
)
_NON_INFERIOR: Fields = {
    "non_inferior": "The method that is claimed to lose at most `margin`.",
    "to": "The method it is compared with, or a baseline: `majority`, `random`, `linear-probe`.",
    "on": _ON,
    "margin": _MARGIN,
    "over": _OVER,
}
_EQUIVALENT: Fields = {
    "equivalent": "The method that is claimed to differ by less than `margin` in either direction (two one-sided tests).",
    "to": "The method it is compared with, or a baseline: `majority`, `random`, `linear-probe`.",
    "on": _ON,
    "margin": _MARGIN,
    "over": _OVER,
}
_SUPERIOR: Fields = {
    "superior": "The method claimed to be better, in the direction of the metric.",
    "to": "The method it is compared with, or a baseline: `majority`, `random`, `linear-probe`.",
    "on": _ON,
    "over": _OVER,
}
_LOWER: Fields = {
    "lower": "The method that is claimed to need less, or to drift less.",
    "than": "The method it is compared with.",
    "on": f"The cost: {_names(cost.CLAIMED)}; or `drift`, "
    "the mean distance of the residual stream's layers from the base's (needs `measure.drift`).",
    "by": "By at least this fraction.",
    "over": _OVER,
}
_OVERHEAD: Fields = {
    "overhead": "The serving arm that is claimed to cost little more: `base`, `full`, `merged` or `adapters-N`.",
    "over": "The serving arm it is compared with.",
    "on": f"One of {_names(serving.CLAIMED)}; `ttft` is the time to first token (`generation` only).",
    "at_most": "By at most this fraction. The test is on the ratio within a repeat, over repeats.",
    "at": "`every`: the claim must hold for each model, workload and batch size; `average`: for their mean.",
}
_STUDY: Fields = {
    "name": "The name of the study, and of the folder of its results.",
    "question": "What the study asks, in one sentence; the report begins with it.",
    "models": "Base models.",
    "tasks": "What they are trained and scored on.",
    "methods": "How they are trained.",
    "seeds": "Every (model, task, method) has one run for each seed. In the list, a whole number sets all three sources of "
    "chance; `seeds: 10` is the first ten of a printed list ([seeds](#seeds)). Each task derives its own numbers from a seed. "
    "Five by default: the t quantile that widens an interval over seeds is 4.3 with three and 2.8 with five.",
    "protocol": "`strict` (default): selection never sees the test set. `paper`: the literature's habit, only to "
    "reproduce its tables.",
    "data": "Caps and carving, the same for every task.",
    "train": "How every run is trained.",
    "search": "How each method's hyper-parameters are found before it is compared: `{}` or `true` for the defaults, or the "
    "settings below. Absent: the study itself gives them.",
    "measure": "What is measured of every run, apart from scores and costs.",
    "track": "Trackers that show the runs while they train: `trackio`, `wandb`, `mlflow`, `tensorboard`, or a mapping with "
    "`kind` and settings. They do not affect what is computed. `--track` of `lorascope run` takes precedence.",
    "hypotheses": "Claims by name, each decided as supported, refuted or inconclusive.",
    "conclusion": "A formula over the hypotheses' names: `H1a and (H2 or H3)`.",
}

_MEASURE: Fields = {
    "drift": "How far each run is from its base: `{}` or `true` for the defaults, or the settings below. Absent: not "
    "measured.",
    "serving": "What serving the runs costs, merged and as adapters side by side: `{}` or `true` for the defaults, or the "
    "settings below. Absent: not measured.",
    "further": "Settings of measures that installed packages bring, by their names. A measure that is not named here is not "
    "taken.",
}
_SERVING: Fields = {
    "engine": "`transformers` (nothing to install), `vllm` in an interpreter of its own, or `vllm-server`: vLLM behind its "
    "HTTP server, asked by a client.",
    "python": "The interpreter of the engine, relative to the study file. Absent: the variable `LORASCOPE_SERVE_PYTHON`, else "
    "`.venv-serve/bin/python` where lorascope is started (`make serve-env`). `run` has it run only if you "
    "[allowed it](serving.md#engines).",
    "method": "The method whose adapters are served. Absent: the first method that has adapters.",
    "arms": "`base`, `full` (a fully fine-tuned run), `merged` (the first adapter, folded in) and numbers of adapters side "
    "by side. Each adapter is another run: other tasks first, then other seeds.",
    "workloads": "`classification` (a class for each prompt) and `generation` (text; decoders only).",
    "batch_sizes": "Requests submitted at once; the next batch starts when all are answered (closed loop).",
    "request_rates": "Requests a second that arrive whether or not earlier ones are answered (open loop, Poisson).",
    "choices": "Which adapter a request asks for: `fixed`, `round-robin`, `random`, `zipf`. The first one applies to every "
    "load; each further one is measured with most adapters at the largest batch.",
    "prompt_tokens": "Lengths of synthetic prompts, in turn. Absent: the tasks' test examples.",
    "output_tokens": "Tokens generated for every request, no fewer and no more.",
    "sampling": "`greedy`, `sampled` (temperature 1) or both.",
    "requests": "Requests for each load, or four batches if these are more. The 99th percentile of fewer than about 500 "
    "requests is hardly more than their maximum.",
    "warmup": "Requests before the first load of a process; they are not counted.",
    "repeats": "Fresh engine processes for each arm; every repeat draws a new order of the arms. Their number is the n of "
    "every interval.",
    "engines_at_once": "Engine processes that are started together, then asked in turns (`vllm`). Choose at least the number "
    "of arms, the tuned one and that of `switching` included. Above 1 they share the accelerator's memory, and their times "
    "to load are not reported.",
    "precision": "Precision of the weights as served: `bf16` or `fp32`.",
    "slots": "Adapters resident at once (`vllm`). With fewer than are served, the figures show what eviction costs. Absent: "
    "all.",
    "gpu_memory_fraction": "Share of the accelerator's memory an engine may take (`vllm`).",
    "tune": "Search vLLM's own settings (`vllm`) for the arm with most adapters (`true`) or with so many (`4`). The search has "
    "processes and requests of its own. Every repeat then measures the fastest settings as well as the defaults.",
    "kernel_tables": "A folder with tables of vLLM's kernels for adapters, tuned for the device, relative to the study file. "
    "`tune` tries them. Absent: none.",
    "switching": "Also measure requests whose adapter is resident, on the CPU, on disk or was evicted, in the arm with most "
    "adapters.",
}
_DRIFT: Fields = {
    "examples": "Probe examples, drawn from the test split by a fixed seed; all examples if the split has fewer.",
    "sites": "Where features are read: the residual stream after each block, what attention adds to it, what the MLP adds.",
    "pooling": "One word, or a list: the `decision-token` that a classifier reads (last of a decoder, first of an encoder), "
    "`non-sink-mean` over an example's real tokens but attention sinks, `mean` over all of them, or `token`: at most 1,024 "
    "single tokens of the examples, drawn by a fixed seed. [Drift](drift.md#which-tokens) says which of them hypotheses are "
    "about; the others show whether the answer depends on it.",
    "draws": "Bootstrap resamples of the probe examples; intervals are made from them.",
    "neighbours": "How many nearest neighbours of an example are compared (mutual k-NN).",
    "attention_examples": "Probe examples on which attention patterns are compared; 0 for none. The work grows with "
    "the square of their lengths.",
    "out_of_task": "Read the next task's examples too: drift on inputs that the run was not trained on. No effect with one "
    "task.",
    "snapshots": "How many times the drift of each run is measured while it is trained, evenly over its updates: the residual "
    "stream on validation examples. Part of the runs' identity. Absent: only after training.",
    "text": "A plain UTF-8 text file, relative to the study file. Measures how much worse the run predicts this text than its "
    "base does (forgetting). The checkpoint must have its language-model head.",
    "layer_pairs": "Also compare every layer of a run with every layer of its base: `layer_pairs.npz` in the drift artifact.",
    "keep": "`representations`: store the features of base and runs, as arrays that can be memory-mapped. Absent: nothing "
    "is stored.",
}

_ARTIFACTS = (
    "What is kept there in addition to numbers: `report` (the folder of results), `weights` (each run's export)."
)
_WANDB: Fields = {
    "kind": "`wandb`: Weights & Biases (needs `lorascope[wandb]`). Without an API key it works offline.",
    "project": "Absent: the variable `WANDB_PROJECT`, else the name of the study.",
    "entity": "User or team. Absent: the variable `WANDB_ENTITY`, else that of the API key.",
    "artifacts": _ARTIFACTS,
}
_TRACKIO: Fields = {
    "kind": "`trackio`: a local dashboard, no account (needs `lorascope[trackio]`).",
    "project": "Absent: the name of the study.",
    "artifacts": _ARTIFACTS,
}
_MLFLOW: Fields = {
    "kind": "`mlflow`: MLflow 3 (needs `lorascope[mlflow]`).",
    "experiment": "Absent: the variable `MLFLOW_EXPERIMENT_NAME`, else the name of the study.",
    "uri": "Absent: the variable `MLFLOW_TRACKING_URI`, else MLflow's own default, `mlflow.db` where lorascope is started.",
    "artifacts": _ARTIFACTS,
}
_TENSORBOARD: Fields = {
    "kind": "`tensorboard`: event files in `results/<study>/tracking/tensorboard` (needs `lorascope[tensorboard]`)."
}
_SEARCH: Fields = {
    "sampler": "What proposes the trials: `tpe` (tree-structured Parzen estimator), `gp` (Gaussian process), `random`, `grid`.",
    "trials": "Trials for each (model, task, method): the same number for all. 15, as published.",
    "at_once": "Trials that are proposed and trained together, as one round. `tpe` and `gp` draw the first round at random and "
    "learn between rounds, so larger rounds are faster and learn a little less.",
    "space": "`published` or `wide`; or, for each method, one of these or its own ranges: `{lora: {learning_rate: {low: 5e-5, "
    "high: 5e-3, log: true}, rank: [4, 8, 16]}}`. A method that is not named gets `published`.",
    "seeds": "Every trial is trained with each of these, and its score is their mean; `seeds: 3` means 0, 1 and 2. They may "
    "not be seeds of the study: "
    "the runs that are compared are fresh.",
    "confirm": "Where trials have one seed: so many of the best trials are trained with two more seeds, and the best of them "
    "by the mean is chosen. A single run chooses rates close to collapse. `0` turns it off.",
    "proposal_seed": "Seed of the sampler. It is fixed, so that a search that was killed goes on with the same proposals.",
    "train_examples": "At most so many training examples in a trial; the balance of classes is kept, and the validation set "
    "stays whole. Absent: as many as in a run.",
    "pruning": "`none`; `halving`: after a sixth and after a third of the updates, only the best third of all trials so far "
    "go on; `wilcoxon`: seed by seed, a trial ends if a signed-rank test finds it worse than the best.",
    "at_edge": "What to do if an optimum lies at the end of its range: `flag` reports it; `extend` makes the range longer by "
    "half, once, and gives every method of that task one more round.",
}
_RANGE: Fields = {
    "low": "The smallest value, included.",
    "high": "The largest value, included. Between two whole numbers `batch_size`, `epochs`, `rank` and `alpha` are whole.",
    "log": "`true`: equal factors are equally likely, which suits rates.",
}


def _described(method: type[Spec]) -> Fields:
    """The sentences that stand in a method's own file."""
    return {name: field.description or "" for name, field in method.model_fields.items()}


FIELDS: Mapping[type[Spec], Fields] = {
    spec.Study: _STUDY,
    spec.ModelSpec: _MODEL,
    spec.HubSource: _HUB,
    spec.PathSource: _PATH,
    spec.PackageSource: _PACKAGE,
    NamedTask: NamedTask.sentences,
    FileTask: {name: FileTask.sentences[name] for name in FileTask.model_fields},
    TaskTrain: {name: _TRAIN[name] for name in TaskTrain.model_fields},
    spec.DataSpec: _DATA,
    train.TrainSpec: _TRAIN,
    train.EarlyStopping: _EARLY_STOPPING,
    **{method: _described(method) for method in method_specs().values()},
    train.TrainOverrides: {name: _TRAIN[name] for name in train.TrainOverrides.model_fields},
    spec.Seeds: _SEEDS,
    search.SearchSpec: _SEARCH,
    ranges.Range: _RANGE,
    measure.MeasureSpec: _MEASURE,
    measure.DriftSpec: _DRIFT,
    measure.ServingSpec: _SERVING,
    track.TrackioSpec: _TRACKIO,
    track.WandbSpec: _WANDB,
    track.MlflowSpec: _MLFLOW,
    track.TensorboardSpec: _TENSORBOARD,
    hypothesis.NonInferior: _NON_INFERIOR,
    hypothesis.Equivalent: _EQUIVALENT,
    hypothesis.RelativeMargin: {"relative": "The share that may be lost: 3% allows 97% of the other's score."},
    hypothesis.Superior: _SUPERIOR,
    hypothesis.Lower: _LOWER,
    hypothesis.Overhead: _OVERHEAD,
}
