"""The health of layers: whether a representation of the base has enough directions for a similarity to be about it.

The one idea: where the features of a layer vary along one direction, such as the length of an example, drift says how that
direction changed and nothing else. Such layers are marked and left out of averages, by the base alone, for all runs alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LEAST_EFFECTIVE_RANK = 3.0
"""A layer of fewer directions in the base is left out of averages over layers."""
EFFECTIVE_RANK = "feature_effective_rank"
TOP_SHARE = "feature_top_share"
LENGTH_CORRELATION = "feature_length_correlation"
LABEL_CORRELATION = "feature_label_correlation"
SINK_SHARE, SINK_NORM, SINK_NORM_CHANGE = "sink_share", "sink_norm", "sink_norm_change"
BASE_REFERENCE = "base"
"""The reference under which what the base itself shows stands in the measurements."""


def is_healthy(effective_rank: float) -> bool:
    """Whether a layer counts in averages. effective_rank: of the base's features there."""
    return effective_rank >= LEAST_EFFECTIVE_RANK


def none_healthy(num_layers: int) -> str:
    """Why there is no average over layers."""
    return (
        f"all {num_layers} layers of the residual stream have an effective rank below {LEAST_EFFECTIVE_RANK:g} in the base, so "
        "that an average over them says little of representations"
    )


def unhealthy_layers(table: pd.DataFrame, model: str, task: str, pooling: str | None) -> frozenset[tuple[str, int]]:
    """(site, layer) that averages by a pooling leave out, as the measurements say; none in tables of older versions."""
    if pooling is None:
        return frozenset()
    rows: Any = table[(table["metric"] == EFFECTIVE_RANK) & (table["method"] == f"reference:{BASE_REFERENCE}")]
    rows = rows[(rows["model"] == model) & (rows["task"] == task) & (rows["split"] == "probe")]
    rows = rows[rows["pooling"] == pooling]
    values = zip(rows["site"], rows["layer"], rows["value"], strict=True)
    return frozenset((str(site), int(layer)) for site, layer, rank in values if not is_healthy(float(rank)))
