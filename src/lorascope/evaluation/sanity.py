"""The `sanity` step: what must hold before a (model, task, method) may be trained at all.

Each gate catches a defect found in published work: adapters that train nothing, bases that move, runs that do not
repeat, accumulation that changes the gradient, models that cannot learn ten examples. The first gate that fails stops
that part of the study with a message that says what it means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lorascope.data.columns import ColumnStore, example_numbers
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.errors import GateFailure
from lorascope.methods.dropout import silence_dropout
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.tasks.description import task_from_result
from lorascope.training.gang import Gang
from lorascope.training.member import Callbacks, Member, Recipe
from lorascope.training.preparation import (
    base_for,
    make_deterministic,
    method_from_params,
    prepared_model,
    reading_for,
)
from lorascope.training.reading import Reading
from lorascope.training.run import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorascope.methods.base import Method
    from lorascope.models.loading import BaseModel

OVERFIT_EXAMPLES = 10
OVERFIT_EPOCHS = 50
OVERFIT_LOSS = 0.1
_OVERFIT_RATES = (1, 3, 10, 30, 0.3, 0.1)  # the lower ones for a rate that suits a larger batch, after a warm-up
_ACCUMULATION_TOLERANCE = 1e-4
_DETERMINISM_UPDATES = 3
_SEEDS = Seeds.model_validate(0)


@dataclass(frozen=True)
class Gate:
    """One gate's outcome. value and threshold are None where there is nothing to compare."""

    gate: str
    passed: bool
    value: float | None
    threshold: float | None
    detail: str


@dataclass(frozen=True)
class Bench:
    """What the gates share: the base, the method and some training data of one (model, task, method)."""

    base: BaseModel
    method: Method
    reading: Reading
    columns: ColumnStore
    train: TrainSpec
    learning_rate: float

    @property
    def device(self) -> str:
        return self.reading.device

    def model(self) -> PreTrainedModel:
        """The method's model as training starts from it."""
        return prepared_model(self.base, [self.method], [_SEEDS])[0]

    def gang(self, *, rows: np.ndarray, learning_rate: float | None = None, **train: Any) -> Gang:
        """A run over `rows` alone, with some training settings replaced; it never evaluates by itself."""
        settings = self.train.model_copy(update={"epochs": OVERFIT_EPOCHS, **train})
        member = Member(
            method=self.method,
            reading=self.reading,
            columns=self.columns.subset(rows),
            recipe=Recipe(settings, learning_rate or self.learning_rate, _SEEDS),
            callbacks=Callbacks(lambda model: {}),
        )
        return Gang(
            [member],
            prepare=lambda members: prepared_model(self.base, [self.method], [_SEEDS]),
        )


def check_sanity(context: StepContext) -> dict[str, Any]:
    """Runs every gate; raises GateFailure at the first that does not hold. params: model, method, train, learning_rate."""
    params = context.step.params
    make_deterministic(context.device)
    task = task_from_result(context.deps["data"].result)
    train = TrainSpec.model_validate(params["train"])
    try:
        base = base_for(context, task)
        if base.origin is not None and base.origin.remark:
            context.emit(Notice(step=context.step.id, level="info", text=base.origin.remark))
        bench = Bench(
            base=base,
            method=method_from_params(params["method"]),
            reading=reading_for(context, task, base, precision=train.precision),
            columns=ColumnStore.open(context.deps["tokens"].file("train")),
            train=train,
            learning_rate=params["learning_rate"],
        )
        gates = []
        for gate in run_gates(bench):
            gates.append(gate)
            context.emit(StepProgress(step=context.step.id, done=len(gates), total=len(_GATES), unit="gate"))
            if not gate.passed:
                raise GateFailure(f"gate `{gate.gate}` failed: {gate.detail}", hint=_MEANING[gate.gate])
    except torch.OutOfMemoryError as error:
        raise out_of_memory(context, str(error)) from error
    return {"gates": [asdict(gate) for gate in gates]}


def run_gates(bench: Bench) -> Iterator[Gate]:
    """The gates one by one, cheapest first."""
    for gate in _GATES:
        yield gate(bench)


