"""Weight-space drift: how large a run's updates are, how many directions they use, and whether those are new.

Everything follows from singular values and left singular vectors (drift/spectra.py), in float64. Each matrix is one core's,
with all runs of the arm, so that the base's part is done once. A matrix that a run left alone has every measure 0: a stable
or an effective rank is at most the rank of what it measures, and an update without a direction makes no intruder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.drift.beside import Cancellation
from lorascope.drift.grams import on_double_device
from lorascope.drift.spectra import (
    INTRUDER_THRESHOLD,
    TOP_VECTORS,
    Intruders,
    effective_rank,
    find_intruders,
    left_singular_vectors,
    low_rank_singular_values,
    singular_values,
    stable_rank,
)
from lorascope.drift.updates import Change, LowRank, Matrix, WeightUpdate, open_export

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from lorascope.models.loading import BaseModel

SPECTRUM_LENGTH = 64
_ITEMS_A_CORE = 4  # read at a time; a core holds the few float64 copies of the one that it is at
_COPIES_A_CORE = 6  # on the device: weight, tuned, random control and what is made of them


@dataclass(frozen=True)
class MatrixDrift:
    """What became of one matrix. Norms are Frobenius norms; tuned_norm is that of W + dW, control_norm that of W plus a
    random update as large. singular_values: of dW, descending, at most 64; those not listed of an adapter are 0.
    rank: of an adapter, else None. control: the intruders that the random update makes.
    """

    name: str
    site: str
    layer: int | None
    weight_norm: float
    update_norm: float
    tuned_norm: float
    control_norm: float
    stable_rank: float
    effective_rank: float
    singular_values: tuple[float, ...]
    rank: int | None
    intruders: Intruders
    control: Intruders

    @property
    def changed(self) -> bool:
        return self.update_norm > 0


@dataclass(frozen=True)
class _Changed:
    """A matrix with what runs made of it. changes: all dense, or all adapters of one rank. control: the random update, of
    any size."""

    position: int
    matrix: Matrix
    runs: Sequence[int]
    changes: Sequence[Tensor | LowRank]
    control: Tensor | LowRank


@dataclass(frozen=True)
class _Settings:
    device: str
    top: int
    threshold: float
    known: MutableMapping[str, Tensor] | None
    cancellation: Cancellation


def measure_updates(
    updates: Iterable[Sequence[WeightUpdate]],
    *,
    generator: torch.Generator,
    device: str,
    top: int = TOP_VECTORS,
    threshold: float = INTRUDER_THRESHOLD,
    known_vectors: MutableMapping[str, Tensor] | None = None,
    cancellation: Cancellation | None = None,
    spare_cores: int = 0,
) -> list[list[MatrixDrift]]:
    """The measures of each run's updates, in the order of the matrices.

    updates: of each matrix, one a run. generator: a CPU generator, from which the random updates are drawn in that order
    (a Gaussian matrix; for adapters a product of Gaussian factors of their rank), the same for all runs. device: where
    products are taken; float64 of "mps" is computed on the CPU. top, threshold: k and epsilon of the intruder dimensions.
    known_vectors: keeps the base's left singular vectors (name -> float32 [out, min(out, in)]) for the next runs of the
    same base, at about the size of its weights. cancellation: looked at before each update; raises CancelledError once it
    was asked for. spare_cores: left to others. On CUDA the work is queued in the caller's current stream.
    """
    settings = _Settings(
        "cpu" if device.startswith("mps") else device, top, threshold, known_vectors, cancellation or Cancellation()
    )
    found: list[dict[int, MatrixDrift]] = []

    def changed() -> Iterator[_Changed]:
        for position, of_runs in enumerate(updates):
            found.extend({} for _ in of_runs[len(found) :])
            for run, update in enumerate(of_runs):
                if update.change is None:
                    found[run][position] = _unchanged(update.matrix)
            yield from _by_rank(position, of_runs, generator)

    for item, drifts in _on_all_cores(
        lambda item: _measure(item, settings), changed(), device=settings.device, spare_cores=spare_cores
    ):
        for run, drift in zip(item.runs, drifts, strict=True):
            found[run][item.position] = drift
    return [[of_run[position] for position in sorted(of_run)] for of_run in found]


def device_bytes(matrices: Iterable[Matrix]) -> int:
    """About the most that `measure_updates` has on the device at a time, beside the weights: every core at the largest."""
    return torch.get_num_threads() * _COPIES_A_CORE * 8 * max((matrix.weight.numel() for matrix in matrices), default=0)


def _by_rank(position: int, updates: Sequence[WeightUpdate], generator: torch.Generator) -> Iterator[_Changed]:
    """The runs that changed a matrix, those of one rank together: they share a random update."""
    runs: dict[int | None, list[int]] = defaultdict(list)
    for run, update in enumerate(updates):
        if update.change is not None:
            runs[_rank(update.change)].append(run)
    for alike in runs.values():
        first, changes = (
            updates[alike[0]],
            [update.change for run in alike if (update := updates[run]).change is not None],
        )
        yield _Changed(position, first.matrix, alike, changes, _random_like(first, generator))


def _on_all_cores(
    measure: Callable[[_Changed], list[MatrixDrift]], items: Iterator[_Changed], *, device: str, spare_cores: int
) -> Iterator[tuple[_Changed, list[MatrixDrift]]]:
    """Each item measured, a matrix a core: decompositions of this size gain little from several. As many cores as torch may
    use threads, but for the spare ones."""
    threads = torch.get_num_threads()
    cores = max(1, threads - spare_cores)
    stream = torch.cuda.current_stream(device) if device.startswith("cuda") else None

    def begin() -> None:
        torch.set_num_threads(1)
        if stream is not None:
            torch.cuda.set_stream(stream)  # the device's, too: both are a thread's own

    try:
        with ThreadPoolExecutor(cores, initializer=begin) as pool:
            while some := list(islice(items, _ITEMS_A_CORE * cores)):
                yield from zip(some, pool.map(measure, some), strict=True)
    finally:
        torch.set_num_threads(threads)  # what threads that are yet to come begin with


@torch.no_grad()
def _measure(item: _Changed, settings: _Settings) -> list[MatrixDrift]:
    """The measures of one matrix, one a run."""
    settings.cancellation.check()
    weight = _double(item.matrix.weight, settings)
    vectors = _base_vectors(item.matrix.name, weight, settings)
    control = _dense(item.control, settings)
    return [_measure_change(item, change, weight, vectors, control, settings) for change in item.changes]


def _measure_change(
    item: _Changed, change: Tensor | LowRank, weight: Tensor, vectors: Tensor, control: Tensor, settings: _Settings
) -> MatrixDrift:
    settings.cancellation.check()
    if isinstance(change, LowRank):
        tuned = weight + _dense(change, settings)
        values = low_rank_singular_values(change.left, change.right)
    else:
        tuned = _dense(change, settings)
        values = singular_values(tuned - weight)
    norm, moved = float(values.norm()), values.any()
    if not moved:
        return replace(_unchanged(item.matrix), rank=_rank(change))
    random = weight + control * (norm / control.norm())
    tuned_intruders, random_intruders = (
        find_intruders(vectors, matrix, top=settings.top, threshold=settings.threshold) for matrix in (tuned, random)
    )
    return MatrixDrift(
        name=item.matrix.name,
        site=item.matrix.site,
        layer=item.matrix.layer,
        weight_norm=float(weight.norm()),
        update_norm=norm,
        tuned_norm=float(tuned.norm()),
        control_norm=float(random.norm()),
        stable_rank=float(stable_rank(values)),
        effective_rank=float(effective_rank(values)),
        singular_values=tuple(values[:SPECTRUM_LENGTH].tolist()),
        rank=_rank(change),
        intruders=tuned_intruders[0],
        control=random_intruders[0],
    )


def _unchanged(matrix: Matrix) -> MatrixDrift:
    norm = float(on_double_device(matrix.weight).double().norm())
    nothing = Intruders(0, 0.0)
    return MatrixDrift(
        matrix.name, matrix.site, matrix.layer, norm, 0.0, norm, norm, 0.0, 0.0, (), None, nothing, nothing
    )  # fmt: skip


def _rank(change: Tensor | LowRank) -> int | None:
    return change.rank if isinstance(change, LowRank) else None


def _random_like(update: WeightUpdate, generator: torch.Generator) -> Tensor | LowRank:
    """A Gaussian matrix of the update's shape and rank, float32 on the CPU."""
    out, width = update.matrix.weight.shape
    drawn = partial(torch.randn, generator=generator, dtype=torch.float32)
    if not isinstance(update.change, LowRank):
        return drawn(out, width)
    rank = update.change.rank
    return LowRank(drawn(out, rank), drawn(rank, width))


