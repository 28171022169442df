"""`docstrings`: the same pairs every time, balanced, split by module, and without a shortcut."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

import pytest

from lorascope.data.sources import SourceDescription, describe_source
from lorascope.errors import DataError, EnvironmentProblem
from lorascope.study.tasks import NamedTask
from lorascope.tasks import docstrings
from lorascope.tasks.docstring_pairs import Documented, Pair, build_pairs, first_sentence, name_in_words, pair_up
from lorascope.tasks.docstrings import PACKAGES, SIZES, Docstrings


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Pair]]:
    return build_pairs(PACKAGES.values(), sizes=SIZES)


def test_two_builds_are_identical(splits: dict[str, list[Pair]]) -> None:
    small = {"test": 40, "validation": 40, "train": 40}
    first = build_pairs(PACKAGES.values(), sizes=small)
    assert first == build_pairs(PACKAGES.values(), sizes=small)
    # The test set does not depend on how much is built after it.
    whole_modules = [pair for pair in first["test"] if pair in splits["test"]]
    assert len(whole_modules) > 10


def test_every_split_has_its_size_and_half_of_each_label(splits: dict[str, list[Pair]]) -> None:
    for split, size in SIZES.items():
        assert Counter(label for _, label, _, _ in splits[split]) == {0: size // 2, 1: size // 2}


def test_no_name_and_no_sentence_occurs_twice_in_all_splits(splits: dict[str, list[Pair]]) -> None:
    pairs = [pair for pairs in splits.values() for pair in pairs]
    for position in (0, 2, 3):
        assert max(Counter(str(pair[position]).lower() for pair in pairs).values()) == 1


def test_neither_half_of_a_pair_alone_tells_the_label(splits: dict[str, list[Pair]]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = {split: [pair[1] for pair in splits[split]] for split in ("train", "test")}
    for half in (2, 3):
        vectors = TfidfVectorizer(ngram_range=(1, 2))
        model = LogisticRegression(max_iter=300)
        model.fit(vectors.fit_transform([pair[half] for pair in splits["train"]]), labels["train"])
        accuracy = model.score(vectors.transform([pair[half] for pair in splits["test"]]), labels["test"])
        # 4 standard errors around chance with 800 test pairs
        assert abs(accuracy - 0.5) < 0.07


def test_counting_shared_words_is_well_above_chance_and_far_from_perfect(splits: dict[str, list[Pair]]) -> None:
    def shares_a_word(name: str, sentence: str) -> bool:
        words = sentence.lower().replace(".", " ").replace("-", " ").split()
        return any(word[:4] == other[:4] for word in name.split() for other in words)

    right = [shares_a_word(name, sentence) == bool(label) for _, label, name, sentence in splits["test"]]
    assert 0.6 < sum(right) / len(right) < 0.85


def test_a_module_keeps_half_of_its_sentences_and_passes_the_others_round() -> None:
    functions = [Documented(f"p/m.py:f{n}", f"name {n}", f"Sentence number {n} here.") for n in range(12)]
    pairs = pair_up(functions)
    own = {(f.name, f.sentence) for f in functions}
    assert sorted(pair[2] for pair in pairs) == sorted(f.name for f in functions)
    assert sorted(pair[3] for pair in pairs) == sorted(f.sentence for f in functions)
    assert all(((name, sentence) in own) == bool(label) for _, label, name, sentence in pairs)
    assert sum(label for _, label, _, _ in pairs) == 6


def test_an_exchanged_sentence_does_not_fit_by_accident() -> None:
    texts = {"scale": "Scale the axes.", "rotate": "Rotate by an angle.", "flip": "Flip an image.", "crop": "Crop it."}
    functions = [Documented(f"m:{n}{i}", n, s.replace(".", f" {i}.")) for i in range(2) for n, s in texts.items()]
    for _, label, name, sentence in pair_up(functions):
        assert (name in sentence.lower()) == bool(label)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of an array.", "Return the sum of an array."),
        ("Return the\n    sum of `x` over *axis*.  More.\n\nParameters", "Return the sum of x over axis."),
        ("Like :func:`~numpy.sum`, but along one axis", "Like numpy.sum, but along one axis."),
        ("Version 1.5 of the rule is used here. Then more.", "Version 1.5 of the rule is used here."),
        ("sum(a, axis=None)\n\nSum of array elements.", None),
        ("See `other` for the documentation.", None),
        ("Deprecated since version 1.2 of this.", None),
        ("Too short.", None),
        ("", None),
        (">>> f(1) is one of many", None),
        ("Returns\n-------\nvalue : the value that is returned", None),
        ("Größe des Fensters in Bildpunkten.", None),
    ],
)
def test_first_sentence(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [("group_by_length", "group by length"), ("readCSVFile_2d", "read csv file 2d"), ("getXData", "get x data")],
)
def test_name_in_words(name: str, words: str) -> None:
    assert name_in_words(name) == words


def make_package(root: Path, num_modules: int) -> None:
    root.mkdir()
    (root / "__init__.py").write_text('raise RuntimeError("a package whose sources are read is never imported")\n')
    for module in range(num_modules):
        functions = [
            f'def compute_{module}_{number}():\n    """Compute value {number} of module {module}."""\n'
            for number in range(6)
        ]
        (root / f"module_{module}.py").write_text(textwrap.dedent("\n".join(functions)))


def test_sources_are_parsed_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path / "explosive", 6)
    monkeypatch.syspath_prepend(tmp_path)
    splits = build_pairs(["explosive"], sizes={"test": 8, "train": 12})
    assert {split: len(pairs) for split, pairs in splits.items()} == {"test": 8, "train": 12}
    modules = {split: {name.split()[1] for _, _, name, _ in pairs} for split, pairs in splits.items()}
    assert not modules["test"] & modules["train"]


def test_too_few_documented_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path / "sparse", 2)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError) as error:
        build_pairs(["sparse"], sizes={"test": 4, "train": 40})
    assert str(error.value) == (
        "the installed packages hold too few documented functions for 40 train pairs\n"
        "  hint: Reinstall the packages with their Python sources."
    )


def test_other_package_versions_than_planned_are_refused() -> None:
    spec = NamedTask(name="docstrings")
    planned = describe_source(spec, data_dir=None, protocol="strict").fingerprint
    found = planned["packages"]["numpy"]
    source = SourceDescription({**planned, "packages": {**planned["packages"], "numpy": "0.1"}})
    with pytest.raises(DataError) as error:
        Docstrings.read(spec, source=source, protocol="strict")
    assert str(error.value) == (
        f"the packages that `docstrings` is made of differ from those of the plan: numpy 0.1 -> {found}\n"
        "  hint: Start the same command again, and use the same versions on every machine."
    )


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "PACKAGES", {"no-such-distribution": "no_such"})
    with pytest.raises(EnvironmentProblem) as error:
        docstrings.installed_versions()
    assert str(error.value) == (
        "the task `docstrings` reads the sources of no-such-distribution, which is not installed\n"
        "  hint: pip install no-such-distribution"
    )
