"""Drift while a run is being trained: the residual stream of the unfinished model and its base, now and then.

The examples come from the validation split, because training must never open the test set. The model is left as it was, so
a run that is looked at ends with the weights it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.data.columns import ColumnStore
from lorascope.drift.extraction import PooledSites, Shown, read_runs
from lorascope.drift.grams import Grams
from lorascope.drift.poolings import ordered_poolings
from lorascope.drift.probe import choose_probe, rows_of
from lorascope.drift.sinks import Sinks
from lorascope.drift.views import Points, debiased_grams, drift_between
from lorascope.engine.warm import Kept, Warm
from lorascope.models.loading import BASE

if TYPE_CHECKING:
    from torch import nn

    from lorascope.models.loading import BaseModel
    from lorascope.training.reading import Reading

_SITE, _SEED, _PRECISION = "residual", 0, "fp32"


@dataclass(frozen=True)
class _Seen:
    """What the base shows on the probe, and by which pooling that is."""

    pooling: str
    wanted: Mapping[str, PooledSites]
    sinks: Sinks
    points: Points
    grams: dict[str, Grams]


_SHOWN = Kept[_Seen]("the base on the probe of snapshots", most=1)


class Observer:
    """Looks at runs of one base, by the pooling of a run's drift in one number (drift/poolings.py). settings: a study's
    `examples` and `pooling`, one word or several. directory: of the base's checkpoint. reading: of the task they learn. warm:
    the worker's memory, which keeps what the base shows."""

    def __init__(
        self, settings: Mapping[str, Any], *, base: BaseModel, directory: Path, reading: Reading, validation: Path, warm: Warm,
    ) -> None:  # fmt: skip
        self._reading = reading.to(_PRECISION)
        self._probe = choose_probe(ColumnStore.open(validation), settings["examples"], seed=_SEED)
        listed = settings["pooling"]
        self._is_named = not isinstance(listed, str)
        key = f"{validation.parent.name}:{self._probe.ids_sha256}:{listed}:{warm.last_key(BASE)}"

        def look() -> _Seen:
            pooling = listed
            if self._is_named:
                pooling = ordered_poolings(listed, model=base.model, head=reading.task.head, directory=directory)[0]
            wanted = {pooling: PooledSites(rows_of(pooling, self._probe.columns), (_SITE,))}
            shown = self._read(base.model, wanted, "the base")
            features = shown.features[0][pooling]
            points = Points.of(features)
            return _Seen(pooling, wanted, shown.sinks, points, debiased_grams(features, points))

        self._base = warm.keep(_SHOWN, key, look)

    def observe(self, model: nn.Module) -> dict[str, float]:
        """Layer (as text; "POOLING/LAYER" where the study lists poolings) -> 1 - debiased CKA to the base. model: of one run,
        on the base's device; left as it was.

        Raises StudyError for features that are not finite.
        """
        base, prefix = self._base, f"{self._base.pooling}/" if self._is_named else ""
        shown = self._read(model, base.wanted, "the run", sinks=base.sinks)
        grams = debiased_grams(shown.features[0][base.pooling], base.points)
        rows = drift_between(base.grams, grams, base.points)
        return {f"{prefix}{layer}": value for _, layer, _, value in rows}

    def _read(
        self, model: nn.Module, wanted: Mapping[str, PooledSites], name: str, *, sinks: Sinks | None = None
    ) -> Shown:
        return read_runs(model, self._probe.columns, reading=self._reading, wanted=wanted, names=[name], sinks=sinks)