def _double(tensor: Tensor, settings: _Settings) -> Tensor:
    return tensor.detach().to(settings.device).double()


def _dense(change: Tensor | LowRank, settings: _Settings) -> Float[Tensor, "out in"]:
    """A change as it is, or the product of its factors."""
    if isinstance(change, LowRank):
        return _double(change.left, settings) @ _double(change.right, settings)
    return _double(change, settings)


def _base_vectors(name: str, weight: Float[Tensor, "out in"], settings: _Settings) -> Float[Tensor, "out n"]:
    if settings.known is not None and name in settings.known:
        return settings.known[name]
    vectors = left_singular_vectors(weight)[0].float()
    if settings.known is not None:
        settings.known[name] = vectors
    return vectors


@torch.no_grad()
def relative_parameter_change(
    base: BaseModel, directory: Path, *, change: Change, linear: Sequence[MatrixDrift]
) -> float:
    """||dtheta|| / ||theta|| over every parameter of the base, its embeddings, norms and biases included and its head
    excluded. Full fine-tuning moves them all, so its linear weights alone would tell too little.

    change: as in `weight_updates`. linear: what the run exported to `directory` made of the linear weights, which are not
    read again.
    """
    export, head = open_export(directory, base, change=change), tuple(f"{name}." for name in base.head)
    measured = {f"{drift.name}.weight" for drift in linear}
    moved = math.fsum(drift.update_norm**2 for drift in linear)
    total = math.fsum(drift.weight_norm**2 for drift in linear)
    for name, parameter in base.model.named_parameters():
        if name in measured or name.startswith(head):
            continue
        before, after = on_double_device(parameter).double(), export.parameter(name, parameter.shape)
        total += float(before.square().sum())
        if after is not None:
            moved += float((after.to(before.device) - before).square().sum())
    return (moved / total) ** 0.5


