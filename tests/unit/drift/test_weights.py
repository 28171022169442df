"""Weight-space drift: spectra and intruders in closed form, and what an exported run changed in its base."""

from __future__ import annotations

import json
import math
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from tiny import ARCHITECTURES, tiny_base
from torch import Tensor

from lorascope.drift import weights
from lorascope.drift.beside import Cancellation
from lorascope.drift.spectra import (
    effective_rank,
    find_intruders,
    left_singular_vectors,
    low_rank_singular_values,
    singular_values,
    stable_rank,
)
from lorascope.drift.updates import LowRank, Matrix, WeightUpdate, base_matrices, weight_updates
from lorascope.drift.weights import (
    MatrixDrift,
    measure_updates,
    relative_parameter_change,
    summarise_drift,
    weight_measurements,
)
from lorascope.errors import StudyError
from lorascope.methods.base import Method
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.models.loading import BaseModel
from lorascope.stats.measurements import validate_measurements
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.training.preparation import prepared_model

EXACT = {"dtype": torch.float64}
# A spectrum whose every gap is wide, so that its singular vectors are well determined.
SPECTRUM = torch.linspace(40, 2, 20, **EXACT)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=drawn(seed), **EXACT)).Q


def matrix_of(values: Tensor, out: int, width: int, *, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    left, right = orthonormal(out, len(values), seed), orthonormal(width, len(values), seed + 1)
    return left * values @ right.T


def measured(weight: Tensor, change: Tensor | LowRank, **options: object) -> MatrixDrift:
    """change: a dense update dW, or factors."""
    tuned = change if isinstance(change, LowRank) else weight + change
    update = WeightUpdate(Matrix("blocks.0.q", "query", 0, weight), tuned)
    ((drift,),) = measure_updates([[update]], generator=drawn(3), device="cpu", **options)  # type: ignore[arg-type]
    return drift


def change_of(directory: Path) -> Any:
    """What the method that exported it would say."""
    return "low-rank" if (directory / "adapter_config.json").is_file() else "dense"


def measured_export(base: BaseModel, directory: Path) -> list[MatrixDrift]:
    return measured_exports(base, directory)[0]


def measured_exports(base: BaseModel, *directories: Path) -> list[list[MatrixDrift]]:
    updates = zip(
        *(weight_updates(base, directory, change=change_of(directory)) for directory in directories), strict=True
    )
    return measure_updates(updates, generator=drawn(), device="cpu")


# ------------------------------------------------------------------------------------------------- spectra and ranks


@pytest.mark.parametrize(("out", "width"), [(20, 20), (20, 50), (50, 20)])
def test_singular_values_are_those_the_matrix_was_made_of(out: int, width: int) -> None:
    found = singular_values(matrix_of(SPECTRUM, out, width)[None])
    torch.testing.assert_close(found[0], SPECTRUM, rtol=1e-12, atol=0)


def test_singular_values_too_small_for_a_gram_matrix_are_still_exact() -> None:
    values = torch.tensor([1.0, 1e-3, 1e-7, 1e-11], **EXACT)
    ill, well = matrix_of(values, 4, 9), matrix_of(torch.tensor([4.0, 3, 2, 1], **EXACT), 4, 9)
    found = singular_values(torch.stack([well, ill, torch.zeros_like(ill)]))
    torch.testing.assert_close(found[0], torch.tensor([4.0, 3, 2, 1], **EXACT))
    torch.testing.assert_close(found[1], values, rtol=1e-4, atol=0)
    assert bool((found[2] == 0).all())


def test_factors_give_the_singular_values_of_their_dense_product() -> None:
    left, right = torch.randn(3, 30, 5, **EXACT), torch.randn(3, 5, 17, **EXACT)
    right[1, 4] = right[1, 3]  # of rank 4
    dense = torch.linalg.svdvals(left @ right)
    torch.testing.assert_close(low_rank_singular_values(left, right), dense[:, :5], rtol=0, atol=1e-10)
    assert float(dense[:, 5:].max()) < 1e-10


def test_ranks_of_equal_singular_values_are_their_number() -> None:
    values = torch.tensor([2.0, 2, 2, 0], **EXACT)
    assert float(stable_rank(values)) == pytest.approx(3, abs=1e-12)
    assert float(effective_rank(values)) == pytest.approx(3, abs=1e-12)


def test_ranks_of_unequal_singular_values_follow_their_formulas() -> None:
    values = torch.tensor([3.0, 1], **EXACT)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(stable_rank(values)) == pytest.approx(10 / 9, abs=1e-12)
    assert float(effective_rank(values)) == pytest.approx(math.exp(entropy), abs=1e-12)


def test_ranks_of_nothing_are_zero() -> None:
    zero = torch.zeros(2, 4, **EXACT)
    assert stable_rank(zero).tolist() == effective_rank(zero).tolist() == [0, 0]


@pytest.mark.parametrize(("out", "width"), [(20, 20), (20, 50), (50, 20)])
def test_left_singular_vectors_are_those_the_matrix_was_made_of(out: int, width: int) -> None:
    planted = orthonormal(out, 20, 0)
    vectors, values = left_singular_vectors(matrix_of(SPECTRUM, out, width)[None], top=7)
    torch.testing.assert_close(values[0], SPECTRUM[:7])
    torch.testing.assert_close((planted[:, :7] * vectors[0]).sum(0).abs(), torch.ones(7, **EXACT))


@pytest.mark.parametrize(("out", "width"), [(12, 12), (12, 30), (30, 12)])
def test_a_matrix_has_no_more_left_directions_than_its_rank(out: int, width: int) -> None:
    vectors, values = left_singular_vectors(matrix_of(SPECTRUM[:5], out, width)[None])
    assert int((values > 0).sum()) == 5
    assert vectors[0, :, 5:].abs().max() == 0


# ------------------------------------------------------------------------------------------------ intruder dimensions


def test_a_planted_direction_is_the_one_intruder_with_its_energy() -> None:
    weight = matrix_of(SPECTRUM, 60, 60)
    new_left, new_right = (_outside(orthonormal(60, 20, seed), seed + 7) for seed in (0, 1))
    drift = measured(weight, 100 * torch.outer(new_left, new_right))
    assert drift.intruders.count == 1
    assert drift.intruders.energy == pytest.approx(100**2)
    share = summarise_drift([drift])["intruder_energy_share"]
    assert share == pytest.approx(100**2 / (100**2 + float(SPECTRUM.square().sum())))


def _outside(basis: Tensor, seed: int) -> Tensor:
    """A unit vector orthogonal to the basis."""
    vector = torch.randn(len(basis), generator=drawn(seed), **EXACT)
    vector -= basis @ (basis.T @ vector)
    return vector / vector.norm()


def test_an_old_left_direction_grown_to_the_top_is_no_intruder() -> None:
    weight = matrix_of(SPECTRUM, 60, 60)
    old_left = orthonormal(60, 20, 0)[:, 19]
    drift = measured(weight, 100 * torch.outer(old_left, _outside(orthonormal(60, 20, 1), 8)))
    assert drift.intruders.count == 0


def test_a_direction_below_the_top_k_is_not_counted() -> None:
    weight = matrix_of(SPECTRUM, 60, 60)
    new_left, new_right = (_outside(orthonormal(60, 20, seed), seed + 7) for seed in (0, 1))
    update = 21 * torch.outer(new_left, new_right)  # the eleventh of the tuned singular values: 20 above, 22 of W's 20
    assert float(SPECTRUM[9]) > 21 > float(SPECTRUM[10])
    assert measured(weight, update).intruders.count == 0
    assert measured(weight, update, top=11).intruders.count == 1


def test_the_threshold_decides_what_is_alike() -> None:
    """The new top direction is 0.6 of an old one and 0.8 of a new one."""
    base = matrix_of(torch.tensor([1e-3], **EXACT), 8, 8)
    old = orthonormal(8, 1, 0)[:, 0]
    mixed = 0.6 * old + 0.8 * _outside(old[:, None], 5)
    tuned = torch.outer(mixed, orthonormal(8, 1, 9)[:, 0])[None]
    vectors, _ = left_singular_vectors(base[None])
    assert [find_intruders(vectors, tuned, threshold=t)[0].count for t in (0.5, 0.59, 0.61, 0.9)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("out", "width"), [(40, 40), (24, 60), (60, 24)])
def test_intruders_are_those_of_a_loop_over_full_decompositions(out: int, width: int) -> None:
    """The published procedure, vector by vector, on updates of many sizes."""
    base = torch.randn(30, out, width, generator=drawn(1), **EXACT)
    sizes = torch.linspace(0.05, 3, 30, **EXACT)[:, None, None]
    tuned = base + sizes * torch.randn(base.shape, generator=drawn(2), **EXACT)
    found = find_intruders(left_singular_vectors(base)[0], tuned, top=10, threshold=0.5)
    for one, before, after in zip(found, base, tuned, strict=True):
        old, (new, values, _) = torch.linalg.svd(before, full_matrices=False)[0], torch.linalg.svd(after)
        is_new = [all(abs(float(old[:, i] @ new[:, j])) < 0.5 for i in range(old.shape[1])) for j in range(10)]
        assert one.count == sum(is_new)
        assert one.energy == pytest.approx(sum(float(values[j]) ** 2 for j in range(10) if is_new[j]))
    assert len({one.count for one in found}) > 5


def test_a_small_update_makes_no_intruders_and_nor_does_its_control() -> None:
    drift = measured(matrix_of(SPECTRUM, 60, 60), matrix_of(torch.full((20,), 1e-3, **EXACT), 60, 60, seed=4))
    assert (drift.intruders.count, drift.control.count) == (0, 0)


def test_a_large_adapters_control_has_as_many_intruders_as_its_rank() -> None:
    """Gaussian factors have nearly equal singular values, here all far above W's, in random directions of a large space:
    each is an intruder, and together they hold the energy of the update."""
    weight = matrix_of(SPECTRUM / 40, 400, 300)
    factors = LowRank(orthonormal(400, 4, 5) * 50, orthonormal(300, 4, 6).T)
    drift = measured(weight, factors)
    assert drift.update_norm == pytest.approx(100)
    assert (drift.control.count, drift.intruders.count) == (4, 4)
    energy = summarise_drift([drift])["random_intruder_energy_share"]
    assert energy == pytest.approx(100**2 / (100**2 + float((SPECTRUM / 40).square().sum())), rel=1e-3)


def test_the_control_of_a_dense_update_has_its_norm() -> None:
    """A Gaussian n x n matrix of Frobenius norm c has a largest singular value of 2 c / sqrt(n) (Bai and Yin 1993): here
    it stays below W's top ten, where one of rank 1 would be above."""
    weight = matrix_of(SPECTRUM, 400, 400)
    drift = measured(weight, 60 * torch.outer(orthonormal(400, 1, 5)[:, 0], orthonormal(400, 1, 6)[:, 0]))
    assert drift.intruders.count == 1
    assert drift.control.count == 0
    squared = float(SPECTRUM.square().sum()) + 60**2
    assert drift.control_norm == pytest.approx(math.sqrt(squared), rel=0.01)  # random directions are all but orthogonal


# ------------------------------------------------------------------------------------------------------ one matrix


def test_measures_of_a_dense_update_are_its_closed_forms() -> None:
    weight, update = matrix_of(SPECTRUM, 20, 30), matrix_of(torch.tensor([3.0, 1], **EXACT), 20, 30, seed=5)
    drift = measured(weight, update)
    assert drift.update_norm == pytest.approx(math.sqrt(10))
    assert drift.weight_norm == pytest.approx(float(SPECTRUM.norm()))
    assert drift.stable_rank == pytest.approx(10 / 9)
    assert drift.singular_values[:2] == pytest.approx((3, 1))
    assert len(drift.singular_values) == 20 and max(drift.singular_values[2:]) < 1e-12
    assert drift.rank is None


def test_an_adapter_and_its_dense_product_measure_the_same() -> None:
    weight = matrix_of(SPECTRUM, 60, 40)
    factors = LowRank(torch.randn(60, 3, generator=drawn(1), **EXACT), torch.randn(3, 40, generator=drawn(2), **EXACT))
    adapter, dense = measured(weight, factors), measured(weight, factors.left @ factors.right)
    for name in ("update_norm", "tuned_norm", "stable_rank", "effective_rank"):
        assert getattr(adapter, name) == pytest.approx(getattr(dense, name), abs=1e-10), name
    assert adapter.singular_values == pytest.approx(dense.singular_values[:3], abs=1e-10)
    assert adapter.intruders.count == dense.intruders.count
    assert summarise_drift([adapter])["rank_utilisation"] == pytest.approx(dense.effective_rank / 3)


@pytest.mark.parametrize(
    "change", [torch.zeros(6, 9, **EXACT), LowRank(torch.zeros(6, 2, **EXACT), torch.ones(2, 9, **EXACT))]
)
def test_every_measure_of_a_zero_update_is_zero(change: Tensor | LowRank) -> None:
    drift = measured(matrix_of(SPECTRUM[:6], 6, 9), change)
    summary = summarise_drift([drift])
    assert set(summary.values()) == {0.0}
    assert drift.singular_values == ()
    assert drift.tuned_norm == drift.weight_norm


def test_batches_and_known_vectors_do_not_change_the_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(30, 20), (20, 30), (30, 20), (30, 20)]
    base = [matrix_of(SPECTRUM, *shape, seed=10 + i) for i, shape in enumerate(shapes)]

    def updates():
        for i, weight in enumerate(base):
            change = weight + matrix_of(SPECTRUM.flip(0), *weight.shape, seed=20 + i) if i != 2 else None
            yield [WeightUpdate(Matrix(f"{i}", "query", i, weight), change)]

    def measures(**options: Any) -> list[MatrixDrift]:
        return measure_updates(updates(), generator=drawn(), device="cpu", **options)[0]

    together = measures()
    known: dict[str, Tensor] = {}
    first, second = (measures(known_vectors=known) for _ in range(2))
    monkeypatch.setattr(weights, "_ITEMS_A_CORE", 1)
    apart = measures()
    assert [drift.name for drift in together] == ["0", "1", "2", "3"]
    assert set(known) == {"0", "1", "3"}
    for other in (first, second, apart):
        for one, two in zip(together, other, strict=True):
            assert (one.intruders.count, one.control.count) == (two.intruders.count, two.control.count)
            for name in ("update_norm", "tuned_norm", "control_norm", "effective_rank"):
                assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-12), name


