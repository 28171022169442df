"""A search as a study states it: golden error texts, and what its settings mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_errors import error_of

from lorascope.errors import StudyError
from lorascope.study.checks.notices import study_notices
from lorascope.study.hyperparameters import given_hyperparameters, with_hyperparameters
from lorascope.study.loading.load import load_study
from lorascope.study.methods import method_specs
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.ranges import Range
from lorascope.study.spec import Study

STUDY = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc]
methods:
  - full
  - {kind: lora, rank: 8}
search:
"""


def search_error(tmp_path: Path, text: str, *overrides: str) -> str:
    return error_of(STUDY + "".join(f"  {line}\n" for line in text.splitlines()), tmp_path, *overrides)


def test_a_search_by_default_is_fifteen_trials_over_the_published_ranges(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.removesuffix("search:\n") + "search: true\n")
    search = load_study(tmp_path / "study.yaml").search
    assert search is not None
    assert (search.sampler, search.trials, search.pruning, search.at_edge) == ("tpe", 15, "none", "flag")
    assert search.of("lora", "lora") == {
        "learning_rate": Range(low=5e-5, high=5e-3, log=True),
        "warmup": Range(low=0, high=0.3),
        "weight_decay": Range(low=0, high=0.1),
        "alpha": Range(low=8, high=64),
        "dropout": Range(low=0, high=0.2),
    }
    assert search.of("full", "full") == {
        "learning_rate": Range(low=1e-6, high=5e-5, log=True),
        "batch_size": Range(low=1, high=4),
        "warmup": Range(low=0, high=0.2),
        "weight_decay": Range(low=0, high=0.01),
        "epochs": Range(low=2, high=4),
    }


def test_the_wide_ranges_hold_the_published_ones() -> None:
    for kind, method in method_specs().items():
        wide = method.ranges["wide"]
        for name, dimension in wide.items():
            published = method.ranges["published"][name]
            assert isinstance(dimension, Range) and isinstance(published, Range)
            assert dimension.low <= published.low and dimension.high >= published.high, (kind, name)
        assert not {"epochs", "batch_size"} & set(wide)


def test_a_method_that_is_not_named_gets_the_published_ranges(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + "  space: {lora: wide}\n")
    search = load_study(tmp_path / "study.yaml").search
    assert search is not None
    assert search.of("lora", "lora") == LoraSpec.ranges["wide"]
    assert search.of("full", "full") == FullSpec.ranges["published"]


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ("{low: 0.1, high: 0.1}", ": the range from 0.1 to 0.1 is empty: give the method the value itself"),
        ("{low: 5e-3, high: 5e-5}", ": low 0.005 is above high 5e-05: swap them"),
        ("{low: 0, high: 5e-3, log: true}", ": a logarithmic range begins above 0; found low 0"),
        ('{low: "1e-5", high: 5e-3}', ".low: expected a number; found the text '1e-5'"),
        ("{low: 1e-5}", ": the key `high` is missing"),
        ("{low: 1e-5, hi: 5e-3}", ": unknown key `hi`: did you mean `high`?\n  hint: allowed here: low, high, log"),
        ("{low: 1e-5, high: .inf}", ".high: expected a finite number; found the number inf"),
        ("1e-4", ": must be a range {low, high, log} or a list of values"),
        (
            "[]",
            ": needs at least 2 values; found an empty list\n  hint: a single value belongs to the method",
        ),
        ("[1e-4]", ": needs at least 2 values; found only 0.0001\n  hint: a single value belongs to the method"),
        (
            '[1e-4, "5e-4"]',
            "[1]: expected a number; found the text '5e-4'\n  hint: remove the quotes",
        ),
        ("[1e-4, high]", "[1]: expected a number; found the text 'high'\n  hint: a list of numbers"),
        ("[1e-4, 1e-4]", "[1]: 0.0001 is there twice\n  hint: remove one"),
        ("[1e-4, 0]", ": learning_rate cannot be 0: input should be greater than 0"),
        ("{low: -1, high: 1}", ": learning_rate cannot be -1: input should be greater than 0"),
    ],
)
def test_a_range_that_is_none(tmp_path: Path, dimension: str, expected: str) -> None:
    where = "study.yaml:10: search.space.lora.learning_rate"
    found = search_error(tmp_path, f"space:\n  lora: {{learning_rate: {dimension}}}")
    assert found == where + expected


