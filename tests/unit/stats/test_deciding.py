"""How likely a study is to decide its claims: known cases, and agreement with the t test that stands behind them."""

from __future__ import annotations

import pytest
from scipy import stats

from lorascope.plan.deciding import assumed_from, deciding, effects_from, sentences
from lorascope.plan.power import Detectable
from lorascope.stats.simulate.deciding import Assumptions, Chance, chances
from lorascope.study.spec import Study

METRICS = {"mrpc": "accuracy", "sst2": "accuracy", "rte": "accuracy"}
EXAMPLES = {"mrpc": 408, "sst2": 872, "rte": 277}


def study_of(*, seeds: int = 5, tasks=("mrpc", "sst2", "rte"), **hypotheses) -> Study:
    return Study.model_validate(
        {"name": "s", "question": "?", "models": ["smollm2-135m"], "tasks": list(tasks), "methods": ["full", "lora"],
         "seeds": seeds, "measure": {"drift": {}, "serving": {"batch_sizes": [1, 4], "repeats": 5}},
         "hypotheses": hypotheses, "conclusion": " and ".join(hypotheses)}
    )  # fmt: skip


def found(study: Study, assumed: Assumptions | None = None, **options) -> dict[tuple[str, str], Chance]:
    drawn = chances(study, METRICS, EXAMPLES, assumed or Assumptions(), **options)
    return {(chance.name, chance.world): chance for chance in drawn}


NON_INFERIOR = {"non_inferior": "lora", "to": "full", "margin": "3%"}


def test_a_claim_about_every_task_is_hardly_ever_supported():
    every = found(study_of(H={**NON_INFERIOR, "over": "every"}))["H", "holds"]
    average = found(study_of(H={**NON_INFERIOR, "over": "average"}))["H", "holds"]
    assert every.truth == "−1.5 points" and every.supported < 0.15 < 0.4 < average.supported


def test_the_chance_is_that_of_the_noncentral_t_test():
    """One task, no examples' noise: a t test over seeds whose power is known."""
    assumed = Assumptions(seed_sd=0.02, discordant=1e-9)
    chance = found(study_of(tasks=("sst2",), H=NON_INFERIOR), assumed, studies=1500)["H", "holds"]
    power = 1 - stats.nct.cdf(stats.t.ppf(0.95, 4), 4, 0.015 / (0.02 / 5**0.5))
    assert chance.supported == pytest.approx(power, abs=0.04)


def test_more_seeds_raise_the_chance_and_the_wrong_side_stays_rare():
    few, many = (found(study_of(seeds=n, H=NON_INFERIOR)) for n in (3, 20))
    assert many["H", "holds"].supported > few["H", "holds"].supported + 0.1
    for drawn in (few, many):
        assert drawn["H", "holds"].refuted <= 0.05 and drawn["H", "fails"].supported <= 0.05


def test_every_kind_of_claim_has_its_chances_and_the_conclusion_its_own():
    study = study_of(
        H1=NON_INFERIOR,
        H2={"lower": "lora", "than": "full", "on": "drift", "by": "20%"},
        H3={"overhead": "adapters-4", "over": "merged", "on": "latency_p95", "at_most": "30%"},
        H4={"equivalent": "lora", "to": "full", "margin": {"relative": "3%"}},
        H5={"superior": "lora", "to": "full"},
    )
    drawn = found(study)
    assert {name for name, _ in drawn} == {"H1", "H2", "H3", "H4", "H5", "conclusion"}
    assert drawn["H2", "holds"].truth == "64% of the reference's drift"
    assert drawn["H2", "fails"].truth == "100% of the reference's drift"
    assert drawn["H3", "holds"].truth == "114% of the reference's cost"
    assert drawn["H4", "fails"].truth == "95.5% of the reference's score"
    least = min(drawn[f"H{n}", "holds"].supported for n in range(1, 6))
    assert drawn["conclusion", "holds"].supported <= least


def test_what_cannot_be_simulated_is_left_out():
    study = study_of(H1=NON_INFERIOR, H2={"lower": "lora", "than": "full", "on": "trainable_parameters", "by": "90%"})
    assert {name for name, _ in found(study)} == {"H1"}, "a conclusion over it is not simulated either"


def known(task: str) -> Detectable:
    return Detectable(task, "accuracy", 5, EXAMPLES[task], 0.02, {}, {})


def test_the_plan_says_what_raises_a_chance():
    study = study_of(H={**NON_INFERIOR, "over": "every"})
    decided = deciding(study, [known(task) for task in EXAMPLES])
    assert decided is not None
    assert [variant.change for variant in decided.variants] == ["10 seeds", "claims over the average"]
    first, last = sentences(decided)
    assert first.startswith("H: ") and "to be supported if true (−1.5 points)" in first
    assert "to be refuted if not (−4.5 points)" in first and "with 10 seeds " in first
    assert last.startswith("The conclusion: ")


def test_nothing_is_said_before_the_test_sets_are_known():
    unknown = Detectable("rte", None, 5, None, None, {}, {})
    assert deciding(study_of(H=NON_INFERIOR), [known("mrpc"), known("sst2"), unknown]) is None


def test_finished_runs_give_their_variances_and_effects():
    from made_up_study import make_measurements, make_study

    from lorascope.stats.analyse import analyse_study

    study = make_study(hypotheses={"H1": {**NON_INFERIOR, "margin": "5%"}}, conclusion=None)
    table = make_measurements(lora=0.83, noise=1.0)
    like = analyse_study(study, table, primary={"mrpc": "accuracy", "rte": "accuracy"})
    assumed, effects = assumed_from(like), effects_from(like, study)
    shares = [(t.b + t.c) / row.num_examples for row in like.comparisons for t in row.mcnemar]
    assert assumed.discordant == pytest.approx(sum(shares) / len(shares))
    assert 0 <= assumed.seed_sd < 0.02 and assumed.drift_sd == Assumptions().drift_sd, "drift was not measured"
    assert effects == {"H1": like.hypotheses[0].average.estimate} and effects["H1"] < -0.01
    other = make_study(hypotheses={"H1": {**NON_INFERIOR, "margin": {"relative": "5%"}}}, conclusion=None)
    assert effects_from(like, other) == {}, "a difference is not a ratio, whatever its name"
    power = [Detectable(task, "accuracy", 5, 400, 0.02, {}, {}) for task in ("mrpc", "rte")]
    decided = deciding(study, power, like=like, name="results/before")
    assert decided is not None and "From results/before, as far as it was measured there" in decided.basis
    (sentence,) = sentences(decided)
    assert "If it is as found (−3.2 points)" in sentence and sentence.endswith("to be refuted.")
