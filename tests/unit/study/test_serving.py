"""What a study can say of serving, what it cannot, and the steps that come of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_study import STUDY, write_small_study
from study_errors import error_of

from lorascope.engine.store.directory import Store
from lorascope.errors import EnvironmentProblem
from lorascope.plan.graph import Graph, build_graph, describe_sources
from lorascope.plan.steps.results import analysis_step
from lorascope.serving.interpreter import ask_engine, engine_kind
from lorascope.study.checks.serving import check_serving
from lorascope.study.hypothesis import Overhead
from lorascope.study.loading.load import load_study
from lorascope.study.measure import ServingSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Study

GOOD = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc, rte]
methods: [full, {kind: lora}]
seeds: [1, 2]
measure:
  serving: {arms: [base, full, merged, 1, 4]}
hypotheses:
  H2: {overhead: adapters-4, over: merged, at_most: 30%}
"""


def with_serving(settings: str) -> str:
    return GOOD.replace("{arms: [base, full, merged, 1, 4]}", settings)


def test_serving_may_be_asked_for_in_a_word(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(with_serving("true").replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    study = load_study(path)
    assert study.measure.serving == ServingSpec()
    hypothesis = study.hypotheses["H2"]
    assert isinstance(hypothesis, Overhead)
    assert (hypothesis.on, hypothesis.at_most, hypothesis.at) == ("latency_p95", 0.3, "every")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            "{arms: [merged, 4, 8]}",
            "study.yaml:8: measure.serving.arms: 8 adapters side by side need as many runs of one method on a model, and "
            "the study has 4 (2 tasks x 2 seeds)\n  hint: serve at most 4, or add seeds",
        ),
        (
            "{arms: [merged, 4, mergd]}",
            "study.yaml:8: measure.serving.arms[2]: must be base, full, merged or a number of adapters, at least 1; "
            "found 'mergd'",
        ),
        (
            "{arms: [merged, 4], method: loar}",
            "study.yaml:8: measure.serving.method: the study has no method `loar` with adapters: did you mean `lora`?\n"
            "  hint: its methods with adapters: lora",
        ),
        (
            "{arms: [merged, 4], batch_sizes: [4, 4]}",
            "study.yaml:8: measure.serving.batch_sizes: `4` is there twice\n  hint: remove one of them",
        ),
        (
            "{arms: [merged, 4], slots: 2}",
            "study.yaml:8: measure.serving.slots has no effect: the engine is transformers\n"
            "  hint: remove it, or use `engine: vllm`",
        ),
        (
            "{arms: [merged, 4], output_tokens: 64}",
            "study.yaml:8: measure.serving.output_tokens has no effect: nothing is generated\n"
            "  hint: remove it, or add `generation` to `workloads`",
        ),
        (
            "{arms: [merged, 4], engine: vllm, slots: 4}",
            "study.yaml:8: measure.serving.slots has no effect: at most 4 adapters are served side by side\n"
            "  hint: remove it, or give fewer slots than adapters",
        ),
        (
            "{arms: [merged, 4], tune: true}",
            "study.yaml:8: measure.serving.tune has no effect: the engine is transformers\n"
            "  hint: remove it, or use `engine: vllm`",
        ),
        (
            "{arms: [merged, 4], engine: vllm, kernel_tables: tables}",
            "study.yaml:8: measure.serving.kernel_tables has no effect: nothing is tuned\n"
            "  hint: add `tune: true`, or remove it",
        ),
        (
            "{arms: [merged, 4], engine: vlm}",
            "study.yaml:8: measure.serving.engine: the text 'vlm' is not allowed: did you mean `vllm`?\n"
            "  hint: allowed: transformers, vllm, vllm-server",
        ),
        (
            "{arms: [merged, 4], engine: vllm-server, switching: true}",
            "study.yaml:8: measure.serving.switching has no effect: a server keeps the adapters it started with\n"
            "  hint: remove it, or use `engine: vllm`",
        ),
    ],
)
def test_a_mistake_names_its_line_and_its_remedy(tmp_path: Path, settings: str, expected: str) -> None:
    assert error_of(with_serving(settings), tmp_path) == expected


