"""A metric of which less is better, from per-example rows to verdicts, gates and correlations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_up_perplexity import TASK, analysed, perplexity_measurements, perplexity_study
from made_up_study import make_measurements, make_study

from lorascope.errors import StudyError
from lorascope.stats.analyse import analyse_study


def with_losses(table: pd.DataFrame) -> pd.DataFrame:
    """A loss of 0 for each right example and of 1 for each wrong one."""
    losses = table[table["metric"] == "correct"].assign(metric="loss", value=lambda rows: 1 - rows["value"])
    return pd.concat([table, losses], ignore_index=True)


@pytest.mark.parametrize(
    ("lora", "close", "better", "alike"),
    [
        (-0.2, "supported", "supported", "refuted"),
        (0.02, "supported", "refuted", "supported"),
        (0.2, "refuted", "refuted", "refuted"),
    ],
)
def test_verdicts_on_perplexity_follow_its_direction(lora, close, better, alike):
    """A perplexity of 7.7 and a margin of 0.5: 0.02 nats more is within it, 0.2 nats more is far beyond."""
    verdicts = {result.name: result.verdict for result in analysed(lora).hypotheses}
    assert verdicts == {"close": close, "better": better, "alike": alike}


def test_claims_and_reasons_on_perplexity_say_which_way():
    close, better, alike = analysed(0.02).hypotheses
    assert close.claim.startswith("the perplexity of lora is at most 0.5 above that of full")
    assert "the whole 90% interval lies below +0.5" in close.reason
    assert better.claim.startswith("lora has a lower perplexity than full")
    assert "no part of the 90% interval lies below 0" in better.reason
    assert "differ by less than 0.5 of perplexity" in alike.claim


def test_a_score_is_the_ratio_over_all_tokens_not_a_mean_of_examples():
    table = perplexity_measurements(0.0)
    score = next(s for s in analysed(0.0).scores if s.method == "full")
    rows = table[(table["method"] == "full") & (table["seed"] == "1") & table["example_id"].notna()]
    losses, tokens = (rows.loc[rows["metric"] == name, "value"].to_numpy() for name in ("total_loss", "tokens"))
    assert score.seeds["1"] == pytest.approx(np.exp(losses.sum() / tokens.sum()))
    assert score.seeds["1"] != pytest.approx(np.exp((losses / tokens).mean()), rel=1e-3)


def test_a_task_without_labels_has_no_mcnemar_and_no_odds():
    (comparison,) = analysed(0.02).comparisons
    assert comparison.mcnemar == [] and comparison.odds_ratio is None
    assert comparison.difference.estimate > 0 and comparison.p_value is not None and comparison.p_value < 0.05


def test_identical_perplexities_differ_by_nothing_not_by_one_example():
    table = perplexity_measurements(0.0)
    full = table[table["method"] == "full"]
    same = full.assign(method="lora", run=full["run"].str.replace("full", "lora"))
    frame = pd.concat([full, same], ignore_index=True)
    (comparison,) = analyse_study(perplexity_study(), frame, primary={TASK: "perplexity"}).comparisons
    assert (comparison.difference.low, comparison.difference.high) == (0.0, 0.0)


def test_a_claim_cannot_span_metrics_of_two_directions():
    hypotheses = {"both": {"superior": "lora", "to": "full"}}
    study = make_study(hypotheses=hypotheses, conclusion=None)
    frame = with_losses(make_measurements())
    (result,) = analyse_study(study, frame, primary={"mrpc": "accuracy", "rte": "loss"}).hypotheses
    assert result.verdict == "inconclusive"
    assert "mrpc: accuracy, higher is better; rte: loss, lower is better" in result.reason
    assert "a claim `on` a metric that every task has" in result.would_decide


def test_a_claim_on_loss_is_judged_where_it_is_measured():
    hypotheses = {"loss": {"superior": "lora", "to": "full", "on": "loss"}}
    study = make_study(hypotheses=hypotheses, conclusion=None)
    table = make_measurements(lora=0.95)
    primary = {"mrpc": "accuracy", "rte": "accuracy"}
    assert analyse_study(study, with_losses(table), primary=primary).hypotheses[0].verdict == "supported"
    with pytest.raises(StudyError, match="'loss', which is not a metric measured on each test example"):
        analyse_study(study, table, primary=primary)


def test_an_unknown_primary_metric_is_named_with_its_nearest():
    with pytest.raises(StudyError, match="there is no metric `perplexty`: did you mean `perplexity`"):
        analyse_study(perplexity_study(), perplexity_measurements(0.0), primary={TASK: "perplexty"})
