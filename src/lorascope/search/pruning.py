"""Which trials of a round go on: the best by halving, or those that no test calls worse.

A decision is made anew at every replay, so it rests on the trials' scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from lorascope.search.trials import Trial

RUNGS = (1 / 6, 1 / 3, 1.0)
"""Where halving looks, in shares of a trial's updates. Not at 1/9, the usual first rung of a reduction by three: a
warm-up of up to 30% of the updates would be judged before it is over."""
REDUCTION = 3
_WORSE_P = 0.1


def survivors_of_halving(trials: Sequence[Trial], *, before: Sequence[Trial], stage: int) -> list[Trial]:
    """Those of a round's open trials that go on after a stage: successive halving (Jamieson and Talwalkar 2016) over all
    trials that came this far, those of earlier rounds included."""
    if not trials:
        return []
    rivals = [trial.gain(trial.by_step[stage]) for trial in (*before, *trials) if len(trial.by_step) > stage]
    kept = max(1, len(rivals) // REDUCTION)
    threshold = sorted(rivals, reverse=True)[kept - 1]
    ahead = sorted((t for t in trials if t.gain(t.by_step[stage]) >= threshold), key=lambda t: t.rank, reverse=True)
    return ahead[:kept]


def is_worse(trial: Trial, *, before: Sequence[Trial]) -> bool:
    """Whether the trial is worse than the best finished one, seed by seed: by a one-sided signed-rank test (Wilcoxon 1945;
    zeros split) over the seeds it has been trained with, and by its mean."""
    complete = [other for other in before if other.state == "complete"]
    if not complete:
        return False
    best = max(complete, key=lambda other: other.rank)
    differences = [trial.gain(own - theirs) for own, theirs in zip(trial.by_step, best.by_step, strict=False)]
    if len(differences) < 2 or trial.gain(mean(trial.by_step)) >= trial.gain(mean(best.by_step)):
        return False
    from scipy.stats import wilcoxon

    found: Any = wilcoxon(differences, alternative="less", zero_method="zsplit")
    return bool(found.pvalue < _WORSE_P)