def test_an_arm_that_no_method_can_fill(tmp_path: Path) -> None:
    text = with_serving("{arms: [merged, 1, full]}").replace("[full, {kind: lora}]", "[full]").partition("hyp")[0]
    assert error_of(text, tmp_path) == (
        "study.yaml:8: measure.serving.arms: `merged` needs an adapter, and no method of the study has one\n"
        "  hint: add a method such as `lora`, or serve `base` and `full` alone"
    )
    text = GOOD.replace("[full, {kind: lora}]", "[lora]")
    assert error_of(text, tmp_path) == (
        "study.yaml:8: measure.serving.arms: `full` needs a fully fine-tuned run, and the study has no method of kind full\n"
        "  hint: add the method `full`, or remove the arm"
    )


def test_there_is_nothing_to_tune_without_adapters(tmp_path: Path) -> None:
    text = with_serving("{arms: [merged], engine: vllm, tune: true}").partition("hyp")[0]
    assert error_of(text, tmp_path) == (
        "study.yaml:8: measure.serving.tune has no effect: no arm has adapters\n"
        "  hint: remove it, or add an arm such as 2"
    )


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        (
            "{overhead: adapter-4, over: merged, at_most: 30%}",
            "study.yaml:10: hypotheses.H2: `measure.serving` has no arm `adapter-4`: did you mean `adapters-4`?\n"
            "  hint: its arms: base, full, merged, adapters-1, adapters-4",
        ),
        (
            "{overhead: merged, over: merged, at_most: 30%}",
            "study.yaml:10: hypotheses.H2: `merged` is compared with itself\n  hint: name two different arms",
        ),
        (
            "{overhead: adapters-4, over: merged, on: ttft_p50, at_most: 30%}",
            "study.yaml:10: hypotheses.H2: there is no time to first token where nothing is generated\n"
            "  hint: add `generation` to `measure.serving.workloads`",
        ),
        (
            "{overhead: adapters-4, over: merged}",
            "study.yaml:10: hypotheses.H2: the key `at_most` is missing",
        ),
    ],
)
def test_a_hypothesis_about_what_is_not_served(tmp_path: Path, hypothesis: str, expected: str) -> None:
    text = GOOD.replace("{overhead: adapters-4, over: merged, at_most: 30%}", hypothesis)
    assert error_of(text, tmp_path) == expected


def test_a_hypothesis_about_serving_needs_it_measured(tmp_path: Path) -> None:
    text = GOOD.replace("measure:\n  serving: {arms: [base, full, merged, 1, 4]}\n", "")
    assert error_of(text, tmp_path) == (
        "study.yaml:8: hypotheses.H2: it is about serving, which the study does not measure\n"
        "  hint: add `measure: {serving: {}}`"
    )


# ---------------------------------------------------------------------------------------------------------------- plan


def served(tmp_path: Path, settings: str) -> Path:
    text = STUDY.replace("measure: {drift: {examples: 60, draws: 200}}", f"measure: {{serving: {settings}}}")
    return write_small_study(tmp_path, "\n".join(line for line in text.splitlines() if "H1b" not in line))


def test_one_step_a_model_waits_for_the_runs_it_serves_and_runs_alone(tmp_path: Path) -> None:
    graph = build_graph(load_study(served(tmp_path, "{arms: [full, merged, 1, 2]}")), data_dir=None)
    (step,) = graph.of_kind("serving")
    trained = {step.id: graph.labels[step.id] for step in graph.of_kind("train")}
    roles = {role: trained[dep] for role, dep in step.deps.items() if dep in trained}
    assert {role: (label.method, label.seed) for role, label in roles.items()} == {
        "adapter:0": ("lora", "1"), "adapter:1": ("lora", "2"), "full": ("full", "1"),
    }  # fmt: skip
    assert step.resources.alone
    assert str(tmp_path) not in repr(step.params)


