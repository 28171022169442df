"""What a study is: the frozen pydantic models a YAML file is read into.

Everything here is the question (models x tasks x methods x seeds, protocol, hypotheses); nothing says where or how it
runs. Shorthands ("mrpc", "full", 42) are widened to their full form by validators, so the rest of lorascope sees one
shape. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from lorascope.registry import nearest
from lorascope.study.units import Fraction

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Spec(BaseModel):
    """Base of every part of a study: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _branch_by_key(**branches: type[Spec]) -> Callable[[Any], str | None]:
    """Which branch of a union a mapping means: the one whose key it has, or nearly has; errors speak of it alone."""

    def branch(value: Any) -> str | None:
        if isinstance(value, Spec):
            return f"<{type(value).__name__}>"
        if not isinstance(value, Mapping):
            return None
        present = [key for key in branches if key in value]
        present += [match for key in value if (match := nearest(key, branches))]
        return f"<{branches[present[0]].__name__}>" if present else None

    return branch


# ---------------------------------------------------------------------------------------------------------- models


class HubSource(Spec):
    """A model on the Hugging Face hub, at a pinned revision (a commit hash)."""

    hub: str
    revision: str


class PathSource(Spec):
    """A checkpoint directory on this machine; its files' checksums are its identity."""

    path: str


class PackageSource(Spec):
    """A checkpoint inside an installed Python package. file: a GGUF file or a directory, relative to the package."""

    package: str
    module: str
    file: str


ModelSource = Annotated[
    Annotated[HubSource, Tag("<HubSource>")]
    | Annotated[PathSource, Tag("<PathSource>")]
    | Annotated[PackageSource, Tag("<PackageSource>")],
    Discriminator(
        _branch_by_key(hub=HubSource, path=PathSource, package=PackageSource),
        custom_error_type="no_branch",
        custom_error_message="a source is one of {hub, revision}, {path}, {package, module, file}",
    ),
]


class ModelSpec(Spec):
    """A base model: a registered name alone, or a name of your own with a source."""

    name: Name
    source: ModelSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


# ----------------------------------------------------------------------------------------------------------- tasks


class NamedTask(Spec):
    """A task lorascope knows: mrpc, sst2, rte, docstrings."""

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class FileTask(Spec):
    """A classification task of your own, from csv, jsonl or parquet files.

    text: the column, or the two columns of a pair. label: the column of integers or strings. Files not given are carved
    out of train, stratified. metrics: the first is the primary one.
    """

    name: Name
    kind: Literal["classification"]
    train: str
    validation: str | None = None
    test: str | None = None
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    label: str
    labels: tuple[str | int, ...] | None = None
    metrics: tuple[Literal["accuracy", "f1", "mcc"], ...] = ("accuracy",)

    @model_validator(mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            return {**value, "text": [value["text"]]}
        return value


def _branch_of_task(value: Any) -> str:
    """A name alone is a registered task; anything that looks like a field of a file task is one."""
    if isinstance(value, Spec):
        return f"<{type(value).__name__}>"
    fields = set(FileTask.model_fields) - {"name"}
    is_file = isinstance(value, Mapping) and any(nearest(key, fields) for key in value)
    return "<FileTask>" if is_file else "<NamedTask>"


TaskSpec = Annotated[
    Annotated[FileTask, Tag("<FileTask>")] | Annotated[NamedTask, Tag("<NamedTask>")], Discriminator(_branch_of_task)
]


class DataSpec(Spec):
    """Caps and carving, the same for every task. A cap keeps a stratified sample; None keeps every row.

    validation_fraction: share of train carved out for selection where a task has no validation set of its own.
    split_seed: seed of that carving and of the caps.
    """

    train_examples: Annotated[int, Field(ge=10)] | None = None
    validation_examples: Annotated[int, Field(ge=4)] | None = None
    test_examples: Annotated[int, Field(ge=4)] | None = None
    validation_fraction: Fraction = 0.1
    split_seed: int = 0


# -------------------------------------------------------------------------------------------------------- training


class EarlyStopping(Spec):
    """Stop after `patience` evaluations without a better validation score."""

    patience: Annotated[int, Field(ge=1)] = 3


def _check_gang(value: Any) -> Any:
    if value in ("auto", "off") or (type(value) is int and value >= 1):
        return value
    match = nearest(str(value), ("auto", "off"))
    meant = f": did you mean `{match}`?" if match else ""
    raise ValueError(f"must be auto, off or a whole number of runs, at least 1; found {value!r}{meant}")


Gang = Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=1)], BeforeValidator(_check_gang)]


