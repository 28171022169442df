"""Golden texts: what a person reads who has written a study wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_errors import GOOD, error_of

from lorascope.errors import StudyError
from lorascope.study.loading.load import load_study


def test_unknown_key_names_line_and_nearest_key(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("rank:", "rnk:"), tmp_path) == (
        "study.yaml:8: methods[1]: unknown key `rnk`: did you mean `rank`?\n"
        "  hint: allowed here: name, train, hyperparameters, kind, learning_rate, rank, alpha, scale, dropout, sites"
    )


def test_key_of_another_part_is_sent_home(tmp_path: Path) -> None:
    assert error_of(GOOD + "train: {train_examples: 100}\n", tmp_path) == (
        "study.yaml:9: train: unknown key `train_examples`\n"
        "  hint: `train_examples` is a key of `data`; allowed here: epochs, batch_size, micro_batch_size, max_length, "
        "precision, schedule, warmup, weight_decay, adam_betas, adam_epsilon, gradient_clip, evaluations_per_epoch, "
        "early_stopping, gang"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [("atuo", "'atuo': did you mean `auto`?"), ("0", "0"), ("2.5", "2.5"), ("true", "True"), ("[4]", "[4]")],
)
def test_a_gang_is_a_word_or_a_number_of_runs(tmp_path: Path, value: str, found: str) -> None:
    assert error_of(GOOD + f"train: {{gang: {value}}}\n", tmp_path) == (
        f"study.yaml:9: train.gang: must be auto, off or a whole number of runs, at least 1; found {found}"
    )


def test_a_gang_is_the_studys_and_not_a_methods(tmp_path: Path) -> None:
    assert error_of(GOOD + "    train: {gang: 4}\n", tmp_path).startswith(
        "study.yaml:9: methods[1].train: unknown key `gang`\n  hint: `gang` is a key of `train`; "
    )


def test_misspelt_method_kind(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("kind: lora", "kind: loar"), tmp_path) == (
        "study.yaml:7: methods[1]: unknown method `loar`: did you mean `lora`?\n  hint: allowed: full, lora"
    )


def test_misspelt_method_shorthand(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("- full", "- ful"), tmp_path) == (
        "study.yaml:6: methods[0]: unknown method `ful`: did you mean `full`?\n  hint: allowed: full, lora"
    )


def test_wrong_type(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("rank: 8", "rank: eight"), tmp_path) == (
        "study.yaml:8: methods[1].rank: expected a whole number; found the text 'eight'"
    )


def test_number_where_text_is_meant(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("question: Is it?", "question: 3"), tmp_path) == (
        "study.yaml:2: question: expected text; found the number 3\n  hint: quote it: '...'"
    )


def test_bare_text_where_a_list_is_meant(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("[mrpc]", "mrpc"), tmp_path) == (
        "study.yaml:4: tasks: expected a list; found the text 'mrpc'"
    )


def test_empty_list(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("[mrpc]", "[]"), tmp_path) == (
        "study.yaml:4: tasks: needs at least 1 of them; found an empty list"
    )


def test_value_out_of_range(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("rank: 8", "rank: 0"), tmp_path) == (
        "study.yaml:8: methods[1].rank: must be at least 1; found 0"
    )


def test_word_that_is_not_among_the_choices(tmp_path: Path) -> None:
    assert error_of(GOOD + "protocol: strickt\n", tmp_path) == (
        "study.yaml:9: protocol: the text 'strickt' is not allowed: did you mean `strict`?\n"
        "  hint: allowed: strict, paper"
    )


def test_percentage_written_as_a_number_above_one(tmp_path: Path) -> None:
    assert error_of(GOOD + "train:\n  warmup: 6\n", tmp_path) == (
        "study.yaml:10: train.warmup: must be at most 1; found 6\n  hint: a fraction: 0.06 or 6%"
    )


def test_batch_that_micro_batches_do_not_divide(tmp_path: Path) -> None:
    assert error_of(GOOD + "train:\n  batch_size: 16\n  micro_batch_size: 5\n", tmp_path) == (
        "study.yaml:9: train: batch_size 16 is not a multiple of micro_batch_size 5"
    )


def test_batch_of_a_method_that_the_studys_micro_batches_do_not_divide(tmp_path: Path) -> None:
    text = GOOD + "    train: {batch_size: 12}\ntrain: {batch_size: 16, micro_batch_size: 8}\n"
    assert error_of(text, tmp_path) == (
        "study.yaml:9: methods[1]: batch_size 12 is not a multiple of micro_batch_size 8\n"
        "  hint: `train` here overrides `train` of the study, field by field"
    )


def test_unknown_task(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("[mrpc]", "[mprc]"), tmp_path) == (
        "study.yaml:4: tasks[0]: unknown task `mprc`: did you mean `mrpc`?\n"
        "  hint: registered: mrpc, sst2, rte, qnli, docstrings; for your own data give {name, kind: "
        "classification, train: FILE, text: COLUMN, label: COLUMN}"
    )


def test_the_kind_of_file_tasks_is_no_task(tmp_path: Path) -> None:
    assert "tasks[0]: unknown task `classification`" in error_of(GOOD.replace("mrpc", "classification"), tmp_path)


def test_unknown_model(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("minilm-l6", "minilm-l7"), tmp_path) == (
        "study.yaml:3: models[0]: unknown model `minilm-l7`: did you mean `minilm-l6`?\n"
        "  hint: registered: minilm-l6, smollm2-135m, tinyllama-1.1b, llama-2-7b, roberta-base; for any other give "
        "{name, source: {hub: OWNER/NAME, revision: COMMIT}} or {name, source: {path: DIR}}"
    )


def test_error_in_a_file_task_speaks_of_file_tasks_only(tmp_path: Path) -> None:
    text = GOOD.replace("[mrpc]", "[{name: own, kind: classification, trian: a.csv, text: t, label: l}]")
    assert error_of(text, tmp_path) == (
        "study.yaml:4: tasks[0]: unknown key `trian`: did you mean `train`?\n"
        "  hint: allowed here: name, protocol, test_rows, settings, methods, kind, train, validation, test, text, label, "
        "labels, positive, duplicates, metrics"
    )


def test_error_in_a_source_speaks_of_the_source_that_was_meant(tmp_path: Path) -> None:
    text = GOOD.replace("[minilm-l6]", "[{name: mine, source: {hub: me/mine}}]")
    assert error_of(text, tmp_path) == (
        "study.yaml:3: models[0].source: the key `revision` is missing\n"
        "  hint: the commit hash of the model on the hub: a branch name would change under the study"
    )


def test_error_in_a_hypothesis_speaks_of_the_kind_that_was_meant(tmp_path: Path) -> None:
    assert error_of(GOOD + "hypotheses:\n  H1: {non_inferor: lora, to: full, margin: 3%}\n", tmp_path) == (
        "study.yaml:10: hypotheses.H1: unknown key `non_inferor`: did you mean `non_inferior`?\n"
        "  hint: allowed here: non_inferior, to, on, margin, over"
    )


def test_hypothesis_of_no_kind(tmp_path: Path) -> None:
    assert error_of(GOOD + "hypotheses:\n  H1: {better: lora}\n", tmp_path) == (
        "study.yaml:10: hypotheses.H1: a hypothesis is one of {non_inferior, to, margin}, {equivalent, to, margin}, "
        "{superior, to}, {lower, than, on, by}, {overhead, over, on, at_most}"
    )


def test_hypothesis_about_a_method_that_the_study_lacks(tmp_path: Path) -> None:
    assert error_of(GOOD + "hypotheses:\n  H1: {superior: lroa, to: full}\n", tmp_path) == (
        "study.yaml:10: hypotheses.H1: the study has no method `lroa`: did you mean `lora`?\n"
        "  hint: its methods: full, lora"
    )


def test_hypothesis_that_compares_a_method_with_itself(tmp_path: Path) -> None:
    assert error_of(GOOD + "hypotheses:\n  H1: {superior: lora, to: lora}\n", tmp_path) == (
        "study.yaml:10: hypotheses.H1: `lora` is compared with itself\n  hint: name two different methods"
    )


def test_hypothesis_on_a_metric_that_does_not_exist(tmp_path: Path) -> None:
    assert error_of(GOOD + "hypotheses:\n  H1: {superior: lora, to: full, on: acuracy}\n", tmp_path) == (
        "study.yaml:10: hypotheses.H1: `acuracy` is not a quality metric: did you mean `accuracy`?\n"
        "  hint: allowed: primary, accuracy, f1, mcc, loss"
    )


def test_equivalence_within_nothing(tmp_path: Path) -> None:
    assert "no data can show equivalence within a margin of 0" in error_of(
        GOOD + "hypotheses:\n  H1: {equivalent: lora, to: full, margin: 0}\n", tmp_path
    )


def test_conclusion_about_a_hypothesis_that_the_study_lacks(tmp_path: Path) -> None:
    text = GOOD + "hypotheses:\n  H1: {superior: lora, to: full}\nconclusion: H1 and H2\n"
    assert error_of(text, tmp_path) == (
        "study.yaml:11: the conclusion 'H1 and H2' cannot be read: it names 'H2', which is not a hypothesis of this study\n"
        "  hint: Declared hypotheses: H1."
    )


def test_conclusion_that_is_no_formula(tmp_path: Path) -> None:
    text = error_of(GOOD + "hypotheses:\n  H1: {superior: lora, to: full}\nconclusion: (H1 or\n", tmp_path)
    assert text.startswith("study.yaml:11: the conclusion '(H1 or' cannot be read: ")


def test_the_same_method_twice(tmp_path: Path) -> None:
    assert error_of(GOOD.replace("- full", "- lora"), tmp_path) == (
        "study.yaml:7: methods[1]: `lora` is there twice\n  hint: give each its own `name`"
    )


@pytest.mark.parametrize(("key", "value"), [("models", "minilm-l6"), ("tasks", "mrpc")])
def test_the_same_name_twice(tmp_path: Path, key: str, value: str) -> None:
    text = GOOD.replace(f"[{value}]", f"[{value}, {value}]")
    assert f"{key}[1]: `{value}` is there twice" in error_of(text, tmp_path)


def test_the_same_seed_twice(tmp_path: Path) -> None:
    assert error_of(GOOD + "seeds: [1, 2, {initialisation: 1, order: 1, dropout: 1}]\n", tmp_path) == (
        "study.yaml:9: seeds[2]: `1` is there twice\n  hint: the same seed twice is one observation"
    )


def test_own_data_under_the_name_of_a_registered_task(tmp_path: Path) -> None:
    text = GOOD.replace("[mrpc]", "[{name: rte, kind: classification, train: a.csv, text: t, label: l}]")
    assert "tasks[0]: `rte` is the name of a task that lorascope knows" in error_of(text, tmp_path)


def test_early_stopping_that_could_never_stop(tmp_path: Path) -> None:
    assert error_of(GOOD + "train:\n  epochs: 1\n  early_stopping: {patience: 2}\n", tmp_path) == (
        "study.yaml:11: train.early_stopping has no effect: there is one evaluation, so nothing to stop early\n"
        "  hint: raise `evaluations_per_epoch` or `epochs`, or remove it"
    )


def test_carving_that_the_paper_protocol_does_not_do(tmp_path: Path) -> None:
    assert error_of(GOOD + "protocol: paper\ndata: {validation_fraction: 20%}\n", tmp_path) == (
        "study.yaml:10: data.validation_fraction has no effect: every task has a validation set of its own\n"
        "  hint: remove it, or use `protocol: strict`"
    )


def test_carving_nothing(tmp_path: Path) -> None:
    text = error_of(GOOD.replace("[mrpc]", "[rte]") + "data: {validation_fraction: 0}\n", tmp_path)
    assert "data.validation_fraction must lie between 0 and 1, both excluded; found 0" in text


def test_every_mistake_is_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("minilm-l6", "minilm").replace("rank: 8", "rnk: 8").replace("question: Is it?\n", "")
    assert error_of(text + "seeds: [one]\n", tmp_path).splitlines() == [
        "study.yaml: 4 mistakes",
        "study.yaml:2: models[0]: unknown model `minilm`: did you mean `minilm-l6`?",
        "  hint: registered: minilm-l6, smollm2-135m, tinyllama-1.1b, llama-2-7b, roberta-base; for any other give "
        "{name, source: {hub: OWNER/NAME, revision: COMMIT}} or {name, source: {path: DIR}}",
        "study.yaml:7: methods[1]: unknown key `rnk`: did you mean `rank`?",
        "  hint: allowed here: name, train, hyperparameters, kind, learning_rate, rank, alpha, scale, dropout, sites",
        "study.yaml:8: seeds[0]: expected a whole number or {initialisation, order, dropout}; found the text 'one'",
        "study.yaml: the study: the key `question` is missing",
        "  hint: the question in one sentence, such as `question: Is LoRA as accurate as full fine-tuning?`",
    ]


# ------------------------------------------------------------------------------------------------------------- YAML


def test_yaml_syntax_error(tmp_path: Path) -> None:
    assert error_of("name: a\nquestion: what: is it\n", tmp_path) == (
        "study.yaml:2: YAML syntax: mapping values are not allowed here in `question: what: is it`\n"
        "  hint: check quotes, brackets, colons and indentation, here and on the line above"
    )


def test_indentation_with_a_tab(tmp_path: Path) -> None:
    assert error_of("name: a\ntrain:\n\tepochs: 3\n", tmp_path) == (
        "study.yaml:3: YAML syntax: the line is indented with a tab\n  hint: indent with spaces"
    )


def test_duplicate_key(tmp_path: Path) -> None:
    assert error_of(GOOD + "name: again\n", tmp_path) == (
        "study.yaml:9: the key `name` is given twice\n  hint: keep one of the two"
    )


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert error_of(text, tmp_path) == (
        "study.yaml: the file is empty\n  hint: `lorascope init` writes a study to start from"
    )


def test_file_that_is_not_a_mapping(tmp_path: Path) -> None:
    assert error_of("- a\n- b\n", tmp_path) == (
        "study.yaml:1: a study is a mapping of keys to values; found a list\n"
        "  hint: start with `name: my-study` on a line of its own"
    )


def test_two_documents(tmp_path: Path) -> None:
    assert "the file holds more than one YAML document" in error_of(GOOD + "---\n" + GOOD, tmp_path)


def test_key_that_is_not_text(tmp_path: Path) -> None:
    assert error_of(GOOD + "3: x\n", tmp_path) == "study.yaml:9: the study: the key 3 is not text\n  hint: quote it"


@pytest.mark.parametrize("escape", ["\\0", "\\ud800"])
def test_text_that_no_file_could_hold(tmp_path: Path, escape: str) -> None:
    text = error_of(GOOD.replace("Is it?", f'"{escape}"'), tmp_path)
    assert text.startswith("study.yaml:2: question: the text ")


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(StudyError, match=r"not UTF-8 text \(byte 9\)"):
        load_study(path)


def test_absent_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "quikstart.yaml")
    assert str(caught.value) == (
        f"there is no file {tmp_path}/quikstart.yaml\n  hint: did you mean {tmp_path}/quickstart.yaml?"
    )


def test_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is a directory"):
        load_study(tmp_path)


# -------------------------------------------------------------------------------------------------------- overrides


def test_override_without_value(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "methods.lora.rank") == (
        "--set methods.lora.rank: an override is a path, `=` and a value\n  hint: such as methods.lora.rank=16"
    )


def test_override_of_a_method_that_is_not_there(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "methods.loar.rank=16") == (
        "--set methods.loar.rank=16: `methods` has no `loar`: did you mean `lora`?\n  hint: there: full, lora"
    )


def test_override_beyond_the_end_of_a_list(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "seeds.5=1") == ("--set seeds.5=1: `seeds` has no `5`\n  hint: positions 0 to 4")


def test_override_into_a_scalar(tmp_path: Path) -> None:
    assert (
        error_of(GOOD, tmp_path, "name.first=x") == "--set name.first=x: `name` is the text 'small' and has no `first`"
    )


def test_override_with_an_unknown_key_names_the_override(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "train.epoks=1").splitlines()[0] == (
        "--set train.epoks=1: train: unknown key `epoks`: did you mean `epochs`?"
    )


def test_override_with_a_bad_value_names_the_override(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "methods.lora.rank=big") == (
        "--set methods.lora.rank=big: methods[1].rank: expected a whole number; found the text 'big'"
    )


def test_override_that_is_not_yaml_names_the_override(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "models=[a").startswith("--set models=[a: YAML syntax: ")


def test_override_with_an_unknown_name_inside_a_list_names_the_override(tmp_path: Path) -> None:
    assert error_of(GOOD, tmp_path, "models=[smollm]").startswith("--set models=[smollm]: models[0]: unknown model")


def test_methods_that_differ_in_name_only(tmp_path: Path) -> None:
    text = GOOD + "  - {kind: lora, name: again, rank: 8, train: {epochs: 3}}\n"
    assert error_of(text, tmp_path) == (
        "study.yaml:9: methods[2]: `again` differs from `lora` in its name only\n"
        "  hint: their runs would be the same: change a setting, or remove one"
    )


FILES = """\
name: small
question: Is it?
models:
  - name: mine
    source: {path: brt}