def test_an_engine_is_identity_and_where_it_lies_is_not(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    with pytest.raises(EnvironmentProblem, match=r"which .* does not have") as caught:
        graph_served(served(tmp_path, "{arms: [merged, 2], engine: vllm, python: python}"), Store(tmp_path / "store"))
    assert "make serve-env" in str(caught.value)
    steps = []
    for version in ("1.0", "2.0"):
        for name in ("here", "there"):
            engine = fake_engine(tmp_path / f"{name}-{version}", version)
            path = served(tmp_path / "study", f"{{arms: [merged, 2], engine: vllm, python: {engine}}}")
            graph = graph_served(path, Store(tmp_path / "store"), files=True)
            steps.append(graph.of_kind("serving")[0])
            last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
            assert last is not None
            assert str(tmp_path) not in repr(last.params)
    assert steps[0].id == steps[1].id
    assert steps[2].id == steps[3].id
    assert steps[0].id != steps[2].id


def test_vllm_behind_its_server_is_another_engine_without_switching(tmp_path: Path) -> None:
    engine = fake_engine(tmp_path / "engine", "1.0")
    names = {}
    for kind in ("vllm", "vllm-server"):
        path = served(tmp_path / "study", f"{{arms: [merged, 2], engine: {kind}, python: {engine}}}")
        (step,) = graph_served(path, Store(tmp_path / "store")).of_kind("serving")
        names[step.params["engine"]["name"]] = step.id
    assert names.keys() == {"vllm", "vllm-server"} and len(set(names.values())) == 2
    assert [engine_kind({"name": name}) for name in ("transformers", "vllm-cpu", "vllm-cpu-server", "vllm-server")] == [
        "transformers", "vllm", "vllm-server", "vllm-server",
    ]  # fmt: skip


def test_kernel_tables_are_identity_and_where_they_lie_is_not(tmp_path: Path) -> None:
    engine = fake_engine(tmp_path / "engine", "1.0")
    steps = []
    for folder, content in (("here", "{}"), ("there", "{}"), ("here", '{"1": 2}')):
        (tmp_path / "study" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / folder / "NVIDIA_H200_SHRINK.json").write_text(content)
        settings = f"{{arms: [merged, 2], engine: vllm, python: {engine}, tune: true, kernel_tables: {folder}}}"
        path = served(tmp_path / "study", settings)
        (step,) = graph_served(path, Store(tmp_path / "store"), files=True).of_kind("serving")
        assert str(tmp_path) not in repr(step.params)
        assert step.locations["serving_kernel_tables"] == str(tmp_path / "study" / folder)
        steps.append(step.id)
    assert steps[0] == steps[1] != steps[2]
    (tmp_path / "study" / "empty").mkdir()
    path = served(tmp_path / "study", settings.replace("here", "empty"))
    with pytest.raises(EnvironmentProblem, match="holds no tables of kernels"):
        graph_served(path, Store(tmp_path / "store"))


def graph_served(path: Path, store: Store, *, files: bool = False) -> Graph:
    """The graph as `run` plans it, for a user who allowed the interpreter that the study names."""
    study = load_study(path, files=files)
    assert study.measure.serving is not None
    engine, _ = ask_engine(study.measure.serving, store, allowed=[study.measure.serving.python or ""])
    return build_graph(study, sources=describe_sources(study, data_dir=None, engine=engine))


def fake_engine(path: Path, version: str) -> Path:
    """Something that answers which vLLM it has, as an interpreter would."""
    path.write_text(f'#!/bin/sh\necho \'{{"missing": [], "versions": {{"vllm": "{version}"}}}}\'\n')
    path.chmod(0o755)
    return path


def test_an_interpreter_that_is_not_there_names_the_command_that_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORASCOPE_SERVE_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    path = served(tmp_path, "{arms: [merged, 2], engine: vllm}")
    with pytest.raises(EnvironmentProblem, match="needs an interpreter that has it") as caught:
        graph_served(path, Store(tmp_path / "store"))
    assert "make serve-env" in str(caught.value)
    monkeypatch.setenv("LORASCOPE_SERVE_PYTHON", str(fake_engine(tmp_path / "engine", "3.0")))
    (step,) = graph_served(path, Store(tmp_path / "store")).of_kind("serving")
    assert step.params["engine"] == {"name": "vllm", "version": "3.0"}


def test_adapters_that_an_engine_cannot_serve_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraSpec, "served_by", ("transformers",))
    fields = {"name": "s", "question": "?", "models": ["m"], "tasks": ["mrpc"], "methods": ["lora"]}
    for engine, expected in (("transformers", 0), ("vllm", 1)):
        serving = {"arms": ["base", 1], "engine": engine}
        study = Study.model_validate({**fields, "measure": {"serving": serving}})
        assert study.measure.serving is not None
        texts = [mistake.text for mistake in check_serving(study, study.measure.serving)]
        assert len([text for text in texts if f"{engine} cannot serve adapters of kind `lora`" in text]) == expected
