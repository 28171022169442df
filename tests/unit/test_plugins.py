"""Tables of names: what is built in, what plug-ins add, and what becomes of a plug-in that is broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from lorascope.engine.ray.checks import versions
from lorascope.errors import EnvironmentProblem
from lorascope.plugins import Entry, NameTable, Plugin, Wanted, check_stamps, installed_plugins, stamped
from lorascope.registry import METHODS, TASKS
from lorascope.study import methods as study_methods
from lorascope.study.checks.study import check_names
from lorascope.study.loading.explain import explain_errors
from lorascope.study.spec import Study

Install = Callable[..., None]
BUILT_IN = {"full": "collections:OrderedDict"}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution on the path: its entry points in the group `lorascope.things`, and its one module."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, *, version: str = "1.0", module: str = "", **things: str) -> None:
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{thing} = {place}" for thing, place in things.items()]
        (info / "entry_points.txt").write_text("\n".join(["[lorascope.things]", *lines]))
        (tmp_path / f"{name}.py").write_text(module)

    yield make
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def table(**settings: object) -> NameTable:
    return NameTable("things", BUILT_IN, is_open=True, **settings)  # pyright: ignore[reportArgumentType]


def test_names_are_listed_without_importing_what_they_name(install: Install) -> None:
    install("toy_a", version="1.2", module="raise RuntimeError('imported')", alpha="toy_a:A")
    things = table()
    assert list(things) == ["full", "alpha"]
    assert [entry.origin for entry in things.values()] == ["built in", "toy_a 1.2"]
    assert "toy_a" not in sys.modules


def test_a_table_that_is_closed_takes_no_plugins(install: Install) -> None:
    install("toy_a", alpha="toy_a:A")
    assert list(NameTable("things", BUILT_IN)) == ["full"]


def test_a_broken_plugin_is_named_once_and_skipped(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("toy_a", module="import not_there", alpha="toy_a:A")
    install("toy_b", module="B = 2", beta="toy_b:B")
    things = table()
    for _ in range(2):
        assert list(things.loaded()) == ["full", "beta"]
    (told,) = caplog.messages
    assert "the thing `alpha` of the plug-in toy_a 1.0 cannot be loaded: ModuleNotFoundError" in told
    assert things.problems.keys() == {"alpha"}


def test_a_broken_plugin_that_is_needed_is_an_error_with_a_remedy(install: Install) -> None:
    install("toy_a", module="A = 1", alpha="toy_a:Missing", beta="toy_a:A")
    with pytest.raises(
        EnvironmentProblem, match=r"the thing `alpha` of the plug-in toy_a 1\.0 .*no attribute 'Missing'"
    ):
        table()["alpha"].load()
    with pytest.raises(EnvironmentProblem, match="toy_a:A is not a subclass of collections:OrderedDict") as error:
        table(wanted=Wanted("collections:OrderedDict"))["beta"].load()
    assert "pip uninstall toy_a" in (error.value.hint or "")


def test_a_class_that_leaves_methods_out_is_broken(install: Install) -> None:
    module = (
        "from lorascope.tasks.task import Task\n"
        "class A(Task): ...\n"
        "class B(A):\n    from_description = describe = classmethod(lambda cls, *given, **named: None)\n"
    )
    install("toy_a", module=module, alpha="toy_a:A", beta="toy_a:B")
    things = table(wanted=Wanted("lorascope.tasks.task:Task", overrides=("describe", "read")))
    with pytest.raises(EnvironmentProblem, match="toy_a:A does not define `describe`, `from_description`, `read`"):
        things["alpha"].load()
    with pytest.raises(EnvironmentProblem, match="toy_a:B does not define `read`"):
        things["beta"].load()


def test_a_module_that_ends_the_process_is_a_broken_plugin(install: Install) -> None:
    install("toy_a", module="raise SystemExit('away')", alpha="toy_a:A")
    with pytest.raises(EnvironmentProblem, match="cannot be loaded: SystemExit: away"):
        table()["alpha"].load()


def test_an_instance_is_wanted_where_the_table_holds_instances(install: Install) -> None:
    install("toy_a", module="A = 1", alpha="toy_a:A")
    with pytest.raises(EnvironmentProblem, match=r"toy_a:A is not an instance of lorascope\.metrics\.metric:Metric"):
        table(wanted=Wanted("lorascope.metrics.metric:Metric", is_class=False))["alpha"].load()


SETTINGS = """
from typing import Literal
from lorascope.study.methods.base import MethodBase
class Alone(MethodBase):
    kind: Literal["alone"]
    learning_rate: float = 1e-3
class Borrowed(Alone):
    pass
class Rateless(MethodBase):
    kind: Literal["rateless"]