class TrainSpec(Spec):
    """How every run of the study is trained. A method may override single fields (`methods[].train`).

    batch_size: examples an update. micro_batch_size: examples a forward pass (None: the whole batch); the rest is
    gradient accumulation. max_length: tokens. warmup: fraction of all updates. evaluations_per_epoch: how often the
    validation score is taken. gang: the most runs trained together in one process; it changes no result and is no part
    of a run's identity.
    """

    epochs: Annotated[float, Field(gt=0)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 16
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 384
    precision: Literal["fp32", "bf16"] = "fp32"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 1
    early_stopping: EarlyStopping | None = EarlyStopping()
    gang: Gang = "auto"

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainSpec:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class TrainOverrides(Spec):
    """The fields of `train` that a method may set for itself; what is absent stays the study's."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    schedule: Literal["linear", "cosine", "constant"] | None = None
    warmup: Fraction | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    gradient_clip: Annotated[float, Field(gt=0)] | None = None


# --------------------------------------------------------------------------------------------------------- methods


class MethodBase(Spec):
    """Shared by every method. name: how the study refers to it (default: its kind).

    learning_rate belongs to the method because the optimum does: LoRA's is about ten times that of full fine-tuning.
    gangs: whether runs of this kind can be trained together in one process.
    """

    gangs: ClassVar[bool] = False

    name: Name
    train: TrainOverrides = TrainOverrides()


class FullSpec(MethodBase):
    """Full fine-tuning: every weight of the model is trained."""

    gangs: ClassVar[bool] = True

    kind: Literal["full"]
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5


class LoraSpec(MethodBase):
    """LoRA (Hu et al. 2021): W + alpha/rank * B A at the chosen sites, the base frozen, the head trained.

    sites: by meaning ("query", "value", "attention", "mlp", "all-linear") or by module name ("q_proj").
    """

    gangs: ClassVar[bool] = True

    kind: Literal["lora"]
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    sites: tuple[str, ...] = ("query", "value")


AnyMethodSpec = FullSpec | LoraSpec
MethodSpec = Annotated[AnyMethodSpec, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------- seeds


class Seeds(Spec):
    """The three sources of chance in a run. A bare integer sets all three."""

    initialisation: int
    order: int
    dropout: int

    @model_validator(mode="before")
    @classmethod
    def _from_integer(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"initialisation": value, "order": value, "dropout": value}
        return value

    @property
    def label(self) -> str:
        """ "42", or "42.7.7" when the three differ."""
        parts = (self.initialisation, self.order, self.dropout)
        return str(parts[0]) if len(set(parts)) == 1 else ".".join(map(str, parts))


# ---------------------------------------------------------------------------------------------------- measurements


class DriftSpec(Spec):
    """Drift: how far each run's features, weights and predictions of general text are from its base's.

    examples: probe examples, of the test split. sites: where features are read. pooling: over an example's tokens.
    draws: bootstrap resamples of the examples. neighbours: k of the mutual nearest neighbours. attention_examples: for
    attention patterns, 0 for none. out_of_task: read another task's examples too. snapshots: looks at each run
    while it is trained. text: a plain text file on which forgetting is measured. layer_pairs:
    compare every layer with every other too. keep: store the features.
    """

    examples: Annotated[int, Field(ge=4)] = 750
    sites: Annotated[tuple[Literal["residual", "attention", "mlp"], ...], Field(min_length=1)] = (
        "residual",
        "attention",
        "mlp",
    )
    pooling: Literal["mean", "decision-token", "token"] = "mean"
    draws: Annotated[int, Field(ge=100)] = 1000
    neighbours: Annotated[int, Field(ge=1)] = 10
    attention_examples: Annotated[int, Field(ge=0)] = 64
    out_of_task: bool = True
    snapshots: Annotated[int, Field(ge=1)] | None = None
    text: str | None = None
    layer_pairs: bool = False
    keep: Literal["representations"] | None = None

    @model_validator(mode="after")
    def _enough_neighbours(self) -> DriftSpec:
        if self.neighbours >= self.examples - 1:
            raise ValueError(f"neighbours {self.neighbours} is not below examples {self.examples} - 1")
        if 0 < self.attention_examples < 4:
            raise ValueError(f"attention_examples {self.attention_examples} must be 0 (none) or at least 4")
        return self


class MeasureSpec(Spec):
    """What is measured of every run besides its scores and costs."""

    drift: DriftSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_default(cls, value: Any) -> Any:
        return {**value, "drift": {}} if isinstance(value, dict) and value.get("drift") is True else value


# ------------------------------------------------------------------------------------------------------ hypotheses


class NonInferior(Spec):
    """`non_inferior` loses at most `margin` to `to` on a quality metric (one-sided, alpha 0.05).

    margin is in the metric's own 0-1 units: "3%" means three points of accuracy. over: the claim must hold on every
    (model, task), or on their average.
    """

    non_inferior: str
    to: str
    on: str = "primary"
    margin: Fraction
    over: Literal["every", "average"] = "every"


class Equivalent(Spec):
    """`equivalent` and `to` differ by less than `margin` either way (TOST, alpha 0.05)."""

    equivalent: str
    to: str
    on: str = "primary"
    margin: Fraction
    over: Literal["every", "average"] = "every"


class Superior(Spec):
    """`superior` scores more than `to` on a quality metric (two-sided 95% interval above 0)."""

    superior: str
    to: str
    on: str = "primary"
    over: Literal["every", "average"] = "every"


class Lower(Spec):
    """`lower` needs at least `by` less than `than` of a cost, or drifts that much less from the base: the ratio of
    geometric seed means, with its 95% interval."""

    lower: str
    than: str
    on: Literal[
        "training_seconds", "peak_memory_bytes", "trainable_parameters", "energy_joules", "export_bytes", "drift"
    ]
    by: Fraction
    over: Literal["every", "average"] = "every"


Hypothesis = Annotated[
    Annotated[NonInferior, Tag("<NonInferior>")]
    | Annotated[Equivalent, Tag("<Equivalent>")]
    | Annotated[Superior, Tag("<Superior>")]
    | Annotated[Lower, Tag("<Lower>")],
    Discriminator(
        _branch_by_key(non_inferior=NonInferior, equivalent=Equivalent, superior=Superior, lower=Lower),
        custom_error_type="no_branch",
        custom_error_message=(
            "a hypothesis is one of {non_inferior, to, margin}, {equivalent, to, margin}, {superior, to}, "
            "{lower, than, on, by}"
        ),
    ),
]


# ----------------------------------------------------------------------------------------------------------- study


class Study(Spec):
    """The question, whole. See docs/writing-a-study.md for every field and why its default is what it is."""

    name: Name
    question: str
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    methods: Annotated[tuple[MethodSpec, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seeds, ...], Field(min_length=1)] = tuple(
        Seeds.model_validate(seed) for seed in (42, 1337, 2024, 3407, 5489)
    )
    protocol: Literal["strict", "paper"] = "strict"
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    measure: MeasureSpec = MeasureSpec()
    hypotheses: dict[Name, Hypothesis] = {}
    conclusion: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _widen_methods(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("methods"), (list, tuple)):
            return {**value, "methods": [_widen_method(method) for method in value["methods"]]}
        return value

    def method(self, name: str) -> AnyMethodSpec:
        """The method the study calls `name`. Raises KeyError."""
        return {method.name: method for method in self.methods}[name]


def _widen_method(method: Any) -> Any:
    if isinstance(method, str):
        return {"kind": method, "name": method}
    if isinstance(method, dict) and "kind" in method:
        return {"name": method["kind"], **method}
    return method
