"""What a study is: the frozen pydantic models a YAML file is read into.

Everything here is the question (models x tasks x methods x seeds, protocol, hypotheses); nothing says where or how it
runs. Shorthands ("mrpc", "full", 42) are widened to their full form by validators, so the rest of lorascope sees one
shape. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, SerializeAsAny, Tag, model_validator

from lorascope.registry import METHOD_SETTINGS, nearest, resolve
from lorascope.study.base import Name, Spec, branch_by_key
from lorascope.study.hypothesis import Hypothesis
from lorascope.study.measure import MeasureSpec
from lorascope.study.search import SearchSpec
from lorascope.study.tasks import TaskSpec
from lorascope.study.track import TrackerSpec
from lorascope.study.units import Fraction

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
        branch_by_key(hub=HubSource, path=PathSource, package=PackageSource),
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
    validation score is taken. gang: the most runs trained together in one process; it changes no result and is not
    part of a run's identity.
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
    hyperparameters: what an earlier search found, a directory of `TASK_METHOD.yaml` or one such file for all tasks.
    gangs: whether runs of this kind can be trained together in one process. has_adapter: whether what is trained stays
    apart from the base, so that it can be served next to it or merged into it.
    """

    gangs: ClassVar[bool] = False
    has_adapter: ClassVar[bool] = False

    name: Name
    train: TrainOverrides = TrainOverrides()
    hyperparameters: str | None = None


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
    has_adapter: ClassVar[bool] = True

    kind: Literal["lora"]
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    sites: tuple[str, ...] = ("query", "value")


AnyMethodSpec = FullSpec | LoraSpec
_BUILT_IN = {"full": FullSpec, "lora": LoraSpec}


def _branch_of_method(value: Any) -> str | None:
    """The kind; a plug-in's settings have a class that only the plug-in knows."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "<MethodBase>" if kind not in _BUILT_IN and kind in METHOD_SETTINGS else kind


def _with_own_settings(value: Any) -> Any:
    """The settings of a plug-in's method in their own class."""
    return resolve(METHOD_SETTINGS, value["kind"]).model_validate(value) if isinstance(value, Mapping) else value


if TYPE_CHECKING:
    MethodSpec = AnyMethodSpec
else:
    MethodSpec = Annotated[
        Annotated[FullSpec, Tag("full")]
        | Annotated[LoraSpec, Tag("lora")]
        | Annotated[SerializeAsAny[MethodBase], BeforeValidator(_with_own_settings), Tag("<MethodBase>")],
        Discriminator(_branch_of_method),
    ]


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
    search: SearchSpec | None = None
    measure: MeasureSpec = MeasureSpec()
    track: tuple[TrackerSpec, ...] = ()
    hypotheses: dict[Name, Hypothesis] = Field(default={})
    conclusion: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _widen_shorthands(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("methods"), (list, tuple)):
            value = {**value, "methods": [_widen_method(method) for method in value["methods"]]}
        if isinstance(value, dict) and value.get("search") is True:
            value = {**value, "search": {}}
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
