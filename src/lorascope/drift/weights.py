"""Weight-space drift: how large a run's updates are, how many directions they use, and whether those are new.

Everything follows from singular values and left singular vectors (drift/spectra.py), in float64 and batched over
matrices of equal shape. A matrix that a run left alone has every measure 0: a stable or an effective rank is at most the
rank of what it measures, and an update without a direction makes no intruder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

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
from lorascope.drift.updates import LowRank, Matrix, WeightUpdate

if TYPE_CHECKING:
    import pandas as pd

SPECTRUM_LENGTH = 64
_CUDA_BATCH_BYTES, _OTHER_BATCH_BYTES = 2**28, 2**27  # of one float64 stack of weights; up to ten exist at a time


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
class _Item:
    """One changed matrix on its way into a batch. control: the random update, of any size."""

    position: int
    matrix: Matrix
    change: Tensor | LowRank
    control: Tensor | LowRank


@torch.no_grad()
def measure_updates(
    updates: Iterable[WeightUpdate],
    *,
    generator: torch.Generator,
    device: str,
    top: int = TOP_VECTORS,
    threshold: float = INTRUDER_THRESHOLD,
    known_vectors: MutableMapping[str, Tensor] | None = None,
) -> list[MatrixDrift]:
    """The measures of each update, in the order of `updates`.

    generator: a CPU generator, from which the random updates are drawn in that order (a Gaussian matrix; for an adapter
    a product of Gaussian factors of its rank). device: where to compute; float64 of "mps" is computed on the CPU.
    top, threshold: k and epsilon of the intruder dimensions. known_vectors: keeps the base's left singular vectors
    (name -> float32 [out, min(out, in)]) for the next run of the same base, at about the size of its weights.
    """
    exact = "cpu" if device.startswith("mps") else device
    largest = _CUDA_BATCH_BYTES if exact.startswith("cuda") else _OTHER_BATCH_BYTES
    found: dict[int, MatrixDrift] = {}
    waiting: dict[object, list[_Item]] = defaultdict(list)
    known = known_vectors

    def measure(items: list[_Item]) -> None:
        measured = _measure_batch(items, exact, top, threshold, known)
        found.update(zip((item.position for item in items), measured, strict=True))

    for position, update in enumerate(updates):
        if update.change is None:
            found[position] = _unchanged(update.matrix)
            continue
        item = _Item(position, update.matrix, update.change, _random_like(update, generator))
        shape, rank = update.matrix.weight.shape, _rank(update.change)
        group = waiting[shape, rank]
        group.append(item)
        if (len(group) + 1) * shape.numel() * 8 > largest:
            measure(waiting.pop((shape, rank)))
    for group in waiting.values():
        measure(group)
    return [found[position] for position in sorted(found)]


def _measure_batch(
    items: Sequence[_Item], device: str, top: int, threshold: float, known: MutableMapping[str, Tensor] | None
) -> list[MatrixDrift]:
    weights = _stack([item.matrix.weight for item in items], device)
    update, values = _dense_and_spectrum([item.change for item in items], weights, device)
    norms = values.norm(dim=-1)
    random, random_values = _dense_and_spectrum([item.control for item in items], torch.zeros_like(weights), device)
    random = random * (norms / random_values.norm(dim=-1))[:, None, None]
    vectors = _base_vectors(items, weights, known)
    intruders, control = (
        find_intruders(vectors, weights + change, top=top, threshold=threshold) for change in (update, random)
    )
    weight_norms, tuned_norms, control_norms = (
        torch.linalg.matrix_norm(matrices).tolist() for matrices in (weights, weights + update, weights + random)
    )
    stable, effective = stable_rank(values).tolist(), effective_rank(values).tolist()
    nothing = Intruders(0, 0.0)
    return [
        MatrixDrift(
            name=item.matrix.name,
            site=item.matrix.site,
            layer=item.matrix.layer,
            weight_norm=weight_norms[i],
            update_norm=norm,
            tuned_norm=tuned_norms[i],
            control_norm=control_norms[i],
            stable_rank=stable[i],
            effective_rank=effective[i],
            singular_values=tuple(values[i, :SPECTRUM_LENGTH].tolist()) if norm else (),
            rank=_rank(item.change),
            intruders=intruders[i] if norm else nothing,
            control=control[i] if norm else nothing,
        )
        for i, (item, norm) in enumerate(zip(items, norms.tolist(), strict=True))
    ]


def _unchanged(matrix: Matrix) -> MatrixDrift:
    norm = float(matrix.weight.cpu().double().norm())
    nothing = Intruders(0, 0.0)
    return MatrixDrift(
        matrix.name, matrix.site, matrix.layer, norm, 0.0, norm, norm, 0.0, 0.0, (), None, nothing, nothing
    )  # fmt: skip


def _stack(tensors: Sequence[Tensor], device: str) -> Tensor:
    return torch.stack([tensor.detach().to(device).double() for tensor in tensors])


def _rank(change: Tensor | LowRank) -> int | None:
    return change.rank if isinstance(change, LowRank) else None


def _random_like(update: WeightUpdate, generator: torch.Generator) -> Tensor | LowRank:
    """A Gaussian matrix of the update's shape and rank, float32 on the CPU."""
    out, width = update.matrix.weight.shape
    if not isinstance(update.change, LowRank):
        return torch.randn(out, width, generator=generator)
    rank = update.change.rank
    return LowRank(torch.randn(out, rank, generator=generator), torch.randn(rank, width, generator=generator))


def _dense_and_spectrum(
    changes: Sequence[Tensor | LowRank], origin: Float[Tensor, "matrices out in"], device: str
) -> tuple[Float[Tensor, "matrices out in"], Float[Tensor, "matrices values"]]:
    """The updates, to be added to weights, and their singular values. origin: what a dense change is the sequel of."""
    factors = [change for change in changes if isinstance(change, LowRank)]
    if factors:
        left, right = (_stack([getattr(f, side) for f in factors], device) for side in ("left", "right"))
        return left @ right, low_rank_singular_values(left, right)
    update = _stack([change for change in changes if isinstance(change, Tensor)], device) - origin
    return update, singular_values(update)


def _base_vectors(
    items: Sequence[_Item], weights: Tensor, known: MutableMapping[str, Tensor] | None
) -> Float[Tensor, "matrices out in"]:
    names = [item.matrix.name for item in items]
    if known is not None and all(name in known for name in names):
        return _stack([known[name] for name in names], str(weights.device))
    vectors, _ = left_singular_vectors(weights)
    if known is not None:
        known.update(zip(names, vectors.float(), strict=True))
    return vectors


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