tasks:
  - name: tickets
    kind: classification
    train: tikets.csv
    text: body
    label: queue
methods: [full]
"""


def test_files_that_are_not_there_are_named_with_their_line_and_neighbour(tmp_path: Path) -> None:
    (tmp_path / "tickets.csv").write_text("body,queue\n")
    (tmp_path / "study.yaml").write_text(FILES)
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.yaml", files=True)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "study.yaml: 2 mistakes\n"
        "study.yaml:5: models[0].source.path: brt does not exist\n"
        "  hint: paths in a study are relative to the study's file\n"
        "study.yaml:9: tasks[0].train: tikets.csv does not exist: did you mean `tickets.csv`?\n"
        "  hint: paths in a study are relative to the study's file"
    )


def test_a_study_can_be_read_where_its_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILES)
    assert load_study(tmp_path / "study.yaml").tasks[0].name == "tickets"


def test_a_directory_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "brt").mkdir()
    (tmp_path / "tikets.csv").mkdir()
    (tmp_path / "study.yaml").write_text(FILES)
    with pytest.raises(StudyError, match=r"tikets\.csv is not a file"):
        load_study(tmp_path / "study.yaml", files=True)


@pytest.mark.parametrize(
    ("word", "ours", "home"),
    [
        ("r", "rank", "a method of kind `lora`"),
        ("lora_alpha", "alpha", "a method of kind `lora`"),
        ("lora_dropout", "dropout", "a method of kind `lora`"),
        ("target_modules", "sites", "a method of kind `lora`"),
        ("lr", "learning_rate", "a method"),
        ("num_train_epochs", "epochs", "`train`"),
        ("per_device_train_batch_size", "batch_size", "`train`"),
        ("warmup_ratio", "warmup", "`train`"),
        ("seed", "seeds", "the study itself"),
    ],
)
def test_words_of_peft_and_transformers_are_found_wherever_written(
    word: str, ours: str, home: str, tmp_path: Path
) -> None:
    places = {
        "top": GOOD + f"{word}: 1\n",
        "train": GOOD + f"train: {{{word}: 1}}\n",
        "full": GOOD.replace("methods:", f"methods:\n  - {{kind: full, name: other, {word}: 1}}"),
    }
    at_home = {"a method": "full", "`train`": "train", "the study itself": "top"}.get(home)
    for place, text in places.items():
        told = error_of(text, tmp_path)
        if place == at_home:
            assert f"unknown key `{word}`: did you mean `{ours}`?\n  hint: such as `" in told
        else:
            assert f"unknown key `{word}`: it is called `{ours}` here\n  hint: a key of {home}, such as `" in told, (
                place
            )


def test_a_key_of_train_that_stands_in_a_method_is_sent_home(tmp_path: Path) -> None:
    told = error_of(GOOD + "weight_decay: 0.1\n", tmp_path)
    assert "unknown key `weight_decay`\n  hint: a key of `train`, such as `train: {weight_decay: 0.01}`" in told


def test_alpha_and_scale_together_are_refused(tmp_path: Path) -> None:
    told = error_of(GOOD.replace("methods:", "methods:\n  - {kind: lora, name: other, alpha: 8, scale: 2}"), tmp_path)
    assert "`alpha` and `scale` say the same (scale = alpha / rank): give one of them" in told
    told = error_of(GOOD.replace("methods:", "methods:\n  - {kind: lora, name: other, scale: -2}"), tmp_path)
    assert "methods[0].scale: must be greater than 0; found -2" in told
