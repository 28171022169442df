"""A whole analysis artifact of a study that serves: the synthetic study of `report_fixture` with the real analysis of a
synthetic comparison beside it. Run as a script to render some for the eye: `served_report_fixture.py DIRECTORY`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from report_fixture import Shape, write_analysis
from served_fixture import ARMS, served_facts, served_frame, served_gates, served_merging, served_trials

from lorascope.stats.analysis import Analysis
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.stats.serving.analyse import analyse_serving
from lorascope.stats.serving.evidence import overhead_evidence
from lorascope.stats.verdicts import apply_family, judge
from lorascope.study.hypothesis import Overhead
from lorascope.study.spec import Study

H3 = {"overhead": "adapters-4", "over": "merged", "on": "latency_p95", "at_most": "30%"}


def write_served_analysis(
    directory: Path, shape: Shape, *, failing: tuple[str, ...] = (), failures: tuple[dict, ...] = (), **served
) -> Path:
    """served: of `served_frame`. failing: arms whose gate failed. failures: engine processes that failed."""
    write_analysis(directory, shape)
    frame = pd.concat(
        [served_frame(model=model, seed=seed, **served) for seed, model in enumerate(shape.models, start=1)]
    )
    arms = served.get("arms", ARMS)
    workloads = served.get("workloads", ("generation", "classification"))
    gates = [g for m in shape.models for g in served_gates(arms, workloads=workloads, failing=failing, model=m)]
    engines = [
        fact
        for model in shape.models
        for fact in served_facts(arms, repeats=served.get("repeats", 5), workloads=workloads, model=model)
    ]
    analysis = Analysis.from_json(json.loads((directory / "analysis.json").read_text()))
    serving = analyse_serving(frame, gates=gates, facts=[*engines, *failures])
    facts = json.loads((directory / "facts.json").read_text())
    trials = [t for m in shape.models for t in served_trials(workloads=workloads, model=m)]
    facts["serving"] = {"gates": gates, "engines": engines, "failures": list(failures)}
    facts["serving"]["merging"] = [row for m in shape.models for row in served_merging(workloads=workloads, model=m)]
    facts["serving"]["trials"] = trials if served.get("tuned", True) else []
    hypotheses = analysis.hypotheses
    if shape.hypotheses:
        declared = Overhead.model_validate(H3)
        study = Study.model_validate(facts["study"])
        parts, average = overhead_evidence(study, declared, serving)
        test = hypothesis_test(declared)
        result, sides = judge(
            "H3", test, metric=declared.on, parts=parts, average=average, over=declared.at, alpha=0.05
        )
        hypotheses = [*hypotheses, *apply_family([result], [sides], 0.05)]
        facts["study"]["hypotheses"]["H3"] = declared.model_dump(mode="json")
    written = replace(analysis, serving=serving, hypotheses=hypotheses)
    (directory / "analysis.json").write_text(json.dumps(written.to_json(), indent=1, allow_nan=False))
    (directory / "facts.json").write_text(json.dumps(facts, indent=1))
    frame.to_parquet(directory / "serving.parquet", index=False)
    return directory


CASES = {
    "plain": (Shape(), {}),
    "bare": (
        Shape(tasks=("docstrings",), seeds=(42,), hypotheses=False),
        {"arms": ("merged", "adapters-1"), "repeats": 2, "workloads": ("classification",), "batches": (1,), "rates": (),
         "tuned": False, "switching": False},
    ),
    "two_models": (
        Shape(models=("minilm-l6", "smollm2-135m")),
        {"arms": (*ARMS, "adapters-8"), "repeats": 10, "failing": ("full",),
         "failures": ({"model": "minilm-l6", "arm": "adapters-8", "repeat": 3, "workload": "generation",
                       "setting": "default", "text": "CUDA out of memory"},)},
    ),
}  # fmt: skip

if __name__ == "__main__":
    from lorascope.report.render import render_report

    for name, (shape, served) in CASES.items():
        target = Path(sys.argv[1]) / name
        print(render_report(write_served_analysis(target / "analysis", shape, **served), target / "report"))