def test_a_setting_without_effect_on_the_method(tmp_path: Path) -> None:
    assert search_error(tmp_path, "space:\n  full: {alpha: [8, 16]}") == (
        "study.yaml:10: search.space.full.alpha has no effect on a method of kind `full`\n"
        "  hint: it has epochs, batch_size, schedule, warmup, weight_decay, gradient_clip, learning_rate"
    )


def test_a_misspelt_setting(tmp_path: Path) -> None:
    found = search_error(tmp_path, "space:\n  lora: {learning_rat: [1e-4, 1e-3]}")
    assert found.startswith(
        "study.yaml:10: search.space.lora.learning_rat has no effect on a method of kind `lora`: did you mean "
        "`learning_rate`?\n"
    )


def test_ranges_that_are_no_methods_own(tmp_path: Path) -> None:
    for ranges in ("{low: 1e-5, high: 1e-3}", "[1e-5, 1e-3]"):
        assert search_error(tmp_path, f"space: {{learning_rate: {ranges}}}") == (
            "study.yaml:9: search.space: ranges are a method's own, and `learning_rate` is none: "
            "{lora: {learning_rate: ...}}"
        )


def test_a_misspelt_method_or_preset(tmp_path: Path) -> None:
    assert search_error(tmp_path, "space: {loar: wide}") == (
        "study.yaml:9: search.space: the study has no method `loar`: did you mean `lora`?\n"
        "  hint: its methods: full, lora"
    )
    assert search_error(tmp_path, "space: wied") == (
        "study.yaml:9: search.space: the text 'wied' is not allowed: did you mean `wide`?\n"
        "  hint: allowed: published, wide"
    )


def test_more_trials_than_a_grid_has(tmp_path: Path) -> None:
    grid = "sampler: grid\ntrials: 7\nspace:\n  full: {learning_rate: [1e-5, 2e-5, 5e-5], epochs: [2, 3, 4]}\n"
    assert search_error(tmp_path, grid + "  lora: {learning_rate: [1e-4, 5e-4, 1e-3], alpha: [8, 16]}") == (
        "study.yaml:10: search.trials: the grid of `lora` has 6 points, fewer than 7 trials\n"
        "  hint: lower it to 6 (all methods get as many), or list more values"
    )


def test_a_grid_of_ranges(tmp_path: Path) -> None:
    spaces = "space:\n  lora: {warmup: {low: 0, high: 6%}}\n  full: {warmup: [0, 6%]}\n"
    assert search_error(tmp_path, f"sampler: grid\n{spaces}trials: 2") == (
        "study.yaml:11: search.space: a grid needs lists of values; warmup of `lora` is a range\n"
        "  hint: such as `warmup: [1, 2, 4]`, or another sampler"
    )