def test_runs_measured_together_are_each_as_alone() -> None:
    """One changed nothing in the second matrix; an adapter and a dense update may meet in one matrix."""
    weight = matrix_of(SPECTRUM, 30, 20)
    factors = LowRank(torch.randn(30, 2, generator=drawn(1), **EXACT), torch.randn(2, 20, generator=drawn(2), **EXACT))
    changes = [
        [weight + matrix_of(SPECTRUM, 30, 20, seed=7), weight + matrix_of(SPECTRUM.flip(0), 30, 20, seed=8), factors],
        [weight + matrix_of(SPECTRUM, 30, 20, seed=9), None, factors],
    ]
    matrices = [Matrix(f"{i}", "query", i, weight) for i in range(2)]
    updates = [[WeightUpdate(m, c) for c in of_runs] for m, of_runs in zip(matrices, changes, strict=True)]
    together = measure_updates(updates, generator=drawn(), device="cpu")
    for run, found in enumerate(together):
        alone = measure_updates([[of_runs[run]] for of_runs in updates], generator=drawn(), device="cpu")[0]
        # Random updates are drawn one after the other, so a run's depend on what is measured with it.
        assert [replace(drift, control=None, control_norm=0) for drift in found] == [
            replace(drift, control=None, control_norm=0) for drift in alone
        ]


