"""What every method must satisfy, as a class to inherit from: subclass, set `spec`, and pytest runs the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from lorascope.data.columns import ColumnStore
from lorascope.methods.base import Method
from lorascope.models.loading import BaseModel
from lorascope.registry import METHODS, resolve
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.predict import logits_of, predict
from lorascope.training.run import prepared_model
from one_run import OneRun
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples, tiny_task

SEEDS = Seeds.model_validate(3)
TRAIN = TrainSpec(
    epochs=3, batch_size=8, max_length=32, gradient_clip=0.5, evaluations_per_epoch=2, early_stopping=None
)
RELOAD_TOLERANCE = 1e-6
MERGE_TOLERANCE = 1e-5


class Killed(Exception):
    """Stands for a kill: raised in the middle of a run."""


class MethodContract:
    """spec: the method under test."""

    spec: ClassVar[Any]
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
        task = tiny_task()

        def validate(model: nn.Module) -> dict[str, float]:
            frame = predict(model, task, columns, pad_token_id=0, device="cpu", precision="fp32")
            return {**task.metrics(frame), "loss": float(frame["loss"].mean())}

        fields = {"train": TRAIN, "learning_rate": self.learning_rate, "validate": validate, **changes}
        return OneRun(base, method, columns=columns, seeds=SEEDS, **fields)

    def logits(self, model: nn.Module, columns: ColumnStore) -> np.ndarray:
        rows = np.arange(len(columns))
        return logits_of(model, tiny_task(), columns, rows=rows, pad_token_id=0, device="cpu", precision="fp32")

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

    @pytest.mark.parametrize("killed_after", [1, 7, 14])
    def test_stopped_and_resumed_run_equals_an_undisturbed_one(
        self, base: BaseModel, method: Method, columns: ColumnStore, tmp_path: Path, killed_after: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("LORASCOPE_CHECKPOINT_SECONDS", "0")
        whole = self.loop(base, method, columns)
        whole.run()
        broken = self.loop(base, method, columns)
        advance = broken.gang.advance

        def until_killed() -> torch.Tensor:
            if broken.progress.update == killed_after:
                raise Killed
            return advance()

        broken.gang.advance = until_killed  # type: ignore[method-assign]
        checkpointer = Checkpointer(tmp_path, largest_share=1e9)
        with pytest.raises(Killed):
            broken.run(checkpointer)
        resumed = self.loop(base, method, columns)
        resumed.run(Checkpointer(tmp_path))
        assert resumed.progress.resumed == 1
        assert resumed.progress.losses == whole.progress.losses
        assert resumed.progress.curve == whole.progress.curve
        for name, parameter in whole.model.named_parameters():
            assert torch.equal(parameter, resumed.model.get_parameter(name))
