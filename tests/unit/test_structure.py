"""The caps that keep the package readable: sizes, names, types, docstrings, and imports that only go down."""

from __future__ import annotations

from pathlib import Path

import pytest
import structure


def test_nothing_breaks_a_cap():
    assert not (found := structure.breaches()), f"these break a cap of CONTRIBUTING.md: {found}"


def test_nine_tenths_of_what_is_public_are_documented():
    lacking, total = structure.undocumented(structure.modules())
    assert 1 - len(lacking) / total >= structure.LEAST_DOCUMENTED, "\n".join(lacking)


@pytest.fixture
def package(tmp_path: Path):
    """Makes a package of these modules, "room.name" -> text."""

    def make(**texts: str) -> dict[str, structure.Module]:
        for name, text in texts.items():
            path = tmp_path / "house" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return structure.modules(tmp_path / "house")

    return make


def test_an_import_within_a_function_or_for_types_counts(package):
    graph = structure.imports(
        package(
            low__a="def f():\n    from house.high import b\n",
            high__b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.low.a import f\n",
            high__c="import house.high.b\n",
        )
    )
    assert structure.upward_imports(graph, ["high", "low"]) == ["house.low.a -> house.high.b"]
    assert structure.circles(graph) in (
        ["house.high.b -> house.low.a -> house.high.b"],
        ["house.low.a -> house.high.b -> house.low.a"],
    )


def test_a_package_without_circles_has_none(package):
    graph = structure.imports(package(low__a="X = 1\n", high__b="from house.low.a import X\nfrom house.low import a\n"))
    assert structure.circles(graph) == []
    assert structure.upward_imports(graph, ["high", "low"]) == []


def test_classes_of_one_name_are_found_wherever_they_are(package):
    found = structure.doubled_classes(package(a="class Run: ...\n", b="def f():\n    class Run: ...\n"))
    assert found == {"Run": ["house.a", "house.b"]}


def test_a_method_is_documented_where_it_is_first_declared(package):
    lacking, total = structure.undocumented(
        package(
            a='"""A."""\nclass Base:\n    """B."""\n    def go(self):\n        """Goes."""\n',
            b='"""B."""\nclass Child(Base):\n    """C."""\n    def go(self): ...\n    def stay(self): ...\n',
        )
    )
    assert (lacking, total) == (["house.b.Child.stay"], 7)
