"""What is allowed and still worth saying of a study before it runs: no mistake, but easily overlooked."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lorascope.study.ranges import Range
from lorascope.study.spec import Study


def study_notices(study: Study) -> list[str]:
    """Sentences, none where there is nothing to say."""
    return [*_scales(study), *_small_spaces(study)]


def _scales(study: Study) -> Iterator[str]:
    """Arms that scale their adapters differently differ in more than what their names say: alpha / rank acts like a rate."""
    arms: dict[str, float] = {}
    for method in study.methods:
        searched = set(study.search.space_of(method)) if study.search and method.hyperparameters is None else set()
        alpha, rank = getattr(method, "alpha", None), getattr(method, "rank", None)
        if alpha is None or rank is None or method.hyperparameters is not None or searched & {"alpha", "scale", "rank"}:
            continue
        arms[method.name] = alpha / rank
    if len({f"{scale:.6g}" for scale in arms.values()}) > 1:
        listed = ", ".join(f"{name} {scale:g}" for name, scale in arms.items())
        yield (
            f"alpha / rank differs between arms ({listed}), so they differ in the size of their updates too; to compare ranks "
            "alone, give each the same `scale:` in place of `alpha:`, such as `scale: 2`"
        )


def _small_spaces(study: Study) -> Iterator[str]:
    """A sampler may propose a setting again; where there are fewer settings than trials, it must."""
    for method in study.methods if study.search else ():
        space = study.search.space_of(method) if study.search and method.hyperparameters is None else {}
        if not space or any(isinstance(dimension, Range) for dimension in space.values()):
            continue
        points = math.prod(len(values) for values in space.values() if not isinstance(values, Range))
        if study.search and study.search.trials > points:
            yield (
                f"the search of {method.name} has {points} different settings for {study.search.trials} trials: the others "
                "will be copies, which train nothing and are not counted"
            )
