"""The arms of a comparison: what each serves, written to disk once, and what each must answer.

Every arm is an ordinary checkpoint, with PEFT adapters beside it where it has any; the first adapter's run is also the
merged one. What an engine has to answer for a few prompts is computed by transformers and peft from the same files before
any engine starts, and an engine that answers otherwise is not timed.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.data.columns import ColumnStore
from lorascope.engine.artifact import Artifact
from lorascope.engine.context import StepContext
from lorascope.serving.engines import EngineProcess
from lorascope.serving.equivalence import EquivalenceGate, classification_gates, generation_gate
from lorascope.serving.exchange import Request
from lorascope.serving.export import Dtype, Workload, write_adapter, write_base, write_full, write_merged
from lorascope.serving.precision import MergePrecision, merge_precision
from lorascope.serving.reference import Continuations, OfflineModel
from lorascope.serving.trained import ADAPTER_CONFIG, TrainedRun, open_run
from lorascope.study.measure import ServingSpec, arm_name
from lorascope.study.spec import Seeds

GATE_TOKENS = 32
"""Tokens generated for each prompt of the check."""
_GATE_PROMPTS: Mapping[str, int] = {"classification": 64, "generation": 16}
_FEWEST_AN_ADAPTER: Mapping[str, int] = {"classification": 4, "generation": 2}
_GATE_BATCH = 8


@dataclass(frozen=True)
class Arm:
    """name: "base", "full", "merged", "adapters-4". model: the checkpoint an engine loads. adapters: name -> directory."""

    name: str
    model: Path
    adapters: Mapping[str, Path]


@dataclass(frozen=True)
class Expected:
    """What an arm has to answer. adapters: who answers each prompt (None: the model alone). answers: class probabilities
    [prompts, classes], or greedy continuations."""

    prompts: Sequence[Sequence[int]]
    adapters: Sequence[str | None]
    answers: np.ndarray | Continuations


class Arms:
    """The arms of one workload, prepared under `directory`. prompts: token ids that the loads are drawn from."""

    def __init__(
        self,
        context: StepContext,
        spec: ServingSpec,
        *,
        workload: Workload,
        prompts: Sequence[Sequence[int]],
        directory: Path,
    ) -> None:
        self._context, self._prompts = context, prompts
        self._workload: Workload = workload
        self._dtype: Dtype = "bfloat16" if spec.precision == "bf16" else "float32"
        self._directory = directory
        served = [artifact for role, artifact in context.deps.items() if role.startswith("adapter:")]
        self._adapters = {f"{place}-{_label(context, run)}": run for place, run in enumerate(served)}
        self.arms = {arm_name(arm): self._prepared(arm) for arm in spec.arms}
        self._expected = self._all_expected()

    @property
    def max_rank(self) -> int:
        """The largest rank among the adapters, exactly; 0 without any."""
        paths = [path / ADAPTER_CONFIG for arm in self.arms.values() for path in arm.adapters.values()]
        return max((json.loads(path.read_text())["r"] for path in paths), default=0)

    def check(self, engine: EngineProcess, arm: Arm) -> list[EquivalenceGate]:
        """What a started engine answers, held against what the arm has to answer. Adapters are mixed within batches."""
        expected = self._expected[arm.name]
        requests = [
            Request(
                id=index,
                prompt=prompt,
                adapter=adapter,
                output_tokens=GATE_TOKENS if self._workload == "generation" else 0,
            )
            for index, (prompt, adapter) in enumerate(zip(expected.prompts, expected.adapters, strict=True))
        ]
        batches = [requests[start : start + _GATE_BATCH] for start in range(0, len(requests), _GATE_BATCH)]
        served = engine.serve(batches, keep_outputs=True)
        outputs: list[Any] = [answer.output for answer in served.requests]
        if isinstance(expected.answers, Continuations):
            return [generation_gate(expected.answers, outputs, dtype=self._dtype)]
        return classification_gates(expected.answers, np.asarray(outputs), dtype=self._dtype)

    def merge_precision(self) -> MergePrecision:
        """What merging changes of the first adapter's answers to its own validation examples, whatever serves them."""
        run = next(iter(self._adapters.values()))
        tokens = next(a for a in self._context.deps.values() if a.id == run.step.deps["tokens"])
        examples = ColumnStore.open(tokens.path / "validation")
        return merge_precision(self._open(run), examples, workload=self._workload, device=self._context.device)

    # ----------------------------------------------------------------------------------------------- what is written

    def _prepared(self, arm: str | int) -> Arm:
        if arm == "full":
            return Arm("full", self._written("full", self._context.deps["full"], write_full), {})
        if arm == "merged":
            return Arm("merged", self._written("merged", next(iter(self._adapters.values())), write_merged), {})
        some_run = next(iter(self._adapters.values()), None) or self._context.deps["full"]
        base = self._written("base", some_run, write_base)
        names = list(self._adapters)[: arm if isinstance(arm, int) else 0]
        adapters = {name: self._written(f"adapter-{name}", self._adapters[name], write_adapter) for name in names}
        return Arm(arm_name(arm), base, adapters)

    def _written(self, name: str, run: Artifact, write: Callable[..., Path]) -> Path:
        """The directory of what is served, written unless it is there; a kill leaves none that is incomplete."""
        target = self._directory / name
        if not target.exists():
            draft = self._directory / f"{name}.new"
            shutil.rmtree(draft, ignore_errors=True)
            write(self._open(run), draft, workload=self._workload, dtype=self._dtype)
            draft.rename(target)
        return target

    def _open(self, run: Artifact) -> TrainedRun:
        context = self._context
        data = next(a for a in context.deps.values() if a.id == run.step.deps["data"])
        return open_run(run, data, cache_dir=context.cache_dir, locations=context.step.locations, warm=context.warm)

    # ---------------------------------------------------------------------------------------------- what is expected

    def _all_expected(self) -> dict[str, Expected]:
        """By arm. Every adapter answers once, the most prompts that any arm asks it, over a base that is read once."""
        by_model: dict[Path, list[Arm]] = {}
        for arm in self.arms.values():
            by_model.setdefault(arm.model, []).append(arm)
        found = {}
        for path, arms in by_model.items():
            adapters = {name: directory for arm in arms for name, directory in arm.adapters.items()}
            model = OfflineModel(
                path, workload=self._workload, dtype=self._dtype, device=self._context.device, adapters=adapters
            )
            askers = list(dict.fromkeys(asker for arm in arms for asker in _askers(arm)))
            most = {asker: max(self._prompts_each(arm) for arm in arms if asker in _askers(arm)) for asker in askers}
            answers = {asker: self._answers(model, self._prompts[: most[asker]], asker) for asker in askers}
            del model
            gc.collect()
            found |= {arm.name: self._expected_of(arm, answers) for arm in arms}
        return found

    def _prompts_each(self, arm: Arm) -> int:
        """How many prompts each of its adapters is asked."""
        return max(_FEWEST_AN_ADAPTER[self._workload], _GATE_PROMPTS[self._workload] // len(_askers(arm)))

    def _expected_of(self, arm: Arm, answers: Mapping[str | None, Any]) -> Expected:
        askers, prompts = _askers(arm), self._prompts[: self._prompts_each(arm)]
        turns = [(prompt, row, asker) for row, prompt in enumerate(prompts) for asker in askers]
        return Expected(
            prompts=[prompt for prompt, _, _ in turns],
            adapters=[asker for _, _, asker in turns],
            answers=_in_turn(answers, [(asker, row) for _, row, asker in turns]),
        )

    def _answers(self, model: OfflineModel, prompts: Sequence[Sequence[int]], adapter: str | None) -> Any:
        if self._workload == "generation":
            return model.greedy(prompts, num_tokens=GATE_TOKENS, adapter=adapter)
        return model.class_probabilities(prompts, adapter=adapter)


def _askers(arm: Arm) -> list[str | None]:
    """Who answers in an arm: its adapters, or the model alone."""
    return list(arm.adapters) or [None]


def _in_turn(answers: Mapping[str | None, Any], rows: Sequence[tuple[str | None, int]]) -> Any:
    """The answers of several adapters to the same prompts, as one set in the order of (adapter, prompt) rows."""

    def picked(arrays: Mapping[str | None, np.ndarray]) -> np.ndarray:
        return np.stack([arrays[asker][row] for asker, row in rows])

    if isinstance(next(iter(answers.values())), Continuations):
        fields = ("tokens", "margins", "best")
        return Continuations(
            *(picked({asker: getattr(answer, name) for asker, answer in answers.items()}) for name in fields)
        )
    return picked(answers)


def _label(context: StepContext, run: Artifact) -> str:
    """ "mrpc-42": the task and seed of a run."""
    task = next(role.partition(":")[2] for role, dep in context.step.deps.items() if dep == run.step.deps["data"])
    return f"{task}-{Seeds.model_validate(run.step.params['seeds']).label}"
