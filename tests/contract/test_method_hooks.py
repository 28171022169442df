"""The hooks of a method inside an update: called alone and in a gang of two with equal results, and never mixing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_contract import GANG_TOLERANCE, TRAIN, Killed, kill_after, relative
from one_run import OneRun
from tiny import tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import Tensor, nn
from transformers import AutoTokenizer

from lorascope.data.columns import ColumnStore
from lorascope.errors import StudyError
from lorascope.methods.base import Moment
from lorascope.methods.lora import LoRA
from lorascope.methods.stacked import StackedLoRALinear
from lorascope.models.loading import BaseModel
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.tasks.class_scoring import ClassScoring
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Gang
from lorascope.training.member import Callbacks, Member, Recipe
from lorascope.training.preparation import prepared_model

SHARE, WARM_UPDATES = 0.5, 2


class Idle(LoRA):
    """It trains nothing."""

    def prepare(self, model: Any, **how: Any) -> None:
        super().prepare(model, **how)
        model.requires_grad_(False)


class Averaging(LoRA):
    """Its penalty is one number, whatever the number of runs."""

    def penalty(self, model: nn.Module) -> Tensor:
        return torch.zeros(())


class Shrinking(LoRA):
    """LoRA with a penalty on B, whose A rests for the first updates and whose gradients' sizes are remembered."""

    def prepare(self, model: Any, **how: Any) -> None:
        super().prepare(model, **how)
        for layer in layers_of(model):
            layer.register_buffer("seen", torch.zeros(len(layer.lora_A), device=layer.lora_A.device))

    def penalty(self, model: nn.Module) -> Tensor:
        return SHARE * torch.stack([(layer.lora_B - 0.1).square().sum((1, 2)) for layer in layers_of(model)]).sum(0)

    def before_step(self, model: nn.Module, *, moment: Moment) -> None:
        for layer in layers_of(model):
            gradient = layer.lora_B.grad
            assert gradient is not None and layer.lora_A.grad is not None
            layer.seen.add_(gradient.square().sum((1, 2)))
            layer.lora_A.grad.mul_((moment.update > WARM_UPDATES).view(-1, 1, 1))

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"seen {place}": layer.seen for place, layer in enumerate(layers_of(model))}

    def record(self, model: nn.Module, run: int) -> dict[str, Any]:
        return {"seen": [float(layer.seen[run]) for layer in layers_of(model)]}


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, StackedLoRALinear)]


@pytest.fixture
def base(tiny_checkpoints: dict[str, Path]) -> BaseModel:
    return tiny_base(tiny_checkpoints["llama"])


@pytest.fixture
def columns(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> ColumnStore:
    return tiny_columns(
        tmp_path / "columns", tiny_examples(32), AutoTokenizer.from_pretrained(tiny_checkpoints["llama"])
    )


def gang_of(base: BaseModel, columns: ColumnStore, method: LoRA, *seeds: int, **train: Any) -> Gang:
    members = [
        Member(
            method=method,
            reading=tiny_reading(),
            columns=columns,
            recipe=Recipe(TRAIN.model_copy(update=train), 5e-2, Seeds.model_validate(seed)),
            callbacks=Callbacks(lambda model: {}),
        )
        for seed in seeds
    ]
    return Gang(members, prepare=lambda ms: prepared_model(base, [m.method for m in ms], [m.seeds for m in ms]))


def method(kind: type[LoRA] = Shrinking) -> LoRA:
    return kind(LoraSpec(name="lora", kind="lora", rank=2, alpha=2))


def weights_of(gang: Gang, run: int) -> Tensor:
    return gang.flat.values[run]


def test_hooks_do_the_same_for_a_run_alone_and_in_a_gang(base: BaseModel, columns: ColumnStore) -> None:
    together = gang_of(base, columns, method(), 1, 2, weight_decay=0.0)
    alone = [gang_of(base, columns, method(), seed, weight_decay=0.0) for seed in (1, 2)]
    first = [layer.lora_A.detach().clone() for layer in layers_of(together.model)]
    for update in range(1, 6):
        losses = together.advance()
        for run, gang in enumerate(alone):
            assert relative(losses[run], gang.advance()[0]) <= GANG_TOLERANCE
            assert relative(weights_of(together, run), weights_of(gang, 0)) <= GANG_TOLERANCE
            found, expected = (
                m.record(g.model, r)["seen"] for m, g, r in ((method(), together, run), (method(), gang, 0))
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4)
        rests = all(torch.equal(a, layer.lora_A) for a, layer in zip(first, layers_of(together.model), strict=True))
        assert rests == (update <= WARM_UPDATES)
    assert relative(weights_of(together, 0), weights_of(together, 1)) > 0.1


def test_a_penalty_moves_what_it_is_about_and_no_loss_that_is_noted(base: BaseModel, columns: ColumnStore) -> None:
    with_penalty, plain = (gang_of(base, columns, method(kind), 1, 2) for kind in (Shrinking, LoRA))
    assert torch.equal(with_penalty.advance(), plain.advance())
    found = [torch.cat([layer.lora_B.flatten() for layer in layers_of(g.model)]) for g in (with_penalty, plain)]
    assert not torch.equal(*found)


def test_a_method_that_trains_nothing_is_refused(base: BaseModel, columns: ColumnStore) -> None:
    with pytest.raises(StudyError, match="the method `lora` trains no parameter of LlamaForSequenceClassification"):
        gang_of(base, columns, method(Idle), 1)


def test_a_penalty_of_another_shape_than_the_runs_is_refused(base: BaseModel, columns: ColumnStore) -> None:
    with pytest.raises(StudyError, match=r"`Averaging.penalty` has the shape \[\], which should be \[2\]"):
        gang_of(base, columns, method(Averaging), 1, 2).advance()


def test_a_loss_that_is_a_mean_over_rows_is_refused(
    base: BaseModel, columns: ColumnStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ClassScoring.loss_per_example
    monkeypatch.setattr(ClassScoring, "loss_per_example", lambda *given: plain(*given).mean())
    with pytest.raises(StudyError, match=r"`loss_per_example` of the task `\w+` has the shape \[\]"):
        gang_of(base, columns, method(LoRA), 1, 2).advance()


def test_a_penalty_counts_once_however_a_batch_is_split(base: BaseModel, columns: ColumnStore) -> None:
    gradients = []
    for micro in (8, 2):
        gang = gang_of(base, columns, method(), 1, 2, micro_batch_size=micro, precision="fp32")
        gang.model.eval()
        gang.accumulate_gradients([np.arange(8), np.arange(8, 16)])
        gradients.append(gang.flat.gradients.clone())
    assert relative(gradients[0], gradients[1]) <= 1e-5


def test_what_a_method_remembers_outlives_a_kill(
    base: BaseModel, columns: ColumnStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASCOPE_CHECKPOINT_SECONDS", "0")

    def loop() -> OneRun:
        how = {"train": TRAIN, "learning_rate": 5e-2, "validate": lambda model: {"accuracy": 0.0, "loss": 1.0}}
        return OneRun(base, method(), columns=columns, seeds=Seeds.model_validate(3), **how)

    whole = loop()
    whole.run()
    broken = loop()
    kill_after(broken, 5)
    with pytest.raises(Killed):
        broken.run(Checkpointer(tmp_path, largest_share=1e9))
    resumed = loop()
    resumed.run(Checkpointer(tmp_path))
    assert resumed.progress.losses == whole.progress.losses
    assert method().record(resumed.gang.model, 0) == method().record(whole.gang.model, 0)
