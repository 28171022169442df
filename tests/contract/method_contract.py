"""What every method must satisfy, as a class to inherit from: subclass, set `spec`, and pytest runs the suite."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from one_run import OneRun
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import Tensor, nn
from transformers import AutoTokenizer

from lorascope.data.columns import ColumnStore
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.dropout import dropout_key
from lorascope.models.loading import BaseModel
from lorascope.registry import METHODS, resolve
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.preparation import prepared_model

SEEDS = Seeds.model_validate(3)
TRAIN = TrainSpec(
    epochs=3, batch_size=8, max_length=32, gradient_clip=0.5, evaluations_per_epoch=2, early_stopping=None
)
RELOAD_TOLERANCE = 1e-6
MERGE_TOLERANCE = 1e-5
GANG_TOLERANCE = 1e-5


class Killed(Exception):
    """Stands for a kill: raised in the middle of a run."""


class MethodContract:
    """spec: the method under test. gang: further specs that are trained together with it."""

    spec: ClassVar[Any]
    gang: ClassVar[tuple[Any, ...]] = ()
    learning_rate: ClassVar[float] = 5e-3

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """Threads cost more than they give on models this small."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.fixture(params=ARCHITECTURES)
    def checkpoint(self, request: pytest.FixtureRequest, tiny_checkpoints: dict[str, Path]) -> Path:
        return tiny_checkpoints[request.param]

    @pytest.fixture
    def base(self, checkpoint: Path) -> BaseModel:
        return tiny_base(checkpoint)

    @pytest.fixture
    def method(self) -> Method:
        return resolve(METHODS, self.spec.kind)(self.spec)

    @pytest.fixture
    def columns(self, checkpoint: Path, tmp_path: Path) -> ColumnStore:
        return tiny_columns(tmp_path / "columns", tiny_examples(40), AutoTokenizer.from_pretrained(checkpoint))

    def loop(self, base: BaseModel, method: Method, columns: ColumnStore, **changes: Any) -> OneRun:
        reading = tiny_reading()

        def validate(model: nn.Module) -> dict[str, float]:
            return reading.scores(reading.predict(model, columns))

        fields = {"train": TRAIN, "learning_rate": self.learning_rate, "validate": validate, **changes}
        return OneRun(base, method, columns=columns, seeds=SEEDS, **fields)

    def logits(self, model: nn.Module, columns: ColumnStore) -> np.ndarray:
        rows = np.arange(len(columns))
        return tiny_reading().signatures(model, columns, rows=rows)

    # ------------------------------------------------------------------------------------------------------ the suite

    def test_output_equals_base_at_initialisation(self, base: BaseModel, method: Method, columns: ColumnStore) -> None:
        generator = torch.Generator().manual_seed(SEEDS.initialisation)
        plain = base.copy(generator, share_frozen=True).eval()
        prepared = prepared_model(base, [method], [SEEDS])[0]
        np.testing.assert_allclose(self.logits(prepared, columns), self.logits(plain, columns), atol=1e-6)

    def test_only_declared_parameters_receive_gradients(
        self, base: BaseModel, method: Method, columns: ColumnStore
    ) -> None:
        loop = self.loop(base, method, columns)
        before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
        loop.gang.advance()
        loop.gang.advance()
        loop.accumulate_gradients(np.arange(8))
        for name, parameter in loop.model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and bool(parameter.grad.any()), f"{name} gets no gradient"
            else:
                assert parameter.grad is None, f"{name} is frozen but gets a gradient"
                assert torch.equal(parameter, before[name]), f"{name} is frozen but moved"

    def test_the_base_is_untouched_by_a_run(self, base: BaseModel, method: Method, columns: ColumnStore) -> None:
        before = {name: p.clone() for name, p in base.model.state_dict().items()}
        self.loop(base, method, columns).run()
        after = base.model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def test_parameter_count_equals_the_formula(self, base: BaseModel, method: Method) -> None:
        model = prepared_model(base, [method], [SEEDS])[0]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == method.expected_parameters(base.model, head=base.head)

    def test_every_trained_parameter_is_in_exactly_one_group(self, base: BaseModel, method: Method) -> None:
        model = prepared_model(base, [method], [SEEDS])[0]
        grouped = [id(p) for group in method.param_groups(model) for p in group.parameters]
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == trained

    def test_ten_examples_are_learnt(self, base: BaseModel, method: Method, columns: ColumnStore) -> None:
        train = TRAIN.model_copy(update={"epochs": 60, "evaluations_per_epoch": 1, "schedule": "constant"})
        loop = self.loop(base, method, columns.subset(np.arange(10)), train=train)
        loop.run()
        assert np.mean(loop.progress.losses[-40:]) < 0.75 * np.mean(loop.progress.losses[:4])

    def test_exported_model_reloads_equal(
        self, base: BaseModel, method: Method, columns: ColumnStore, tmp_path: Path
    ) -> None:
        loop = self.loop(base, method, columns)
        loop.run()
        method.export(loop.model, tmp_path / "export", base=base)
        reloaded = method.reload(tmp_path / "export", base=base)
        difference = np.abs(self.logits(reloaded, columns) - self.logits(loop.model, columns)).max()
        assert difference <= RELOAD_TOLERANCE

    def test_merged_model_equals_adapter(
        self, base: BaseModel, method: Method, columns: ColumnStore, tmp_path: Path
    ) -> None:
        loop = self.loop(base, method, columns)
        loop.run()
        method.export(loop.model, tmp_path / "export", base=base)
        merged = method.merge(method.reload(tmp_path / "export", base=base))
        if merged is not None:
            assert np.abs(self.logits(merged, columns) - self.logits(loop.model, columns)).max() <= MERGE_TOLERANCE

    def test_each_run_of_a_gang_is_what_it_is_alone(
        self, base: BaseModel, method: Method, columns: ColumnStore, tmp_path: Path
    ) -> None:
        for module in base.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
        methods = [method, *(type(method)(spec) for spec in self.gang or (self.spec, self.spec))]
        seeds = [Seeds.model_validate(seed) for seed in (3, 4, 5)]
        if not method.stacks:
            with pytest.raises(NotStackable):
                prepared_model(base, methods, seeds)
            return
        batch = tiny_reading().collate(columns.gather(np.arange(12)), length=16)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        together, streams = prepared_model(base, methods, seeds)
        keys = [dropout_key(s.dropout, 5, 0) for s in seeds]
        streams.set(keys)
        initial = [trained_of(m.view(together, run)) for run, m in enumerate(methods)]
        for run, weights in enumerate(initial):
            scatter(weights, run)
        found, gradients = step(together, tensors, runs=3), []
        for run, own in enumerate(methods):
            alone, streams = prepared_model(base, [own], [seeds[run]])
            streams.set([keys[run]])
            weights = trained_of(own.view(alone, 0))
            scatter(weights, run)
            assert all(torch.equal(weights[name], tensor) for name, tensor in initial[run].items())
            part = slice(4 * run, 4 * run + 4)
            expected = step(alone, {name: tensor[part] for name, tensor in tensors.items()}, runs=1)
            assert relative(found.logits[part], expected.logits) <= GANG_TOLERANCE
            assert relative(found.losses[run], expected.losses[0]) <= GANG_TOLERANCE
            own.export(together, tmp_path / str(run), base=base, run=run)
            reloaded = own.reload(tmp_path / str(run), base=base)
            for model in (own.view(together, run), reloaded):
                assert np.abs(self.logits(model, columns) - self.logits(alone, columns)).max() <= RELOAD_TOLERANCE
            assert "lorascope" not in "".join(f.read_text() for f in (tmp_path / str(run)).glob("*.json"))
            gradients.append(trained_of(own.view(with_gradients_as_weights(alone), 0)))
        with_gradients_as_weights(together)
        for run, own in enumerate(methods):
            for name, gradient in trained_of(own.view(together, run)).items():
                if not name.endswith("key.bias"):  # softmax ignores it: its gradient is zero but for rounding
                    assert relative(gradient, gradients[run][name]) <= GANG_TOLERANCE, name

    def test_head_and_weights_of_each_run_of_a_gang_are_drawn_as_alone(self, base: BaseModel, method: Method) -> None:
        if not method.stacks:
            return
        methods = [method, *(type(method)(spec) for spec in self.gang or (self.spec, self.spec))]
        seeds = [Seeds.model_validate(seed) for seed in (3, 4, 5)]
        together, _ = prepared_model(base, methods, seeds)
        for run, own in enumerate(methods):
            expected = trained_of(own.view(prepared_model(base, [own], [seeds[run]])[0], 0))
            found = trained_of(own.view(together, run))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_a_run_stopped_and_resumed_again_and_again_equals_an_undisturbed_one(
        self, base: BaseModel, method: Method, columns: ColumnStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LORASCOPE_CHECKPOINT_SECONDS", "0")
        whole = self.loop(base, method, columns)
        whole.run()
        for killed_after in (1, 7, 14):
            broken = self.loop(base, method, columns)
            kill_after(broken, killed_after)
            with pytest.raises(Killed):
                broken.run(Checkpointer(tmp_path, largest_share=1e9))
        resumed = self.loop(base, method, columns)
        resumed.run(Checkpointer(tmp_path))
        assert resumed.progress.resumed == 3
        assert resumed.progress.losses == whole.progress.losses
        assert resumed.progress.curve == whole.progress.curve
        for name, parameter in whole.model.named_parameters():
            assert torch.equal(parameter, resumed.model.get_parameter(name))


def kill_after(loop: OneRun, update: int) -> None:
    advance = loop.gang.advance

    def until_killed() -> torch.Tensor:
        if loop.progress.update == update:
            raise Killed
        return advance()

    loop.gang.advance = until_killed  # type: ignore[method-assign]


class Step(NamedTuple):
    """logits: [runs * examples, labels]; losses: [runs], each a mean over the run's examples."""

    logits: Tensor
    losses: Tensor


def step(model: nn.Module, batch: dict[str, Tensor], *, runs: int) -> Step:
    """Forward in training mode and backward of the sum of the runs' losses."""
    reading = tiny_reading()
    logits = model.train()(**reading.model_inputs(batch)).logits
    losses = reading.task.scoring.loss_per_example(logits, batch).view(runs, -1).mean(dim=1)
    losses.sum().backward()
    return Step(logits.detach(), losses.detach())


def trained_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def scatter(weights: dict[str, Tensor], seed: int) -> None:
    """Moves every weight a little, so that none is zero and every gradient speaks."""
    for name, tensor in sorted(weights.items()):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


def with_gradients_as_weights(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.data = parameter.grad
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
