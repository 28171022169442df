"""The health of layers: whether a representation of the base has enough directions for a similarity to be about it.

The one idea: where the features of a layer vary along one direction, such as the length of an example, drift says how that
direction changed and nothing else. Such layers are marked and left out of averages, by the base alone, for all runs alike.
"""

from __future__ import annotations

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
