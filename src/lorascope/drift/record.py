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

HEALTH = "health.parquet"
"""What the base's layers are like by each pooling: HEALTH_COLUMNS. Absent in artifacts of version 3."""

DISTANCE_COLUMNS = ("run", "seed", "split", "pooling", "site", "layer", "metric", "value", "unit")
REFERENCE_COLUMNS = ("reference", "split", "pooling", "site", "layer", "metric", "value")
HEALTH_COLUMNS = (
    "split", "pooling", "site", "layer", "effective_rank", "top_share", "length_correlation", "label_correlation",
    "is_healthy",
)  # fmt: skip
_FEATURE_SITES = ("residual", "attention", "mlp")
HEAD_FIGURES = ("entropy", "base_entropy", "total_variation", "jensen_shannon")
PROBE = "probe"
"""The split of the in-task probe; `probe:TASK` is that of another task's."""
SEED_V_SEED = "seed-v-seed"
"""The reference that is of one arm: two of its runs that differ in their seeds."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Drift of an arm's runs in resamples of the probe. draws: [draws, runs, points], a point being a pooling, a site and a
    layer. summary: [draws, runs], the mean over the healthy layers 1..L of the residual stream by the primary pooling, None
    where there are none. poolings: None in files of version 3, which have one."""

    draws: np.ndarray
    runs: np.ndarray
    seeds: np.ndarray
    sites: np.ndarray
    layers: np.ndarray
    summary: np.ndarray | None
    poolings: np.ndarray | None = None

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
    """The result of a drift step. probes, left_out: by split. layers: by site. pooling: of drift in one number, the first of
    `poolings`. unhealthy: pooling -> "SITE LAYER" of each layer that averages leave out. drift: seed -> the run's drift in one
    number. not_measured: what could not be -> why. seconds: part -> time.

    A step of version 3 had one pooling and left out no layer: there `poolings` and `unhealthy` are None."""

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
    poolings: Sequence[str] | None = None
    unhealthy: Mapping[str, Sequence[str]] | None = None

    def left_out_of_averages(self, pooling: str) -> frozenset[tuple[str, int]]:
        """(site, layer)."""
        named = (text.rsplit(" ", 1) for text in (self.unhealthy or {}).get(pooling, ()))
        return frozenset((site, int(layer)) for site, layer in named)

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
    health: Sequence[tuple[Any, ...]] = (),
) -> None:
    """distances: with at least DISTANCE_COLUMNS. references, health: rows of REFERENCE_COLUMNS and of HEALTH_COLUMNS. pairs:
    of LAYER_PAIRS, or none."""
    import pandas as pd

    _typed(distances[list(DISTANCE_COLUMNS)]).to_parquet(out / DISTANCES, index=False)
    _typed(pd.DataFrame(references, columns=list(REFERENCE_COLUMNS))).to_parquet(out / REFERENCES, index=False)
    _typed(spectra).to_parquet(out / SPECTRA, index=False)
    if health:
        pd.DataFrame(health, columns=list(HEALTH_COLUMNS)).to_parquet(out / HEALTH, index=False)
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

    return _with_pooling(pd.read_parquet(artifact.file(DISTANCES)), artifact)


def read_references(artifact: Artifact) -> pd.DataFrame:
    """REFERENCE_COLUMNS."""
    import pandas as pd

    return _with_pooling(pd.read_parquet(artifact.file(REFERENCES)), artifact)


def read_health(artifact: Artifact) -> pd.DataFrame:
    """HEALTH_COLUMNS; no row for a step of version 3."""
    import pandas as pd

    if DriftRecord.read(artifact).unhealthy is None:
        return pd.DataFrame(columns=list(HEALTH_COLUMNS))
    return pd.read_parquet(artifact.file(HEALTH))


def _with_pooling(table: pd.DataFrame, artifact: Artifact) -> pd.DataFrame:
    """Files of version 3 have no column for it: all their distances are by the pooling of the step."""
    import pandas as pd

    if "pooling" in table:
        return table
    is_distance = table["site"].isin(list(_FEATURE_SITES)) & table["split"].notna()
    pooling = DriftRecord.read(artifact).pooling
    return table.assign(pooling=pd.array([pooling if found else None for found in is_distance], dtype="string"))


def _typed(table: Any) -> pd.DataFrame:
    text = {name: "string" for name in table.columns if name not in ("layer", "value")}
    return table.astype({**text, "layer": "Int64", "value": "float64"})
