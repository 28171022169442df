"""Drift while a run is being trained: the residual stream of the unfinished model and its base, now and then.

The examples come from the validation split, because training must never open the test set. The model is left as it was, so
a run that is looked at ends with the weights it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.data.columns import ColumnStore
from lorascope.drift.extraction import extract
from lorascope.drift.grams import Grams
from lorascope.drift.probe import Pooling, choose_probe, rows_of
from lorascope.drift.views import Points, debiased_grams, drift_between
from lorascope.engine.warm import Kept, Warm
from lorascope.models.loading import BASE

if TYPE_CHECKING:
    from torch import nn

    from lorascope.models.loading import BaseModel
    from lorascope.training.reading import Reading

_SITE, _SEED, _PRECISION = "residual", 0, "fp32"
_SHOWN = Kept[tuple[Points, dict[str, Grams]]]("the base on the probe of snapshots", most=1)


class Observer:
    """Looks at runs of one base. settings: a study's `examples` and `pooling`. reading: of the task they learn. warm: the
    worker's memory, which keeps what the base shows."""

    def __init__(
        self, settings: Mapping[str, Any], *, base: BaseModel, reading: Reading, validation: Path, warm: Warm
    ) -> None:
        self._reading = reading.to(_PRECISION)
        self._probe = choose_probe(ColumnStore.open(validation), settings["examples"], seed=_SEED)
        self._pooling: Pooling = rows_of(settings["pooling"], self._probe.columns)
        key = f"{validation.parent.name}:{self._probe.ids_sha256}:{settings['pooling']}:{warm.last_key(BASE)}"

        def look() -> tuple[Points, dict[str, Grams]]:
            features = self._features(base.model, "the base")
            points = Points.of(features)
            return points, debiased_grams(features, points)

        self._points, self._grams = warm.keep(_SHOWN, key, look)

    def observe(self, model: nn.Module) -> dict[str, float]:
        """Layer (as text) -> 1 - debiased CKA to the base. model: of one run, on the base's device; left as it was.

        Raises StudyError for features that are not finite.
        """
        grams = debiased_grams(self._features(model, "the run"), self._points)
        return {str(layer): value for _, layer, _, value in drift_between(self._grams, grams, self._points)}

    def _features(self, model: nn.Module, name: str) -> Any:
        return extract(
            model, self._probe.columns, reading=self._reading, sites=(_SITE,), pooling=self._pooling, name=name
        )
