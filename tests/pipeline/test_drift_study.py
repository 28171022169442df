"""A study that measures drift in full: two tasks, a decoder with its language head, a text to forget."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WORDS, save_tiny_checkpoint, tiny_examples

import lorascope
from lorascope.drift import arm
from lorascope.drift import step as drift_step
from lorascope.drift.beside import Cancellation, in_a_thread
from lorascope.drift.step import measure_drift
from lorascope.engine.context import StepContext
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.engine.warm import Warm
from lorascope.errors import StudyError

STUDY = """
name: drift
question: Does LoRA stay closer?
models: [{name: tiny, source: {path: llama}}]
tasks:
  - {name: first, kind: classification, train: first.csv, text: text, label: label}
  - {name: second, kind: classification, train: second.csv, text: text, label: label}
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 4}
seeds: [1, 2]
train: {epochs: 2, batch_size: 16, max_length: 32}
measure: {drift: {examples: 40, draws: 100, attention_examples: 8, snapshots: 3, layer_pairs: true,
                 keep: representations, text: text.txt}}
hypotheses:
  H1b: {lower: lora, than: full, on: drift, by: 20%}
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drift")
    save_tiny_checkpoint(directory / "llama", "llama")
    for seed, name in enumerate(("first", "second")):
        examples = tiny_examples(400, seed=seed).drop_duplicates("text")
        examples[["text", "label"]].to_csv(directory / f"{name}.csv", index=False)
    words = random.Random(0).choices(WORDS, k=400)
    (directory / "text.txt").write_text(" ".join(words))
    (directory / "study.yaml").write_text(STUDY)
    study = lorascope.load(directory / "study.yaml")
    outcome = lorascope.run(study, store=directory / "store", results=directory / "results", executor="inline")
    assert not outcome.failed
    return directory


def drift_artifacts(directory: Path) -> list[Artifact]:
    found = Store(directory / "store").artifacts("drift")
    assert len(found) == 4
    return list(found)


def test_every_run_is_read_on_both_tasks_and_on_the_text(studied: Path) -> None:
    found = pd.read_parquet(studied / "results" / "drift" / "measurements.parquet")
    runs = found[~found["method"].str.contains(":") & ~found["split"].str.startswith("snapshot:", na=False)]
    splits = runs[runs["metric"] == "drift"].groupby("task")["split"].unique()
    assert {task: set(names) for task, names in splits.items()} == {
        "first": {"probe", "probe:second"}, "second": {"probe", "probe:first"},
    }  # fmt: skip
    text = runs[runs["metric"].isin(["text_loss_before", "text_loss_after", "forgetting"])]
    wide = text.pivot_table(index=["task", "method", "seed"], columns="metric", values="value")
    assert len(wide) == 8
    assert wide["text_loss_before"].nunique() == 1
    assert (wide["text_loss_after"] - wide["text_loss_before"] - wide["forgetting"]).abs().max() < 1e-9
    assert (wide["forgetting"].abs() > 1e-6).all()


def test_a_task_read_from_the_other_gives_the_values_it_gives_itself(studied: Path) -> None:
    """The base's references on `second` do not depend on which arm looked."""
    found = pd.read_parquet(studied / "results" / "drift" / "measurements.parquet")
    fixed = found[found["method"].isin(["reference:other-examples", "reference:random-initialisation"])]
    spread = fixed.groupby(["task", "method", "site", "layer"])["value"].agg(["count", "std"])
    assert set(spread["count"]) == {2}
    assert spread["std"].max() < 1e-12


def test_weights_attention_and_draws_are_there_for_every_run(studied: Path) -> None:
    for artifact in drift_artifacts(studied):
        rows = pd.read_parquet(artifact.file("drift.parquet"))
        whole = rows[rows["site"].isna() & rows["layer"].isna()].groupby("metric")["run"].nunique()
        assert whole["relative_update_norm"] == 2
        assert rows[rows["site"] == "attention-pattern"].groupby(["run", "metric"])["layer"].nunique().eq(2).all()
        assert set(artifact.result["drift"]) == {"1", "2"}
        assert 30 < artifact.result["num_examples"] <= 40
        assert not rows.duplicated(["run", "split", "pooling", "site", "layer", "metric"]).any()


