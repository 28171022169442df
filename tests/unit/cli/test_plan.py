"""`plan` and `status` from outside: what they print, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plan_fixture import finish, finish_preparation, small_graph, trained

from lorascope.cli.app import main
from lorascope.engine.store.directory import Store
from lorascope.evaluation import evaluate, sanity
from lorascope.plan.phases import GATES, PHASES
from lorascope.registry import STEP_KINDS
from lorascope.report.plan.document import plan_markdown, write_plan

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the small study, of which one run of each method is finished."""
    monkeypatch.chdir(tmp_path)
    for name in ("LORASCOPE_DATA", "LORASCOPE_STORE"):
        monkeypatch.delenv(name, raising=False)
    graph, store = small_graph(tmp_path), Store(tmp_path / "store")
    finish_preparation(store, graph, kinds=("data", "tokens", "sanity", "baseline"))
    for step in graph.steps:
        if graph.labels[step.id].seed != "1":
            continue
        if step.kind == "train":
            seconds = 90 if "-full-" in step.id else 60
            finish(store, step, seconds=seconds, result=trained(training=seconds - 30, evaluation=20), size=2**20)
        elif step.kind == "evaluate":
            finish(store, step, seconds=4, size=2**10)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lorascope", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


PLANNED = """\
1 model x 1 task x 2 methods x 2 seeds = 4 runs, 3 hypotheses, protocol strict
steps     total  cached  to run  worker time     peak memory  disk               estimated from
data          1       1       0  none            none         none
tokens        1       1       0  none            none         none
baseline      1       1       0  none            none         none
sanity        2       2       0  none            none         none
train         4       2       2  2.50 min        70.0 B       2.00 MiB           1 finished run of the same arm
evaluate      4       2       2  8.00 s          unknown      2.00 KiB           1 finished evaluate step like it
drift         2       0       2  unknown         unknown      unknown            none like it is finished
analysis 1 0 1 unknown unknown unknown none like it is finished, and a calibration does not measure it
total        16       9       7  at least 2.63 min  70.0 B       at least 2.00 MiB
Not in these figures: 3 steps of unknown time (2 drift and 1 analysis); `--calibrate` measures what it can.
On 2 machines: 94.0 s from start to end.
The schedule is at the bound of 94.0 s that no schedule of these jobs can beat (the longest chain of steps that wait for each \
other); workers are busy 84% of the time.
Without the start of workers: 2.63 min with 1, 94.0 s with 2 such machines; more would change nothing.
Times were measured on a processor, and hold for machines like it.
"""


def squeezed(text: str) -> str:
    """Words alone: columns may grow, and a terminal breaks lines where it likes."""
    return " ".join(text.split())