@pytest.mark.parametrize(("out", "width"), [(192, 320), (320, 192)])
def test_measures_at_the_sizes_of_a_model_are_those_of_full_decompositions(out: int, width: int) -> None:
    """Against NumPy, on updates from one that changes no direction to one that replaces most."""
    weight = torch.randn(out, width, generator=drawn(1), **EXACT) * torch.linspace(3, 0.1, width, **EXACT)
    noise = torch.randn(out, width, generator=drawn(2), **EXACT)
    tuned = [weight + size * noise for size in (0.01, 0.3, 1, 3)]
    updates = [[WeightUpdate(Matrix("q", "query", 0, weight), change) for change in tuned]]
    found = [drifts[0] for drifts in measure_updates(updates, generator=drawn(), device="cpu")]
    base = np.linalg.svd(weight.numpy(), full_matrices=False)[0]
    for drift, change in zip(found, tuned, strict=True):
        values = np.linalg.svd((change - weight).numpy(), compute_uv=False)
        np.testing.assert_allclose(drift.singular_values, values[:64], rtol=1e-6)
        left, energies, _ = np.linalg.svd(change.numpy(), full_matrices=False)
        is_new = np.abs(base.T @ left[:, :10]).max(axis=0) < 0.5
        assert drift.intruders.count == is_new.sum()
        assert drift.intruders.energy == pytest.approx(float((energies[:10] ** 2)[is_new].sum()), rel=1e-6)
    assert [drift.intruders.count > 0 for drift in found] == [False, False, True, True]


