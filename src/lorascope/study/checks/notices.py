"""What is allowed and still worth saying of a study before it runs: no mistake, but easily overlooked."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.study.spec import Study


def study_notices(study: Study) -> list[str]:
    """Sentences, none where there is nothing to say."""
    return [*_scales(study)]


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
