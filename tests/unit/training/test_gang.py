"""A gang's members equal their runs alone: losses at every update, final weights, whoever leaves in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ARCHITECTURES,
    as_artifact,
    step_context,
    tiny_base,
    tiny_columns,
    tiny_examples,
    tiny_reading,
    tiny_task,
)
from torch import Tensor
from transformers import AutoTokenizer, MistralConfig, MistralForSequenceClassification

from lorascope.data.columns import ColumnStore
from lorascope.drift.snapshots import Observer
from lorascope.engine.context import HandedBack, StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.engine.step import Resources, Step
from lorascope.engine.warm import Warm
from lorascope.errors import EnvironmentProblem, GateFailure, StudyError
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.dropout import StackedDropout
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.models.catalog import describe_model
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import ModelSpec, Seeds, TrainSpec
from lorascope.study.train import EarlyStopping
from lorascope.tasks.class_scoring import ClassScoring
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Departure, Gang
from lorascope.training.member import Callbacks, Member, Recipe
from lorascope.training.preparation import prepared_model
from lorascope.training.run import train_gang
from lorascope.training.sizing import UpdateCost
from lorascope.training.stepper import CapturedStepper, Stepper, is_causal

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
    """changes: other values of the recipe, of the callbacks, or of the columns."""
    recipe = {"train": STEADY, "learning_rate": 1e-2, "seeds": Seeds.model_validate(seed)}
    reading, columns = changes.pop("reading", tiny_reading()), changes.pop("columns", columns)
    recipe |= {name: changes.pop(name) for name in ("train", "learning_rate", "seeds", "stops") if name in changes}
    callbacks = Callbacks(**{"validate": scripted(0.1, 0.2, 0.3), **changes})
    return Member(method=method, reading=reading, columns=columns, recipe=Recipe(**recipe), callbacks=callbacks)


def make_gang(checkpoint: Path, members: Sequence[Member], **options: Any) -> Gang:
    base = tiny_base(checkpoint)

    def prepare(members: Sequence[Member]) -> Any:
        return prepared_model(base, [m.method for m in members], [m.seeds for m in members])

    return Gang(members, prepare=prepare, **options)


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


def test_places_of_those_that_left_stay_idle(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a captured gang, which is not captured anew for each that leaves."""
    checkpoint = tiny_checkpoints["bert"]
    monkeypatch.setattr("lorascope.training.gang.CapturedStepper", Stepper)
    together = mixed_members("lora", columns)
    gang = make_gang(checkpoint, together)
    final, places = {}, []
    for departure in gang.run():
        places.append(len(gang.places))
        final[departure.member.seeds.order] = weights_of(departure)
    assert places == [3, 3, 1]
    for alone, member in zip(mixed_members("lora", columns), together, strict=True):
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
    class Poisoned(ClassScoring):
        def loss_per_example(self, outputs: Tensor, batch: Any) -> Tensor:
            losses = super().loss_per_example(outputs, batch)
            half = len(losses) // 2
            return torch.cat([losses[:half], losses[half:] * float("nan")])

    task = tiny_task()
    task.scoring = Poisoned(["bad", "good"], metrics=["accuracy"])
    members = [make_member(columns(40), lora(rank=2), seed, reading=tiny_reading(task)) for seed in (1, 2)]
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


# ------------------------------------------------------------------------------------------------------- whole steps


