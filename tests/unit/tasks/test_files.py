"""A user's own files: what is read, and the golden text of every error."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lorascope.data.sources import describe_source
from lorascope.data.tables import read_table
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.errors import DataError, StudyError
from lorascope.study.spec import DataSpec
from lorascope.study.tasks import FileTask, NamedTask
from lorascope.study.tasks.labels import class_name, label_order
from lorascope.tasks.description import task_from_result
from lorascope.tasks.steps import prepare_data


def make_rows(num_rows: int, *, prefix: str = "train", labels: tuple[Any, ...] = ("no", "yes")) -> list[dict[str, Any]]:
    return [{"text": f"{prefix} text {row}", "label": labels[row % len(labels)]} for row in range(num_rows)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.to_parquet(path)
    return str(path)


def prepare(tmp_path: Path, *, data: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    spec = FileTask.model_validate(
        {"name": "mine", "kind": "classification", "text": "text", "label": "label", **fields}
    )
    source = describe_source(spec, data_dir=None, protocol="strict")
    params = {
        "task": spec.model_dump(mode="json"),
        "source": source.fingerprint,
        "protocol": "strict",
        "data": DataSpec.model_validate(data or {}).model_dump(mode="json"),
    }
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    step = Step(kind="data", version=1, params=params, locations=source.locations)
    return prepare_data(StepContext(step, out, out, {}, lambda event: None, "cpu", None, out))


def frame(tmp_path: Path, split: str) -> pd.DataFrame:
    return pd.read_parquet(tmp_path / "out" / f"{split}.parquet")


def message_of(error: pytest.ExceptionInfo[StudyError], tmp_path: Path) -> str:
    return str(error.value).replace(str(tmp_path), "DIR")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("labels", [("no", "yes"), (0, 1), (3, 1, 2)])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str, labels: tuple[Any, ...]) -> None:
    rows = make_rows(60, labels=labels)
    result = prepare(tmp_path, train=write_rows(tmp_path / f"t{suffix}", rows))
    expected = prepare(tmp_path, train=write_rows(tmp_path / "reference.jsonl", rows))
    assert result["sha256"] == expected["sha256"]
    assert result["task"]["label_names"] == [str(label) for label in sorted(labels)]
    assert result["num_examples"] == {"train": 49, "validation": 5, "test": 6}


def test_texts_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    rows = make_rows(40)
    rows[4]["text"], rows[5]["text"], rows[6]["text"] = "NA", "null", "None"
    prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))
    texts = set(pd.concat([frame(tmp_path, split) for split in ("train", "validation", "test")])["text"])
    assert {"NA", "null", "None"} <= texts


def test_declared_labels_fix_the_order_of_classes(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "t.csv", make_rows(40))
    result = prepare(tmp_path, train=train, labels=["yes", "no"])
    assert result["task"]["label_names"] == ["yes", "no"]


def test_example_ids_follow_the_text_and_not_the_place(tmp_path: Path) -> None:
    rows = make_rows(40)
    prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))
    first = pd.concat([frame(tmp_path, split) for split in ("train", "test")]).set_index("text")["example_id"]
    prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows[::-1]))
    second = pd.concat([frame(tmp_path, split) for split in ("train", "test")]).set_index("text")["example_id"]
    shared = first.index.intersection(second.index)
    assert len(shared) > 20
    assert first[shared].tolist() == second[shared].tolist()


def test_a_moved_file_keeps_its_identity_and_a_changed_one_does_not(tmp_path: Path) -> None:
    def fingerprint(path: Path) -> Any:
        spec = FileTask(name="mine", kind="classification", train=str(path), text=("text",), label="label")
        return describe_source(spec, data_dir=None, protocol="strict").fingerprint

    path = Path(write_rows(tmp_path / "t.csv", make_rows(40)))
    before = fingerprint(path)
    assert fingerprint(path.rename(tmp_path / "moved.csv")) == before
    write_rows(tmp_path / "moved.csv", make_rows(41))
    assert fingerprint(tmp_path / "moved.csv") != before


def test_absent_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "reviews_train.csv", make_rows(20))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "review_train.csv"))
    assert message_of(error, tmp_path) == (
        "the file DIR/review_train.csv does not exist\n  hint: Did you mean reviews_train.csv?"
    )


def test_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path))
    assert message_of(error, tmp_path) == (
        "DIR is a directory, not a file\n  hint: Name a csv, tsv, jsonl or parquet file."
    )


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.xlsx"))
    assert message_of(error, tmp_path) == (
        "DIR/t.xlsx: t.xlsx is not a kind of file that can be read\n  hint: Use one of .csv, .tsv, .jsonl, .parquet; "
        "each may be compressed (.csv.gz)."
    )


def test_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.csv", make_rows(20)), text="texts")
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: t.csv has no column `texts`: did you mean `text`?\n  hint: Its columns: text, label."
    )


def test_truncated_parquet(tmp_path: Path) -> None:
    path = Path(write_rows(tmp_path / "t.parquet", make_rows(200)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(path))
    message = message_of(error, tmp_path)
    assert message.startswith("DIR/t.parquet: t.parquet is not a complete parquet file: Parquet magic bytes not found")
    assert message.endswith("hint: It was probably cut short while it was copied or written; copy it again.")


def test_parquet_with_damaged_pages(tmp_path: Path) -> None:
    path = Path(write_rows(tmp_path / "t.parquet", make_rows(2000)))
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"t\.parquet is not a complete parquet file: "):
        prepare(tmp_path, train=str(path))


def test_corrupt_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine,1\nnot, so, fine,0\n")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.csv"))
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: t.csv is not a well-formed csv file: row 2 has 4 fields, the header line 2\n"
        "  hint: Quote every field that holds the separator, a quote or a line break; double the quotes inside it."
    )


def test_csv_whose_rows_are_longer_than_its_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine, really,1\nnot, so fine,0\n")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.csv"))
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: t.csv is not a well-formed csv file: row 1 has 3 fields, the header line 2\n"
        "  hint: Quote every field that holds the separator, a quote or a line break; double the quotes inside it."
    )


def test_csv_cut_inside_a_quoted_field(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"fine",1\n"cut her')
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.csv"))
    assert (
        "t.csv is not a well-formed csv file: a quoted field is never closed, in the row that begins in line 3"
        in message_of(error, tmp_path)
    )


def test_empty_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.csv"))
    assert message_of(error, tmp_path) == "DIR/t.csv: t.csv is empty\n  hint: It needs a header line and rows."


def test_truncated_jsonl(tmp_path: Path) -> None:
    path = Path(write_rows(tmp_path / "t.jsonl", make_rows(3)))
    path.write_text(path.read_text()[:-12])
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(path))
    assert message_of(error, tmp_path) == (
        "DIR/t.jsonl:3: line 3 is not JSON: Unterminated string starting at column 26\n"
        "  hint: Every line holds one JSON object; the file may have been cut short."
    )


def test_jsonl_of_lists(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('["a", 1]\n')
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.jsonl"))
    assert message_of(error, tmp_path) == (
        'DIR/t.jsonl:1: line 1 holds a list, not an object\n  hint: Every line looks like {"text": "...", "label": 0}.'
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_unreadable_encoding(tmp_path: Path, suffix: str) -> None:
    row = "text,label\ncafé,1\n" if suffix == ".csv" else '{"text": "café", "label": 1}\n'
    (tmp_path / f"t{suffix}").write_bytes(row.encode("latin-1"))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / f"t{suffix}"))
    message = message_of(error, tmp_path)
    assert f"t{suffix} is not UTF-8 text (byte " in message
    assert (
        f"is 0xe9)\n  hint: Save it as UTF-8, for example: iconv -f latin1 -t utf-8 t{suffix} > t-utf8{suffix}"
        in message
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_null_text(tmp_path: Path, suffix: str) -> None:
    rows = make_rows(20)
    rows[3]["text"] = rows[11]["text"] = None
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / f"t{suffix}", rows))
    assert message_of(error, tmp_path) == (
        f"DIR/t{suffix}: column `text` has no text in rows 4 and 12\n"
        "  hint: Fill or remove these rows (counted from 1, without a header)."
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_null_label(tmp_path: Path, suffix: str) -> None:
    rows = make_rows(20, labels=(0, 1))
    rows[19]["label"] = None
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / f"t{suffix}", rows))
    assert message_of(error, tmp_path) == (
        f"DIR/t{suffix}: column `label` has no label in row 20\n"
        "  hint: Label or remove these rows (counted from 1, without a header)."
    )


def test_numbers_where_texts_should_be(tmp_path: Path) -> None:
    rows = [{"text": row, "label": row % 2} for row in range(20)]
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.parquet", rows))
    assert message_of(error, tmp_path) == (
        "DIR/t.parquet: column `text` holds a int in row 1 (0), not text\n"
        "  hint: Name the column of texts, or write the value as a string."
    )


def test_text_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "half \\ud83d", "label": 0}\n')
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.jsonl"))
    assert message_of(error, tmp_path) == (
        "DIR/t.jsonl: column `text` holds half a surrogate pair in row 1, which is not a character\n"
        "  hint: Write the file again as UTF-8 text."
    )


def test_scores_where_classes_should_be(tmp_path: Path) -> None:
    rows = make_rows(20, labels=(0.5, 1.0))
    for suffix in (".parquet", ".jsonl"):
        with pytest.raises(DataError) as error:
            prepare(tmp_path, train=write_rows(tmp_path / f"t{suffix}", rows))
        assert message_of(error, tmp_path) == (
            f"DIR/t{suffix}: column `label` holds 0.5 in row 1, which is not a class\n"
            "  hint: Labels are whole numbers, truth values or words; write a fraction as a word, such as `half`."
        )


def test_labels_out_of_the_declared_range(tmp_path: Path) -> None:
    rows = make_rows(20, labels=(0, 1))
    rows[7]["label"] = 7
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows), labels=[0, 1])
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: `7` in row 8 of t.csv is not among the classes declared by `labels`: `0`, `1`\n"
        "  hint: Correct these labels, remove the rows, or add the class to `labels` and to the training examples."
    )


def test_class_in_test_that_training_never_shows(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", make_rows(40))
    test = write_rows(tmp_path / "test.csv", make_rows(40, prefix="test", labels=("no", "maybe")))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=train, test=test)
    assert message_of(error, tmp_path) == (
        "DIR/test.csv: `maybe` in rows 2, 4, 6, 8, 10 and 15 more of test.csv is not among the classes "
        "of the training examples: `no`, `yes`\n"
        "  hint: Correct these labels, remove the rows, or add the class to `labels` and to the training examples."
    )


def test_declared_class_without_training_examples(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", make_rows(40))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=train, labels=["no", "yes", "maybe"])
    assert message_of(error, tmp_path) == (
        "task `mine`: no training example has the class `maybe`\n"
        "  hint: Add such examples to train, raise data.train_examples, or take the class out of `labels`."
    )


@pytest.mark.parametrize("labels", [[0, "0"], [0, "0.0"], [True, "True"], [1]])
def test_labels_declared_twice(labels: list[Any]) -> None:
    with pytest.raises(ValidationError, match="`labels` must be at least two different classes; found "):
        FileTask.model_validate(
            {"name": "mine", "kind": "classification", "train": "t.csv", "text": "text", "label": "l", "labels": labels}
        )


def test_one_class_only(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.csv", make_rows(40, labels=("yes",))))
    assert message_of(error, tmp_path) == (
        "task `mine`: every train example has the same class, `yes`\n"
        "  hint: A classifier needs examples of at least two classes in every split."
    )


def test_one_class_only_in_the_test_file(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", make_rows(40))
    test = write_rows(tmp_path / "test.csv", make_rows(9, prefix="test", labels=("yes",)))
    with pytest.raises(DataError, match="every test example has the same class, `yes`"):
        prepare(tmp_path, train=train, test=test)


def test_empty_split(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", make_rows(40))
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=train, test=str(tmp_path / "test.csv"))
    assert message_of(error, tmp_path) == ("DIR/test.csv: test.csv has no rows\n  hint: Every split needs examples.")


def test_empty_jsonl(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"t\.jsonl has no rows"):
        prepare(tmp_path, train=str(tmp_path / "t.jsonl"))


def test_training_rows_in_the_test_file(tmp_path: Path) -> None:
    rows = make_rows(40)
    train = write_rows(tmp_path / "train.csv", rows)
    test = write_rows(
        tmp_path / "test.csv", [*make_rows(10, prefix="test"), {**rows[6], "text": " train text 6 "}, rows[2]]
    )
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=train, test=test)
    assert message_of(error, tmp_path) == (
        "task `mine`: 2 of the train examples also stand in the test file "
        "(rows 3 and 7 of train; the first is row 12 of test)\n"
        "  hint: A score on examples seen before means nothing: remove these rows from the train file, or set "
        "`duplicates: drop` in the task, which takes them out of train and counts them in the report."
    )


def test_too_few_examples_to_carve_from(tmp_path: Path) -> None:
    rows = [*make_rows(30, labels=("yes",)), {"text": "the only one", "label": "no"}]
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))
    assert message_of(error, tmp_path) == (
        "task `mine`: a test set of 3 cannot be carved out of 31 training examples (the rarest class, `no`, has 1)\n"
        "  hint: Name a test file, add examples, or change data.validation_fraction (0.1)."
    )


def test_reserved_column_name(tmp_path: Path) -> None:
    rows = [{"example_id": f"text {row}", "mood": row % 2} for row in range(40)]
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows), text="example_id", label="mood")
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: a text column cannot be called `example_id`\n"
        "  hint: lorascope uses that name itself: rename the column in the file."
    )


def test_file_changed_after_the_study_was_planned(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "t.csv", make_rows(40))
    spec = FileTask(name="mine", kind="classification", train=train, text=("text",), label="label")
    source = describe_source(spec, data_dir=None, protocol="strict")
    params = {
        "task": spec.model_dump(mode="json"),
        "source": source.fingerprint,
        "protocol": "strict",
        "data": DataSpec().model_dump(mode="json"),
    }
    step = Step(kind="data", version=1, params=params, locations=source.locations)
    write_rows(tmp_path / "t.csv", make_rows(41))
    with pytest.raises(DataError) as error:
        prepare_data(StepContext(step, tmp_path, tmp_path, {}, lambda event: None, "cpu", None, tmp_path))
    assert message_of(error, tmp_path) == (
        "DIR/t.csv: the train file has changed since this step was planned\n"
        "  hint: Start the same command again: the changed file gives new steps, the old results stay."
    )


def test_unknown_task() -> None:
    with pytest.raises(StudyError) as error:
        describe_source(NamedTask(name="mrcp"), data_dir=None, protocol="strict")
    assert str(error.value) == (
        "tasks: unknown task `mrcp`. Did you mean `mrpc`?\n  hint: Tasks: mrpc, sst2, rte, qnli, docstrings; "
        "or `kind: classification` with your own files (docs/writing-a-study.md)."
    )


SPELLINGS = {
    "numbers": ([0, 1], ["0", "1"], ["0.0", "1.0"], [0.0, 1.0]),
    "truth": ([False, True], ["False", "True"], ["FALSE", "TRUE"], ["false", "true"]),
    "signs": ([-1, 1], ["-1", "1"], [-1.0, 1.0], [" -1 ", "1.00"]),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_label_means_the_same_class_in_every_format(tmp_path: Path, kind: str) -> None:
    found = set()
    for number, labels in enumerate(SPELLINGS[kind]):
        for suffix in (".csv", ".jsonl", ".parquet", ".tsv", ".csv.gz"):
            rows = make_rows(40, labels=tuple(labels))
            path = tmp_path / f"{number}{suffix}"
            if suffix == ".tsv":
                pd.DataFrame(rows).to_csv(path, index=False, sep="\t")
            elif suffix == ".csv.gz":
                pd.DataFrame(rows).to_csv(path, index=False)
            else:
                write_rows(path, rows)
            result = prepare(tmp_path, train=str(path))
            found.add((tuple(result["task"]["label_names"]), result["sha256"]["train"]))
    assert len(found) == 1


@pytest.mark.parametrize("label", ["1.5", "01", "②", "1e3", "1_0"])
def test_only_what_spells_a_number_is_read_as_one(tmp_path: Path, label: str) -> None:
    path = write_rows(tmp_path / "t.csv", make_rows(40, labels=("1", label)))
    if label == "1.5":
        with pytest.raises(DataError, match=r"column `label` holds '1\.5' in row 2, which is not a class"):
            prepare(tmp_path, train=path)
    else:
        assert set(prepare(tmp_path, train=path)["task"]["label_names"]) == {"1", label}


@pytest.mark.parametrize("names", [("0", "01", "1"), ("①", "②"), ("-1", "1"), ("-1", "2", "10"), ("Yes", "no", "yes")])
def test_the_order_of_classes_depends_on_the_classes_alone(names: tuple[str, ...]) -> None:
    assert {label_order(order) for order in itertools.permutations(names)} == {names}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    path, mark = tmp_path / f"t{suffix}", "\t" if suffix == ".tsv" else ","
    if suffix == ".jsonl":
        path.write_text('{"text": "a", "label": 0, "label": 1}\n')
    elif suffix == ".parquet":
        columns = [pa.array(["a", "b"]), pa.array([0, 1]), pa.array([1, 0])]
        pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "label"]), path)
    else:
        path.write_text(mark.join(("text", "label", "label")) + "\n" + mark.join(("a", "0", "1")) + "\n")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(path))
    both = "keys 2 and 3 are both `label`" if suffix == ".jsonl" else "columns 2 and 3 of t"
    assert both in str(error.value) and "both" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_an_encoding_that_says_what_it_is_is_recognised(tmp_path: Path, encoding: str) -> None:
    rows = make_rows(40)
    rows[3]["text"] = "naïve, 文"
    expected = prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))["sha256"]
    (tmp_path / "u.csv").write_bytes((tmp_path / "t.csv").read_text().encode(encoding))
    assert prepare(tmp_path, train=str(tmp_path / "u.csv"))["sha256"] == expected


def test_a_cut_file_of_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\na,1\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="begins like UTF-16 text and is not: truncated data"):
        prepare(tmp_path, train=str(tmp_path / "t.csv"))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_the_separator_is_the_one_that_divides_the_header(tmp_path: Path, separator: str) -> None:
    rows = make_rows(40)
    rows[3]["text"] = 'commas, and a quote " in it'
    expected = prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))["sha256"]
    pd.DataFrame(rows).to_csv(tmp_path / "u.csv", index=False, sep=separator)
    assert prepare(tmp_path, train=str(tmp_path / "u.csv"))["sha256"] == expected


def test_a_compressed_file_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a", "label": 0}\n' * 99)[:-9])
    with pytest.raises(DataError, match=r"t\.jsonl\.gz is not a complete gzip file: "):
        prepare(tmp_path, train=str(path))


def test_a_packed_parquet_file_is_read(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "t.parquet", make_rows(40))
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(Path(plain).read_bytes()))
    expected = prepare(tmp_path, train=plain)["sha256"]
    assert prepare(tmp_path, train=str(tmp_path / "t.parquet.gz"))["sha256"] == expected


def test_the_remedy_for_another_encoding_works(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(("text,label\n" + "café {},{}\n" * 40).format(*range(80)).encode("latin-1"))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=str(tmp_path / "t.csv"))
    command = (error.value.hint or "").split("for example: ")[1]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read_table(tmp_path / "t-utf8.csv")["text"].iloc[0] == "café 0"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("character", "name"), [("\0", "the NUL character"), ("\x1b", "the control character U+001B")])
def test_control_characters_are_named_with_their_row(tmp_path: Path, suffix: str, character: str, name: str) -> None:
    rows = make_rows(20)
    rows[4]["text"] = f"bro{character}ken"
    with pytest.raises(DataError, match=re.escape(f"column `text` holds {name} in row 5")):
        prepare(tmp_path, train=write_rows(tmp_path / f"t{suffix}", rows))


def test_line_breaks_and_tabs_inside_a_text_are_no_mistake(tmp_path: Path) -> None:
    rows = make_rows(20)
    rows[4]["text"] = "one\ttwo\nthree\r\nfour"
    prepare(tmp_path, train=write_rows(tmp_path / "t.csv", rows))


def test_rows_are_counted_as_the_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 0}\n\n\n{"text": "", "label": 0}\n')
    with pytest.raises(DataError, match="column `text` has no text in row 4"):
        prepare(tmp_path, train=str(tmp_path / "t.jsonl"))
    (tmp_path / "t.csv").write_text("text,label\na,0\n\n\n,0\n")
    with pytest.raises(DataError, match="column `text` has no text in row 4"):
        prepare(tmp_path, train=str(tmp_path / "t.csv"))


def test_examples_know_their_rows_in_the_file(tmp_path: Path) -> None:
    prepare(tmp_path, train=write_rows(tmp_path / "t.csv", make_rows(40)))
    rows = pd.concat([frame(tmp_path, split) for split in ("train", "validation", "test")])
    expected = [f"row {int(text.split()[-1]) + 1} of the train file" for text in rows["text"]]
    assert rows["file_row"].tolist() == expected


def test_duplicates_are_dropped_from_the_earlier_split_when_asked(tmp_path: Path) -> None:
    rows = make_rows(40)
    train = write_rows(tmp_path / "train.csv", rows)
    test = write_rows(tmp_path / "test.csv", [*make_rows(10, prefix="test"), rows[6], rows[2]])
    result = prepare(tmp_path, train=train, test=test, duplicates="drop")
    assert result["duplicates_dropped"]["train~test"] == 2
    kept = pd.concat([frame(tmp_path, split) for split in ("train", "validation")])
    assert len(kept) == 38 and not {"train text 6", "train text 2"} & set(kept["text"])


def test_a_drop_that_would_lose_a_class_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", [*make_rows(40, labels=("yes",)), {"text": "only one", "label": "no"}])
    test = write_rows(tmp_path / "test.csv", [*make_rows(10, prefix="test"), {"text": "only one", "label": "no"}])
    validation = write_rows(tmp_path / "validation.csv", make_rows(10, prefix="validation"))
    with pytest.raises(
        DataError, match="without the 1 train examples that also stand in test, train would lose a class"
    ):
        prepare(tmp_path, train=train, test=test, validation=validation, duplicates="drop")


@pytest.mark.parametrize(("content", "what"), [(b"PK\x03\x04...", "a zip archive"), (b"PAR1...", "a parquet file")])
def test_another_kind_of_file_under_the_name_of_csv_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv is not text: it is {what}"):
        prepare(tmp_path, train=str(tmp_path / "t.csv"))


def test_labels_that_look_alike_are_one_class() -> None:
    assert class_name("cafe\u0301") == class_name(" caf\u00e9")
    assert label_order(["1", "9" * 5000]) == ("1", "9" * 5000)


def test_f1_asks_which_class_it_looks_for(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "t.csv", make_rows(40, labels=("ham", "spam")))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, train=train, metrics=["f1"])
    assert str(error.value) == (
        "tasks: mine: F1 looks for one of two classes, and nothing says which of `ham`, `spam`\n"
        "  hint: add `positive: ham` or `positive: spam` to the task"
    )


@pytest.mark.parametrize("positive", ["ham", "spam"])
def test_the_positive_class_is_the_one_that_f1_counts(tmp_path: Path, positive: str) -> None:
    train = write_rows(tmp_path / "t.csv", make_rows(40, labels=("ham", "spam", "spam", "spam")))
    result = prepare(tmp_path, train=train, metrics=["f1"], positive=positive)
    names = result["task"]["label_names"]
    assert names[1] == positive
    task = task_from_result(result)
    always = pd.DataFrame({"label": frame(tmp_path, "test")["label"], "prediction": 1})
    share = result["label_counts"]["test"][positive] / result["num_examples"]["test"]
    assert task.scoring.metrics(always)["f1"] == pytest.approx(2 * share / (1 + share))


@pytest.mark.parametrize("labels", [("no", "yes"), (0, 1), (-1, 1), ("Negative", "Positive"), (False, True), (0, 1, 2)])
def test_f1_does_not_ask_where_the_classes_say_it(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    result = prepare(tmp_path, train=write_rows(tmp_path / "t.csv", make_rows(60, labels=labels)), metrics=["f1"])
    assert result["task"]["label_names"] == [class_name(label) for label in labels]


def test_a_positive_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "t.csv", make_rows(40, labels=("ham", "spam")))
    with pytest.raises(DataError, match="`positive: spamm` is not one of the classes: did you mean `spam`"):
        prepare(tmp_path, train=train, metrics=["f1"], positive="spamm")
