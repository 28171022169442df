"""What a study takes where nothing was ever timed: a guess from parameters, tokens and the class of the device.

A guess is right within a factor of several, no better, and says so. As soon as a store holds one timed step, estimates
stand on records (plan/estimate.py) and nothing is guessed.

A token costs about 2 operations a parameter forward and 4 backward (Kaplan et al. 2020, table 1); under an adapter no
gradient of the base's own weights is formed, which saves 2 of the 4. Small models are bound by launching, so an update
takes a least time however little it computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.engine.provenance import usable_cpus
from lorascope.engine.step import Step
from lorascope.models.architectures import known_architecture
from lorascope.models.catalog import MODEL_LOCATION
from lorascope.models.config_facts import layer_size
from lorascope.models.configuration import model_config
from lorascope.plan.estimate import Estimate
from lorascope.plan.graph import Graph
from lorascope.plan.workload import num_evaluations
from lorascope.study.methods import method_specs
from lorascope.study.spec import ModelSpec
from lorascope.study.tasks import unit_of

_FORWARD, _BACKWARD, _BACKWARD_OF_ADAPTER = 2, 4, 2
_RATES = {"cuda": 2e13, "mps": 1e12}
"""Operations a second that small models reach, of a device with one unit."""
_RATE_OF_A_CORE = 1.5e10
_LEAST_UPDATE_SECONDS = {"cuda": 0.03, "mps": 0.05}
_LEAST_UPDATE_ON_CPU = 0.01
_STARTING_SECONDS = 4.0
_SANITY_UPDATES = 120
_SERVED_PROCESS_SECONDS = 90.0
_TOKENS_OF_AN_EXAMPLE, _TOKENS_OF_AN_IMAGE, _BYTES_OF_A_TOKEN = 40, 197, 4
_ROWS = {"mrpc": 3_668, "sst2": 67_349, "rte": 2_490, "qnli": 104_743, "docstrings": 8_000}
"""Training examples of the tasks that have names, as published; of `docstrings` as usual, for they are of what is installed."""
_TEST_SHARE = 0.15
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class TaskSize:
    """examples: for training. tokens: of a mean example."""

    examples: int
    tokens: float


class Guesses:
    """Of the steps of one study on one class of device ("cpu", "cuda", "mps")."""

    def __init__(self, graph: Graph, *, device: str) -> None:
        self._study, self._device = graph.study, device
        self._labels = graph.labels
        self._parameters = {model.name: num_parameters(model) for model in graph.study.models}
        units = {task.name: unit_of(task) for task in graph.study.tasks}
        tasks = {graph.labels[step.id].task or "": _size(step) for step in graph.of_kind("data")}
        self._sizes = {name: size and self._cut(size, units.get(name)) for name, size in tasks.items()}

    def _cut(self, size: TaskSize, unit: str | None) -> TaskSize:
        """unit: what an example is counted in, None if only its data say it."""
        tokens = _TOKENS_OF_AN_IMAGE if unit == "image" else min(size.tokens, self._study.train.max_length)
        return TaskSize(size.examples, tokens)

    def of(self, step: Step) -> Estimate | None:
        """None of a step that there is nothing to guess from."""
        label = self._labels.get(step.id)
        if label is None:  # the analysis
            return self._guessed(_STARTING_SECONDS, "what analyses usually take")
        size = self._sizes.get(label.task) if label.task else next(iter(self._sizes.values()), None)
        parameters = self._parameters.get(label.model or "")
        if size is None:
            return None
        if step.kind in ("data", "tokens"):
            return self._guessed(_STARTING_SECONDS + size.examples * 1e-4, "the number of examples")
        if parameters is None:
            return None
        operations, updates = self._work(step, size, parameters)
        least = updates * _LEAST_UPDATE_SECONDS.get(self._device, _LEAST_UPDATE_ON_CPU)
        seconds = _STARTING_SECONDS + max(operations / self._rate, least)
        if step.kind == "serving":
            processes = step.params["serving"]["repeats"] * len(step.params["serving"]["arms"])
            return self._guessed(processes * _SERVED_PROCESS_SECONDS, f"the number of engine processes, {processes}")
        return self._guessed(
            seconds,
            f"{_rounded(parameters)} parameters and about {_rounded(size.examples * size.tokens)} tokens an epoch",
        )

    @property
    def _rate(self) -> float:
        return _RATES.get(self._device, _RATE_OF_A_CORE * usable_cpus())

    def _work(self, step: Step, size: TaskSize, parameters: int) -> tuple[float, int]:
        """(operations, updates or batches)."""
        tokens, tested = size.examples * size.tokens, _TEST_SHARE * size.examples * size.tokens
        reading = _FORWARD * parameters
        if step.kind in ("train", "trial"):
            train = step.params["train"]
            an_epoch = max(1, math.ceil(size.examples / train["batch_size"]))
            updates = max(1, math.ceil(train["epochs"] * an_epoch * max(step.params.get("stops", (1.0,)))))
            looks = num_evaluations(updates, an_epoch, train["evaluations_per_epoch"])
            learning = (_FORWARD + _backward(step)) * parameters * tokens / an_epoch * updates
            return learning + looks * reading * tested, updates
        if step.kind == "sanity":
            per_update = step.params["train"]["batch_size"] * size.tokens
            return (_FORWARD + _backward(step)) * parameters * per_update * _SANITY_UPDATES, _SANITY_UPDATES
        if step.kind == "drift":
            runs = sum(role.startswith("train:") for role in step.deps)
            return reading * (runs + 2) * step.params["drift"]["examples"] * size.tokens, runs * 50
        whole = tokens + 2 * tested if step.kind == "baseline" else tested
        return reading * whole, max(1, math.ceil(whole / size.tokens / 32))

    def _guessed(self, seconds: float, what: str) -> Estimate:
        device = {"cpu": f"{usable_cpus()} processor cores", "cuda": "a GPU", "mps": "an Apple GPU"}.get(self._device)
        return Estimate(seconds, None, None, "guess", f"a guess from {what}, on {device or self._device}")


def _backward(step: Step) -> int:
    spec = method_specs().get(step.params["method"]["kind"])
    return _BACKWARD if spec is None or spec.trains_everything else _BACKWARD_OF_ADAPTER


def num_parameters(model: ModelSpec) -> int | None:
    """Of a model, from its config.json, else from what its name says ("smollm2-135m"), else from the size of its file."""
    config = model_config(model)
    if config is not None and (counted := _counted(config)) is not None:
        return counted
    source = model.source
    named = " ".join([model.name, str(getattr(source, "hub", "") or ""), str(getattr(source, "file", "") or "")])
    if found := re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", named.lower()):
        return round(float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]])
    return _from_file(model)


def _counted(config: Mapping[str, Any]) -> int | None:
    architecture = known_architecture(config.get("model_type"))
    layers = next((config[key] for key in _LAYERS if isinstance(config.get(key), int)), None)
    if architecture is None or layers is None:
        return None
    sizes = [layer_size(architecture, role, config) for role in architecture.roles]
    if None in sizes:
        return None
    hidden = config.get(architecture.keys.hidden) or 0
    return layers * sum(size[0] * size[1] for size in sizes if size) + (config.get("vocab_size") or 0) * hidden


def _from_file(model: ModelSpec) -> int | None:
    from lorascope.errors import LorascopeError
    from lorascope.models.catalog import describe_model

    try:
        place = describe_model(model)[1].get(MODEL_LOCATION)
    except LorascopeError:  # whoever loads the model says what is wrong with it
        return None
    path = Path(place) if place else None
    return path.stat().st_size // 2 if path is not None and path.is_file() else None


def _size(step: Step) -> TaskSize | None:
    """From the file with the training rows, or what is published of a task; capped as the study caps it."""
    place, task = step.locations.get("train"), step.params["task"]
    found = _rows_of(Path(place)) if place else None
    if found is None:
        rows = _ROWS.get(str(task.get("name")))
        found = None if rows is None else TaskSize(rows, _TOKENS_OF_AN_EXAMPLE)
    if found is None:
        return None
    cap = step.params["data"].get("train_examples")
    return TaskSize(min(found.examples, cap or found.examples), found.tokens)


def _rows_of(path: Path) -> TaskSize | None:
    """None of a file whose rows cannot be counted without reading it as what it is."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        footer = pq.ParquetFile(path).metadata
        num_bytes = sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
        rows = footer.num_rows
    elif path.suffix in (".csv", ".tsv", ".jsonl"):
        content = path.read_bytes()
        num_bytes, rows = len(content), content.count(b"\n") - (path.suffix != ".jsonl")
    else:
        return None
    return TaskSize(rows, max(1.0, num_bytes / rows / _BYTES_OF_A_TOKEN)) if rows > 0 else None


def _rounded(number: float) -> str:
    """ "135 million", "24,000": no more digits than a guess has."""
    digits = max(0, math.floor(math.log10(max(number, 1))) - 1)
    rounded = round(number / 10**digits) * 10**digits
    return f"{rounded / 1e6:g} million" if rounded >= 1e6 else f"{rounded:,.0f}"
