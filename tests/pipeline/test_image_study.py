"""A whole study of images, on a ViT, by a plug-in's task: killed while it trains, taken up, reported. What it needs of its
own is in tests/skeletons/toy_images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
SIZE, PATCH = 32, 8
STUDY = """
name: images
question: Does LoRA tell colours as well as full fine-tuning?
models: [{name: patches, source: {path: vit}}]
tasks: [{name: colours, kind: toy-images, images: images.parquet}]
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 4, sites: [q_proj, v_proj]}
seeds: [1, 2]
train: {epochs: 3, batch_size: 16, early_stopping: null, gang: 2}
measure: {drift: {examples: 40, draws: 100, pooling: decision-token}}
hypotheses:
  H1: {non_inferior: lora, to: full, margin: 20%}
"""


def images(count: int) -> pd.DataFrame:
    """PNG files of blocks of noise, in most of which the colour of the class prevails."""
    generator = np.random.default_rng(5)
    names = sorted(COLOURS)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        label = str(generator.choice(names))
        blocks = generator.integers(0, 255, size=(SIZE // PATCH, SIZE // PATCH, 3))
        is_own = generator.random(blocks.shape[:2]) < 0.5
        blocks[is_own] = COLOURS[label]
        pixels = blocks.repeat(PATCH, axis=0).repeat(PATCH, axis=1).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
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
