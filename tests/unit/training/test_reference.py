"""One step of ours equals one step of plain PyTorch with peft: loss to 1e-6, every gradient to 1e-5 (fp32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_run import OneRun
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples
from torch import nn
from transformers import AutoTokenizer

from lorascope.methods.dropout import silence_dropout
from lorascope.registry import METHODS, resolve
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds, TrainSpec

TRAIN = TrainSpec(epochs=1, batch_size=8, warmup=0, schedule="constant", weight_decay=0.01)
SEEDS = Seeds.model_validate(3)
TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def silent(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def reference_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """transformers' own loss and autograd's gradients."""
    output = model(**batch)
    output.loss.backward()
    return float(output.loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def our_step(base: Any, spec: Any, columns: Any) -> tuple[OneRun, float]:
    method = resolve(METHODS, spec.kind)(spec)
    loop = OneRun(
        base, method, columns=columns, train=TRAIN, learning_rate=1e-3, seeds=SEEDS, validate=lambda model: {},
        silence=silence_dropout,
    )  # fmt: skip
    return loop, loop.accumulate_gradients(np.arange(len(columns)))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_step_equals_plain_pytorch(architecture: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_base(tiny_checkpoints[architecture])
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints[architecture])
    examples = tiny_examples(8)
    loop, loss = our_step(base, FullSpec(name="full", kind="full"), tiny_columns(tmp_path / "c", examples, tokenizer))
    plain = silent(base.copy(torch.Generator().manual_seed(SEEDS.initialisation), share_frozen=False))
    plain.requires_grad_(True)
    batch = tokenizer(examples["text"].tolist(), padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor(examples["label"].to_numpy())
    expected, gradients = reference_step(plain, batch)
    assert abs(loss - expected) / expected <= 1e-6
    ours = {name: p.grad.clone() for name, p in loop.model.named_parameters()}
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # softmax ignores it: its gradient is zero but for rounding
            assert relative(ours[name], gradient) <= 1e-5, name
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.01)
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    reference.step()
    loop.gang.optimiser.set_rates([1e-3])
    loop.gang.optimiser.step()
    moved = {name: p for name, p in plain.named_parameters() if p.ndim > 1 and "norm" not in name.lower()}
    for name, parameter in moved.items():
        assert relative(loop.model.get_parameter(name).detach(), parameter.detach()) <= 1e-5, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_step_equals_peft(architecture: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_base(tiny_checkpoints[architecture])
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints[architecture])
    examples = tiny_examples(8)
    spec = LoraSpec(name="lora", kind="lora", rank=4, alpha=8)
    columns = tiny_columns(tmp_path / "c", examples, tokenizer)
    loop, _ = our_step(base, spec, columns)
    plain = base.copy(torch.Generator().manual_seed(SEEDS.initialisation), share_frozen=False)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS[architecture], modules_to_save=list(base.head), task_type="SEQ_CLS"
    )
    peft_model = get_peft_model(plain, config)
    pairs = _paired(loop.model, peft_model, base.head)
    with torch.no_grad():  # a start where B is not zero, so that every gradient speaks
        for index, (ours, theirs) in enumerate(pairs.values()):
            if ours.numel() and ours.shape[0] == 1:
                ours.copy_(torch.randn(ours.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
            theirs.copy_(ours.reshape(theirs.shape))
    loss = loop.accumulate_gradients(np.arange(len(columns)))
    batch = tokenizer(examples["text"].tolist(), padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor(examples["label"].to_numpy())
    expected, _ = reference_step(silent(peft_model), batch)
    assert abs(loss - expected) / expected <= 1e-6
    for name, (ours, theirs) in pairs.items():
        assert theirs.grad is not None, name
        assert relative(ours.grad.reshape(theirs.shape), theirs.grad) <= 1e-5, name


def _paired(ours: nn.Module, theirs: nn.Module, head: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Each of our trained parameters with peft's."""
    found = dict(theirs.named_parameters())
    pairs = {}
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(("lora_A", "lora_B")):
            pairs[name] = (parameter, found[f"base_model.model.{name}.default.weight"])
        else:
            root = next(h for h in head if name == h or name.startswith(f"{h}."))
            pairs[name] = (parameter, found[f"base_model.model.{root}.modules_to_save.default{name[len(root) :]}"])
    return pairs
