"""`docstrings`: a task that needs no download. Does this sentence document this function?

Pairs of a function's name, as words, and a first docstring sentence, read (never imported) from packages that
lorascope itself needs: its own sentence, or one of another function of the same module. Every name and every sentence
occurs exactly once in all splits, and which functions get a stranger's sentence is chance, so neither half of a pair
says anything alone: only whether they fit does.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, ClassVar

from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription
from lorascope.errors import DataError, EnvironmentProblem
from lorascope.tasks.classification import Classification, class_examples

# Distribution -> the package it installs. Pure Python sources with a docstring on nearly every public function.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "statsmodels": "statsmodels",
    "matplotlib": "matplotlib",
}
SIZES = {"test": 800, "validation": 400, "train": 2400}
# Raised when the way pairs are made changes: part of the task's identity.
BUILDER = 1


class Docstrings(Classification):
    """Label 1: the sentence is the function's own; 0: it belongs to another function of the module."""

    columns: ClassVar[tuple[str, ...]] = ("name", "sentence")
    classes: ClassVar[tuple[str, ...]] = ("other", "own")

    @classmethod
    def describe(cls, spec: Any, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        return SourceDescription({"builder": BUILDER, "packages": installed_versions()})

    @classmethod
    def read(cls, spec: Any, *, source: SourceDescription, protocol: str) -> RawExamples:
        import pandas as pd

        from lorascope.tasks.docstring_pairs import build_pairs

        planned, found = source.fingerprint["packages"], installed_versions()
        if changed := [f"{name} {planned[name]} -> {found[name]}" for name in PACKAGES if planned[name] != found[name]]:
            raise DataError(
                f"the packages that `docstrings` is made of differ from those of the plan: {', '.join(changed)}",
                hint="Start the same command again, and use the same versions on every machine.",
            )
        splits = {
            split: pd.DataFrame(pairs, columns=["example_id", "label", *cls.columns])
            for split, pairs in build_pairs(PACKAGES.values(), sizes=SIZES).items()
        }
        origin = "docstrings of " + ", ".join(f"{name} {version}" for name, version in found.items())
        return class_examples(
            splits, label_names=cls.classes, text_columns=cls.columns, metrics=("accuracy",), source=origin
        )


def installed_versions() -> dict[str, str]:
    """Distribution -> version. Raises EnvironmentProblem naming one that is not installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise EnvironmentProblem(
                f"the task `docstrings` reads the sources of {name}, which is not installed", hint=f"pip install {name}"
            ) from None
    return versions
