"""The files and result keys of the `drift` step: the one place that knows them, for the step and for all who read it.

No torch: an analysis reads what was measured on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.engine.store.artifact import Artifact

DISTANCES = "drift.parquet"
"""What was measured of each run: DISTANCE_COLUMNS."""
REFERENCES = "references.parquet"
"""Distances that runs are to be read with: REFERENCE_COLUMNS."""
SPECTRA = "spectra.parquet"
"""Singular values of the updates, in the columns of the weights' measurements, with run and seed."""
DRAWS = "draws.npz"
"""`Draws`."""
HEADS = "heads.npz"
"""Attention patterns by head: `runs`, and each of HEAD_FIGURES, [runs, layers, heads]."""
LAYER_PAIRS = "layer_pairs.npz"
"""SITE/SEED -> debiased CKA of each layer of the base (rows) with each of the run."""
REPRESENTATIONS = "representations"
"""A folder: NAME/SITE.npy, the features themselves."""

DISTANCE_COLUMNS = ("run", "seed", "split", "site", "layer", "metric", "value", "unit")
REFERENCE_COLUMNS = ("reference", "split", "site", "layer", "metric", "value")
HEAD_FIGURES = ("entropy", "base_entropy", "total_variation", "jensen_shannon")
PROBE = "probe"
"""The split of the in-task probe; `probe:TASK` is that of another task's."""
SEED_V_SEED = "seed-v-seed"
"""The reference that is of one arm: two of its runs that differ in their seeds."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Drift of an arm's runs in resamples of the probe. draws: [draws, runs, points], a point being a site and a layer.
    summary: [draws, runs], the mean over the residual stream's layers 1..L, None where that was not measured."""

    draws: np.ndarray
    runs: np.ndarray
    seeds: np.ndarray
    sites: np.ndarray
    layers: np.ndarray
    summary: np.ndarray | None

    def write(self, out: Path) -> None:
        """As `out`/draws.npz."""
        arrays = {part.name: value for part in fields(self) if (value := getattr(self, part.name)) is not None}
        np.savez_compressed(out / DRAWS, **arrays)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Those that a drift step committed."""
        with np.load(artifact.file(DRAWS)) as file:
            found: dict[str, Any] = {part.name: file.get(part.name) for part in fields(cls)}
        return cls(**found)


@dataclass(frozen=True)
class ProbeRecord:
    """The probe of a split: how many examples, and the SHA-256 of their ids."""

    examples: int | None
    ids_sha256: str


@dataclass(frozen=True)
class DriftRecord:
    """The result of a drift step. probes, left_out: by split. layers: by site. drift: seed -> the run's drift in one number.
    not_measured: what could not be -> why. seconds: part -> time."""

    num_examples: int
    probes: Mapping[str, ProbeRecord]
    layers: Mapping[str, Sequence[int]]
    left_out: Mapping[str, Sequence[str]]
    pooling: str
    num_rows: int
    precision: str
    neighbours: int
    draws: int
    hidden: int
    expected_biased_cka: float
    drift: Mapping[str, float | None]
    not_measured: Mapping[str, str]
    seconds: Mapping[str, float]
    peak_memory_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The step's result."""
        return asdict(self)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Of a committed drift step."""
        found = dict(artifact.result)
        probes = {
            split: ProbeRecord(probe.get("examples"), probe["ids_sha256"]) for split, probe in found["probes"].items()
        }
        return cls(**{**{part.name: found.get(part.name) for part in fields(cls)}, "probes": probes})


def write_tables(
    out: Path,
    *,
    distances: pd.DataFrame,
    references: Sequence[tuple[Any, ...]],
    spectra: pd.DataFrame,
    pairs: Mapping[str, np.ndarray],
) -> None:
    """distances: with at least DISTANCE_COLUMNS. references: rows of REFERENCE_COLUMNS. pairs: of LAYER_PAIRS, or none."""
    import pandas as pd

    _typed(distances[list(DISTANCE_COLUMNS)]).to_parquet(out / DISTANCES, index=False)
    _typed(pd.DataFrame(references, columns=list(REFERENCE_COLUMNS))).to_parquet(out / REFERENCES, index=False)
    _typed(spectra).to_parquet(out / SPECTRA, index=False)
    if pairs:
        np.savez_compressed(out / LAYER_PAIRS, **pairs)  # type: ignore[arg-type]


def write_heads(out: Path, patterns: Mapping[str, Any]) -> None:
    """patterns: run -> an object with HEAD_FIGURES, float32 [layers, heads]."""
    if patterns:
        stacked = {name: np.stack([getattr(found, name) for found in patterns.values()]) for name in HEAD_FIGURES}
        np.savez_compressed(out / HEADS, runs=np.array(list(patterns)), **stacked)  # type: ignore[arg-type]


def write_representation(out: Path, name: str, site: str, features: np.ndarray) -> None:
    """float32 [layers, examples, hidden], for `numpy.load(..., mmap_mode="r")`."""
    directory = out / REPRESENTATIONS / name
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / f"{site}.npy", features)


def read_distances(artifact: Artifact) -> pd.DataFrame:
    """DISTANCE_COLUMNS, of every run."""
    import pandas as pd

    return pd.read_parquet(artifact.file(DISTANCES))


def read_references(artifact: Artifact) -> pd.DataFrame:
    """REFERENCE_COLUMNS."""
    import pandas as pd

    return pd.read_parquet(artifact.file(REFERENCES))


def _typed(table: Any) -> pd.DataFrame:
    text = {name: "string" for name in table.columns if name not in ("layer", "value")}
    return table.astype({**text, "layer": "Int64", "value": "float64"})
