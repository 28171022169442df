"""What a YAML file may ask of its reader: a bound for everything, and a line for every refusal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from study_errors import GOOD, error_of

from lorascope.errors import StudyError
from lorascope.study.loading.document import KeyPath, parse_yaml
from lorascope.study.loading.load import load_study

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "study.yaml:5: the file stands for more than 10,000 keys and values"),
        ("a: &a [*a]\n", "study.yaml:1: `*a` stands within what `&a` names"),
        ("b: &b {<<: *b}\n", "study.yaml:1: `*b` stands within what `&b` names"),
        ("[" * 900_000, "study.yaml:1: brackets or blocks are nested more than 50 deep"),
        ("\n[ {a: " * 60, "study.yaml:"),
        ("\n".join(" " * n + "a:" for n in range(99)), "study.yaml:51: brackets or blocks are nested"),
        ("- " * 100_000, "study.yaml:1: brackets or blocks are nested"),
        ("x" * 1_000_001, "study.yaml: the file has more than the 1,000,000 bytes that a study may have"),
        (
            "a: 1\nb: !!python/object/apply:os.system ['true']\n",
            "study.yaml:2: the tag `!!python/object/apply:os.system`",
        ),
        ("a: !!int 3\n", "study.yaml:1: the tag `!!int` has no meaning"),
        ("a: !mine {}\n", "study.yaml:1: the tag `!mine` has no meaning"),
        ("%YAML 1.1\n---\na: yes\n", "study.yaml:1: a study is YAML 1.2, without directives"),
        ("a: 1\nb: 2001-99-99\n", "study.yaml:2: a value cannot be read: month must be in 1..12"),
        (f"a: 1\nb: {'9' * 5000}\n", "study.yaml:2: a value cannot be read: Exceeds the limit"),
        ("a:\n  b: -9223372036854775809\n", "study.yaml:2: a.b: the number is too large"),
        ("a:\n  b: \x07\n", "study.yaml:2: the character U+0007 may not stand in YAML"),
        ("? [a, b]\n: c\n", "the key ('a', 'b') is not text"),
    ],
)
def test_a_document_that_asks_too_much_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    started = time.process_time()
    assert expected in error_of(text, tmp_path)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seeds: [-1]", "study.yaml:{line}: seeds[0]: a seed lies between 0 and 9,223,372,036,854,775,807; found -1"),
        ("seeds: [{initialisation: 1, order: -2, dropout: 1}]", "seeds[0].order: must be at least 0; found -2"),
        ("seeds: [9223372036854775808]", "seeds[0]: the number is too large"),
        ("data: {split_seed: -1}", "data.split_seed: must be at least 0; found -1"),
        ("train: {adam_betas: [2, 0.9]}", "train.adam_betas[0]: must be less than 1; found 2"),
        ("train: {adam_betas: [0.9, -1]}", "train.adam_betas[1]: must be at least 0; found -1"),
        ("train: {epochs: true}", "train.epochs: expected a number; found `true`"),
        ("train: {adam_betas: [0.9, false]}", "train.adam_betas[1]: expected a number; found `false`"),
    ],
)
def test_a_number_that_means_nothing_is_refused_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    key = line.partition(":")[0]
    kept = [other for other in GOOD.splitlines() if not other.startswith(f"{key}:")]
    text = "\n".join([*kept, line, ""])
    found = error_of(text, tmp_path)
    assert expected.format(line=len(kept) + 1) in found
    assert f"study.yaml:{len(kept) + 1}" in found


def test_aliases_within_the_bound_mean_what_they_say() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n"
    found = parse_yaml(text, source="file", places={})
    assert found["b"] == {"x": 2, "y": [1, 2]} and found["c"] == [{"x": 1, "y": [1, 2]}] * 2


def test_an_override_is_bounded_too_and_names_itself() -> None:
    for text in ("[" * 200, "!!set {a}", "99999999999999999999"):
        with pytest.raises(StudyError) as caught:
            parse_yaml(text, source="--set a=b")
        assert caught.value.where == "--set a=b"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("models: [{name: a, source: {path: ~nosuchuser/x}}]", "models[0].source.path: "),
        (f"models: [{{name: a, source: {{path: {'x' * 300}}}}}]", "models[0].source.path: "),
        (f"tasks: [{{name: a, kind: classification, train: {'x' * 300}, text: a, label: b}}]", "tasks[0].train: "),
        ("methods: [{kind: lora, hyperparameters: binary.yaml}]", "the file is not UTF-8 text (byte 0)"),
    ],
)
def test_a_path_that_leads_nowhere_is_a_mistake_of_its_line(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    key = line.partition(":")[0]
    parts = {"models": "models: [minilm-l6]", "tasks": "tasks: [mrpc]", "methods": "methods: [full]"}
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(["name: s", "question: q", *(parts | {key: line}).values(), ""]))
    with pytest.raises(StudyError) as caught:
        load_study(path, files=True)
    assert expected in str(caught.value) and f"study.yaml:{3 + list(parts).index(key)}" in str(caught.value)
    assert key == "methods" or "does not exist" in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_study(tmp_path / "study.yaml").name == "small"


@pytest.mark.parametrize(
    ("text", "line"), [("name: a\n<<: {b: 1,\n  odd: 2}\n", 3), ("x: &x\n  odd: 2\n<<: [{b: 1}, *x]\n", 2)]
)
def test_a_merged_key_is_placed_where_it_is_written(text: str, line: int) -> None:
    places: dict[KeyPath, str] = {}
    parse_yaml(text, source="study.yaml", places=places)
    assert places["odd",] == f"study.yaml:{line}"
