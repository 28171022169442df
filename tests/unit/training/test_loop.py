"""The loop's parts: schedules, evaluation points, early stopping, the NaN gate, checkpoints, memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_run import OneRun
from tiny import step_context, tiny_base, tiny_columns, tiny_examples
from transformers import AutoTokenizer

from lorascope.engine.step import Step
from lorascope.errors import GateFailure
from lorascope.methods.full import FullFineTuning
from lorascope.study.methods.full import FullSpec
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.study.train import EarlyStopping
from lorascope.training.checkpoint import Checkpointer, save_together
from lorascope.training.member import evaluation_points
from lorascope.training.meters import GangClock, Meters
from lorascope.training.run import frozen_fingerprint, out_of_memory
from lorascope.training.schedule import learning_rate_factor


def factors(total: int, **settings: Any) -> list[float]:
    return [learning_rate_factor(update, total=total, **settings) for update in range(total)]


def test_linear_schedule_rises_then_falls_to_zero() -> None:
    rates = factors(10, warmup_fraction=0.2, schedule="linear")
    np.testing.assert_allclose(rates[:3], [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(np.diff(rates[2:]), -1 / 8)
    assert rates[-1] > 0


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    for schedule in ("linear", "cosine", "constant"):
        assert factors(5, warmup_fraction=0.0, schedule=schedule)[0] == 1.0
    assert set(factors(5, warmup_fraction=0.0, schedule="constant")) == {1.0}


def test_cosine_schedule_is_half_way_at_the_middle() -> None:
    assert factors(11, warmup_fraction=0.0, schedule="cosine")[5] == pytest.approx(0.5, abs=0.08)


def test_schedule_agrees_with_transformers_after_warmup() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimiser, 0, 20)
    expected = []
    for _ in range(20):
        expected.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    np.testing.assert_allclose(factors(20, warmup_fraction=0.0, schedule="linear"), expected)


@pytest.mark.parametrize(
    ("total", "per_epoch", "times", "expected"),
    [(30, 10, 1, {10, 20, 30}), (25, 10, 1, {10, 20, 25}), (10, 10, 2, {5, 10}), (1, 1, 4, {1}), (5, 10, 1, {5})],
)
def test_validation_is_scored_per_epoch_and_at_the_end(
    total: int, per_epoch: int, times: int, expected: set[int]
) -> None:
    assert evaluation_points(total, per_epoch, times) == expected


def make_loop(checkpoint: Path, directory: Path, validate: Any, **train: Any) -> OneRun:
    base, method = tiny_base(checkpoint), FullFineTuning(FullSpec(name="full", kind="full"))
    columns = tiny_columns(directory, tiny_examples(32), AutoTokenizer.from_pretrained(checkpoint))
    return OneRun(
        base, method, columns=columns, train=TrainSpec(batch_size=8, **train), learning_rate=1e-3,
        seeds=Seeds.model_validate(0), validate=validate,
    )  # fmt: skip


def scripted(*scores: float) -> Any:
    """A validation that returns these scores in turn."""
    remaining = iter(scores)
    return lambda model: {"accuracy": next(remaining), "loss": 1.0}


def test_early_stopping_waits_for_patience_and_keeps_the_best(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    stopping = EarlyStopping(patience=2)
    loop = make_loop(
        tiny_checkpoints["bert"], tmp_path / "c", scripted(0.5, 0.7, 0.6, 0.7, 0.9), epochs=5, early_stopping=stopping
    )
    progress = loop.run()
    assert (progress.stopped_early, progress.best_update, progress.update) == (True, 8, 16)
    assert all(torch.equal(p, loop.member.best_weights[name]) for name, p in loop.trained.items())


def test_ties_go_to_the_lower_loss(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    evaluations = iter([{"accuracy": 0.5, "loss": 0.9}, {"accuracy": 0.5, "loss": 0.8}])
    loop = make_loop(tiny_checkpoints["bert"], tmp_path / "c", lambda model: next(evaluations), epochs=2)
    assert loop.run().best_update == 8


def test_nan_loss_stops_the_run_and_names_the_update(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    loop = make_loop(tiny_checkpoints["bert"], tmp_path / "c", scripted(*[0.5] * 9), epochs=3)
    with torch.no_grad():
        next(iter(loop.trained.values())).fill_(float("nan"))
    with pytest.raises(GateFailure, match=r"the training loss became nan at update 1 of 12") as caught:
        loop.run()
    assert "lower the learning rate (0.001)" in str(caught.value.hint)


def test_nan_validation_stops_the_run(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    broken = {"accuracy": 0.5, "loss": float("nan")}
    loop = make_loop(tiny_checkpoints["bert"], tmp_path / "c", lambda model: broken, epochs=1)
    with pytest.raises(GateFailure, match="the validation loss is nan after update 4 of 4"):
        loop.run()


def test_energy_is_shared_out_and_kept_over_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = iter([100.0, 130.0, 500.0, 520.0])
    monkeypatch.setattr("lorascope.training.meters.energy_meter", lambda device: lambda: next(reading))
    first, other = Meters(), Meters()
    GangClock("cpu").book([first, other], "training", updates=1)
    assert first.energy_joules == other.energy_joules == 15.0
    resumed = Meters()
    resumed.restore(first.state())
    GangClock("cpu").book([resumed], "evaluation")
    assert resumed.energy_joules == 35.0
    assert resumed.training_seconds == first.training_seconds > 0
    assert resumed.evaluation_seconds > 0


def test_each_epoch_sees_every_example_once_in_another_order(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    loop = make_loop(tiny_checkpoints["bert"], tmp_path / "c", scripted(), epochs=2)
    epochs = [np.concatenate([loop.member.rows(4 * epoch + i) for i in range(4)]) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert list(epochs[0]) != list(epochs[1])


def test_order_depends_on_the_order_seed_alone(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    loop = make_loop(tiny_checkpoints["bert"], tmp_path / "c", scripted(), epochs=2)
    late = list(loop.member.rows(6))
    loop.member.rows(1)
    assert list(loop.member.rows(6)) == late


def test_checkpoint_writing_is_bounded_by_its_share_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASCOPE_CHECKPOINT_SECONDS", "0")
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.due()
    save_together([(checkpointer, {"weights": {"w": torch.ones(3)}})])
    assert not checkpointer.due()
    loaded = checkpointer.load("cpu")
    assert loaded is not None
    assert torch.equal(loaded["weights"]["w"], torch.ones(3))


def test_a_kill_while_writing_leaves_the_gangs_checkpoints(tmp_path: Path) -> None:
    """A run that went on from another update than the others of its gang would share other batches."""
    gang = [Checkpointer(tmp_path / name) for name in "ab"]
    for checkpointer in gang:
        checkpointer.path.parent.mkdir()
    save_together([(checkpointer, {"update": 1}) for checkpointer in gang])

    def states() -> Iterator[tuple[Checkpointer, dict[str, Any]]]:
        yield gang[0], {"update": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_together(states())
    assert [checkpointer.load("cpu") for checkpointer in gang] == [{"update": 1}] * 2


def test_a_moved_frozen_weight_is_noticed() -> None:
    model = torch.nn.Linear(4, 4)
    model.requires_grad_(False)
    before = frozen_fingerprint(model)
    model.weight[0, 0] += 1e-3
    assert frozen_fingerprint(model) != before


def test_out_of_memory_says_which_settings_to_lower(tmp_path: Path) -> None:
    step = Step(kind="train", version=1, params={"train": TrainSpec(batch_size=16).model_dump(mode="json")})
    error = out_of_memory(step_context(tmp_path, step, {}, device="cuda:0"), "tried 2 GiB")
    assert str(error) == (
        "cuda:0 ran out of memory (tried 2 GiB)\n"
        "  hint: lower train.micro_batch_size (now 16; gradients are accumulated to batch_size 16, so the run stays the "
        "same experiment), then train.max_length (now 384), or set train.precision: bf16 (now fp32)"
    )
