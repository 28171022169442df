"""An analysis artifact of a study that searched: the searches are real replays of an invented objective.

Run as a script to render one for the eye: `python tests/support/search_report_fixture.py DIRECTORY [halving]`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from report_fixture import LEVELS, Shape, write_analysis

from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.search.literals import role, search_params
from lorascope.search.replay import Attempt, Replay, replay
from lorascope.search.summary import summarise_search
from lorascope.study.search import SearchSpec

BEST = {"full": 6e-5, "lora": 8e-4}


def write_searched_analysis(directory: Path, shape: Shape | None = None, **search: Any) -> Path:
    """A whole analysis artifact with a search of every (model, task, method)."""
    shape = shape or Shape(tasks=("sst2", "mrpc", "rte"))
    write_analysis(directory, shape)
    facts = json.loads((directory / "facts.json").read_text())
    spec = SearchSpec(**{"confirm": 0, **search})
    cells = [(m, t, k) for m in shape.models for t in shape.tasks for k in shape.methods]
    facts["search"] = [
        {
            "model": model,
            "task": task,
            "method": method,
            "seed": None,
            "proposed_by": f"optuna {optuna.__version__}",
            **_summary(spec, task, method, directory),
        }
        for model, task, method in cells
    ]
    facts["study"]["search"] = spec.model_dump(mode="json")
    facts["tuned"] = [
        {
            "model": row["model"], "task": row["task"], "method": row["method"],
            "settings": {"learning_rate": row["optimum"]["params"]["learning_rate"], "train": {"warmup": 0.1}},
        }
        for row in facts["search"]
        if row["optimum"]
    ]  # fmt: skip
    (directory / "facts.json").write_text(json.dumps(facts, indent=1))
    return directory


def outcome(attempt: Attempt, task: str, method: str) -> Mapping[str, Any]:
    """Best at the method's best rate; a rate of thirty times that diverges; better the longer it is trained."""
    rate = attempt.params["learning_rate"]
    distance = abs(math.log10(rate / BEST[method]))
    noise = math.sin(12.9898 * (attempt.trial + 1) + len(task)) / 100
    share = attempt.stops[-1]
    score = LEVELS[task] - 0.02 * distance**2 - 0.2 * attempt.params["warmup"] ** 2 + noise - 0.08 * (1 - share)
    diverged = "the training loss became nan at update 3 of 300" if rate > 5 * BEST[method] else None
    return {
        "metric": "accuracy", "value": None if diverged else score, "loss": None if diverged else 1 - score,
        "diverged": diverged, "updates": 300 * share, "planned_updates": 300, "tokens": int(9e5 * share),
        "planned_tokens": 900_000, "examples": 2000, "training_seconds": 11 * share, "evaluation_seconds": 2.0,
        "gang": 15, "taken_up": len(attempt.stops) > 1,
        "curve": [{"update": 300, "epoch": 3.0, "value": score}],
    }  # fmt: skip


def _summary(spec: SearchSpec, task: str, method: str, directory: Path) -> dict[str, Any]:
    found, known = _carried_out(spec, task, method)
    step = Step(
        "search", 1, {"search": spec.model_dump(mode="json", exclude={"space"}), "extended": False, **search_params(found)}
    )  # fmt: skip
    deps = {role(attempt): _Record(result) for attempt, result in known.items()}
    context = StepContext(
        step=step, out=directory, work=directory, deps=deps, emit=lambda event: None, device="cpu", data_dir=None,
        cache_dir=directory / "cache",
    )  # type: ignore[arg-type] # fmt: skip
    return summarise_search(context)


class _Record:
    """Stands for a trial's artifact."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.result, self.step = result, Step("trial", 1, {"stops": [1.0]})


def _carried_out(spec: SearchSpec, task: str, method: str) -> tuple[Replay, dict[Attempt, Mapping[str, Any]]]:
    known: dict[Attempt, Mapping[str, Any]] = {}
    while (found := replay(spec, spec.of(method, method), look_up=known.get)).open:
        known |= {attempt: outcome(attempt, task, method) for attempt in found.open}
    return found, known


if __name__ == "__main__":
    from lorascope.report.render import render_report

    target = Path(sys.argv[1])
    pruning = sys.argv[2] if len(sys.argv) > 2 else "none"
    print(render_report(write_searched_analysis(target / "analysis", pruning=pruning), target))
