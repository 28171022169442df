"""A study scored by perplexity, of which less is better: measurements made up with a known difference, and its report.

Run as a script to render one for the eye: `python tests/support/made_up_perplexity.py DIRECTORY`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report_fixture import Shape, write_analysis

from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis
from lorascope.study.spec import Study

SEEDS = (1, 2, 3, 4, 5)
TASK = "rte"
HYPOTHESES: dict[str, Any] = {
    "close": {"non_inferior": "lora", "to": "full", "on": "perplexity", "margin": 0.5},
    "better": {"superior": "lora", "to": "full"},
    "alike": {"equivalent": "lora", "to": "full", "on": "perplexity", "margin": 0.5},
}


def perplexity_study(**changes: Any) -> Study:
    """One task, full fine-tuning and LoRA."""
    fields = {
        "name": "text", "question": "?", "models": ["minilm-l6"], "tasks": [TASK], "methods": ["full", "lora"],
        "seeds": SEEDS, "hypotheses": HYPOTHESES,
    }  # fmt: skip
    return Study.model_validate({**fields, **changes})


def perplexity_measurements(lora: float, *, examples: int = 300) -> pd.DataFrame:
    """lora: what its mean loss a token, in nats, is above full fine-tuning's (2.0: a perplexity of 7.4)."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(20, 200, examples).astype(float)
    difficulty = generator.normal(2.0, 0.4, examples)
    rows: list[dict[str, Any]] = []
    for method, shift in (("full", 0.0), ("lora", lora)):
        for seed in SEEDS:
            losses = tokens * (difficulty + shift + generator.normal(0, 0.005) + generator.normal(0, 0.02, examples))
            run = {
                "run": f"{method}-{seed}", "model": "minilm-l6", "task": TASK, "method": method, "seed": str(seed),
                "split": "test",
            }  # fmt: skip
            for metric, values in (("total_loss", losses), ("tokens", tokens)):
                rows += [
                    {**run, "example_id": f"e{index}", "metric": metric, "value": value, "unit": ""}
                    for index, value in enumerate(values)
                ]
            value = float(np.exp(losses.sum() / tokens.sum()))
            rows.append({**run, "metric": "perplexity", "value": value, "unit": "1"})
    return pd.DataFrame(rows)


def analysed(lora: float, **changes: Any) -> Analysis:
    """The analysis of such a study."""
    study = perplexity_study(**changes)
    return analyse_study(study, perplexity_measurements(lora), primary={TASK: "perplexity"})


def write_perplexity_analysis(directory: Path, lora: float) -> Path:
    """A whole analysis artifact of it, with two baselines of which one is better than any run."""
    write_analysis(directory, Shape(tasks=(TASK,), seeds=SEEDS, hypotheses=False))
    (directory / "analysis.json").write_text(json.dumps(analysed(lora).to_json()))
    facts = json.loads((directory / "facts.json").read_text())
    facts["study"] = perplexity_study().model_dump(mode="json")
    baseline = {"model": "minilm-l6", "task": TASK, "metric": "perplexity", "num_examples": 300, "sd": None}
    facts["baselines"] = [
        {**baseline, "name": "untrained base", "mean": 20.0, "values": [20.0]},
        {**baseline, "name": "oracle", "mean": 2.0, "values": [2.0]},
    ]
    facts["published"], facts["protocol_gap"] = [], None
    for data in facts["data"].values():
        del data["label_names"], data["label_counts"]
    (directory / "facts.json").write_text(json.dumps(facts))
    curves = pd.read_parquet(directory / "curves.parquet")
    is_score = curves["name"] == "validation/accuracy"
    curves.loc[is_score, "value"] = 5 + 10 * (1 - curves.loc[is_score, "value"])
    curves["name"] = curves["name"].where(~is_score, "validation/perplexity")
    curves.to_parquet(directory / "curves.parquet")
    return directory


if __name__ == "__main__":
    from lorascope.report.render import render_report

    print(render_report(write_perplexity_analysis(Path(sys.argv[1]) / "analysis", 0.02), Path(sys.argv[1])))
