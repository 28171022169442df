"""The `analysis` step: from finished artifacts to the measurements table, the curves, the facts and the verdicts.

What it commits is all a report reads: measurements.parquet (the long table), curves.parquet, analysis.json (statistics)
and facts.json (data, runs, gates, baselines, provenance); with draws.npz (the bootstrap of drift) the statistics can be
redone from these files alone (analysis/again.py). It neither trains nor loads a model, and it knows no measure by
name: each gives its rows, gates, facts and evidence (measures/measure.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce

import pandas as pd

from lorascope.analysis.facts import study_facts
from lorascope.analysis.finished import Finished, primary_metric
from lorascope.analysis.gates import arm_gates, broken_arms, check_same_examples, step_gates
from lorascope.analysis.naming import classes_of, name_classes
from lorascope.analysis.rows import curves, function_rows, measured_rows, predictions
from lorascope.analysis.stated import study_of
from lorascope.engine.context import StepContext
from lorascope.engine.step import JSON
from lorascope.measures.measure import MeasuredEvidence, known_measures
from lorascope.stats.analyse import analyse_study
from lorascope.stats.drift.draws import DRAWS, write_draws


def analyse(context: StepContext) -> JSON:
    """params: study, steps (role -> label), failures, missing_runs, seeding, proposed_by; deps: role -> artifact."""
    params = context.step.params
    finished = Finished([(role, label, context.deps[role]) for role, label in params["steps"].items()])
    check_same_examples(finished)
    measured = [(measure, finished.of(measure.kind)) for measure in known_measures()]
    study = study_of(params["study"])
    of_measures = [rows for measure, steps in measured for rows in measure.rows(steps)]
    rows = [*measured_rows(finished), *of_measures, *function_rows(finished, study)]
    measurements = pd.concat(rows, ignore_index=True)
    measurements.to_parquet(context.out / "measurements.parquet", index=False, compression="zstd")
    predictions(finished).to_parquet(context.out / "predictions.parquet", index=False, compression="zstd")
    curves(finished).to_parquet(context.out / "curves.parquet", index=False, compression="zstd")
    primary = {task.name: primary_metric(finished, task.name) for task in study.tasks}
    gates = [*step_gates(finished), *arm_gates(finished, primary)]
    gates += [gate for measure, steps in measured for gate in measure.gates(steps)]
    evidence = reduce(
        lambda found, part: part[0].add_evidence(found, part[1], measurements), measured, MeasuredEvidence()
    )
    analysis = analyse_study(
        study,
        measurements,
        primary=primary,
        broken_arms=broken_arms(gates),
        drift=evidence.drift,
        serving=evidence.serving,
        seeding=params["seeding"],
    )
    if evidence.drift:
        write_draws(context.out / DRAWS, evidence.drift)
    facts = replace(study_facts(context, finished, study, gates=gates), primary=primary)
    facts = reduce(lambda found, part: part[0].add_facts(found, part[1]), measured, facts)
    analysis = name_classes(analysis, classes_of(facts.data), study, primary=primary)
    (context.out / "analysis.json").write_text(json.dumps(analysis.to_json(), indent=1, allow_nan=False))
    (context.out / "facts.json").write_text(json.dumps(facts.to_json(), indent=1, allow_nan=False))
    return {
        "verdicts": {result.name: result.verdict for result in analysis.hypotheses},
        "num_runs": len(facts.runs),
        "gates_failed": [gate["gate"] for gate in gates if not gate["passed"]],
    }
