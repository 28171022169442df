"""A gang's members equal their runs alone: losses at every update, final weights, whoever leaves in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from lorascope.data.columns import ColumnStore
from lorascope.errors import GateFailure
from lorascope.methods.base import Method
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.study.spec import EarlyStopping, FullSpec, LoraSpec, Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Departure, Gang
from lorascope.training.member import Member
from lorascope.training.run import prepared_model
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples, tiny_task

STEADY = TrainSpec(batch_size=8, epochs=3, early_stopping=None)


def lora(**settings: Any) -> LoRA:
    return LoRA(LoraSpec.model_validate({"name": "lora", "kind": "lora", "sites": ["attention"], **settings}))


def full() -> FullFineTuning:
    return FullFineTuning(FullSpec(name="full", kind="full"))


@pytest.fixture
def columns(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[int], ColumnStore]:
    """Training examples of a given number, the same for the same number."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["bert"])
    opened: dict[int, ColumnStore] = {}

    def make(count: int) -> ColumnStore:
        if count not in opened:
            opened[count] = tiny_columns(tmp_path / f"columns-{count}", tiny_examples(count, seed=count), tokenizer)
        return opened[count]

    return make


def scripted(*scores: float) -> Callable[[Any], dict[str, float]]:
    """A validation that returns these scores in turn, and the last one for ever."""
    remaining = list(scores)
    return lambda model: {"accuracy": remaining.pop(0) if len(remaining) > 1 else remaining[0], "loss": 1.0}


def make_member(columns: ColumnStore, method: Method, seed: int, **changes: Any) -> Member:
    settings: dict[str, Any] = {
        "method": method, "task": tiny_task(), "columns": columns, "train": STEADY, "learning_rate": 1e-2,
        "seeds": Seeds.model_validate(seed), "validate": scripted(0.1, 0.2, 0.3), **changes,
    }  # fmt: skip
    return Member(**settings)


def make_gang(checkpoint: Path, members: Sequence[Member], **options: Any) -> Gang:
    base = tiny_base(checkpoint)

    def prepare(members: Sequence[Member]) -> Any:
        return prepared_model(base, [m.method for m in members], [m.seeds for m in members])

    return Gang(members, prepare=prepare, pad_token_id=0, device="cpu", **options)


def weights_of(departure: Departure) -> dict[str, Tensor]:
    assert departure.model is not None
    return {name: p.detach().clone() for name, p in departure.model.named_parameters()}


def train(gang: Gang, checkpointers: Sequence[Checkpointer] | None = None) -> dict[int, dict[str, Tensor]]:
    """Final weights by the member's seed."""
    return {d.member.seeds.order: weights_of(d) for d in gang.run(checkpointers)}


