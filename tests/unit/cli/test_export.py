"""`lorascope export` from outside: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from serving_fixture import FULL, LORA, CommittedRun, commit_run

from lorascope.cli.app import main
from lorascope.training.reading import Reading


@pytest.fixture
def checkpoint(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoints["llama"], tmp_path / "llama")


@pytest.fixture
def lora(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommittedRun:
    """A finished LoRA run; the current directory is the one with its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASCOPE_STORE", raising=False)
    return commit_run(tmp_path, checkpoint, LORA)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lorascope", "export", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def class_logits(committed: CommittedRun, model: Any) -> np.ndarray:
    rows = np.arange(len(committed.columns))
    return Reading(committed.run.task, 0, "cpu", "fp32").signatures(model.eval(), committed.columns, rows=rows)


def test_adapter_is_written_with_its_precision_and_how_to_load_it(lora: CommittedRun, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "train-tiny-lora", "--format", "adapter", "--to", "out") == 0
    out = capsys.readouterr().out
    assert re.search(r"wrote out: adapter of train-tiny-lora-5-\w+ for classification, float32, 0\.0 MB", out)
    assert re.search(r"merged v adapter +float32 .* 0\.00% of 40", out)
    assert re.search(r"merged v adapter +bfloat16 ", out)
    assert f"vllm serve {Path('out').resolve()}-base --runner pooling --enable-lora --max-lora-rank 8" in out
    described = json.loads(Path("out/lorascope.json").read_text())
    assert described["run"] == lora.run.id
    assert described["base"] == lora.run.identity
    assert (described["method"]["kind"], described["method"]["rank"]) == ("lora", 3)
    assert described["versions"]["transformers"] and described["classes"] == ["bad", "good"]
    assert len(described["merge_precision"]) == 3
    assert "# train-tiny-lora-5" in Path("out/README.md").read_text()
    assert "--to " in out and f"--store {Path('store')}" in out
    assert not list(Path().glob(".out-*"))


def test_the_model_card_has_front_matter_classes_and_no_place(
    lora: CommittedRun, checkpoint: Path, monkeypatch, capsys
) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\ntags: [tiny]\n---\n\n# tiny\n")
    for form, library in (("adapter", "peft"), ("merged", "transformers")):
        assert call(monkeypatch, lora.run.id, "--format", form, "--to", form) == 0
        card = Path(form, "README.md").read_text()
        opening, matter, text = card.split("---\n", 2)
        fields = YAML(typ="safe").load(matter)
        assert opening == "" and fields["library_name"] == library and fields["license"] == "apache-2.0"
        assert fields["tags"] == ["lorascope", "lora", "tiny"] and fields["metrics"] == ["accuracy"]
        assert fields["pipeline_tag"] == "text-classification" and "base_model" not in fields, "it is on no hub"
        assert "- classes, by index: 0 bad, 1 good" in text
        assert str(Path.cwd()) not in card and "/tmp" not in card
    capsys.readouterr()


def test_an_adapter_loads_with_the_names_of_its_classes(lora: CommittedRun, monkeypatch, capsys) -> None:
    assert call(monkeypatch, lora.run.id, "--to", "out", "--json") == 0
    names: dict[str, Any] = {}
    exec(json.loads(capsys.readouterr().out)["load"]["peft"], names)
    assert names["model"].config.id2label == {0: "bad", 1: "good"}


def test_options_of_a_study_are_refused_with_the_id_of_a_run(lora: CommittedRun, monkeypatch, capsys) -> None:
    assert call(monkeypatch, lora.run.id, "--arm", "lora") == 2
    assert "--arm has no effect on the run" in capsys.readouterr().err


