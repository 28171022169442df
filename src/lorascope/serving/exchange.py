"""What is said to an engine and what it answers: its configuration, requests, times, and why it cannot go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorascope.errors import LorascopeError
from lorascope.serving.forms import Dtype
from lorascope.study.measure import Workload

EngineName = Literal["vllm", "vllm-server", "transformers"]


@dataclass(frozen=True)
class EngineConfig:
    """What an engine process serves. slots: adapters resident at once; cpu_slots: kept in the host's memory; None: all.
    fitted_cache: room for the keys and values of the largest batch, instead of for whatever memory is left."""

    workload: Workload
    model: Path
    adapters: Mapping[str, Path]
    dtype: Dtype
    device: str
    max_length: int
    max_batch: int
    max_rank: int = 0
    slots: int | None = None
    cpu_slots: int | None = None
    fitted_cache: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        adapters = {name: str(path) for name, path in self.adapters.items()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "model": str(self.model), "adapters": adapters, "options": dict(self.options)}


@dataclass(frozen=True)
class Request:
    """One prompt for one adapter (None: the model itself). arrival_s: after the batch's start; all 0: a closed batch.

    output_tokens: generated exactly, whatever they are; 0 for classification. temperature 0: greedy.
    """

    id: int
    prompt: Sequence[int]
    adapter: str | None = None
    output_tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    arrival_s: float = 0.0


@dataclass(frozen=True)
class ServedRequests:
    """When a request's tokens were there, in seconds after its batch's start (classification: one time, its answer's).

    output: the generated tokens, the class probabilities, or None if not kept. sent_s: when it was handed to the engine, as
    soon as that took it after its arrival.
    """

    id: int
    arrival_s: float
    first_s: float
    last_s: float
    token_s: tuple[float, ...]
    output: tuple[int, ...] | tuple[float, ...] | None
    sent_s: float


@dataclass(frozen=True)
class ServedBatches:
    """requests: of all batches in the order asked; wall_s: each batch's seconds, from its start to its last answer."""

    requests: tuple[ServedRequests, ...]
    wall_s: tuple[float, ...]


@dataclass(frozen=True)
class Ready:
    """What the engine says of itself once it has loaded. head: where a classification head is taken from."""

    load_s: float
    versions: Mapping[str, str]
    device_name: str
    settings: Mapping[str, Any]
    memory: Mapping[str, int]
    head: str | None
    notes: tuple[str, ...]


class EngineFailure(LorascopeError):
    """An engine would not start or go on. kind: "adapter-rejected", "out-of-memory", "model", "option" (one it does
    not know), "port", "engine", "died" or "timeout"; log: what it wrote, if it was started at all.
    """

    def __init__(
        self, message: str, *, kind: str, log: Path | None = None, hint: str | None = None, where: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, where=where)
        self.kind = kind
        self.log = log

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_failure, (self.message, self.kind, self.log, self.hint, self.where))


def _rebuild_failure(message: str, kind: str, log: Path | None, hint: str | None, where: str | None) -> EngineFailure:
    return EngineFailure(message, kind=kind, log=log, hint=hint, where=where)