def test_measuring_leaves_torch_its_threads() -> None:
    before = torch.get_num_threads()
    measured(matrix_of(SPECTRUM, 60, 60), torch.ones(60, 60, **EXACT))
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_measuring_stops_before_the_next_update_once_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation, find, found = Cancellation(), weights.find_intruders, []

    def cancelling(*args: Any, **options: Any) -> Any:
        cancellation.ask()
        found.append(find(*args, **options))
        return found[-1]

    monkeypatch.setattr(weights, "find_intruders", cancelling)
    weight = matrix_of(SPECTRUM, 30, 20)
    runs = [WeightUpdate(Matrix("q", "query", 0, weight), weight + 0.1 * k) for k in range(1, 5)]
    with pytest.raises(CancelledError):
        measure_updates([runs], generator=drawn(), device="cpu", cancellation=cancellation)
    assert len(found) == 2, "the tuned and the random weight of the first run"


def test_every_core_is_expected_to_be_at_the_largest_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    matrices = [Matrix("q", "query", 0, torch.zeros(4, 5)), Matrix("m", "up", 0, torch.zeros(7, 5))]
    assert weights.device_bytes(matrices) == 3 * 6 * 8 * 35
    assert weights.device_bytes([]) == 0


@pytest.mark.parametrize(("spare", "expected"), [(0, 2), (1, 1), (9, 1)])
def test_spare_cores_are_left_to_others(spare: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            cores.append(workers)
            super().__init__(workers, **options)

    monkeypatch.setattr(weights, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight = matrix_of(SPECTRUM, 30, 20)
    updates = [[WeightUpdate(Matrix("q", "query", 0, weight), weight + 0.1)]]
    measure_updates(updates, generator=drawn(), device="cpu", spare_cores=spare)
    assert cores == [expected]


# ----------------------------------------------------------------------------------------------------- exported runs


def exported(base: BaseModel, method: Method, directory: Path, *, moves: float = 0.1) -> Path:
    """A run of the method whose trained weights all moved by random amounts."""
    model, _ = prepared_model(base, [method], [Seeds.model_validate(1)])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += moves * torch.randn(parameter.shape, generator=drawn(2))
    method.export(model, directory, base=base)
    return directory


def lora(**changes: object) -> LoRA:
    fields = {"name": "lora", "kind": "lora", "rank": 3, "alpha": 12, "sites": ["query", "value"], **changes}
    return LoRA(LoraSpec.model_validate(fields))


def full() -> FullFineTuning:
    return FullFineTuning(FullSpec(name="full", kind="full"))


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tiny_checkpoints: dict[str, Path]) -> BaseModel:
    return tiny_base(tiny_checkpoints[request.param])


def test_an_adapters_updates_are_those_that_peft_computes(base: BaseModel, tmp_path: Path) -> None:
    method = lora()
    directory = exported(base, method, tmp_path)
    peft_model = method.reload(directory, base=base)
    assert isinstance(peft_model, PeftModel)
    layers = dict(peft_model.get_base_model().named_modules())
    adapted = [
        update for update in weight_updates(base, directory, change=change_of(directory)) if update.change is not None
    ]
    assert len(adapted) == 2 * 2
    for update in adapted:
        assert isinstance(update.change, LowRank)
        expected = layers[update.matrix.name].get_delta_weight("default").detach()
        dense = (update.change.left @ update.change.right.double()).float()
        torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-6)
        assert update.matrix.site in ("query", "value")


