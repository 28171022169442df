"""One run of a gang: its data order, its schedule, what it has seen, its best weights. It knows nothing of the others.

The order of the data is a function of (order seed, epoch) and dropout one of (dropout seed, update), so a resumed run
meets the same batches and masks without replaying any, and a run in a gang the same as alone. The order seed decides
which examples make a batch; when short batches come and when long ones is the same for every seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.data.batches import epoch_batches
from lorascope.engine.events import CurvePoint, Emit, Notice, StepProgress
from lorascope.errors import Diverged, StudyError
from lorascope.metrics.quality import quality
from lorascope.training.meters import Meters
from lorascope.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorascope.data.columns import Examples
    from lorascope.methods.base import Method
    from lorascope.study.spec import Seeds, TrainSpec
    from lorascope.tasks.task import Task
    from lorascope.training.reading import Reading

Validation = Callable[["nn.Module"], dict[str, float]]
Observation = Callable[["nn.Module"], dict[str, float]]
_CURVE_POINTS = 200
_SEQUENCE_SEED = 20261123


@dataclass
class Progress:
    """Where a run is. update: updates done; evaluated: the last of them after which validation was scored. best_*: the
    evaluation with the best score so far (before the first: one that any score beats); stale: evaluations since.
    observed, snapshots: the last update at which the run was looked at, and what was seen, one row an update and name."""

    update: int = 0
    evaluated: int = 0
    best_update: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    stale: int = 0
    stopped_early: bool = False
    resumed: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    observed: int = 0
    snapshots: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """How a run trains. stops: shares of all updates after which it is scored too; the last is where it ends, its schedule
    that of the whole training."""

    train: TrainSpec
    learning_rate: float
    seeds: Seeds
    stops: Sequence[float] = (1.0,)


@dataclass(frozen=True)
class Callbacks:
    """What is called while a run trains. validate: scores a one-run model on the validation set and returns
    {metric: value, "loss"}. emit: takes the events, which carry step_id. observe: looks at the model `num_snapshots` times
    in the course of training. keep: takes the state the run ends in, to go on from."""

    validate: Validation
    emit: Emit = lambda event: None
    step_id: str | None = None
    observe: Observation | None = None
    num_snapshots: int = 0
    keep: Callable[[dict[str, Any]], None] | None = None


class Member:
    """columns: the training examples. problem: why the run broke, None while it is sound.

    The task's primary metric selects the checkpoint, in its direction; ties go to the lower loss.
    """

    def __init__(
        self, *, method: Method, reading: Reading, columns: Examples, recipe: Recipe, callbacks: Callbacks
    ) -> None:
        self.method, self.reading, self.columns = method, reading, columns
        self.train = train = recipe.train
        self.learning_rate, self.seeds = recipe.learning_rate, recipe.seeds
        self.validate, self.observe, self.keep = callbacks.validate, callbacks.observe, callbacks.keep
        self.emit, self.step_id = callbacks.emit, callbacks.step_id
        self.metric = quality(self.task.primary_metric)
        self.progress, self.meters = Progress(best_score=self.metric.worst), Meters()
        self.best_weights: dict[str, Tensor] = {}
        self.updates_per_epoch = math.ceil(len(columns) / train.batch_size)
        self.total_updates = max(1, math.ceil(train.epochs * self.updates_per_epoch))
        points = evaluation_points(self.total_updates, self.updates_per_epoch, train.evaluations_per_epoch)
        looks = [max(1, math.ceil(share * self.total_updates)) for share in recipe.stops]
        self.last_update = looks[-1]
        self.evaluations = points | frozenset(looks)
        count = callbacks.num_snapshots
        self.observations = {round(self.total_updates * k / count) for k in range(1, count + 1)} - {0}
        self.problem: Exception | None = None
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    @property
    def task(self) -> Task:
        return self.reading.task

    @property
    def is_due(self) -> bool:
        """Whether validation is to be scored now."""
        return self.progress.update in self.evaluations and self.progress.evaluated < self.progress.update

    @property
    def is_to_be_observed(self) -> bool:
        """Whether a snapshot is to be taken now."""
        return self.progress.update in self.observations and self.progress.observed < self.progress.update

    @property
    def is_done(self) -> bool:
        return self.progress.update >= self.last_update or self.progress.stopped_early

    @property
    def micro_batch_size(self) -> int:
        return self.train.micro_batch_size or self.train.batch_size

    def rows(self, update: int) -> np.ndarray:
        """The examples of update `update`: a function of the order seed and the epoch alone."""
        epoch, position = divmod(update, self.updates_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            batches = epoch_batches(
                self.columns.lengths,
                batch_size=self.train.batch_size,
                generator=np.random.default_rng([self.seeds.order, epoch]),
                sequence=np.random.default_rng([_SEQUENCE_SEED, epoch]),
            )
            self._epoch = epoch, batches
        return self._epoch[1][position]

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """What each of these rows counts in a mean of losses, float64 [rows]."""
        column = self.task.scoring.weight_column
        return np.ones(len(rows)) if column is None else self.columns.values(column, rows).astype(np.float64)

    def rate(self, update: int) -> float:
        """The learning rate of update `update`."""
        return self.learning_rate * learning_rate_factor(
            update, total=self.total_updates, warmup_fraction=self.train.warmup, schedule=self.train.schedule
        )

    def note_losses(self, values: list[float]) -> None:
        """The losses of the updates since the last call. Raises Diverged for NaN and Inf."""
        progress = self.progress
        every = max(1, self.total_updates // _CURVE_POINTS)
        for value in values:
            update = len(progress.losses) + 1
            if not math.isfinite(value):
                raise Diverged(
                    f"the training loss became {value} at update {update} of {self.total_updates}",
                    hint=f"lower the learning rate ({self.learning_rate:g}), lengthen the warm-up, clip the gradient, "
                    "or train in fp32; if it is the first update, the data or the checkpoint hold NaN",
                )
            progress.losses.append(value)
            if update % every == 0:
                self._point("train/loss", float(np.mean(progress.losses[-every:])), update)
                self._point("learning_rate", self.rate(update - 1), update)

    def note_scores(self, scores: Mapping[str, float]) -> bool:
        """An evaluation's outcome; True if it is the best so far. Raises Diverged for a loss of NaN or Inf."""
        progress = self.progress
        for name, value in scores.items():
            self._point(f"validation/{name}", value, progress.update)
        score, loss = scores[self.metric.name], scores["loss"]
        progress.evaluated = progress.update
        for name, value in (("loss", loss), (self.metric.name, score)):
            if math.isfinite(value):
                continue
            raise Diverged(
                f"the validation {name} is {value} after update {progress.update} of {self.total_updates}",
                hint=f"the last updates broke the model: lower the learning rate ({self.learning_rate:g}), lengthen the "
                "warm-up, clip the gradient, or train in fp32",
            )
        is_best = self.metric.is_better(score, progress.best_score) or (
            score == progress.best_score and loss < progress.best_loss
        )
        if is_best:
            progress.best_score, progress.best_loss = score, loss
            progress.best_update, progress.stale = progress.update, 0
        else:
            progress.stale += 1
        stopping = self.train.early_stopping
        progress.stopped_early = (
            stopping is not None and progress.stale >= stopping.patience and progress.update < self.total_updates
        )
        return is_best

    def note_snapshot(self, model: nn.Module) -> None:
        """Looks at the run's model as it is now."""
        assert self.observe is not None
        progress = self.progress
        progress.observed = progress.update
        try:
            seen = self.observe(model)
        except StudyError as error:  # what cannot be looked at is no reason to stop
            text = f"no snapshot at update {progress.update}: {error.message}"
            self.emit(Notice(step=self.step_id, level="warning", text=text))
            return
        progress.snapshots += [{"update": progress.update, "name": name, "value": v} for name, v in seen.items()]

    def report(self, *, is_taken_up: bool = False) -> None:
        """Says how far it is. is_taken_up: it has done nothing yet since it was begun or resumed."""
        self.emit(
            StepProgress(
                step=self.step_id,
                done=self.progress.update,
                total=self.last_update,
                unit="update",
                rates={f"{self.task.inputs.unit}s/s": self.meters.tokens_per_second()},
                is_even=not is_taken_up,
            )
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the weights and the optimiser."""
        return {"progress": asdict(self.progress), "meters": self.meters.state(), "best_weights": self.best_weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.meters.restore(state["meters"])
        self.best_weights = state["best_weights"]

    def _point(self, name: str, value: float, update: int) -> None:
        self.progress.curve.append(
            {"update": update, "epoch": update / self.updates_per_epoch, "name": name, "value": float(value)}
        )
        self.emit(CurvePoint(step=self.step_id, name=name, value=float(value), at=update))


def evaluation_points(total_updates: int, updates_per_epoch: int, per_epoch: int) -> frozenset[int]:
    """The updates after which validation is scored: `per_epoch` times an epoch, and after the last update."""
    interval = updates_per_epoch / per_epoch
    count = math.floor(total_updates / interval)
    return frozenset({max(1, round(interval * k)) for k in range(1, count + 1)} | {total_updates})
