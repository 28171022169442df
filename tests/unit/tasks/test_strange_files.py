"""Files that no one writes by hand: bombs, pipes, marks of spreadsheets, and labels that look alike."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from lorascope.data import files
from lorascope.data.sources import file_checksum
from lorascope.data.tables import read_table, select_examples
from lorascope.errors import DataError
from lorascope.plan.data_checks import TaskData


def test_a_file_that_unpacks_to_a_thousandfold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FREE_BYTES", 2**20)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a" * 2**22))
    with pytest.raises(DataError, match=r"t\.csv\.gz unpacks to more than 1,048,576 bytes") as error:
        read_table(tmp_path / "t.csv.gz")
    assert "gunzip" in str(error.value.hint)


def test_a_small_file_may_repeat_itself_as_it_likes(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"same,1\n" * 50_000))
    assert len(read_table(tmp_path / "t.csv.gz")) == 50_000


def test_members_of_a_compressed_file_are_read_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"text,label\n") + gzip.compress(b"one,1\n"))
    assert read_table(tmp_path / "t.csv.gz")["text"].tolist() == ["one"]


def test_the_separator_line_of_a_spreadsheet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sep=;\ntext;label\na;0\n")
    with pytest.raises(DataError, match=r"the first line of t\.csv is `sep=`") as error:
        read_table(path)
    assert error.value.where == f"{path}:1"
    path.write_text("text;label\na;0\n")  # the remedy
    assert list(read_table(path).columns) == ["text", "label"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match="is a pipe or a device, not a file"):
        file_checksum(tmp_path / "t.csv")


@pytest.mark.parametrize("unseen", ["\u200b", "\u202e", "\u00ad", "\ufeff", "\u009b", "\U000e0041"])
def test_a_label_with_a_character_that_nothing_shows_is_refused(unseen: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": ["no", "yes", f"ye{unseen}s"]})
    with pytest.raises(DataError, match=rf"in row 3 with the character U\+{ord(unseen):04X}") as error:
        select_examples(table, path=tmp_path / "t.csv", text=["text"], label="label")
    remedy = str(error.value.hint).split("label.replace('")[1].split("'")[0]
    table["label"] = [label.replace(remedy.encode().decode("unicode_escape"), "") for label in table["label"]]
    assert set(select_examples(table, path=tmp_path / "t.csv", text=["text"], label="label")["label"]) == {"no", "yes"}


@pytest.mark.parametrize("label", ["caf\u00e9", "\u0646\u200c\u0645", "\U0001f468\u200d\U0001f4bb"])
def test_labels_of_any_script_are_classes(label: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": ["no", label]})
    chosen = select_examples(table, path=tmp_path / "t.csv", text=["text"], label="label")
    assert chosen["label"].tolist() == ["no", label]


def test_a_class_of_thousands_of_letters_is_cut_on_the_console() -> None:
    shown = str(TaskData("toy", "strict", ("text",), ("9" * 5000, "a\x9bb"), {"train": 2}, ()))
    assert len(shown) < 200 and "\x9b" not in shown
