"""A whole study that serves what it trained with real vLLM on the CPU, adapters and heads of its own: over the first
layers of a real decoder, and over all of them and over a small one with `make slow`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_served import save_small_llama
from small_study import run, write_small_study
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorascope.models.catalog import describe_model
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.stats.serving.table import read_served
from lorascope.study.loading.load import load_study
from lorascope.study.spec import ModelSpec

REPOSITORY = Path(__file__).parents[2]
# `make test` makes it; without it these tests fail, since nothing else shows that vLLM computes what we trained.
PYTHON = Path(os.environ.get("LORASCOPE_SERVE_PYTHON", REPOSITORY / ".venv-serve" / "bin" / "python"))
STUDY = """
name: served
question: What do two adapters cost?
models: [{name: tiny, source: {path: llama}}]
tasks:
  - {name: sentiment, kind: classification, train: train.csv, text: text, label: label, metrics: [accuracy, f1], positive: good}
methods:
  - {kind: lora, learning_rate: 1e-2, rank: 8, alpha: 16, sites: [query, value]}
seeds: [1, 2]
data: {test_examples: 32}
train: {epochs: 2, batch_size: 8, max_length: 32, warmup: 20%, early_stopping: null}
measure:
  serving:
    engine: vllm
    workloads: [classification, generation]
    arms: [merged, 1, 2]
    batch_sizes: [1, 4]
    request_rates: [8]
    output_tokens: 8
    requests: 8
    warmup: 4
    repeats: 1
    precision: fp32
    switching: false
hypotheses:
  H2: {overhead: adapters-2, over: merged, on: latency_mean, at_most: 30%}
"""
WHOLE = ("[{name: tiny, source: {path: llama}}]", "[smollm2-135m]")
REAL_TASK = (
    (STUDY[STUDY.index("tasks:") : STUDY.index("methods:")], "tasks: [docstrings]\n"),
    ("1e-2", "1e-3"),
    ("data: {", "data: {train_examples: 16, validation_examples: 8, "),
    ("epochs: 2", "epochs: 1"),
)
# vLLM is started anew for each arm and workload, which takes half a minute.
TWO_ARMS = ("arms: [merged, 1, 2]", "arms: [merged, 2]")
CHANGES = {"first layers": (TWO_ARMS, *REAL_TASK), "whole": (WHOLE, *REAL_TASK), "small": ()}


def save_first_layers(directory: Path, *, num_layers: int, cache: Path) -> None:
    """A real decoder's first layers, with its embedding, head and tokenizer, read as a study reads it: from a GGUF file."""
    identity, locations = describe_model(ModelSpec.model_validate("smollm2-135m"))
    whole = checkpoint_directory(identity, locations=locations, cache_dir=cache)
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=num_layers).save_pretrained(directory)
    AutoTokenizer.from_pretrained(whole).save_pretrained(directory)


@pytest.fixture(
    scope="module",
    params=["first layers", *(pytest.param(name, marks=pytest.mark.slow) for name in ("whole", "small"))],
)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder, the study run to its end."""
    assert PYTHON.exists(), f"{PYTHON} is not there: make it with `make serve-env`"
    folder = tmp_path_factory.mktemp("served")
    text = STUDY
    for small, real in CHANGES[request.param]:
        assert small in text
        text = text.replace(small, real)
    write_small_study(folder, text)
    if request.param == "small":
        save_small_llama(folder / "llama")
    elif request.param == "first layers":
        save_first_layers(folder / "llama", num_layers=4, cache=folder / "store" / "cache")
    done = run(folder, "run", "study.yaml", "--json", LORASCOPE_SERVE_PYTHON=str(PYTHON))
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "outcome.json").write_text(done.stdout)
    return folder


def arms(study: Path) -> list[str]:
    """The arms that the study asks for, adapters in order of their number."""
    asked = load_study(study / "study.yaml").measure.serving.arms
    return [arm if isinstance(arm, str) else f"adapters-{arm}" for arm in asked]


def processes(study: Path) -> list[dict]:
    (path,) = (study / "store" / "artifacts").glob("serving/*/processes.json")
    return json.loads(path.read_text())


def test_vllm_answers_what_the_runs_compute_merged_and_side_by_side(study: Path) -> None:
    found = processes(study)
    assert {(p["arm"], p["workload"]) for p in found} == {
        (arm, workload) for arm in arms(study) for workload in ("classification", "generation")
    }
    assert all(p["failure"] is None for p in found)
    for process in found:
        gates = {gate["what"]: gate for gate in process["gates"]}
        assert all(gate["passed"] for gate in gates.values()), gates
        if process["workload"] == "generation":
            assert gates["token match"]["value"] == 1.0
            assert gates["token match"]["n"] == 16 * 32, "every token of every prompt is judged"
        else:
            assert gates["log-odds"]["value"] < 4e-3
            assert gates["log-odds"]["n"] >= 32
        assert process["engine"]["head"] in {"adapter", "model", None}


def test_every_arm_has_its_figures_and_the_report_shows_them(study: Path) -> None:
    results = study / "results" / "served"
    frame = read_served(results)
    loads = frame[frame["loop"].isin(["batch", "rate"])]
    assert (loads["value"] > 0).all()
    p95 = loads[loads["metric"] == "latency_ms_p95"]
    assert p95.groupby(["arm", "workload"]).size().to_dict() == {
        (arm, workload): 3 for arm in arms(study) for workload in ("classification", "generation")
    }
    memory = frame[frame["metric"] == "adapter_bytes"].set_index(["workload", "arm"])["value"]
    for workload in ("classification", "generation"):
        merged, *adapters = (memory[workload, arm] for arm in arms(study))
        assert merged == 0
        assert adapters[0] > 0
        assert adapters == sorted(set(adapters)), "more adapters, more memory"
    report = (results / "ANALYSIS_REPORT.md").read_text()
    assert "## Serving" in report
    (verdict,) = json.loads((study / "outcome.json").read_text())["verdicts"]
    assert (verdict["name"], verdict["verdict"]) == ("H2", "inconclusive"), "one repeat decides nothing"
