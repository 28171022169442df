"""What a study measures of its runs besides scores and costs: drift from the base, and what serving them costs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lorascope.registry import MEASURES
from lorascope.study.base import Spec

PoolingName = Literal["decision-token", "non-sink-mean", "mean", "token"]


def _as_list(value: Any) -> Any:
    """A single word is a list of one."""
    return (value,) if isinstance(value, str) else value


class DriftSpec(Spec):
    """Drift: how far each run's features, weights and predictions of general text are from its base's.

    examples: probe examples, of the test split. sites: where features are read. pooling: over an example's tokens, one
    word or several; which of them a model's drift in one number is by is decided in `drift.poolings`.
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
    pooling: Annotated[
        tuple[PoolingName, ...],
        Field(min_length=1),
        BeforeValidator(_as_list, json_schema_input_type=PoolingName | tuple[PoolingName, ...]),
    ] = (
        "decision-token",
        "non-sink-mean",
        "mean",
    )
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
        twice = [name for name in dict.fromkeys(self.pooling) if self.pooling.count(name) > 1]
        if twice:
            raise ValueError(f"pooling lists `{twice[0]}` twice")
        return self


def _check_arm(value: Any) -> Any:
    if value in ("base", "full", "merged") or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"must be base, full, merged or a number of adapters, at least 1; found {value!r}")


ServedArm = Annotated[Literal["base", "full", "merged"] | Annotated[int, Field(ge=1)], BeforeValidator(_check_arm)]
Count = Annotated[int, Field(ge=1)]
Workload = Literal["classification", "generation"]


class ServingSpec(Spec):
    """Serving: what requests cost on the base, fully fine-tuned, merged, and with 1, 2, 4, ... adapters side by side.

    engine, python: who serves, and the interpreter that has it (vllm). method: whose adapters (default: the first that has
    any). workloads: class probabilities, or text. batch_sizes: requests at once, closed loop. request_rates: a second,
    open loop, Poisson. choices: which adapter a request asks for; the first one for every load, each further one for
    the arm with most adapters at the largest batch. prompt_tokens: lengths of synthetic prompts (None: the tasks' test
    examples). requests, warmup: a load. repeats: fresh processes an arm. engines_at_once: started together, asked in
    turns; their time to load is not reported. slots: adapters resident at once (None: all). tune: search vLLM's own levers
    for the arm with so many adapters (true: with most) and measure what is found as well. kernel_tables: a folder with
    tuned tables of vLLM's kernels, one of those levers.
    """

    engine: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    python: str | None = None
    method: str | None = None
    arms: Annotated[tuple[ServedArm, ...], Field(min_length=1)] = ("base", "full", "merged", 1, 2, 4)
    workloads: Annotated[tuple[Workload, ...], Field(min_length=1)] = ("classification",)
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    request_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    choices: Annotated[tuple[Literal["fixed", "round-robin", "random", "zipf"], ...], Field(min_length=1)] = (
        "round-robin",
    )
    prompt_tokens: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    output_tokens: Count = 128
    sampling: Annotated[tuple[Literal["greedy", "sampled"], ...], Field(min_length=1)] = ("greedy",)
    requests: Count = 1000
    warmup: Annotated[int, Field(ge=0)] = 100
    repeats: Count = 5
    engines_at_once: Count = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    slots: Count | None = None
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    switching: bool = True
    tune: bool | Count = False
    kernel_tables: str | None = None

    @property
    def most_adapters(self) -> int:
        """Side by side in the largest arm; 0 without such an arm."""
        return max((arm for arm in self.arms if isinstance(arm, int)), default=0)

    @property
    def tuned_adapters(self) -> int:
        """Side by side in the arm that vLLM's settings are searched for; 0 without a search."""
        return self.most_adapters if self.tune is True else int(self.tune)


def arm_name(arm: str | int) -> str:
    """What an arm is called in tables and hypotheses: "merged", "adapters-4"."""
    return f"adapters-{arm}" if isinstance(arm, int) else arm


class MeasureSpec(Spec):
    """What is measured of every run besides its scores and costs. further: settings of measures that packages bring, by
    kind; each measure checks its own."""

    drift: DriftSpec | None = None
    serving: ServingSpec | None = None
    further: dict[str, dict[str, Any]] = Field(default={})

    @field_validator("further")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        known = [kind for kind in MEASURES if kind not in cls.model_fields]
        for kind in value:
            if kind not in known:
                raise ValueError(f"`{kind}` is not a further measure; there are: {', '.join(known) or 'none'}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: {} if item is True and key in cls.model_fields else item for key, item in value.items()}