def test_a_full_runs_updates_are_the_differences_of_its_weights(base: BaseModel, tmp_path: Path) -> None:
    method = full()
    directory = exported(base, method, tmp_path)
    tuned = dict(method.reload(directory, base=base).named_modules())
    drifts = measured_export(base, directory)
    modules = dict(base.model.named_modules())
    linears = {"bert": 2 * 6 + 1, "roberta": 2 * 6, "llama": 2 * 7}  # BERT's checkpoint has a pooler
    assert len(drifts) == len(base_matrices(base)) == linears[base.model.config.model_type]
    for drift in drifts:
        difference = (tuned[drift.name].weight.double() - modules[drift.name].weight.double()).detach()
        assert drift.update_norm == pytest.approx(float(difference.norm()), rel=1e-12)
        torch.testing.assert_close(torch.tensor(drift.singular_values, **EXACT), torch.linalg.svdvals(difference))


def test_a_merged_adapter_measures_what_the_adapter_does(base: BaseModel, tmp_path: Path) -> None:
    method = lora(sites=["attention", "mlp"])
    adapter = exported(base, method, tmp_path / "adapter")
    method.merge(method.reload(adapter, base=base)).save_pretrained(tmp_path / "merged")
    one, two = (measured_export(base, directory) for directory in (adapter, tmp_path / "merged"))
    for factored, dense in zip(one, two, strict=True):
        assert factored.update_norm == pytest.approx(dense.update_norm, rel=1e-5)
        assert factored.intruders.count == dense.intruders.count
        assert factored.singular_values == pytest.approx(dense.singular_values[:3], rel=1e-4)


