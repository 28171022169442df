"""F1 and Matthews correlation as functions of confusion counts, so that one matrix product scores every resample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def f1(counts: np.ndarray) -> np.ndarray:
    """Binary F1 of class 1 for two classes, macro F1 for more; 0 where a class is neither present nor predicted.

    counts: [..., classes (label), classes (prediction)]. Returns [...].
    """
    import numpy as np

    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(-1) + counts.sum(-2)
    per_class = np.divide(2 * hits, total, out=np.zeros_like(hits, dtype=float), where=total > 0)
    return per_class[..., 1] if counts.shape[-1] == 2 else per_class.mean(-1)


def mcc(counts: np.ndarray) -> np.ndarray:
    """Matthews correlation (Gorodkin 2004, R_K for more than two classes); 0 where undefined.

    counts: [..., classes (label), classes (prediction)]. Returns [...], -1 to 1.
    """
    import numpy as np

    total = counts.sum((-1, -2))
    hits = np.diagonal(counts, axis1=-2, axis2=-1).sum(-1)
    actual, predicted = counts.sum(-1), counts.sum(-2)
    covariance = hits * total - (actual * predicted).sum(-1)
    spread = np.sqrt((total**2 - (actual**2).sum(-1)) * (total**2 - (predicted**2).sum(-1)))
    return np.divide(covariance, spread, out=np.zeros_like(covariance, dtype=float), where=spread > 0)
