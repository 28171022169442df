"""Each gate fires on the defect it is there for, and stays silent on a sound method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import as_artifact, step_context, tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lorascope.analysis.finished import Finished
from lorascope.analysis.gates import arm_gates, check_same_examples
from lorascope.data.columns import ColumnStore
from lorascope.engine.step import Step
from lorascope.errors import GateFailure
from lorascope.evaluation import sanity
from lorascope.evaluation.baselines import frozen_features
from lorascope.evaluation.evaluate import merge_gate, reload_gate
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.methods.stacked import StackedLoRALinear
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import TrainSpec
from lorascope.training.reading import Reading

FULL = FullSpec(name="full", kind="full")
LORA = LoraSpec(name="lora", kind="lora", rank=4, alpha=8)


@pytest.fixture
def bench(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Any:
    """Makes a bench for a method, on a tiny BERT."""
    checkpoint = tiny_checkpoints["bert"]
    columns = tiny_columns(tmp_path / "columns", tiny_examples(40), AutoTokenizer.from_pretrained(checkpoint))

    def make(method: Any, **changes: Any) -> sanity.Bench:
        fields = {"train": TrainSpec(batch_size=8), "learning_rate": 3e-3, "base": tiny_base(checkpoint), **changes}
        return sanity.Bench(method=method, reading=tiny_reading(), columns=columns, **fields)

    return make


@pytest.mark.parametrize("method", [FullFineTuning(FULL), LoRA(LORA)], ids=["full", "lora"])
def test_a_sound_method_passes_every_gate(bench: Any, method: Any) -> None:
    gates = list(sanity.run_gates(bench(method)))
    assert [gate.gate for gate in gates if not gate.passed] == []
    assert len(gates) == 5


class ChangesTheStart(LoRA):
    """B does not start at zero."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        for module in model.modules():
            if isinstance(module, StackedLoRALinear):
                nn.init.normal_(module.lora_B)


def test_a_method_that_changes_the_model_before_training_is_caught(bench: Any) -> None:
    gate = sanity.equals_base_at_initialisation(bench(ChangesTheStart(LORA)))
    assert not gate.passed


class TrainsOnlyTheHead(LoRA):
    """Adapters are there but frozen: the run would report LoRA and be a linear probe."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(False)


class TrainsANormToo(LoRA):
    """More is trained than declared."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        model.bert.embeddings.LayerNorm.weight.requires_grad_(True)


class MovesTheBase(LoRA):
    """A frozen weight is changed behind the optimiser's back."""

    def after_step(self, model: nn.Module, *, step: int) -> None:
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[5, 5] += 1e-6


class CutsTheGradient(LoRA):
    """A declared parameter never reaches the loss."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        model.unused = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (TrainsOnlyTheHead, "the formula says"),
        (TrainsANormToo, "the formula says"),
        (MovesTheBase, "frozen parameters moved, such as bert.embeddings.word_embeddings.weight"),
        (CutsTheGradient, "declared parameters get no gradient, such as unused"),
    ],
)
def test_the_census_catches_what_is_not_as_declared(bench: Any, method: type[LoRA], message: str) -> None:
    gate = sanity.gradient_census(bench(method(LORA)))
    assert not gate.passed
    assert message in gate.detail


class Restless(FullFineTuning):
    """Uses randomness that no seed controls."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        unseeded = torch.Generator()
        unseeded.seed()
        with torch.no_grad():
            model.classifier.weight.add_(torch.randn(model.classifier.weight.shape, generator=unseeded))


def test_runs_that_do_not_repeat_are_caught(bench: Any) -> None:
    assert not sanity.same_seed_same_losses(bench(Restless(FULL))).passed