def test_a_checkpoint_in_shards_measures_what_the_whole_does(base: BaseModel, tmp_path: Path) -> None:
    method = full()
    whole = exported(base, method, tmp_path / "whole")
    method.reload(whole, base=base).save_pretrained(tmp_path / "shards", max_shard_size="20KB")  # type: ignore[operator]
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    one, two = (measured_export(base, directory) for directory in (whole, tmp_path / "shards"))
    assert one == two


def test_a_run_that_did_not_move_has_drifted_nowhere(base: BaseModel, tmp_path: Path) -> None:
    for name, method in (("lora", lora()), ("full", full())):
        directory = exported(base, method, tmp_path / name, moves=0)
        drifts = measured_export(base, directory)
        assert not any(drift.changed for drift in drifts)
        assert set(summarise_drift(drifts).values()) == {0.0}
        assert relative_parameter_change(base, directory, change=change_of(directory), linear=drifts) == 0


def test_the_change_of_all_parameters_counts_embeddings_and_norms(base: BaseModel, tmp_path: Path) -> None:
    method = full()
    directory = exported(base, method, tmp_path)
    tuned = dict(method.reload(directory, base=base).named_parameters())
    inside = {n: p for n, p in base.model.named_parameters() if not n.startswith(tuple(f"{h}." for h in base.head))}
    moved = math.hypot(*(float((tuned[n] - p).detach().double().norm()) for n, p in inside.items()))
    size = math.hypot(*(float(p.detach().double().norm()) for p in inside.values()))
    linear = measured_export(base, directory)
    assert relative_parameter_change(base, directory, change=change_of(directory), linear=linear) == pytest.approx(
        moved / size
    )
    assert moved > summarise_drift(linear)["update_norm"]


def test_an_adapter_changes_no_parameter_but_its_sites(base: BaseModel, tmp_path: Path) -> None:
    directory = exported(base, lora(), tmp_path)
    drifts = measured_export(base, directory)
    inside = [p for n, p in base.model.named_parameters() if not n.startswith(tuple(f"{h}." for h in base.head))]
    size = math.hypot(*(float(p.detach().double().norm()) for p in inside))
    moved = summarise_drift(drifts)["update_norm"]
    assert relative_parameter_change(base, directory, change=change_of(directory), linear=drifts) == pytest.approx(
        moved / size
    )


# ------------------------------------------------------------------------------------------------------------- tables