def test_draws_are_centred_on_the_drift_of_each_run(studied: Path) -> None:
    for artifact in drift_artifacts(studied):
        rows = pd.read_parquet(artifact.file("drift.parquet"))
        drift = rows[(rows["metric"] == "drift") & (rows["split"] == "probe") & rows["layer"].notna()]
        with np.load(artifact.file("draws.npz")) as file:
            draws, runs, *places = (file[name] for name in ("draws", "runs", "poolings", "sites", "layers"))
        centres, spreads = draws.mean(0), draws.std(0)
        for index, run in enumerate(runs):
            own = drift[drift["run"] == run].set_index(["pooling", "site", "layer"])["value"]
            for point, place in enumerate(zip(*places, strict=True)):
                assert abs(centres[index, point] - own[place]) < 3 * spreads[index, point] + 1e-6, place


def test_layer_pairs_and_kept_representations_agree_with_the_drift(studied: Path) -> None:
    from lorascope.drift.grams import grams
    from lorascope.drift.similarity import linear_cka

    for artifact in drift_artifacts(studied):
        rows = pd.read_parquet(artifact.file("drift.parquet"))
        drift = rows[(rows["metric"] == "drift") & (rows["split"] == "probe") & rows["layer"].notna()]
        drift = drift[drift["pooling"] == "decision-token"]
        with np.load(artifact.file("layer_pairs.npz")) as pairs:
            for (seed, site), own in drift.groupby(["seed", "site"]):
                assert artifact.result["layers"][site] == own["layer"].tolist()
                np.testing.assert_allclose(1 - pairs[f"{site}/{seed}"].diagonal(), own["value"], atol=1e-9)
                base, run = (
                    torch.from_numpy(np.load(artifact.path / "representations" / who / f"{site}.npy", mmap_mode="c"))
                    for who in ("base", f"seed-{seed}")
                )
                np.testing.assert_allclose(1 - linear_cka(grams(base), grams(run)), own["value"], atol=1e-9)


def measured_again(
    studied: Path, artifact: Artifact, directory: Path, *, warm: Warm | None = None, **settings: Any
) -> tuple[dict[str, Any], Path]:
    """(result, directory) of an artifact's step, computed anew, with nothing warm unless given. settings: of drift, in the
    place of the study's."""
    store, out = Store(studied / "store"), directory / artifact.id
    out.mkdir()
    step = replace(
        artifact.step,
        locations={"model": str(studied / "llama"), "text": str(studied / "text.txt")},
        params={**artifact.step.params, "drift": {**artifact.step.params["drift"], **settings}},
    )
    context = StepContext(
        step=step, out=out, work=directory, deps={role: store.artifact(i) for role, i in step.deps.items()},
        emit=lambda event: None, device="cpu", data_dir=None, cache_dir=store.cache_dir, warm=warm or Warm(),
    )  # fmt: skip
    return measure_drift(context), out


def test_drift_by_tokens_resamples_examples(studied: Path, tmp_path: Path) -> None:
    from lorascope.data.columns import ColumnStore
    from lorascope.drift.grams import grams
    from lorascope.drift.probe import choose_probe, choose_tokens
    from lorascope.drift.resampling import bootstrap_cka, bootstrap_counts
    from lorascope.drift.similarity import linear_cka

    for artifact in drift_artifacts(studied)[:3:2]:
        result, out = measured_again(studied, artifact, tmp_path, pooling="token")
        tokens = Store(studied / "store").artifact(artifact.step.deps["tokens"])
        probe = choose_probe(ColumnStore.open(tokens.path / "test"), 40, seed=0).columns
        sample = choose_tokens(np.asarray(probe.lengths), seed=0)
        assert result["num_rows"] == len(sample) == int(np.asarray(probe.lengths).sum()) > result["num_examples"]
        base, run = (
            grams(torch.from_numpy(np.load(out / "representations" / who / "residual.npy")))
            for who in ("base", "seed-2")
        )
        rows = pd.read_parquet(out / "drift.parquet")
        is_own = (rows["metric"] == "drift") & (rows["split"] == "probe") & (rows["seed"] == "2")
        own = rows[is_own & (rows["site"] == "residual") & rows["layer"].notna()]
        np.testing.assert_allclose(1 - linear_cka(base, run), own["value"], atol=1e-9)
        count = len(probe)
        of_examples = bootstrap_counts(count, generator=np.random.default_rng([20261124, count]), draws=100)
        expected = 1 - bootstrap_cka(base, [run], counts=of_examples[:, sample.examples])
        with np.load(out / "draws.npz") as file:
            found = file["draws"][:, list(file["seeds"]).index("2"), file["sites"] == "residual"]
        np.testing.assert_allclose(found, expected[:, 0], atol=1e-6)