def test_a_value_that_the_search_replaces(tmp_path: Path) -> None:
    assert search_error(tmp_path, "trials: 5", "methods.lora.alpha=16") == (
        "--set methods.lora.alpha=16: methods[1].alpha has no effect: the search sets it\n"
        "  hint: remove it here, or take it out of `search.space`"
    )
    assert search_error(tmp_path, "trials: 5", "methods.full.train={epochs: 2}") == (
        "--set methods.full.train={epochs: 2}: methods[0].train.epochs has no effect: the search sets it\n"
        "  hint: remove it here, or take it out of `search.space`"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "seeds: [7, 42]",
            "search.seeds[1]: 42 is a seed of the study, whose runs would not be fresh\n"
            "  hint: trials need seeds of their own",
        ),
        ("seeds: [7, 7]", "search.seeds[1]: 7 is there twice\n  hint: give another"),
        (
            "pruning: wilcoxon",
            "search.pruning: wilcoxon spares nothing with 1 seeds: no p-value is below 0.1 before the last\n"
            "  hint: give at least 5 `seeds`, or use halving",
        ),
        (
            "{sampler: gp, pruning: halving}",
            "search.pruning: a gp sampler learns from finished trials only, of which halving leaves few\n"
            "  hint: use `sampler: tpe`, which learns from trials that ended early too",
        ),
        (
            "{trials: 4, at_once: 5}",
            "search.at_once: 5 proposed at once, of 4 trials in all\n  hint: lower `at_once`, or raise `trials`",
        ),
        ("pruning: half", "search.pruning: the text 'half' is not allowed\n  hint: allowed: none, halving, wilcoxon"),
        ("trials: 0", "search.trials: must be at least 1; found 0"),
        ("seeds: [one]", "search.seeds[0]: expected a whole number, at least 0; found the text 'one'"),
    ],
)
def test_a_search_that_makes_no_sense(tmp_path: Path, text: str, expected: str) -> None:
    line = f"search: {text}\n" if text.startswith("{") else f"search: {{{text}}}\n"
    found = error_of(STUDY.removesuffix("search:\n") + line, tmp_path)
    assert found == f"study.yaml:8: {expected}"


def test_a_cap_that_caps_nothing(tmp_path: Path) -> None:
    assert search_error(tmp_path, "train_examples: 1000", "data.train_examples=500") == (
        "study.yaml:9: search.train_examples has no effect: data.train_examples is 500 already\n"
        "  hint: lower it, or remove it"
    )


def test_no_search_on_the_test_set(tmp_path: Path) -> None:
    assert search_error(tmp_path, "trials: 5", "protocol=paper").splitlines()[0] == (
        "study.yaml:8: search: under `protocol: paper` trials would be chosen on the test set"
    )


def test_batches_that_cannot_be_split(tmp_path: Path) -> None:
    assert search_error(tmp_path, "trials: 5", "train.micro_batch_size=2", "train.batch_size=4") == (
        "study.yaml:8: search.space.batch_size: 1 is not a multiple of micro_batch_size 2\n"
        "  hint: list multiples of it, or remove `micro_batch_size`"
    )


# ------------------------------------------------------------------------------------- hyper-parameters from a file


def study_with(tmp_path: Path, given: str, text: str = "", name: str = "mrpc_lora.yaml") -> Study:
    (tmp_path / "optimal").mkdir(exist_ok=True)
    (tmp_path / "optimal" / name).write_text(text)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("rank: 8}", f"rank: 8, hyperparameters: {given}}}").removesuffix("search:\n"))
    return load_study(path, files=True)


def test_hyperparameters_come_from_a_file_of_the_directory(tmp_path: Path) -> None:
    study = study_with(
        tmp_path, "optimal", "kind: lora\nhyperparameters: {learning_rate: 3e-4, epochs: 2, warmup: 6%}\n"
    )
    lora = study.method("lora")
    values = given_hyperparameters(study, lora, model="minilm-l6", task="mrpc")
    tuned = with_hyperparameters(lora, values)
    assert (tuned.learning_rate, tuned.train.epochs, tuned.train.warmup) == (3e-4, 2, 0.06)
    assert tuned.hyperparameters is None


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        ("optimum", "", "there is no file or directory optimum"),
        ("optimal", "kind: full\nhyperparameters: {epochs: 2}", "optimal/mrpc_lora.yaml: these hyper-parameters were found "
         "for the kind `full`, not for `lora`"),
        ("optimal", "model: other\nhyperparameters: {epochs: 2}", "optimal/mrpc_lora.yaml: these hyper-parameters were "
         "found for the model `other`, not for `minilm-l6`"),
        ("optimal", "hyperparameters: {epoch: 2}", "optimal/mrpc_lora.yaml: `epoch` has no effect on a method of kind "
         "`lora`: did you mean `epochs`?"),
        ("optimal", "hyperparameters: {epochs: 0}", "optimal/mrpc_lora.yaml: epochs cannot be 0: input should be greater "
         "than 0"),
        ("optimal", "learning_rate: 3", "optimal/mrpc_lora.yaml: the file holds no hyper-parameters"),
        ("optimal", "hyperparameters: {rank: 4}", "rank has no effect: `hyperparameters` sets it"),
    ],
)  # fmt: skip
def test_a_file_of_hyperparameters_that_is_none(tmp_path: Path, given: str, text: str, expected: str) -> None:
    with pytest.raises(StudyError) as caught:
        study_with(tmp_path, given, text)
    message = str(caught.value).replace(f"{tmp_path}/", "").splitlines()[0]
    assert message.endswith(expected)
    assert message.startswith("study.yaml:7: methods[1]")


