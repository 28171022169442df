"""The `analysis` step: from finished artifacts to the measurements table, the curves, the facts and the verdicts.

What it commits is all a report reads: measurements.parquet (the long table), curves.parquet, analysis.json (statistics)
and facts.json (data, runs, gates, baselines, provenance). It neither trains nor loads a model.
"""

from __future__ import annotations

import json

import pandas as pd

from lorascope.engine.context import StepContext
from lorascope.engine.step import JSON
from lorascope.results.facts import baseline_facts, data_facts, provenance, run_facts, tuned_settings
from lorascope.results.finished import Finished, primary_metric
from lorascope.results.gates import arm_gates, broken_arms, check_same_examples, step_gates
from lorascope.results.rows import curves, drift_draws, function_rows, measured_rows
from lorascope.serving.record import read_serving
from lorascope.stats.analyse import analyse_study
from lorascope.stats.serving.analyse import analyse_serving
from lorascope.study.spec import Study
from lorascope.tasks.description import task_from_result


def analyse(context: StepContext) -> JSON:
    """params: study, steps (role -> label), failures, missing_runs, proposed_by; deps: role -> artifact."""
    params = context.step.params
    finished = Finished([(role, label, context.deps[role]) for role, label in params["steps"].items()])
    check_same_examples(finished)
    study = Study.model_validate(_with_any_source(params["study"]))
    measurements = pd.concat([*measured_rows(finished), *function_rows(finished, study)], ignore_index=True)
    measurements.to_parquet(context.out / "measurements.parquet", index=False, compression="zstd")
    curves(finished).to_parquet(context.out / "curves.parquet", index=False, compression="zstd")
    primary = {task.name: primary_metric(finished, task.name) for task in study.tasks}
    gates = [*step_gates(finished), *arm_gates(finished, primary)]
    record = read_serving(finished.of("serving"))
    served = None
    if record is not None:
        record.figures.to_parquet(context.out / "serving.parquet", index=False, compression="zstd")
        served = analyse_serving(record.figures, gates=record.gates, facts=[*record.engines, *record.failures])
    analysis = analyse_study(
        study,
        measurements,
        primary=primary,
        broken_arms=broken_arms(gates),
        drift=drift_draws(finished),
        serving=served,
    )
    (context.out / "analysis.json").write_text(json.dumps(analysis.to_json(), indent=1, allow_nan=False))
    facts = {
        "study": params["study"],
        "data": data_facts(finished),
        "runs": list(run_facts(finished, study)),
        "gates": gates,
        "baselines": list(baseline_facts(finished)),
        "published": [
            {"task": label["task"], **figure}
            for label, artifact in finished.of("data")
            for figure in task_from_result(artifact.result).published()
        ],
        "failures": params["failures"],
        "missing_runs": params["missing_runs"],
        "provenance": provenance(finished),
        "protocol_gap": None,
        "not_measured": [
            {**label, "what": what, "why": why}
            for label, artifact in finished.of("drift")
            for what, why in artifact.result["not_measured"].items()
        ],
    }
    if tuned := tuned_settings(finished, study):
        facts["tuned"] = tuned
    if searches := finished.of("search"):
        who = {context.deps[role].id: text for role, text in params.get("proposed_by", {}).items()}
        facts["search"] = [
            {**label, **artifact.result, "proposed_by": who.get(artifact.id)} for label, artifact in searches
        ]
    if record is not None:
        kinds = ("gates", "engines", "failures", "trials", "merging")
        facts["serving"] = {kind: getattr(record, kind) for kind in kinds}
    (context.out / "facts.json").write_text(json.dumps(facts, indent=1, allow_nan=False))
    return {
        "verdicts": {result.name: result.verdict for result in analysis.hypotheses},
        "num_runs": len(facts["runs"]),
        "gates_failed": [gate["gate"] for gate in gates if not gate["passed"]],
    }


def _with_any_source(study: JSON) -> JSON:
    """The study's models are known here by name only; what they are is in the steps."""
    return {**study, "models": [model["name"] for model in study["models"]]}
