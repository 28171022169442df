"""From a committed run to ordinary directories that transformers, peft and vLLM load.

Four forms, one for every way of serving: the adapter, the base with the adapter folded in (merged), a fully fine-tuned
model (full), and the base itself. Two workloads: classification, with the head that was trained; generation, where the
trained backbone works under the base's language-model head. Adapters are folded in fp32 and every weight is cast to the
wanted dtype after that, so a merged bf16 model is rounded once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import StudyError
from lorascope.models.adapter_names import under_present_names
from lorascope.serving.forms import Dtype
from lorascope.serving.trained import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TrainedRun
from lorascope.study.measure import Workload

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_PEFT_ROOT = "base_model.model."


def write_adapter(run: TrainedRun, directory: Path, *, workload: Workload, dtype: Dtype = "float32") -> Path:
    """The run's adapter in PEFT's format, with its tokenizer.

    classification: with the trained head (task type SEQ_CLS). generation: the same matrices without the head (CAUSAL_LM),
    for the base's causal language model. Raises StudyError for a run without an adapter, or an encoder that should generate.
    """
    import torch
    from safetensors.torch import load_file, save_file

    run.require_adapter("served")
    config = json.loads((run.export / ADAPTER_CONFIG).read_text())
    state = load_file(run.export / ADAPTER_WEIGHTS)
    config, state = under_present_names(config, state, run.base.model)
    if run.base.revision is None:  # a base that is on no hub is found where it lies
        config["base_model_name_or_path"] = str(run.checkpoint.resolve())
    if workload == "generation":
        run.require_decoder()
        heads = tuple(f"{_PEFT_ROOT}{name}." for name in run.base.head)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        config |= {"task_type": "CAUSAL_LM", "modules_to_save": None}
        _check_places(run, state)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    kind = getattr(torch, dtype)
    save_file(
        {name: tensor.to(kind).contiguous() for name, tensor in state.items()},
        directory / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    run.tokenizer.save_pretrained(directory)
    return directory


def write_merged(run: TrainedRun, directory: Path, *, workload: Workload, dtype: Dtype = "float32") -> Path:
    """The base with the run's adapter folded in: a classifier with the trained head, or the causal language model.

    Raises StudyError for a run without an adapter, or an encoder that should generate.
    """
    return _write(run, run.merged(), directory, workload=workload, dtype=dtype)


def write_full(run: TrainedRun, directory: Path, *, workload: Workload, dtype: Dtype = "float32") -> Path:
    """A fully fine-tuned run's own checkpoint.

    generation: its backbone under the base's language-model head. A head that the architecture ties to the input
    embedding is tied to the run's own, which full fine-tuning has moved: the model that anyone gets who reads the tuned
    weights as a language model. Raises StudyError for a run that trained an adapter, or an encoder that should generate.
    """
    run.require_own_weights()
    return _write(run, run.trained(), directory, workload=workload, dtype=dtype)


def write_base(
    run: TrainedRun, directory: Path, *, workload: Workload, dtype: Dtype = "float32", seed: int = 0
) -> Path:
    """The run's base, as adapters are served on it.

    classification: the base alone has no head, so one is drawn from `seed`: it is there to be timed, and for adapters
    to put theirs in its place; its classes mean nothing. Raises StudyError for an encoder that should generate.
    """
    import torch

    if workload == "generation":
        return _save(run, run.language_model(), directory, dtype)
    classifier = run.base.copy(torch.Generator().manual_seed(seed), share_frozen=False)
    return _save(run, classifier, directory, dtype)


def cast(model: nn.Module, dtype: Dtype) -> None:
    """Every parameter in `dtype`, in place. Buffers stay: rotary frequencies are fp32 in a model read in bf16, too."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def _write(run: TrainedRun, classifier: Any, directory: Path, *, workload: Workload, dtype: Dtype) -> Path:
    model = run.language_model(classifier) if workload == "generation" else classifier
    return _save(run, model, directory, dtype)


def _save(run: TrainedRun, model: PreTrainedModel, directory: Path, dtype: Dtype) -> Path:
    cast(model, dtype)
    model.config.use_cache = True  # training switched it off
    model.save_pretrained(directory)
    run.tokenizer.save_pretrained(directory)
    return directory


def _check_places(run: TrainedRun, state: dict[str, Any]) -> None:
    """Each matrix has a module of its name in the base's causal language model. Raises StudyError."""
    import torch
    import transformers

    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(run.checkpoint)
        modules = {name for name, _ in transformers.AutoModelForCausalLM.from_config(config).named_modules()}
    places = {name.removeprefix(_PEFT_ROOT).partition(".lora_")[0] for name in state}
    if strangers := sorted(places - modules):
        raise StudyError(
            f"{run.id}: the causal language model of {config.model_type} has no module {strangers[0]}, "
            "where the adapter has one",
            hint="use the classification workload",
        )