def test_the_same_step_elsewhere_gives_the_same_numbers(studied: Path, tmp_path: Path) -> None:
    """Arms measured in another order, nothing warm from the arm before."""
    for artifact in drift_artifacts(studied)[:2]:
        _, out = measured_again(studied, artifact, tmp_path)
        again, before = (pd.read_parquet(path / "drift.parquet") for path in (out, artifact.path))
        pd.testing.assert_frame_equal(again, before, rtol=1e-6, atol=1e-9)


@pytest.fixture
def weights_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, but for the stream."""

    def threaded(work: Callable[[Cancellation], Any], **where: Any) -> AbstractContextManager[Callable[[], Any]]:
        cancellation = Cancellation()
        return in_a_thread(lambda: work(cancellation), cancellation)

    monkeypatch.setattr(drift_step, "beside", threaded)


@pytest.mark.usefixtures("weights_in_a_thread")
def test_weights_measured_beside_the_reading_give_the_same_numbers(studied: Path, tmp_path: Path) -> None:
    for artifact in drift_artifacts(studied):
        result, out = measured_again(studied, artifact, tmp_path)
        assert result["seconds"].keys() == artifact.result["seconds"].keys()
        for name in ("drift", "spectra", "references"):
            again, before = (pd.read_parquet(path / f"{name}.parquet") for path in (out, artifact.path))
            pd.testing.assert_frame_equal(again, before, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("weights_in_a_thread")
@pytest.mark.parametrize("failing", ["measure_updates", "read_runs"])
def test_a_failure_of_either_side_fails_the_step_and_leaves_no_thread(
    failing: str, studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **settings: Any) -> Any:
        raise StudyError("cannot be read")

    monkeypatch.setattr(arm, failing, fails)
    with pytest.raises(StudyError, match="cannot be read"):
        measured_again(studied, drift_artifacts(studied)[0], tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beside")]


def test_singular_vectors_are_computed_once_though_tasks_alternate(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorascope.drift import weights

    decompose, shapes, warm = weights.left_singular_vectors, [], Warm()

    def counted(matrix: torch.Tensor) -> Any:
        shapes.append(matrix.shape)
        return decompose(matrix)

    monkeypatch.setattr(weights, "left_singular_vectors", counted)
    by_task = sorted(drift_artifacts(studied), key=lambda artifact: artifact.step.params["other_task"])
    for artifact in (by_task[0], by_task[2], by_task[1], by_task[3]):
        measured_again(studied, artifact, tmp_path, warm=warm)
    assert len(shapes) == 2 * 7, "a Llama block has seven linear weights"


def test_drift_is_by_the_decision_token_and_the_others_stand_next_to_it(studied: Path) -> None:
    results = studied / "results" / "drift"
    found = pd.read_parquet(results / "measurements.parquet")
    drift = found[(found["metric"] == "drift") & ~found["method"].str.contains(":")]
    by_split = drift.groupby("split")["pooling"].unique()
    assert set(by_split["probe"]) == {"decision-token", "non-sink-mean", "mean"}
    assert {name for split, names in by_split.items() if split != "probe" for name in names} == {"decision-token"}
    assert set(drift[drift["pooling"] == "mean"]["site"]) == {"residual"}
    (analysis,) = Store(studied / "store").artifacts("analysis")
    for known in json.loads(analysis.file("facts.json").read_text())["drift"]:
        assert (known["pooling"], known["num_layers"], known["least_effective_rank"]) == ("decision-token", 2, 3.0)
    report = (results / "ANALYSIS_REPORT.md").read_text()
    assert "Drift is taken at the token on which the model decides, averaged over" in report
    assert "Drift in one number by other definitions" in report
    assert "Health of the base" in report


def test_health_is_of_the_base_and_averages_leave_out_what_is_unhealthy(studied: Path) -> None:
    """Every arm of a task finds the same, and a run's drift in one number is the mean over what is left."""
    healths = {}
    for artifact in drift_artifacts(studied):
        health = pd.read_parquet(artifact.file("health.parquet"))
        assert (health["is_healthy"] == (health["effective_rank"] >= 3)).all()
        own = healths.setdefault(artifact.step.params["other_task"], health)
        pd.testing.assert_frame_equal(own, health)
        rows = pd.read_parquet(artifact.file("drift.parquet"))
        drift = rows[(rows["metric"] == "drift") & (rows["split"] == "probe") & (rows["site"] == "residual")]
        for (_, pooling), mine in drift.groupby(["run", "pooling"]):
            layers = health[(health["split"] == "probe") & (health["pooling"] == pooling) & health["is_healthy"]]
            counted = set(layers[layers["site"] == "residual"]["layer"]) - {0}
            mean = mine[mine["layer"].isin(counted)]["value"].mean()
            assert mine[mine["layer"].isna()]["value"].tolist() == pytest.approx([mean] if counted else [])