# -------------------------------------------------------------------------------------------------------------- tables


def weight_measurements(drifts: Sequence[MatrixDrift]) -> pd.DataFrame:
    """The measures as rows of the measurements table: site, layer, metric, value, unit.

    With site and layer: one matrix. With a site alone, a layer alone, or neither: all matrices of the role, the layer,
    the model. There norms are Frobenius norms over all those matrices, unchanged ones included, ranks are means over the
    changed ones, intruders are added up, and an energy share is that of all their tuned weights.
    """
    import pandas as pd

    rows = [row for drift in drifts for row in _rows(drift.site, drift.layer, _measures_of(drift))]
    layered = [drift for drift in drifts if drift.layer is not None]
    for site in dict.fromkeys(drift.site for drift in layered):
        rows += _rows(site, None, summarise_drift([d for d in drifts if d.site == site]))
    for layer in dict.fromkeys(drift.layer for drift in layered):
        rows += _rows(None, layer, summarise_drift([d for d in drifts if d.layer == layer]))
    rows += _rows(None, None, summarise_drift(drifts))
    table = pd.DataFrame(rows, columns=["site", "layer", "metric", "value", "unit"])
    return table.astype({"site": "string", "layer": "Int64"})


def summarise_drift(drifts: Sequence[MatrixDrift]) -> dict[str, float]:
    """Metric -> value over several matrices, as `weight_measurements` says."""
    changed = [drift for drift in drifts if drift.changed]
    update, weight = (math.hypot(*(getattr(d, name) for d in drifts)) for name in ("update_norm", "weight_norm"))
    utilised = [drift.effective_rank / drift.rank for drift in changed if drift.rank]
    return {
        "update_norm": update,
        **({"relative_update_norm": update / weight} if weight else {}),
        "stable_rank": _mean([drift.stable_rank for drift in changed]),
        "effective_rank": _mean([drift.effective_rank for drift in changed]),
        **({"rank_utilisation": _mean(utilised)} if any(drift.rank for drift in drifts) else {}),
        "changed_matrices": float(len(changed)),
        "intruder_dimensions": float(sum(drift.intruders.count for drift in drifts)),
        "intruder_energy_share": _share([(d.intruders.energy, d.tuned_norm) for d in drifts]),
        "random_intruder_dimensions": float(sum(drift.control.count for drift in drifts)),
        "random_intruder_energy_share": _share([(d.control.energy, d.control_norm) for d in drifts]),
    }


def _measures_of(drift: MatrixDrift) -> dict[str, float]:
    spectrum = {f"singular_value_{i}": value for i, value in enumerate(drift.singular_values, start=1)}
    summary = summarise_drift([drift])
    del summary["changed_matrices"]
    return {**summary, **spectrum}


def _rows(site: str | None, layer: int | None, values: dict[str, float]) -> list[tuple[object, ...]]:
    return [
        (site, layer, metric, value, "fraction" if metric.endswith(_FRACTIONS) else "1")
        for metric, value in values.items()
    ]


_FRACTIONS = ("_share", "relative_update_norm", "rank_utilisation")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _share(parts: Sequence[tuple[float, float]]) -> float:
    """parts: (energy, Frobenius norm of the matrix it is part of)."""
    total = math.fsum(norm**2 for _, norm in parts)
    return math.fsum(energy for energy, _ in parts) / total if total else 0.0
