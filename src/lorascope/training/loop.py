"""The training loop: one run from its first update to its best checkpoint.

The state of a run is explicit (`Progress`): where in the data it is, what it has seen, the best weights so far. The
order of the data is a function of (order seed, epoch), so a resumed run meets the same batches without replaying any,
and an undisturbed run and a killed one end bit-identical.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.data.batches import epoch_batches, padded_length
from lorascope.engine.events import Emit, Metric, StepProgress
from lorascope.errors import GateFailure
from lorascope.methods.dropout import dropout_key
from lorascope.training.checkpoint import Checkpointer, random_state, restore_random_state
from lorascope.training.meters import Meters
from lorascope.training.predict import autocast, model_inputs, to_device
from lorascope.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorascope.data.columns import Examples
    from lorascope.data.task import Task
    from lorascope.methods.base import Method
    from lorascope.study.spec import Seeds, TrainSpec

Validation = Callable[[], dict[str, float]]
_CURVE_POINTS = 200
_SECONDS_BETWEEN_EVENTS = 1.0


@dataclass
class Progress:
    """Where a run is. update: updates done. best_*: the evaluation with the best score so far; stale: evaluations since."""

    update: int = 0
    best_update: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    stale: int = 0
    stopped_early: bool = False
    resumed: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


class TrainingLoop:
    """Trains a prepared model. validate: scores the model on the validation set and returns {metric: value, "loss"}.

    primary_metric: which of them selects the checkpoint (higher is better; ties go to the lower loss).
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        method: Method,
        task: Task,
        columns: Examples,
        train: TrainSpec,
        learning_rate: float,
        seeds: Seeds,
        pad_token_id: int,
        device: str,
        validate: Validation,
        emit: Emit | None = None,
        step_id: str | None = None,
    ) -> None:
        self.model, self.method, self.task, self.columns = model, method, task, columns
        self.train, self.learning_rate, self.seeds = train, learning_rate, seeds
        self.pad_token_id, self.device, self.validate = pad_token_id, device, validate
        self.emit, self.step_id = emit or (lambda event: None), step_id
        self.progress, self.meters = Progress(), Meters(device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimiser = adamw(method, model, train=train, learning_rate=learning_rate, device=device)
        self.best_weights: dict[str, Tensor] = {}
        self.updates_per_epoch = math.ceil(len(columns) / train.batch_size)
        self.total_updates = max(1, math.ceil(train.epochs * self.updates_per_epoch))
        self.evaluations = evaluation_points(self.total_updates, self.updates_per_epoch, train.evaluations_per_epoch)
        self._pending: list[Tensor] = []
        self._last_event = 0.0

    # ------------------------------------------------------------------------------------------------------- running

    def run(self, checkpointer: Checkpointer | None = None) -> Progress:
        """Trains to the end or to the early stop, then puts the best weights back. Raises GateFailure on NaN or Inf."""
        torch.manual_seed(self.seeds.dropout)
        state = checkpointer.load(self.device) if checkpointer else None
        if state is not None:
            self._restore(state)
        self.model.train()
        self.meters.begin()
        while self.progress.update < self.total_updates and not self.progress.stopped_early:
            self.advance()
            if self.progress.update in self.evaluations:
                self._evaluate()
            if checkpointer is not None and checkpointer.due():
                self._save(checkpointer)
        self.meters.pause_clock()
        self._drain()
        self.meters.book()
        self._put_back_best()
        return self.progress

    def advance(self) -> Tensor:
        """One update on the next batch; returns its mean loss, on the device."""
        loss = self._update(self._batch(self.progress.update))
        self._report()
        return loss

    def _batch(self, update: int) -> np.ndarray:
        """The rows of update `update`: a function of the order seed and the epoch alone."""
        epoch, position = divmod(update, self.updates_per_epoch)
        if getattr(self, "_epoch", None) != epoch:
            generator = np.random.default_rng([self.seeds.order, epoch])
            self._batches = epoch_batches(
                self.columns.lengths, batch_size=self.train.batch_size, generator=generator, group_by_length=True
            )
            self._epoch = epoch
        return self._batches[position]

    def _update(self, rows: np.ndarray) -> Tensor:
        factor = learning_rate_factor(
            self.progress.update,
            total=self.total_updates,
            warmup_fraction=self.train.warmup,
            schedule=self.train.schedule,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * factor
        loss = self.accumulate_gradients(rows)
        if self.train.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.train.gradient_clip)
        self.optimiser.step()
        self.progress.update += 1
        self.method.after_step(self.model, step=self.progress.update)
        self._pending.append(loss)
        return loss

    def accumulate_gradients(self, rows: np.ndarray) -> Tensor:
        """Gradients of the mean loss over `rows`, in micro-batches; returns that mean, on the device."""
        self.optimiser.zero_grad(set_to_none=True)
        micro = self.train.micro_batch_size or len(rows)
        losses, real, padded = [], 0, 0
        for start in range(0, len(rows), micro):
            part = rows[start : start + micro]
            lengths = np.asarray(self.columns.lengths)[part]
            length = padded_length(int(lengths.max()))
            arrays = self.task.collate(self.columns.gather(part), pad_token_id=self.pad_token_id, length=length)
            key = dropout_key(self.seeds.dropout, self.progress.update, start // micro)
            self.model.streams.set([key])  # type: ignore[union-attr] - DropoutStreams
            loss = self.loss_sum(to_device(arrays, self.device)) / len(rows)
            loss.backward()
            losses.append(loss.detach())
            real, padded = real + int(lengths.sum()), padded + length * len(part)
        self.meters.count(real_tokens=real, padded_tokens=padded)
        return torch.stack(losses).sum()

    def loss_sum(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the examples' losses, a differentiable scalar."""
        with autocast(self.device, self.train.precision):
            logits = self.model(**model_inputs(self.task, batch)).logits
        return self.task.loss_per_example(logits.float(), batch).sum()

    # ---------------------------------------------------------------------------------------------------- evaluating

    def _evaluate(self) -> None:
        self.meters.pause_clock()
        self._drain()
        scores = self.validate()
        progress = self.progress
        for name, value in scores.items():
            self._point(f"validation/{name}", value)
        score, loss = scores[self.task.primary_metric], scores["loss"]
        if not math.isfinite(loss):
            raise GateFailure(
                f"the validation loss is {loss} after update {progress.update} of {self.total_updates}",
                hint=f"the last updates broke the model: lower the learning rate ({self.learning_rate:g}), lengthen the "
                "warm-up, clip the gradient, or train in fp32",
            )
        if (score, -loss) > (progress.best_score, -progress.best_loss):
            progress.best_score, progress.best_loss = score, loss
            progress.best_update, progress.stale = progress.update, 0
            self.best_weights = {name: p.detach().to("cpu", copy=True) for name, p in self.trained.items()}
        else:
            progress.stale += 1
        stopping = self.train.early_stopping
        progress.stopped_early = (
            stopping is not None and progress.stale >= stopping.patience and progress.update < self.total_updates
        )
        self.meters.resume_clock(after_evaluation=True)

    def _put_back_best(self) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.best_weights[name])

    # ----------------------------------------------------------------------------------------------------- reporting

    def _report(self) -> None:
        every = max(1, self.total_updates // _CURVE_POINTS)
        if self.progress.update % every:
            return
        self._drain()
        self.meters.mark()
        self._point("train/loss", float(np.mean(self.progress.losses[-every:])))
        self._point("learning_rate", self.optimiser.param_groups[0]["lr"])
        now = time.perf_counter()
        if now - self._last_event >= _SECONDS_BETWEEN_EVENTS:
            self._last_event = now
            rates = {"tokens/s": self.meters.tokens_per_second()}
            self.emit(
                StepProgress(
                    step=self.step_id, done=self.progress.update, total=self.total_updates, unit="update", rates=rates
                )
            )

    def _drain(self) -> None:
        """Moves the pending losses off the device and refuses NaN and Inf."""
        if not self._pending:
            return
        values = torch.stack(self._pending).float().cpu().tolist()
        self._pending.clear()
        first = self.progress.update - len(values)
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                raise GateFailure(
                    f"the training loss became {value} at update {first + offset + 1} of {self.total_updates}",
                    hint=f"lower the learning rate ({self.learning_rate:g}), lengthen the warm-up, clip the gradient, "
                    "or train in fp32; if it is the first update, the data or the checkpoint hold NaN",
                )
        self.progress.losses.extend(values)

    def _point(self, name: str, value: float) -> None:
        update = self.progress.update
        self.progress.curve.append(
            {"update": update, "epoch": update / self.updates_per_epoch, "name": name, "value": float(value)}
        )
        self.emit(Metric(step=self.step_id, name=name, value=float(value), at=update))

    # --------------------------------------------------------------------------------------------------- kill, resume

    def _save(self, checkpointer: Checkpointer) -> None:
        self.meters.pause_clock()
        self._drain()
        checkpointer.save(
            {
                "progress": asdict(self.progress),
                "meters": self.meters.state(),
                "weights": {name: p.detach() for name, p in self.trained.items()},
                "best_weights": self.best_weights,
                "optimiser": self.optimiser.state_dict(),
                "random": random_state(self.device),
            }
        )
        self.meters.resume_clock()

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.progress.resumed += 1
        self.meters.restore(state["meters"])
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.best_weights = state["best_weights"]
        self.optimiser.load_state_dict(state["optimiser"])
        restore_random_state(state["random"], self.device)


def adamw(
    method: Method, model: PreTrainedModel, *, train: TrainSpec, learning_rate: float, device: str
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the method's parameter groups, fused where the device has it."""
    groups = [
        {"params": group.parameters, "weight_decay": train.weight_decay if group.decays else 0.0}
        for group in method.param_groups(model)
    ]
    fused = torch.device(device).type in ("cuda", "cpu", "mps")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=train.adam_betas, eps=train.adam_epsilon, fused=fused)


def evaluation_points(total_updates: int, updates_per_epoch: int, per_epoch: int) -> frozenset[int]:
    """The updates after which validation is scored: `per_epoch` times an epoch, and after the last update."""
    interval = updates_per_epoch / per_epoch
    count = math.floor(total_updates / interval)
    return frozenset({max(1, round(interval * k)) for k in range(1, count + 1)} | {total_updates})