"""


def test_settings_that_pydantic_would_fail_on_are_left_out(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"alone": "Alone", "borrowed": "Borrowed", "rateless": "Rateless"}
    install("toy_a", module=SETTINGS, **{kind: f"toy_a:{name}" for kind, name in kinds.items()})
    monkeypatch.setattr(study_methods, "METHOD_SETTINGS", settings := table())
    monkeypatch.setattr(study_methods, "METHODS", {"full": None, "borrowed": None, "rateless": None})
    monkeypatch.delitem(settings.entries, "full")
    assert study_methods.method_specs() == {}
    begin = "the settings of a method `{}` (toy_a 1.0) are not used: "
    assert settings.problems == {
        "alone": begin.format("alone") + "there is no method `alone`, which the group `lorascope.methods` would name",
        "borrowed": begin.format("borrowed") + 'the type of their field `kind` is not `Literal["borrowed"]`',
        "rateless": begin.format("rateless") + "they have no field `learning_rate`",
    }


def test_a_method_without_settings_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.entries, "bare", Entry("method", "bare", "toy:Bare", plugin=Plugin("toy", "1.0")))
    study = {"name": "s", "question": "?", "models": ["minilm-l6"], "tasks": ["mrpc"], "methods": ["bare"]}
    with pytest.raises(ValidationError) as error:
        Study.model_validate(study)
    (mistake,) = explain_errors(error.value.errors(), study)
    assert "the method `bare` (toy 1.0) has no settings" in mistake.text
    assert mistake.hint == "allowed: full, lora"


def test_a_plugin_cannot_take_a_built_in_name(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("toy_a", module="A = 1", full="toy_a:A")
    things = table()
    assert things["full"].origin == "built in"
    assert caplog.messages == [
        "warning: toy_a 1.0 cannot bring a thing `full`: lorascope has one of that name built in"
    ]


def test_a_study_that_needs_what_is_left_out_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.problems, "bitfit", "the method `bitfit` is not used: a 1 and b 2 both bring one")
    monkeypatch.setitem(TASKS.problems, "toy", "the task `toy` is not used: a 1 and b 2 both bring one")
    study = {"name": "s", "question": "?", "models": ["minilm-l6"], "tasks": ["mrpc"], "methods": ["bitfit"]}
    with pytest.raises(ValidationError) as error:
        Study.model_validate(study)
    (mistake,) = explain_errors(error.value.errors(), study)
    assert "methods[0]: the method `bitfit` is not used: a 1 and b 2 both bring one" in mistake.text
    (mistake,) = check_names({**study, "tasks": ["toy"]})
    assert mistake.text == "tasks[0]: the task `toy` is not used: a 1 and b 2 both bring one"


def test_two_plugins_with_one_name_are_both_left_out(install: Install) -> None:
    install("toy_a", alpha="toy_a:A")
    install("toy_b", alpha="toy_b:A", beta="toy_b")
    things = table()
    assert list(things) == ["full"]
    assert things.problems["alpha"].startswith("the thing `alpha` is not used: toy_")
    assert "toy_a 1.0" in things.problems["alpha"]
    assert "toy_b 1.0" in things.problems["alpha"]
    assert things.problems["beta"].endswith("`toy_b` names no object")


def test_only_steps_of_plugins_are_stamped(install: Install) -> None:
    install("toy_a", version="1.2", module="class A:\n    version = 4\nclass B: ...", alpha="toy_a:A", beta="toy_a:B")
    things = table()
    stamp = {"distribution": "toy_a", "release": "1.2", "version": 4}
    assert stamped(method=(things, "full")) == {}
    assert stamped(task=(things, "full"), method=(things, "alpha")) == {"plugins": {"method": stamp}}
    assert stamped(task=(things, "beta"))["plugins"]["task"]["version"] == 1


def test_a_version_that_is_no_whole_number_is_refused(install: Install) -> None:
    install("toy_a", module="class A:\n    version = '1.0'", alpha="toy_a:A")
    with pytest.raises(EnvironmentProblem, match=r"has the version '1\.0', which is not a whole number"):
        table().stamp("alpha")


def test_a_step_of_another_release_of_its_plugin_is_refused(install: Install) -> None:
    install("toy_a", version="1.2", module="A = 1", alpha="toy_a:A")
    params = stamped(task=(table(), "alpha"))
    check_stamps(params)
    params["plugins"]["task"]["release"] = "1.3"
    with pytest.raises(EnvironmentProblem, match=r"this step's task is of the plug-in toy_a 1\.3; here is 1\.2"):
        check_stamps(params)
    params["plugins"]["task"]["distribution"] = "toy-z"
    with pytest.raises(EnvironmentProblem, match=r"toy-z 1\.3; here is none of that name"):
        check_stamps(params)


def test_machines_of_a_cluster_compare_their_plugins(install: Install) -> None:
    install("toy_a", version="1.2", alpha="toy_a:A")
    assert installed_plugins()["toy_a"] == str(Plugin("toy_a", "1.2")).split()[1]
    code = "from lorascope.engine.ray.checks import versions; print(versions()['toy_a'])"
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    assert subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True).stdout == "1.2\n"
    assert versions()["lorascope-engine-steps"] == "1.0"