@pytest.fixture
def contexts(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Callable[..., list[StepContext]]:
    """Contexts of `train` steps on a tiny BERT: make(number of runs, method parameters, gang_limit)."""
    checkpoint = tiny_checkpoints["bert"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    identity, locations = describe_model(
        ModelSpec.model_validate({"name": "tiny", "source": {"path": str(checkpoint)}})
    )

    def make(count: int, method: Mapping[str, Any], limit: int | None = None, **train: Any) -> list[StepContext]:
        directory = tmp_path / f"steps-{len(list(tmp_path.iterdir()))}"
        data = step_context(directory, Step("data", 1, {}), {})
        description = {
            "class": "docstrings", "name": "tiny", "num_labels": 2, "label_names": ["bad", "good"],
            "text_columns": ["text"], "metrics": ["accuracy"],
        }  # fmt: skip
        tokens = step_context(directory, Step("tokens", 1, {}), {})
        for split, number in (("train", 40), ("validation", 12)):
            tiny_columns(tokens.out / split, tiny_examples(number, seed=number), tokenizer)
        deps = {"data": as_artifact(data, {"task": description}), "tokens": as_artifact(tokens, {})}
        spec = TrainSpec(batch_size=8, epochs=2, early_stopping=None, **train)
        warm = Warm()
        made = []
        for seed in range(count):
            params = {
                "model": identity, "method": dict(method), "learning_rate": 1e-3, "seeds_for": "tiny",
                "seeds": {"initialisation": seed, "order": seed, "dropout": seed},
                "train": spec.model_dump(mode="json", exclude={"gang"}),
            }  # fmt: skip
            step = Step("train", 3, params, locations=locations, resources=Resources(gang_key="k", gang_limit=limit))
            made.append(step_context(directory, step, deps, warm=warm))
        return made

    return make


LORA = {"kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["query"]}


def outcomes(contexts: Sequence[StepContext]) -> dict[int, Any]:
    """As the engine gets them: what is handed back is given again."""
    found: dict[int, Any] = {}
    left = list(range(len(contexts)))
    while left:
        given, left = left, []
        for place, outcome in train_gang([contexts[index] for index in given]):
            if isinstance(outcome, HandedBack):
                left.append(given[place])
            else:
                found[given[place]] = outcome
    return found


def losses(context: StepContext) -> np.ndarray:
    return np.load(context.out / "losses.npy")


def test_a_gang_writes_for_each_run_what_the_run_alone_writes(contexts: Callable[..., list[StepContext]]) -> None:
    alone, together = contexts(3, LORA, 1), contexts(3, LORA, 3)
    ours, theirs = outcomes(alone), outcomes(together)
    assert [theirs[i]["gang"] for i in range(3)] == [3, 3, 3]
    assert [ours[i]["gang"] for i in range(3)] == [1, 1, 1]
    for index in range(3):
        np.testing.assert_allclose(losses(together[index]), losses(alone[index]), rtol=1e-5)
        assert ours[index]["trainable_parameters"] == theirs[index]["trainable_parameters"]
        files = [sorted(p.relative_to(c.out) for p in c.out.rglob("*")) for c in (alone[index], together[index])]
        assert files[0] == files[1]
        a, b = (load_file(c.out / "export" / "adapter_model.safetensors") for c in (alone[index], together[index]))
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_gang_larger_than_the_runs_takes_what_there_is(contexts: Callable[..., list[StepContext]]) -> None:
    assert [result["gang"] for result in outcomes(contexts(2, LORA, 16)).values()] == [2, 2]


def test_full_runs_train_together_too(contexts: Callable[..., list[StepContext]]) -> None:
    alone, together = contexts(2, {"kind": "full"}, 1), contexts(2, {"kind": "full"}, 2)
    ours, theirs = outcomes(alone), outcomes(together)
    assert theirs[0]["gang"] == 2
    for index in range(2):
        np.testing.assert_allclose(losses(together[index]), losses(alone[index]), rtol=1e-5)
        assert theirs[index]["validation"]["loss"] == pytest.approx(ours[index]["validation"]["loss"], rel=1e-3)


def test_out_of_memory_halves_the_gang_and_goes_on(
    contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = contexts(4, LORA, 1)
    outcomes(undisturbed)
    update, calls = Stepper.update, []

    def small_memory(self: Stepper, *arguments: Any) -> Tensor:
        calls.append(self.flat.runs)
        if self.flat.runs > 1 and len(calls) > 6 and self.flat.runs == max(calls):
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return update(self, *arguments)

    monkeypatch.setattr(Stepper, "update", small_memory)
    made = contexts(4, LORA, 4)
    notices: list[str] = []
    made[0] = replace(made[0], emit=lambda event: notices.append(event.text) if isinstance(event, Notice) else None)
    done = outcomes(made)
    assert notices == ["cpu ran out of memory with 4 runs together; going on with 2"]
    assert calls[-1] == 2
    for index in range(4):
        assert done[index]["updates"] == 10
        np.testing.assert_allclose(losses(made[index]), losses(undisturbed[index]), rtol=1e-5)


def test_gangs_grow_again_when_memory_is_free_again(
    contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight runs; memory is short, and once more for four of them. Two go on, then those that were put off: as many as
    there is room for again."""
    undisturbed = contexts(8, LORA, 1)
    outcomes(undisturbed)
    update, calls = Stepper.update, []

    def short_twice(self: Stepper, *arguments: Any) -> Tensor:
        calls.append(self.flat.runs)
        if calls.count(8) == 5 and calls[-1] == 8 or calls.count(4) == 3 and calls[-1] == 4:
            calls.append(0)
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return update(self, *arguments)

    made = contexts(8, LORA, 8)
    monkeypatch.setattr("lorascope.training.sizing.probe", lambda gang, device: UpdateCost(1.0, 1))
    monkeypatch.setattr(Stepper, "update", short_twice)
    done = outcomes(made)
    turns = [(size, len(list(same))) for size, same in itertools.groupby(calls)]
    # Four updates of eight, two more of four, the last four of two; the two put off then and a third, which ends alone; the
    # three that are left.
    assert turns == [(8, 5), (0, 1), (4, 3), (0, 1), (2, 4), (3, 4), (1, 2), (3, 6)]
    for index in range(8):
        assert done[index]["updates"] == 10
        np.testing.assert_allclose(losses(made[index]), losses(undisturbed[index]), rtol=1e-5)


def test_what_is_more_than_trains_together_is_handed_back_at_once(
    contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(train_gang(contexts(5, LORA, 2)))
    assert [isinstance(outcome, HandedBack) for _, outcome in found] == [True] * 3 + [False] * 2
    assert sorted(index for index, _ in found) == [0, 1, 2, 3, 4]


def test_runs_train_as_was_decided_on_this_machine_before(
    contexts: Callable[..., list[StepContext]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gangs(together_s: float) -> list[int]:
        seconds = {1: 1.0, 2: together_s}
        monkeypatch.setattr(
            "lorascope.training.sizing.probe",
            lambda gang, device: UpdateCost(seconds[len(gang.members)], peak_bytes=2**20),
        )
        made = [replace(context, cache_dir=tmp_path / "cache") for context in contexts(2, LORA)]
        return [result["gang"] for result in outcomes(made).values()]

    assert gangs(together_s=1.0) == [2, 2]
    assert gangs(together_s=9.0) == [2, 2]


def test_out_of_memory_alone_names_the_settings_to_lower(
    contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Stepper, *arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Stepper, "update", no_memory)
    (problem,) = outcomes(contexts(1, LORA)).values()
    assert isinstance(problem, EnvironmentProblem)
    assert "lower train.micro_batch_size (now 8;" in str(problem)


def test_runs_of_a_model_that_cannot_be_stacked_train_one_by_one(
    contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any, runs: int) -> None:
        raise NotStackable("embeddings is a Conv2d, which cannot be stacked over runs")

    monkeypatch.setattr("lorascope.methods.stacked.stack_model", refuse)
    notices: list[str] = []
    made = contexts(2, {"kind": "full"}, 2)
    made[0] = replace(made[0], emit=lambda event: notices.append(event.text) if isinstance(event, Notice) else None)
    assert [result["gang"] for result in outcomes(made).values()] == [1, 1]
    assert notices == ["embeddings is a Conv2d, which cannot be stacked over runs: its runs train one by one"]


# --------------------------------------------------------------------------------------------- one member's misfortune


def test_a_member_that_may_no_longer_speak_leaves_alone(contexts: Callable[..., list[StepContext]]) -> None:
    """Its lock was taken over by another process: the engine raises from its `emit`."""

    class Lost(Exception):
        pass

    def refuse(event: Any) -> None:
        raise Lost

    made = contexts(3, LORA, 3)
    made[0] = replace(made[0], emit=refuse)
    done = outcomes(made)
    assert isinstance(done[0], Lost)
    assert [done[i]["updates"] for i in (1, 2)] == [10, 10]


def test_a_member_whose_files_cannot_be_written_fails_alone(contexts: Callable[..., list[StepContext]]) -> None:
    made = contexts(3, LORA, 3)
    (made[1].out / "export").write_text("in the way")
    done = outcomes(made)
    assert isinstance(done[1], OSError)
    assert [done[i]["updates"] for i in (0, 2)] == [10, 10]


@pytest.mark.parametrize("at", [5, 10])
def test_memory_that_runs_out_in_an_evaluation_loses_none(
    at: int, contexts: Callable[..., list[StepContext]], monkeypatch: pytest.MonkeyPatch
) -> None:
    note, failures = Member.note_scores, []

    def small_memory(self: Member, scores: Mapping[str, float]) -> bool:
        if self.progress.update == at and not failures:
            failures.append(at)
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return note(self, scores)

    monkeypatch.setattr(Member, "note_scores", small_memory)
    made = contexts(2, LORA, 2)
    done = outcomes(made)
    assert failures == [at]
    for index, context in enumerate(made):
        curve = pd.read_parquet(context.out / "curves.parquet")
        assert curve[curve.name == "validation/loss"]["update"].tolist() == [5, 10]
        assert done[index]["best_update"] in (5, 10)


def test_memory_that_runs_out_while_a_gang_is_built_anew_loses_nothing(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    members = mixed_members("lora", columns)
    gang = make_gang(tiny_checkpoints["bert"], members)
    prepare = gang._prepare

    def no_room(members: Sequence[Member]) -> Any:
        gang._prepare = prepare
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    running = gang.run()
    first = next(running)
    gang._prepare = no_room
    with pytest.raises(torch.OutOfMemoryError):
        list(running)
    states = gang.rescue()
    assert set(states) == {member for member in members if member is not first.member}
    rescued = make_gang(tiny_checkpoints["bert"], list(states), states=states)
    final = train(rescued)
    for alone, member in zip(mixed_members("lora", columns), members, strict=True):
        if member in states:
            ((seed, weights),) = train(make_gang(tiny_checkpoints["bert"], [alone])).items()
            assert_same_run(alone, member, weights, final[seed])


def test_a_score_of_nan_breaks_the_run(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    members = [
        make_member(columns(40), lora(rank=2), 1, validate=scripted(float("nan"))),
        make_member(columns(40), lora(), 2),
    ]
    departures = {d.member.seeds.order: d.problem for d in make_gang(tiny_checkpoints["bert"], members).run()}
    assert "the validation accuracy is nan" in str(departures[1])
    assert departures[2] is None


def test_a_sliding_window_needs_its_mask() -> None:
    windowed = MistralConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                             intermediate_size=32, vocab_size=16, sliding_window=4)  # fmt: skip
    whole = MistralConfig(**{**windowed.to_dict(), "sliding_window": None, "layer_types": None})
    assert not is_causal(MistralForSequenceClassification(windowed))
    assert is_causal(MistralForSequenceClassification(whole))


# ---------------------------------------------------------------------------------------------------- compiled blocks


class Pretend(CapturedStepper):
    """The captured stepper's first pass on a CPU: compiled and compared, nothing captured."""

    def __init__(self, model: Any, **parts: Any) -> None:
        Stepper.__init__(self, model, **{name: part for name, part in parts.items() if name != "is_compiled"})
        self.is_compiled, self._has_begun = parts["is_compiled"], False

    def update(self, *arguments: Any) -> Tensor:
        return Stepper.update(self, *arguments)

    def _apply(self) -> None:
        Stepper._apply(self)

    def _forward_backward(self, host: dict[str, Tensor]) -> None:
        if self.is_compiled and not self._has_begun:
            self._compile_and_compare(host)
        else:
            self._compute(host)
        self._has_begun = True


def forgets_the_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StackedDropout, "_hash", lambda self, x: torch.zeros_like(x, dtype=torch.int32) - 2**31)


def forgets_the_masks_in_backward(patch: pytest.MonkeyPatch) -> None:
    """Which changes nothing as long as LoRA's B is zero."""
    forward = StackedDropout.forward
    patch.setattr(StackedDropout, "forward", lambda self, x: forward(self, x).detach() + (x - x.detach()))


def finds_no_compiler(patch: pytest.MonkeyPatch) -> None:
    raise RuntimeError("Failed to find a C compiler")


def lacks_memory(patch: pytest.MonkeyPatch) -> None:
    raise torch.OutOfMemoryError("tried to allocate 2 GiB")


@pytest.mark.parametrize(
    "fault", [None, forgets_the_masks, forgets_the_masks_in_backward, finds_no_compiler, lacks_memory]
)
def test_compiled_blocks_are_used_only_if_they_compute_the_same(
    fault: Callable[[pytest.MonkeyPatch], None] | None, tiny_checkpoints: dict[str, Path],
    columns: Callable[[int], ColumnStore], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A compiler that gets a dropout mask wrong is found out at the first update, and the run is what it would be."""
    compile = torch.compile

    def faulty(forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch:
                assert fault is not None
                fault(patch)
                return forward(*args, **kwargs)

        return call

    def make(index: int) -> Member:
        return make_member(columns(40), lora(rank=2, dropout=0.2), index)

    plain = [make(1), make(2)]
    train(make_gang(tiny_checkpoints["llama"], plain))
    monkeypatch.setattr(torch, "compile", faulty if fault else lambda f: compile(f, backend="aot_eager"))
    monkeypatch.setattr("lorascope.training.gang.CapturedStepper", Pretend)
    members = [make(1), make(2)]
    gang = make_gang(tiny_checkpoints["llama"], members, compiles=lambda members: True)
    gang._is_captured = True
    gang._tear_down()
    gang._build_up(None)
    gang.advance()
    assert gang.stepper.is_compiled is (fault is None)
    remark = gang.describe_step()["remark"] or ""
    assert remark.startswith("compiled blocks") is (fault is not None)
    assert remark.endswith("so they were not used") is (fault is not None)
    train(gang)
    for alone, together in zip(plain, members, strict=True):
        np.testing.assert_allclose(together.progress.losses, alone.progress.losses, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("method", [lambda: lora(rank=2, dropout=0.2), full])
def test_a_run_that_is_looked_at_ends_as_it_would_have(
    method: Callable[[], Any], architecture: str, tiny_checkpoints: dict[str, Path],
    columns: Callable[[int], ColumnStore], tmp_path: Path,
) -> None:  # fmt: skip
    """With drift's own observer: hooks, evaluation mode and autocast of the live model included."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints[architecture])
    tiny_columns(tmp_path / "validation", tiny_examples(30, seed=9), tokenizer)
    base = tiny_base(tiny_checkpoints[architecture])
    observer = Observer(
        {"examples": 20, "pooling": {"bert": "token", "llama": "mean"}[architecture]},
        base=base,
        directory=tiny_checkpoints[architecture],
        reading=tiny_reading(),
        validation=tmp_path / "validation",
        warm=Warm(),
    )

    def trained(*, is_looked_at: bool) -> list[Member]:
        members = [make_member(columns(40), method(), seed) for seed in (1, 2)]
        for member in members if is_looked_at else ():
            member.observations, member.observe = {2, member.total_updates}, observer.observe
        train(make_gang(tiny_checkpoints[architecture], members))
        return members

    for expected, found in zip(trained(is_looked_at=False), trained(is_looked_at=True), strict=True):
        assert found.progress.losses == expected.progress.losses
        seen = {(row["update"], row["name"]): row["value"] for row in found.progress.snapshots}
        assert set(seen) == {(u, layer) for u in (2, found.total_updates) for layer in ("0", "1", "2")}
        assert seen[found.total_updates, "2"] > seen[2, "2"] > 0


def test_what_a_member_tells_when_it_is_taken_up_tells_no_pace(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    told: list[Any] = []
    member = make_member(columns(40), lora(rank=2), 1)
    member.emit = told.append
    train(make_gang(tiny_checkpoints["bert"], [member]))
    first, *others = [event for event in told if isinstance(event, StepProgress)]
    assert (first.done, first.is_even) == (0, False)
    assert others and all(news.is_even and news.done > 0 for news in others)


def test_what_cannot_be_looked_at_stops_no_run(
    tiny_checkpoints: dict[str, Path], columns: Callable[[int], ColumnStore]
) -> None:
    def refuse(model: Any) -> dict[str, float]:
        raise StudyError("layer 2 is the same for all examples")

    told: list[Any] = []
    member = make_member(columns(40), lora(rank=2), 1)
    member.observations, member.observe, member.emit = {2}, refuse, told.append
    (departure,) = make_gang(tiny_checkpoints["bert"], [member]).run()
    assert departure.problem is None
    assert [event.text for event in told if event.kind == "notice"] == [
        "no snapshot at update 2: layer 2 is the same for all examples"
    ]