def test_poolings_read_together_are_what_each_alone_gives(studied: Path, tmp_path: Path) -> None:
    artifact = drift_artifacts(studied)[0]
    together = pd.read_parquet(artifact.file("drift.parquet"))
    for pooling in ("mean", "non-sink-mean"):
        (tmp_path / pooling).mkdir()
        _, out = measured_again(studied, artifact, tmp_path / pooling, pooling=pooling)
        alone = pd.read_parquet(out / "drift.parquet")
        places = ["run", "split", "site", "layer"]
        pair = [
            rows[(rows["metric"] == "drift") & (rows["pooling"] == pooling) & (rows["site"] == "residual")]
            for rows in (together, alone)
        ]
        pair = [rows[rows["split"] == "probe"].set_index(places)["value"] for rows in pair]
        pd.testing.assert_series_equal(*pair, rtol=1e-6, atol=1e-9)


def test_snapshots_of_training_end_at_the_last_update(studied: Path) -> None:
    found = pd.read_parquet(studied / "results" / "drift" / "measurements.parquet")
    snapshots = found[found["split"].str.startswith("snapshot:", na=False)]
    runs = Store(studied / "store").artifacts("train")
    for artifact in runs:
        own = snapshots[snapshots["run"] == artifact.id]
        updates = sorted({int(split.partition(":")[2]) for split in own["split"]})
        assert updates == [round(artifact.result["updates"] * k / 3) for k in (1, 2, 3)]
        assert set(own["layer"]) == {0, 1, 2}
        assert own["value"].between(-0.1, 1.3).all()
    late = snapshots[snapshots["layer"] == 2].assign(update=lambda t: t["split"].str.split(":").str[1].astype(int))
    first, last = (late[late["update"] == pick(late["update"])]["value"].mean() for pick in (min, max))
    assert last > first, "runs move away from their base"