def test_the_table_is_fit_for_the_measurements(base: BaseModel, tmp_path: Path) -> None:
    directory = exported(base, lora(), tmp_path)
    table = weight_measurements(measured_export(base, directory))
    named = table.assign(run="r", model="m", task="t", method="lora", seed="1")
    assert len(validate_measurements(named)) == len(table)
    one = table[(table["site"] == "query") & (table["layer"] == 1)].set_index("metric")["value"]
    assert one["rank_utilisation"] == pytest.approx(one["effective_rank"] / 3)
    assert 1 / 3 < one["rank_utilisation"] <= 1
    assert one["singular_value_1"] ** 2 * one["stable_rank"] == pytest.approx(one["update_norm"] ** 2)


def test_summaries_pool_norms_and_average_ranks_of_changed_matrices() -> None:
    drift = {"query": measured(SPECTRUM.diag(), 3 * torch.eye(20, **EXACT))}
    weight = torch.eye(20, **EXACT)
    unchanged = WeightUpdate(Matrix("blocks.0.k", "key", 0, weight), None)
    (left,) = measure_updates([[unchanged]], generator=drawn(), device="cpu")
    table = weight_measurements([drift["query"], *left])
    layer = table[table["site"].isna() & (table["layer"] == 0)].set_index("metric")["value"]
    overall = table[table["site"].isna() & table["layer"].isna()].set_index("metric")["value"]
    pd.testing.assert_series_equal(layer, overall)
    whole = math.sqrt(float(SPECTRUM.square().sum()) + 20)
    assert overall["relative_update_norm"] == pytest.approx(3 * math.sqrt(20) / whole)
    assert overall["effective_rank"] == pytest.approx(20)
    assert overall["changed_matrices"] == 1


def test_matrices_outside_the_blocks_are_measured_once(base: BaseModel) -> None:
    outside = WeightUpdate(Matrix("pooler.dense", "pooler.dense", None, torch.eye(3)), 2 * torch.eye(3))
    table = weight_measurements(measure_updates([[outside]], generator=drawn(), device="cpu")[0])
    assert not table.duplicated(["site", "layer", "metric"]).any()


# ------------------------------------------------------------------------------------------------------------- errors


def refusal(base: BaseModel, directory: Path) -> str:
    with pytest.raises(StudyError) as caught:
        list(weight_updates(base, directory, change=change_of(directory)))
    return str(caught.value).replace(str(directory), "DIR")


@pytest.fixture
def llama(tiny_checkpoints: dict[str, Path]) -> BaseModel:
    return tiny_base(tiny_checkpoints["llama"])


def test_a_directory_without_a_run_is_refused(llama: BaseModel, tmp_path: Path) -> None:
    assert refusal(llama, tmp_path) == (
        "DIR holds no exported run of a dense change (no model.safetensors)\n"
        "  hint: give the `export` directory of a finished train step, and its method"
    )


def test_a_run_of_another_base_is_refused(llama: BaseModel, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bert = tiny_base(tiny_checkpoints["bert"])
    hint = "belongs to another base model; compare a run with the base it started from"
    assert refusal(llama, exported(bert, full(), tmp_path / "full")) == (
        f"DIR has no model.layers.0.self_attn.q_proj.weight, its base a (32, 32)\n  hint: the checkpoint {hint}"
    )
    assert refusal(llama, exported(bert, lora(), tmp_path / "lora")) == (
        "the adapter in DIR changes base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight, "
        f"which is not a linear layer of its base\n  hint: the adapter {hint}"
    )


def test_an_adapter_that_is_more_than_two_factors_is_refused(llama: BaseModel, tmp_path: Path) -> None:
    directory = exported(llama, lora(), tmp_path)
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    assert refusal(llama, directory) == (
        "the adapter in DIR has use_dora: True, so its update is not alpha / rank * B A\n"
        "  hint: weight-space measures know plain LoRA and full checkpoints: merge this adapter into its base "
        "(merge_and_unload) and measure the checkpoint"
    )


def test_a_truncated_export_is_refused(llama: BaseModel, tmp_path: Path) -> None:
    file = exported(llama, full(), tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    text = refusal(llama, tmp_path)
    assert text.startswith("DIR/model.safetensors cannot be read: ")
    assert text.endswith("hint: the run's export is incomplete; delete its artifact and run the study again")