def test_padding_that_leaks_into_the_gradient_is_caught(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the attention mask, a micro-batch padded to another length has another gradient."""
    bench = bench(FullFineTuning(FULL))
    monkeypatch.setattr(Reading, "model_inputs", lambda reading, batch: {"input_ids": batch["input_ids"]})
    assert not sanity.accumulation_changes_nothing(bench).passed


def test_a_model_that_cannot_learn_ten_examples_is_caught(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that have nothing to do with the input of the moment: the loss cannot fall."""
    import itertools

    bench = bench(LoRA(LORA))
    counter = itertools.count()

    def scrambled(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        labels = (batch["labels"] + next(counter)) % 2
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    monkeypatch.setattr(bench.reading.task.scoring, "loss_per_example", scrambled)
    gate = sanity.overfits_ten(bench)
    assert not gate.passed
    assert "learning rates tried: 0.003, 0.009, 0.03, 0.09" in gate.detail


def test_a_failed_gate_stops_the_step_with_its_meaning(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = bench(MovesTheBase(LORA))
    monkeypatch.setattr(sanity, "base_for", lambda context, task: made.base)
    monkeypatch.setattr(sanity, "method_from_params", lambda params: made.method)
    monkeypatch.setattr(sanity.ColumnStore, "open", lambda path: made.columns)
    monkeypatch.setattr(sanity, "task_from_result", lambda result: made.reading.task)
    params = {"method": {}, "train": made.train.model_dump(mode="json"), "learning_rate": 1e-3}
    prepared = step_context(tmp_path, Step("data", 1, {}), {})
    (prepared.out / "train").mkdir()
    (prepared.out / "train" / "rows").write_text("rows")
    other = as_artifact(prepared, {})
    context = step_context(tmp_path, Step("sanity", 1, params), {"data": other, "tokens": other})
    with pytest.raises(GateFailure, match="gate `gradient census` failed") as caught:
        sanity.check_sanity(context)
    assert "what is trained is not what the study says" in str(caught.value.hint)


# --------------------------------------------------------------------------------------------- export, reload, merge


def test_an_export_without_its_head_fails_the_reload_gate(bench: Any) -> None:
    made = bench(FullFineTuning(FULL))
    model = made.model()
    reference = made.reading.signatures(model, made.columns, rows=np.arange(8))
    same = reload_gate(model, made.columns, reference, made.reading)
    nn.init.normal_(model.classifier.weight)
    other = reload_gate(model, made.columns, reference, made.reading)
    assert same.passed
    assert not other.passed


def test_a_merge_that_changes_the_model_fails_the_merge_gate(bench: Any) -> None:
    made = bench(LoRA(LORA))

    class MergesWrongly(LoRA):
        def merge(self, reloaded: nn.Module) -> nn.Module:
            nn.init.normal_(reloaded.classifier.weight)
            return reloaded

    plain = made.base.copy(torch.Generator().manual_seed(0), share_frozen=False)
    (gate,) = merge_gate(MergesWrongly(LORA), plain, made.columns, made.reading)
    assert not gate.passed


# ----------------------------------------------------------------------------------------------------- whole studies


def artifacts(tmp_path: Path, **results: dict[str, Any]) -> Finished:
    """Artifacts with these results; the key is "kind_method"."""
    parts = []
    for index, (key, result) in enumerate(results.items()):
        kind, _, method = key.partition("_")
        label = {"model": "m", "task": "t", "method": method or None, "seed": "1" if method else None}
        context = step_context(tmp_path, Step(kind, 1, {"n": index}), {})
        parts.append((f"{kind}:{index}", label, as_artifact(context, result)))
    return Finished(parts)


def scores(**values: float) -> list[dict[str, Any]]:
    """Of baselines, of which the random one draws from a seed."""
    return [
        {"name": name.replace("_", " "), "seed": "42" if name == "random" else "", "metrics": {"accuracy": value}}
        for name, value in values.items()
    ]


def test_arms_scored_on_other_examples_are_refused(tmp_path: Path) -> None:
    finished = artifacts(
        tmp_path, evaluate_full={"example_ids_sha256": "aa"}, evaluate_lora={"example_ids_sha256": "bb"}
    )
    with pytest.raises(GateFailure, match="the arms of t were scored on different test examples"):
        check_same_examples(finished)


def test_arms_probed_on_different_examples_are_not_compared(tmp_path: Path) -> None:
    def probes(ids: str) -> dict[str, Any]:
        return {"probes": {"probe": {"ids_sha256": ids}, "probe:other": {"ids_sha256": "cc"}}}

    check_same_examples(artifacts(tmp_path / "same", drift_full=probes("aa"), drift_lora=probes("aa")))
    finished = artifacts(tmp_path / "other", drift_full=probes("aa"), drift_lora=probes("bb"))
    with pytest.raises(GateFailure, match="the arms of t were probed on different examples"):
        check_same_examples(finished)


def test_an_arm_below_the_linear_probe_is_broken(tmp_path: Path) -> None:
    finished = artifacts(
        tmp_path,
        baseline={"scores": scores(majority=0.6, linear_probe=0.8, random=0.99)},
        evaluate_full={"test": {"accuracy": 0.7}},
        evaluate_lora={"test": {"accuracy": 0.9}},
    )
    gates = {(g["gate"], g["method"]): g["passed"] for g in arm_gates(finished, {"t": "accuracy"})}
    assert gates == {
        ("beats majority", "full"): True,
        ("beats linear probe", "full"): False,
        ("beats majority", "lora"): True,
        ("beats linear probe", "lora"): True,
    }


def test_an_arm_without_baselines_proves_nothing(tmp_path: Path) -> None:
    (gate,) = arm_gates(artifacts(tmp_path, evaluate_lora={"test": {"accuracy": 0.9}}), {"t": "accuracy"})
    assert not gate["passed"]
    assert "the baselines were not measured" in gate["detail"]


def test_the_ten_examples_to_overfit_are_never_all_of_one_class(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    examples = tiny_examples(60)
    examples["label"] = [1] * 57 + [0] * 3
    columns = tiny_columns(tmp_path / "c", examples, AutoTokenizer.from_pretrained(tiny_checkpoints["bert"]))
    made = sanity.Bench(
        base=tiny_base(tiny_checkpoints["bert"]), method=FullFineTuning(FULL), reading=tiny_reading(),
        columns=columns, train=TrainSpec(), learning_rate=1e-3,
    )  # fmt: skip
    labels = {int(columns.column("label")[row]) for row in sanity._unlike_rows(made, 10)}
    assert labels == {0, 1}


def with_two_rows_each(directory: Path, columns: ColumnStore) -> ColumnStore:
    """The same examples, each twice: as two windows of it."""
    rows = np.repeat(np.arange(len(columns)), 2)
    ColumnStore.write(directory, columns.gather(rows), columns.ids[rows].tolist())
    return ColumnStore.open(directory)


def test_ten_examples_come_with_all_their_windows(bench: Any, tmp_path: Path) -> None:
    plain = bench(FullFineTuning(FULL))
    windows = with_two_rows_each(tmp_path / "windows", plain.columns)
    once, twice = (sanity._unlike_rows(b, 10) for b in (plain, replace(plain, columns=windows)))
    assert np.repeat(plain.columns.ids[once], 2).tolist() == windows.ids[twice].tolist()


def test_features_of_an_example_are_the_mean_of_its_windows(bench: Any, tmp_path: Path) -> None:
    plain = bench(FullFineTuning(FULL))
    windows = with_two_rows_each(tmp_path / "windows", plain.columns)
    once, twice = (frozen_features(plain.base.model, c, plain.reading) for c in (plain.columns, windows))
    np.testing.assert_allclose(twice, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_body_with_a_decoder_has_features_too(kind: str, bench: Any) -> None:
    plain = bench(FullFineTuning(FULL))
    sizes: dict[str, Any] = {"vocab_size": 16, "d_model": 8, "num_layers": 1, "pad_token_id": 0, "eos_token_id": 3}
    t5 = {"d_kv": 4, "d_ff": 8, "num_heads": 2, "decoder_start_token_id": 0}
    bart = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("attention_heads", "layers", "ffn_dim")}
    config = AutoConfig.for_model(kind, **sizes, **(t5 if kind == "t5" else bart))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    features = frozen_features(model, plain.columns, plain.reading)
    assert features.shape == (len(plain.columns), 8) and features.std(axis=0).min() > 0


def test_predictions_follow_the_order_of_the_columns(bench: Any) -> None:
    made = bench(FullFineTuning(FULL))
    frame = made.reading.predict(made.model(), made.columns)
    assert list(frame["example_id"]) == list(made.columns.ids)
    expected = pd.Series([int(label) for label in made.columns.column("label")])
    assert (frame["label"].reset_index(drop=True) == expected).all()