def assert_same_run(alone: Member, together: Member, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    np.testing.assert_allclose(together.progress.losses, alone.progress.losses, rtol=1e-5)
    assert together.progress.best_update == alone.progress.best_update
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith(
            "key.bias"
        ):  # softmax cancels it: its gradient is rounding noise, which Adam makes a full step
            continue
        torch.testing.assert_close(theirs[name].reshape(tensor.shape), tensor, rtol=1e-4, atol=1e-4, msg=name)


def mixed_members(kind: str, columns: Callable[[int], ColumnStore]) -> list[Member]:
    """Three runs that differ in all that a gang's runs may differ in; the second leaves early."""
    stopping = STEADY.model_copy(update={"early_stopping": EarlyStopping(patience=1)})
    cosine = STEADY.model_copy(
        update={"schedule": "cosine", "weight_decay": 0.1, "gradient_clip": None, "epochs": 2.5, "warmup": 0.3}
    )
    methods = [full()] * 3 if kind == "full" else [
        lora(rank=2, alpha=4, dropout=0.3), lora(rank=4, alpha=16, dropout=0.1), lora(rank=3, alpha=3)
    ]  # fmt: skip
    rate = 1e-3 if kind == "full" else 3e-3
    return [
        make_member(columns(50), methods[0], 1, learning_rate=rate),
        make_member(columns(44), methods[1], 2, learning_rate=3 * rate, train=stopping, validate=scripted(0.5, 0.4)),
        make_member(columns(29), methods[2], 3, learning_rate=rate / 3, train=cosine),
    ]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_member_equals_its_run_alone(
    kind: str, architecture: str, tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    checkpoint = tiny_checkpoints[architecture]
    together = mixed_members(kind, columns)
    final = train(make_gang(checkpoint, together))
    lengths = [len(member.progress.losses) for member in together]
    assert lengths == [21, 12, 10]
    for alone, member in zip(mixed_members(kind, columns), together, strict=True):
        ((seed, weights),) = train(make_gang(checkpoint, [alone])).items()
        assert_same_run(alone, member, weights, final[seed])


def test_micro_batches_change_nothing(tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]) -> None:
    """Dropout is drawn a micro-batch, so it is off here."""
    split = STEADY.model_copy(update={"micro_batch_size": 2})
    results = []
    for settings in (STEADY, split):
        members = [make_member(columns(29 + seed), lora(rank=2), seed, train=settings) for seed in (1, 2)]
        gang = make_gang(tiny_checkpoints["llama"], members)
        results.append((members, train(gang)))
    (whole, ours), (pieces, theirs) = results
    for a, b in zip(whole, pieces, strict=True):
        assert_same_run(a, b, ours[a.seeds.order], theirs[a.seeds.order])


def test_a_member_with_nan_fails_alone(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    class Poisoned(type(tiny_task())):  # type: ignore[misc]
        def loss_per_example(self, logits: Tensor, batch: Any) -> Tensor:
            losses = super().loss_per_example(logits, batch)
            half = len(losses) // 2
            return torch.cat([losses[:half], losses[half:] * float("nan")])

    poisoned = Poisoned("tiny", label_names=["bad", "good"], text_columns=["text"], metrics=["accuracy"])
    members = [make_member(columns(40), lora(rank=2), seed, task=poisoned) for seed in (1, 2)]
    departures = list(make_gang(tiny_checkpoints["bert"], members).run())
    assert [d.member.seeds.order for d in departures] == [2, 1]
    assert isinstance(departures[0].problem, GateFailure)
    assert "became nan at update 1 of" in str(departures[0].problem)
    # The poison moved to the first member's second half when it was left alone, so only what came before counts.
    alone = make_member(columns(40), lora(rank=2), 1)
    train(make_gang(tiny_checkpoints["bert"], [alone]))
    shared = departures[0].member.progress.update
    assert members[0].progress.losses[:shared] == pytest.approx(alone.progress.losses[:shared], rel=1e-5)


def test_a_killed_gang_goes_on_as_other_gangs(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore], tmp_path: Path
) -> None:
    """Each member's own checkpoint is enough: the first goes on alone, the others as a gang of another largest rank."""
    checkpoint = tiny_checkpoints["bert"]

    def members() -> list[Member]:
        return mixed_members("lora", columns)

    whole = members()
    final = train(make_gang(checkpoint, whole))
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        folder.mkdir()
    stopped = make_gang(checkpoint, members())
    running = stopped.run([Checkpointer(folder) for folder in folders])
    stopped._is_time_to_look = lambda: False  # type: ignore[method-assign] - nothing is scored before the kill
    stopped._resume({})
    for _ in range(4):
        stopped.advance()
    stopped._clock = type("NoClock", (), {"book": lambda *a, **k: None})()  # type: ignore[assignment]
    stopped._look()
    stopped._save({m: Checkpointer(f) for m, f in zip(stopped.members, folders, strict=True)})
    running.close()
    for chosen in ([0], [1, 2]):
        again = members()
        part = [again[i] for i in chosen]
        resumed = train(make_gang(checkpoint, part), [Checkpointer(folders[i]) for i in chosen])
        for index, member in zip(chosen, part, strict=True):
            assert member.progress.resumed == 1
            seed = member.seeds.order
            assert_same_run(whole[index], member, final[seed], resumed[seed])