def test_a_directory_without_the_tasks_file_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        study_with(tmp_path, "optimal", "hyperparameters: {epochs: 2}", name="sst2_lora.yaml")
    assert "has no mrpc_lora.yaml" in str(caught.value)
    assert "there: sst2_lora.yaml" in str(caught.value)


def test_a_method_written_with_a_scale_is_searched_over_the_scale(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("rank: 8}", "rank: 4, scale: 2}") + "  trials: 5\n")
    study = load_study(tmp_path / "study.yaml")
    assert study.search is not None
    space = study.search.space_of(study.methods[1])
    assert "alpha" not in space and space["scale"] == Range(low=1, high=8)
    assert list(space) == [{"alpha": "scale"}.get(name, name) for name in LoraSpec.ranges["published"]]
    tried = with_hyperparameters(study.methods[1], {"scale": 3.0})
    assert (tried.alpha, tried.rank) == (12, 4)  # type: ignore[attr-defined]


def test_a_searched_rank_keeps_the_scale_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.removesuffix("search:\n").replace("rank: 8}", "scale: 2}"))
    method = load_study(tmp_path / "study.yaml").methods[1]
    assert [with_hyperparameters(method, {"rank": rank}).alpha for rank in (2, 16)] == [4, 32]  # type: ignore[attr-defined]
    assert with_hyperparameters(method, {"alpha": 5.0}).alpha == 5  # type: ignore[attr-defined]


def test_what_a_space_says_of_the_scale_is_said_once(tmp_path: Path) -> None:
    both = "space: {lora: {alpha: [8, 16], scale: [1, 2]}}\ntrials: 5"
    assert "`alpha` and `scale` say the same (scale = alpha / rank)\n  hint: search one" in search_error(tmp_path, both)
    scale, alpha = "space: {lora: {scale: [1, 2]}}\ntrials: 5", "space: {lora: {alpha: [8, 16]}}\ntrials: 5"
    for space, written in ((scale, "alpha=4"), (alpha, "scale=2"), (scale, "scale=2")):
        told = search_error(tmp_path, space, f"methods.lora.{written}")
        assert f"methods[1].{written.partition('=')[0]} has no effect: the search sets" in told


def test_scale_and_alpha_name_the_same_step(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.removesuffix("search:\n").replace("rank: 8}", "rank: 8, scale: 2}"))
    written = [load_study(path), load_study(path, overrides=["methods=[full, {kind: lora, rank: 8, alpha: 16}]"])]
    dumps = [study.methods[1].model_dump() for study in written]
    assert dumps[0] == dumps[1] and dumps[0]["alpha"] == 16


def test_arms_that_differ_in_alpha_over_rank_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.removesuffix("search:\n"))
    arms = "methods=[full, {{kind: lora, name: r4, rank: 4{0}}}, {{kind: lora, name: r8, rank: 8{0}}}]"
    (notice,) = study_notices(load_study(path, overrides=[arms.format("")]))
    assert "alpha / rank differs between arms (r4 4, r8 2)" in notice and "`scale: 2`" in notice
    assert study_notices(load_study(path, overrides=[arms.format(", scale: 2")])) == []
    searched = load_study(path, overrides=[arms.format(""), "search={trials: 5}"])
    assert study_notices(searched) == [], "the search sets alpha"


def test_more_trials_than_settings_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + "  trials: 6\n  space: {full: {learning_rate: [1e-3, 2e-3]}}\n")
    (notice,) = study_notices(load_study(tmp_path / "study.yaml"))
    assert "the search of full has 2 different settings for 6 trials" in notice
