"""The arms of a comparison: what each serves, written to disk once, and what each must answer.

Every arm is an ordinary checkpoint, with PEFT adapters next to it where it has any; the first adapter's run is also the
merged one. What an engine answers to a few prompts is held against transformers and peft on the same files, and an engine
that answers otherwise is not timed.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.engine.store.artifact import Artifact
from lorascope.serving.engines import EngineProcess
from lorascope.serving.equivalence import EquivalenceGate, classification_gates, generation_gate
from lorascope.serving.exchange import Request
from lorascope.serving.export import Dtype, Workload, write_adapter, write_base, write_full, write_merged
from lorascope.serving.precision import MergePrecision, merge_precision
from lorascope.serving.reference import Classified, Generated, Judgement, OfflineModel
from lorascope.serving.trained import ADAPTER_CONFIG, TrainedRun, open_run
from lorascope.study.measure import ServingSpec, arm_name
from lorascope.study.spec import Seeds

GATE_TOKENS = 32
"""Tokens generated for each prompt of the check."""
_GATE_PROMPTS: Mapping[str, int] = {"classification": 64, "generation": 16}
_FEWEST_AN_ADAPTER: Mapping[str, int] = {"classification": 4, "generation": 2}
_GATE_BATCH = 8
_FP32_OVER_CHECKPOINT = 2  # at most


@dataclass(frozen=True)
class EngineArm:
    """name: "base", "full", "merged", "adapters-4". model: the checkpoint an engine loads. adapters: name -> directory."""

    name: str
    model: Path
    adapters: Mapping[str, Path]


@dataclass(frozen=True)
class _Question:
    """What an arm is asked before it is timed. prompts: token ids. adapters: who answers each; None: the model alone."""

    prompts: Sequence[Sequence[int]]
    adapters: Sequence[str | None]


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
        self._questions = {name: self._question(arm) for name, arm in self.arms.items()}
        self._classified = self._all_classified() if workload == "classification" else {}
        self._judged: dict[tuple[str, tuple[tuple[int, ...], ...]], Judgement] = {}

    @property
    def max_rank(self) -> int:
        """The largest rank among the adapters, exactly; 0 without any."""
        paths = [path / ADAPTER_CONFIG for arm in self.arms.values() for path in arm.adapters.values()]
        return max((json.loads(path.read_text())["r"] for path in paths), default=0)

    def check(self, engine: EngineProcess, arm: EngineArm) -> list[EquivalenceGate]:
        """What a started engine answers, held against what the arm has to answer. Adapters are mixed within batches."""
        question = self._questions[arm.name]
        requests = [
            Request(
                id=index,
                prompt=prompt,
                adapter=adapter,
                output_tokens=GATE_TOKENS if self._workload == "generation" else 0,
            )
            for index, (prompt, adapter) in enumerate(zip(question.prompts, question.adapters, strict=True))
        ]
        batches = [requests[start : start + _GATE_BATCH] for start in range(0, len(requests), _GATE_BATCH)]
        outputs: list[Any] = [answer.output for answer in engine.serve(batches, keep_outputs=True).requests]
        if self._workload == "classification":
            return classification_gates(self._classified[arm.name], np.asarray(outputs), dtype=self._dtype)
        judged = self._judgement(arm, tuple(tuple(tokens)[:GATE_TOKENS] for tokens in outputs))
        return [generation_gate(judged, num_tokens=GATE_TOKENS * len(requests), dtype=self._dtype)]

    def merge_precision(self) -> MergePrecision:
        """What merging changes of the first adapter's answers to its own validation examples, whatever serves them."""
        run = next(iter(self._adapters.values()))
        tokens = next(a for a in self._context.deps.values() if a.id == run.step.deps["tokens"])
        examples = ColumnStore.open(tokens.file("validation"))
        return merge_precision(self._open(run), examples, workload=self._workload, device=self._context.device)

    # ----------------------------------------------------------------------------------------------- what is written

    def _prepared(self, arm: str | int) -> EngineArm:
        if arm == "full":
            return EngineArm("full", self._written("full", self._context.deps["full"], write_full), {})
        if arm == "merged":
            return EngineArm("merged", self._written("merged", next(iter(self._adapters.values())), write_merged), {})
        some_run = next(iter(self._adapters.values()), None) or self._context.deps["full"]
        base = self._written("base", some_run, write_base)
        names = list(self._adapters)[: arm if isinstance(arm, int) else 0]
        adapters = {name: self._written(f"adapter-{name}", self._adapters[name], write_adapter) for name in names}
        return EngineArm(arm_name(arm), base, adapters)

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

    def _question(self, arm: EngineArm) -> _Question:
        """Each of its adapters, or the model alone, is asked the same prompts."""
        askers: list[str | None] = list(arm.adapters) or [None]
        each = max(_FEWEST_AN_ADAPTER[self._workload], _GATE_PROMPTS[self._workload] // len(askers))
        turns = [(prompt, asker) for prompt in self._prompts[:each] for asker in askers]
        return _Question([prompt for prompt, _ in turns], [asker for _, asker in turns])

    def _all_classified(self) -> dict[str, Classified]:
        """By arm, of each prompt that it is asked. Every adapter answers once, over a base that is read once."""
        by_model: dict[Path, list[EngineArm]] = {}
        for arm in self.arms.values():
            by_model.setdefault(arm.model, []).append(arm)
        found = {}
        for path, arms in by_model.items():
            adapters = {name: directory for arm in arms for name, directory in arm.adapters.items()}
            row_of = {
                asked: row for row, asked in enumerate(dict.fromkeys(a for arm in arms for a in self._asked(arm)))
            }
            answers = self._offline(path, adapters).classify(list(row_of))
            _let_go(self._context.device)
            found |= {arm.name: answers.of([row_of[asked] for asked in self._asked(arm)]) for arm in arms}
        return found

    def _asked(self, arm: EngineArm) -> Iterator[tuple[tuple[int, ...], str | None]]:
        question = self._questions[arm.name]
        return zip(map(tuple, question.prompts), question.adapters, strict=True)

    def _judgement(self, arm: EngineArm, outputs: tuple[tuple[int, ...], ...]) -> Judgement:
        """What the reference holds of what an engine generated; a process that generates the same is not judged again."""
        if (arm.name, outputs) not in self._judged:
            generated = [
                Generated(prompt, adapter, tokens)
                for (prompt, adapter), tokens in zip(self._asked(arm), outputs, strict=True)
            ]
            self._judged[arm.name, outputs] = self._offline(arm.model, arm.adapters).judge(generated)
            _let_go(self._context.device)
        return self._judged[arm.name, outputs]

    def _offline(self, model: Path, adapters: Mapping[str, Path]) -> OfflineModel:
        device = _device_with_room(self._context.device, model)
        return OfflineModel(model, workload=self._workload, dtype=self._dtype, device=device, adapters=adapters)


def _device_with_room(device: str, model: Path) -> str:
    """The device, or the processor where what is loaded there (engines that wait, the base that was trained) leaves too
    little memory for the checkpoint in fp32."""
    import torch

    if not device.startswith("cuda"):
        return device
    needed = _FP32_OVER_CHECKPOINT * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    free, _ = torch.cuda.mem_get_info(device)
    return device if needed < free / 2 else "cpu"


def _let_go(device: str) -> None:
    """Memory and caches that the engines measured next would miss."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _label(context: StepContext, run: Artifact) -> str:
    """ "mrpc-42": the task and seed of a run."""
    task = next(role.partition(":")[2] for role, dep in context.step.deps.items() if dep == run.step.deps["data"])
    return f"{task}-{Seeds.model_validate(run.step.params['seeds']).label}"