def _rows(bench: Bench, count: int) -> np.ndarray:
    """All rows of `count` examples, or of all examples if there are fewer."""
    return _rows_of_examples(bench, count, np.random.default_rng(0))


def _rows_of_examples(bench: Bench, count: int, generator: np.random.Generator) -> np.ndarray:
    owners = example_numbers(bench.columns.ids)
    examples = int(owners.max()) + 1
    chosen = generator.choice(examples, size=min(count, examples), replace=False)
    return np.flatnonzero(np.isin(owners, chosen))


def _unlike_rows(bench: Bench, count: int) -> np.ndarray:
    """All rows of `count` examples whose targets are not all the same: ten of one class are learnt by a constant."""
    generator = np.random.default_rng(0)
    for _ in range(1000):
        rows = _rows_of_examples(bench, count, generator)
        length = int(np.asarray(bench.columns.lengths)[rows].max())
        batch = bench.reading.collate(bench.columns.gather(rows), length=bench.reading.padded(length))
        if any(len(np.unique(batch[name], axis=0)) > 1 for name in bench.reading.task.target_keys):
            break
    return rows


# ------------------------------------------------------------------------------------------------------------- gates


def equals_base_at_initialisation(bench: Bench) -> Gate:
    """Before the first update the prepared model computes what the base with the same head computes."""
    rows = _rows(bench, 16)
    reading = bench.reading.to("fp32")
    plain = bench.base.copy(torch.Generator().manual_seed(0), share_frozen=True).eval()
    expected = reading.signatures(plain, bench.columns, rows=rows)
    found = reading.signatures(bench.model(), bench.columns, rows=rows)
    difference = float(np.abs(expected - found).max())
    tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
    return Gate(
        "equals base at initialisation", difference <= tolerance, difference, tolerance,
        f"largest difference of outputs on {len(rows)} rows: {difference:.2g}",
    )  # fmt: skip


def gradient_census(bench: Bench) -> Gate:
    """Exactly the declared parameters get gradients, as many as the formula says, and no other weight moves a bit."""
    rows = _rows(bench, 2 * bench.train.batch_size)
    gang = bench.gang(rows=rows)
    before = {name: p.detach().clone() for name, p in gang.model.named_parameters() if not p.requires_grad}
    gang.advance()
    gang.advance()
    gang.accumulate_gradients([np.arange(min(len(rows), bench.train.batch_size))])
    gradients = gang.flat.row(gang.flat.gradients[0])
    silent = [name for name, gradient in gradients.items() if not bool(gradient.any())]
    frozen = [(name, p) for name, p in gang.model.named_parameters() if name in before]
    leaking = [name for name, p in frozen if p.grad is not None]
    moved = [name for name, p in frozen if not torch.equal(p, before[name])]
    count = gang.flat.num_parameters
    expected = bench.method.expected_parameters(bench.base.model, head=bench.base.head)
    problems = [
        *([f"{len(silent)} declared parameters get no gradient, such as {silent[0]}"] if silent else []),
        *([f"{len(leaking)} frozen parameters get a gradient, such as {leaking[0]}"] if leaking else []),
        *([f"{len(moved)} frozen parameters moved, such as {moved[0]}"] if moved else []),
        *([f"{count:,} parameters are trained, the formula says {expected:,}"] if count != expected else []),
    ]
    detail = "; ".join(problems) or f"{count:,} parameters trained, as the formula says; nothing else moved"
    return Gate("gradient census", not problems, float(count), float(expected), detail)


def same_seed_same_losses(bench: Bench) -> Gate:
    """Two runs from one seed have bit-identical losses."""
    rows = _rows(bench, _DETERMINISM_UPDATES * bench.train.batch_size)
    losses = []
    for _ in range(2):
        gang = bench.gang(rows=rows)
        losses.append([float(gang.advance()) for _ in range(gang.members[0].updates_per_epoch)])
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return Gate(
        "same seed, same losses", losses[0] == losses[1], difference, 0.0,
        f"largest difference over {len(losses[0])} updates: {difference:.2g}",
    )  # fmt: skip