def test_plan_sums_by_kind_and_lays_out_what_is_known(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--machines", "2") == 0
    printed = capsys.readouterr().out
    before_disk, _, after = printed.partition("Disk: ")
    first, seen, *rest = before_disk.splitlines(keepends=True)
    assert seen.startswith("data of sentiment: columns text, label; 2 classes: bad, good; ")
    without_warning = [line for line in rest if not line.startswith("warning: sentiment: ")]
    assert len(without_warning) == len(rest) - 1
    assert squeezed("".join([first, *without_warning])) == squeezed(PLANNED)
    assert "free where the store lies" in after
    assert "2 seeds and 60 test examples detect a difference of" in after
    assert "H1a: a margin of 5.0 points is too small to be confirmed" in after


def test_plan_says_what_workers_that_share_a_device_may_take(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--device", "cpu") == 0
    assert squeezed(
        "On 1 machine with 2 workers each: 94.0 s from start to end. That is if the 2 workers of a device do not slow "
        "each other down, which the times of fewer workers cannot show; if they take turns on it, 2.63 min."
    ) in squeezed(capsys.readouterr().out)


def test_plan_as_json_holds_every_figure(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--machines", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machines"] == {
        "count": 2, "workers_each": 1, "device": "cpu", "sharing": 1, "measured_on": ["a processor"],
    }  # fmt: skip
    assert found["makespan_seconds"] is None  # three steps are of unknown time
    assert found["known_makespan_seconds"] == pytest.approx(94)
    assert found["schedule"]["bound_seconds"] == pytest.approx(94)
    run = next(step for step in found["steps"] if step["kind"] == "train" and step["state"] == "missing")
    assert run["estimate"]["source"] == "finished"
    assert {step["estimate"]["seconds"] for step in found["steps"] if step["kind"] == "drift"} == {None}
    assert sum(len(job["steps"]) for job in found["schedule"]["jobs"]) == 7


def test_plan_lists_steps_that_only_understands(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--only", "train: *lora*") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[1] == ["state", "time", "step", "id"]
    assert [line[0] for line in lines[2:4]] == ["done", "missing"]
    assert lines[4] == ["2", "steps,", "1", "to", "compute"]
    assert call(monkeypatch, "plan", "study.yaml", "--only", "trian-*") == 2
    assert "--only: no step matches `trian-*`" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--machines", "--gpus-per-machine"])
def test_a_plan_for_no_machine_is_refused(place: Path, monkeypatch, capsys, option: str) -> None:
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", option, "0") == 2
    assert "at least one machine with one worker" in capsys.readouterr().err


def test_plan_writes_a_document_and_its_schedule_beside_it(place: Path, monkeypatch, capsys) -> None:
    (place / "out").mkdir()
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--write", "out/plan.md") == 0
    assert "wrote out/plan.md" in capsys.readouterr().out
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "plan-schedule.pdf",
        "plan-schedule.png",
        "plan.md",
    ]
    text = (place / "out" / "plan.md").read_text()
    for phase in PHASES:
        assert f". {phase.name.capitalize()}\n" in text
    assert (
        "**RQ1** (decided by H1a): is it so that lora loses at most 5 points of accuracy to full "
        "on average over models and tasks?" in text
    )
    assert "Supported if the one-sided 95% bound of the difference lies above −5 points" in text
    assert "the study's answer is yes if and only if `H1a and H2` holds" in text
    assert "| `sanity`" not in text
    assert "| sanity | overfit-10: ten examples are learnt by heart within 50 epochs |" in text
    assert "each `train` step waits for its `data`, `tokens` and `sanity`" in text
    assert "![" in text and "(plan-schedule.png)" in text
    assert "{{" not in text and "None" not in text


def test_the_same_plan_is_written_with_the_same_bytes(place: Path) -> None:
    from lorascope import api

    plan = api.plan(api.load("study.yaml"), store=place / "store", devices=["cpu"])
    first, again = (plan_markdown(plan, command="c", version="v", figure=None) for _ in range(2))
    assert first == again
    paths = write_plan(plan, place / "a.md", command="c", version="v")
    twice = write_plan(plan, place / "b.md", command="c", version="v")
    assert paths[1].read_bytes() == twice[1].read_bytes()


def test_a_plan_on_an_empty_store_is_a_guess_and_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    small_graph(tmp_path)
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--write", "plan.md") == 0
    printed = capsys.readouterr().out
    assert "On 1 machine: a guess of " in printed and "unknown until its data are prepared" in printed
    assert "Times are guesses from parameters, tokens and the class of the device" in printed
    assert "they may be wrong by a factor of several. `--calibrate` measures them." in printed
    rows = [line for line in printed.splitlines() if line.startswith(("train ", "drift ", "total "))]
    assert len(rows) == 3 and all("guess: " in row for row in rows)
    assert "they may be wrong by a factor of several" in (tmp_path / "plan.md").read_text()
    assert call(monkeypatch, "plan", "study.yaml", "--device", "cpu", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["total"]["num_guessed"] == planned["total"]["to_run"]
    assert {step["estimate"]["source"] for step in planned["steps"]} == {"guess"}
    assert not (tmp_path / "store").exists()  # a plan writes nothing it was not asked for


def test_the_gates_a_plan_promises_are_those_that_run() -> None:
    """Names in the plan's criteria are the names of the code's gates."""
    source = "".join(Path(module.__file__).read_text() for module in (sanity, evaluate))
    for kind in ("sanity", "evaluate"):
        for promise in GATES[kind]:
            assert f'"{promise.partition(":")[0]}"' in source, promise
    assert len(GATES["sanity"]) == len(sanity._GATES)
    assert f"within {sanity.OVERFIT_EPOCHS} epochs" in GATES["sanity"][-1]


def test_every_kind_of_step_of_a_study_belongs_to_a_phase_and_has_criteria() -> None:
    phased = {kind for phase in PHASES for kind in phase.kinds}
    assert phased == set(GATES) == {n for n, e in STEP_KINDS.items() if e.plugin is None} - {"calibration", "proposals"}


# -------------------------------------------------------------------------------------------------------------- status


def test_status_counts_by_phase_and_tells_the_time_left(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "status", "study.yaml") == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.strip()]
    assert "9/15 steps at least 2 min 38 s left once it runs" in squeezed(printed)
    assert "(from 4 steps by finished ones; 1 worker)" in squeezed(printed)
    assert ["phase", "done", "missing"] in lines
    assert ["sanity", "and", "baselines", "5"] in lines
    assert ["training", "4", "4"] in lines
    assert ["representations", "2"] in lines


def test_status_names_what_failed_and_what_it_blocks(place: Path, monkeypatch, capsys) -> None:
    from lorascope.engine.failure import Failure
    from lorascope.errors import GateFailure

    graph, store = small_graph(place), Store(place / "store")
    run = next(step for step in graph.of_kind("train") if not store.has(step.id))
    store.record_failure(run.id, Failure.of(run.id, GateFailure("the loss became nan")))
    assert call(monkeypatch, "status", "study.yaml") == 0
    printed = capsys.readouterr().out
    assert f"failed: {run.id}" in printed
    assert "blocked: drift-tiny-sentiment-full" in printed
    assert "why a step failed: lorascope show STEP" in printed


def test_status_as_json(place: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "status", "study.yaml", "--json", "--only", "train-*") == 0
    found = json.loads(capsys.readouterr().out)
    assert [step["state"] for step in found["steps"]] == ["done", "missing", "done", "missing"]
    assert found["phases"] == {"training": {"done": 2, "missing": 2}}
    assert (found["running"], found["workers"], found["is_over"]) == ([], [], False)
    assert found["left"]["seconds"] == pytest.approx(158)
    assert found["left"]["is_least"]


def test_watching_ends_when_nothing_is_left(place: Path, monkeypatch, capsys) -> None:
    from lorascope.plan.steps.results import analysis_step

    graph, store = small_graph(place), Store(place / "store")
    for step in graph.steps:
        if not store.has(step.id):
            finish(store, step, seconds=1, result=trained(training=1, evaluation=0))
    last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
    assert last is not None
    finish(store, last, seconds=1)
    assert call(monkeypatch, "status", "study.yaml", "--watch") == 0
    assert "16/16 steps" in capsys.readouterr().out
    assert call(monkeypatch, "status", "study.yaml", "--watch", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["is_over"]


def test_plan_and_status_load_no_torch(place: Path) -> None:
    program = """
import sys
from lorascope.cli.app import app
for arguments in (["status", "study.yaml"], ["plan", "study.yaml", "--device", "cpu", "--write", "plan.md"]):
    try:
        app(arguments)
    except SystemExit as ending:
        assert not ending.code, ending
loaded = {"torch", "transformers"} & set(sys.modules)
assert not loaded, loaded
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