def test_a_run_that_cannot_be_compared_costs_the_others_nothing(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, measure, refused = drift_artifacts(studied)[0], arm.distances, iter([True])

    def distances(*args: Any, **settings: Any) -> Any:
        if next(refused, False):
            raise StudyError("layer 2 of residual is the same for all 40 examples")
        return measure(*args, **settings)

    monkeypatch.setattr(arm, "distances", distances)
    result, out = measured_again(studied, artifact, tmp_path)
    assert result["not_measured"] == {"probe of seed 1": "layer 2 of residual is the same for all 40 examples"}
    assert set(result["drift"]) == {"2"}
    again, before = (pd.read_parquet(path / "drift.parquet") for path in (out, artifact.path))
    whole = before[(before["seed"] == "2") & (before["split"] == "probe")].reset_index(drop=True)
    part = again[(again["seed"] == "2") & (again["split"] == "probe")].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, whole, rtol=1e-6, atol=1e-9)
    with np.load(out / "draws.npz") as draws:
        assert draws["seeds"].tolist() == ["2"]


def test_a_base_without_a_language_head_is_measured_but_for_its_text(tmp_path: Path) -> None:
    """A sentence encoder saved without its head: drift is there, forgetting is named as missing in the report."""
    save_tiny_checkpoint(tmp_path / "llama", "bert")
    tiny_examples(200, seed=0).drop_duplicates("text")[["text", "label"]].to_csv(tmp_path / "first.csv", index=False)
    (tmp_path / "text.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=400)))
    one_task = "\n".join(line for line in STUDY.splitlines() if "second" not in line)
    (tmp_path / "study.yaml").write_text(
        one_task.replace("epochs: 2", "epochs: 1").replace("seeds: [1, 2]", "seeds: [1]")
    )
    study = lorascope.load(tmp_path / "study.yaml")
    outcome = lorascope.run(study, store=tmp_path / "store", results=tmp_path / "results", executor="inline")
    assert not outcome.failed
    found = pd.read_parquet(tmp_path / "results" / "drift" / "measurements.parquet")
    assert (found["metric"] == "drift").any()
    assert not (found["metric"] == "forgetting").any()
    report = (tmp_path / "results" / "drift" / "ANALYSIS_REPORT.md").read_text()
    assert "forgetting was not measured. Reason: the checkpoint in" in report


def test_what_a_step_of_version_3_measured_is_read_as_what_it_was(studied: Path, tmp_path: Path) -> None:
    """One pooling, every layer, and no column that says so."""
    from types import SimpleNamespace

    from lorascope.drift.measure import DRIFT
    from lorascope.measures.measure import MeasuredEvidence
    from lorascope.stats.facts.declared import StudyDeclared
    from lorascope.stats.facts.study import StudyFacts

    result, out = measured_again(studied, drift_artifacts(studied)[0], tmp_path, pooling="mean")
    for name in ("drift.parquet", "references.parquet"):
        table = pd.read_parquet(out / name)
        table.drop(columns="pooling").to_parquet(out / name, index=False)
    with np.load(out / "draws.npz") as file:
        np.savez_compressed(out / "draws.npz", **{name: file[name] for name in file if name != "poolings"})
    (out / "health.parquet").unlink()
    old = {name: value for name, value in result.items() if name not in ("poolings", "unhealthy")}
    artifact: Any = SimpleNamespace(id="drift-x", result=old, file=out.joinpath)
    label = {"model": "tiny", "task": "first", "method": "full", "seed": None}
    rows = pd.concat(DRIFT.rows([(label, artifact)]))
    assert set(rows[rows["metric"] == "drift"]["pooling"]) == {"mean"}
    assert rows[rows["metric"] == "relative_update_norm"]["pooling"].isna().all()
    (draws,) = DRIFT.add_evidence(MeasuredEvidence(), [(label, artifact)], rows).drift.values()
    assert (draws.pooling, draws.unhealthy, draws.others) == ("mean", frozenset(), ())
    (known,) = DRIFT.add_facts(StudyFacts(StudyDeclared("s", "?", (), (), ())), [(label, artifact)]).drift
    assert (known.pooling, known.num_layers, known.least_effective_rank) == ("mean", 2, None)


def test_verdict_and_report_speak_of_drift(studied: Path) -> None:
    analysis = json.loads((studied / "results" / "drift" / "analysis.json").read_text())
    assert analysis["drift"]["num_draws"] == 100
    assert analysis["hypotheses"][0]["name"] == "H1b"
    assert analysis["hypotheses"][0]["average"] is not None
