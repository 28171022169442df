"""A whole study of images, on a ViT, by a plug-in's task: killed while it trains, taken up, reported. What it needs of its
own is in tests/skeletons/toy_images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skeleton_study import artifacts, events, gates, measured, plugged_in, report, run_killed, run_undisturbed
from transformers import ViTConfig, ViTModel

from lorascope import api
from lorascope.data.columns import ColumnStore
from lorascope.errors import StudyError
from lorascope.report.plan.document import plan_markdown
from lorascope.tasks.conformance import TaskCase, TaskConformance
from lorascope.tasks.description import task_from_result

CLASSES = ("mixed", "pure")
COLOURS = ((200, 40, 40), (40, 40, 200))
SIZE, PATCH = 32, 8
STUDY = """
name: images
question: Does LoRA tell colours as well as full fine-tuning?
models: [{name: patches, source: {path: vit}}]
tasks: [{name: colours, kind: toy-images, images: images.parquet}]
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 4, sites: [query, value]}
seeds: [1, 2]
train: {epochs: 5, batch_size: 16, early_stopping: null, gang: 2}
measure: {drift: {examples: 40, draws: 100, pooling: decision-token}}
hypotheses:
  H1: {non_inferior: lora, to: full, margin: 20%}
"""


def images(count: int) -> pd.DataFrame:
    """PNG files of grey noise with six blocks in colours: of one colour, or three of each, which no linear probe tells."""
    generator = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        label = str(generator.choice(CLASSES))
        first, second = generator.permutation(COLOURS)
        blocks = generator.integers(96, 160, size=((SIZE // PATCH) ** 2, 3))
        own = generator.choice(len(blocks), size=6, replace=False)
        blocks[own] = first
        if label == "mixed":
            blocks[own[:3]] = second
        pixels = blocks.reshape(SIZE // PATCH, SIZE // PATCH, 3).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{index}.png"}, "label": label})
    return pd.DataFrame(rows)


def write_study(directory: Path) -> None:
    torch.manual_seed(7)
    config = ViTConfig(
        image_size=SIZE, patch_size=PATCH, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, initializer_range=0.2,
    )  # fmt: skip
    ViTModel(config).save_pretrained(directory / "vit")
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (directory / "vit" / "preprocessor_config.json").write_text(json.dumps(numbers))
    images(300).to_parquet(directory / "images.parquet")
    (directory / "study.yaml").write_text(STUDY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the study, killed once while it trained."""
    directory = tmp_path_factory.mktemp("images")
    write_study(directory)
    with plugged_in("toy_images"):
        run_killed(directory)
        yield directory


def test_a_killed_study_goes_on_to_the_same_measurements(finished: Path, tmp_path: Path) -> None:
    undisturbed = run_undisturbed(finished, tmp_path)
    pd.testing.assert_frame_equal(measured(finished), measured(undisturbed))


def test_every_gate_holds(finished: Path) -> None:
    found = gates(finished)
    assert [gate for gate in found if not gate["passed"]] == []
    names = {"overfit-10", "save, reload, score", "merged equals adapter", "beats majority", "beats linear probe"}
    assert names <= {gate["gate"] for gate in found}


def test_images_are_kept_as_files_and_read_as_normalised_pixels(finished: Path) -> None:
    (data,), (tokens,) = artifacts(finished, "data"), artifacts(finished, "tokens")
    row = pd.read_parquet(data.file("test.parquet")).iloc[0]
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    store = ColumnStore.open(tokens.file("test"))
    (pixels,) = store.gather([list(store.ids).index(row["example_id"])])["pixel_values"]
    assert (pixels.dtype, pixels.shape) == (np.float32, (3, SIZE, SIZE))
    shown = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), dtype=np.float64)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0) * 0.5 + 0.5, shown / 255, atol=1e-6)


def test_sizes_count_images(finished: Path) -> None:
    (tokens,) = artifacts(finished, "tokens")
    (data,) = artifacts(finished, "data")
    assert tokens.result["num_tokens"] == data.result["num_examples"]
    for run in artifacts(finished, "train"):
        result = run.result
        read = result["tokens_per_second"] * result["training_seconds"]
        assert round(read) == 5 * data.result["num_examples"]["train"]
        assert (result["padding_fraction"], result["mfu"]) == (0, None)
    assert '"images/s"' in events(finished)
    assert '"tokens/s"' not in events(finished)


def test_the_report_and_the_plan_speak_of_images(finished: Path) -> None:
    text = report(finished)
    assert "images/s" in text
    assert not [line for line in text.splitlines() if "tokens" in line.lower() and "versions:" not in line]
    assert "| colours | " in text.partition("**Examples**")[2]
    assert all(name in text for name in CLASSES), "the balance of classes is not shown"
    plan = api.plan(api.load(finished / "study.yaml"), store=finished / "store")
    text = plan_markdown(plan, command="lorascope plan study.yaml", version="0", figure=None)
    assert "batches of 16, fp32" in text
    assert "tokens at most" not in text


def test_a_longest_text_is_refused_where_there_is_none(finished: Path) -> None:
    text = STUDY.replace("batch_size: 16,", "batch_size: 16, max_length: 64,")
    (finished / "cut.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"train\.max_length has no effect"):
        api.load(finished / "cut.yaml")


def test_an_adapter_for_images_has_no_peft_task(finished: Path) -> None:
    runs = [run for run in artifacts(finished, "train") if run.step.params["method"]["kind"] == "lora"]
    for run in runs:
        config = json.loads(run.file("export/adapter_config.json").read_text())
        assert config["task_type"] is None
        assert config["modules_to_save"] == ["classifier"]
        assert json.loads(run.file("export/preprocessor_config.json").read_text())["image_mean"] == [0.5] * 3


def test_drift_is_read_at_the_class_token(finished: Path) -> None:
    """Which all images share, so that before the first block nothing can be compared."""
    for step in artifacts(finished, "drift"):
        assert step.result["left_out"] == {"probe": ["residual layer 0"]}
    found = measured(finished)
    drift = found[(found["metric"] == "drift") & (found["split"] == "probe") & found["method"].isin(["full", "lora"])]
    assert set(drift["site"]) == {"residual", "attention", "mlp"}
    assert (drift["value"] > 1e-6).all()
    matrices = found[(found["metric"] == "changed_matrices") & found["site"].isna() & found["layer"].isna()]
    assert matrices.groupby("method")["value"].max().to_dict() == {"full": 2 * 6.0, "lora": 2 * 2.0}


@pytest.fixture(scope="module")
def case(finished: Path) -> TaskCase:
    """With the data that the study prepared."""
    (data,) = artifacts(finished, "data")
    task = task_from_result(data.result)
    examples = pd.read_parquet(data.file("test.parquet")).head(12).to_dict("records")
    model, locations = {"path": "vit"}, {"model": str(finished / "vit")}
    processor = task.inputs.load_processor(model, locations=locations, cache_dir=finished)
    return TaskCase(data.result, examples, processor=processor)


class TestImages(TaskConformance):
    """The contract of a task."""