def test_a_wrong_id_is_answered_before_torch_is_loaded(tmp_path: Path) -> None:
    command = (
        "import sys; from lorascope.cli.app import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "export", "train-wrong"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "holds no train step `train-wrong`" in done.stderr and done.stdout == "False\n"


@pytest.mark.parametrize(("form", "tool"), [("adapter", "peft"), ("merged", "transformers")])
def test_the_lines_it_prints_load_the_model_that_was_trained(
    form: str, tool: str, lora: CommittedRun, monkeypatch, capsys
) -> None:
    assert call(monkeypatch, lora.run.id, "--format", form, "--to", "out", "--json") == 0
    published = json.loads(capsys.readouterr().out)
    names: dict[str, Any] = {}
    exec(published["load"][tool], names)
    expected = class_logits(lora, lora.in_memory)
    np.testing.assert_allclose(class_logits(lora, names["model"]), expected, atol=1e-4)


def test_the_lines_for_generation_load_a_language_model(lora: CommittedRun, monkeypatch, capsys) -> None:
    tokens = torch.tensor([lora.prompts[0]])
    logits = []
    for form, tool in (("adapter", "peft"), ("merged", "transformers")):
        assert call(monkeypatch, lora.run.id, "--format", form, "--workload", "generation", "--json") == 0
        names: dict[str, Any] = {}
        exec(json.loads(capsys.readouterr().out)["load"][tool], names)
        with torch.no_grad():
            logits.append(names["model"].eval()(input_ids=tokens).logits)
    assert logits[0].shape == (1, len(lora.prompts[0]), 16)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_the_default_is_what_the_run_trained(lora: CommittedRun, checkpoint: Path, monkeypatch, capsys) -> None:
    full = commit_run(Path.cwd(), checkpoint, FULL)
    for committed, form in ((lora, "adapter"), (full, "full")):
        assert call(monkeypatch, committed.run.id, "--json") == 0
        published = json.loads(capsys.readouterr().out)
        assert published["directory"] == f"{committed.run.id}-{form}"
        assert (published["precision"] is None) is (form == "full")
        assert published["num_bytes"] == sum(
            f.stat().st_size for f in Path(published["directory"]).glob("*.safetensors")
        )


def test_a_full_run_has_no_adapter_to_write_or_to_merge(checkpoint: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    full = commit_run(tmp_path, checkpoint, FULL)
    for form in ("adapter", "merged"):
        assert call(monkeypatch, full.run.id, "--format", form, "--to", "out") == 2
        assert "trained the model's own weights: there is no adapter" in capsys.readouterr().err
    assert not Path("out").exists() and not list(Path().glob(".out-*"))


def test_a_run_that_is_not_there_is_named_with_the_nearest(lora: CommittedRun, monkeypatch, capsys) -> None:
    assert call(monkeypatch, lora.run.id[:-1] + "x") == 2
    assert f"did you mean `{lora.run.id}`?" in capsys.readouterr().err
    assert call(monkeypatch, "tokens-") == 2
    assert "store holds no train step `tokens-`" in capsys.readouterr().err


def test_too_little_of_an_id_is_refused(lora: CommittedRun, checkpoint: Path, monkeypatch, capsys) -> None:
    commit_run(Path.cwd(), checkpoint, LORA, seed=6)
    assert call(monkeypatch, "train-tiny") == 2
    assert "2 steps begin with `train-tiny`" in capsys.readouterr().err


def test_a_directory_with_files_is_never_written_over(lora: CommittedRun, monkeypatch, capsys) -> None:
    Path("out").mkdir()
    assert call(monkeypatch, lora.run.id, "--to", "out") == 0
    before = sorted(p.name for p in Path("out").iterdir())
    capsys.readouterr()
    assert call(monkeypatch, lora.run.id, "--format", "merged", "--to", "out") == 2
    assert "out holds files already\n  hint: choose another directory with --to" in capsys.readouterr().err
    assert sorted(p.name for p in Path("out").iterdir()) == before


def test_a_base_that_is_gone_or_has_changed_is_refused(
    lora: CommittedRun, checkpoint: Path, monkeypatch, capsys
) -> None:
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    assert call(monkeypatch, lora.run.id) == 3
    assert "is not the one it was" in capsys.readouterr().err
    shutil.rmtree(checkpoint)
    assert call(monkeypatch, lora.run.id) == 3
    assert "the model's files are gone from" in capsys.readouterr().err


def test_a_run_whose_files_were_touched_is_refused(lora: CommittedRun, monkeypatch, capsys) -> None:
    path = lora.run.export / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert call(monkeypatch, lora.run.id) == 3
    assert "the run is not as it was committed" in capsys.readouterr().err


def test_an_encoder_generates_nothing(tiny_checkpoints: dict[str, Path], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = commit_run(tmp_path, tiny_checkpoints["bert"], LORA)
    assert call(monkeypatch, encoder.run.id, "--workload", "generation") == 2
    assert "is an encoder: it has no generation workload" in capsys.readouterr().err