def accumulation_changes_nothing(bench: Bench) -> Gate:
    """16 examples at once and 16 one by one give the same gradient (fp32, dropout off)."""
    rows = _rows(bench, 16)
    gradients = []
    for micro in (len(rows), 1):
        gang = bench.gang(rows=rows, batch_size=len(rows), micro_batch_size=micro, precision="fp32")
        gang.model.eval()
        gang.accumulate_gradients([np.arange(len(rows))])
        gradients.append(gang.flat.gradients[0].double())
    whole, pieces = gradients
    difference = float((whole - pieces).norm() / whole.norm())
    return Gate(
        "gradient accumulation", difference <= _ACCUMULATION_TOLERANCE, difference, _ACCUMULATION_TOLERANCE,
        f"relative difference of the gradient, {len(rows)} x 1 v 1 x {len(rows)}: {difference:.2g}",
    )  # fmt: skip


def overfits_ten(bench: Bench) -> Gate:
    """Ten examples are learnt by heart within 50 epochs (dropout off; at the run's learning rate, or from a tenth of
    it to 30 times it)."""
    rows = _unlike_rows(bench, OVERFIT_EXAMPLES)
    examples = len(np.unique(bench.columns.ids[rows]))
    best = (math.inf, 0.0)
    for factor in _OVERFIT_RATES:
        rate = bench.learning_rate * factor
        gang = bench.gang(
            rows=rows, learning_rate=rate, epochs=OVERFIT_EPOCHS, batch_size=5, micro_batch_size=None,
            schedule="constant", warmup=0.0, weight_decay=0.0,
        )  # fmt: skip
        silence_dropout(gang.model)
        updates = gang.members[0].updates_per_epoch
        for epoch in range(1, OVERFIT_EPOCHS + 1):
            mean = sum(float(gang.advance()) for _ in range(updates)) / updates
            if not mean < OVERFIT_LOSS:
                continue
            loss, score = _fit(bench, gang.views[0], rows)
            best = min(best, (loss, score))
            if loss < OVERFIT_LOSS and score == 1.0:
                return Gate(
                    "overfit-10", True, loss, OVERFIT_LOSS,
                    f"{examples} examples learnt in {epoch} epochs at learning rate {rate:g}",
                )  # fmt: skip
        best = min(best, _fit(bench, gang.views[0], rows))
    tried = ", ".join(f"{bench.learning_rate * factor:g}" for factor in _OVERFIT_RATES)
    return Gate(
        "overfit-10", False, best[0], OVERFIT_LOSS,
        f"after {OVERFIT_EPOCHS} epochs on {examples} examples the loss is {best[0]:.3f} and "
        f"{math.floor(100 * best[1])}% are right; wanted: below {OVERFIT_LOSS} and 100% (learning rates tried: {tried})",
    )  # fmt: skip


def _fit(bench: Bench, model: nn.Module, rows: np.ndarray) -> tuple[float, float]:
    scoring = bench.reading.task.scoring
    frame = bench.reading.predict(model, bench.columns.subset(rows))
    return scoring.mean_loss(frame), float(scoring.right(frame).mean())


_GATES = (
    equals_base_at_initialisation,
    gradient_census,
    same_seed_same_losses,
    accumulation_changes_nothing,
    overfits_ten,
)
_MEANING = {
    "equals base at initialisation": "the method changes the model before it has learnt anything, so drift and accuracy "
    "would be measured from the wrong place; check its initialisation (LoRA's B must be zero)",
    "gradient census": "what is trained is not what the study says; check `sites` and the method's `prepare`",
    "same seed, same losses": "runs do not repeat, so seeds mean nothing; look for unseeded randomness or "
    "non-deterministic kernels",
    "gradient accumulation": "batch_size would mean something else when split into micro-batches; look at padding "
    "(attention mask) and at how the loss is averaged",
    "overfit-10": "a model that cannot learn ten examples by heart cannot learn the task: raise the method's "
    "learning_rate or rank, or check labels, pooling and frozen parts",
}
