"""A committed run opened for serving: its base model, its method and what it exported, in memory and in fp32.

Whatever is written for an engine starts here. The models are made by the method's own hooks (`reload`, `merge`), so a
method is served as soon as it keeps the contract of `methods.base`. A run has an adapter when what it exported is in
PEFT's format; one that trained the base's own weights has nothing to merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.engine.store.artifact import Artifact
from lorascope.engine.warm import Warm
from lorascope.errors import StudyError
from lorascope.methods.base import Method
from lorascope.models.checkpoint import allows_pickle, checkpoint_directory
from lorascope.models.loading import BaseModel, load_base
from lorascope.models.reading import read_model
from lorascope.tasks.description import task_from_result
from lorascope.tasks.task import Task
from lorascope.training.preparation import method_from_params

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SERVED_HEAD = "AutoModelForSequenceClassification"
"""The head of the workload "classification", the only one that engines serve as it was trained."""


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """id: the run's step. export: what it exported. base: pristine, with the task's head. checkpoint: the base's ordinary
    directory. identity: the base's literals."""

    id: str
    export: Path
    base: BaseModel
    checkpoint: Path
    identity: Mapping[str, Any]
    tokenizer: Any
    method: Method
    task: Task

    @property
    def has_adapter(self) -> bool:
        return (self.export / ADAPTER_CONFIG).is_file()

    @property
    def class_names(self) -> list[str]:
        """Of the task's classes, by index; none for a task without classes."""
        return list(self.task.head.config.get("id2label", {}).values())

    def trained(self) -> nn.Module:
        """The run's classifier, an adapter around one included, in tensors of its own."""
        return self.method.reload(self.export, base=self.base)

    def merged(self) -> PreTrainedModel:
        """The run's classifier with the adapter folded in, in fp32. Raises StudyError where there is none."""
        self.require_adapter("merged")
        merged: Any = self.method.merge(self.trained())
        if merged is None:
            raise StudyError(
                f"an adapter of {type(self.method).__name__} cannot be folded into its base ({self.id})",
                hint="serve it as an adapter",
            )
        return merged

    def require_adapter(self, wanted: str) -> None:
        if not self.has_adapter:
            raise StudyError(
                f"{self.id} trained the model's own weights: there is no adapter to be {wanted}",
                hint="what it trained is a whole checkpoint: export it as `full`",
            )

    def require_own_weights(self) -> None:
        if self.has_adapter:
            raise StudyError(
                f"{self.id} trained an adapter and has no full checkpoint of its own",
                hint="export it as `merged` for one model, or as `adapter`",
            )

    def language_model(self, classifier: nn.Module | None = None) -> PreTrainedModel:
        """The base's causal language model over the backbone of `classifier` (default: over its own), fp32.

        The language-model head is the base's. Where the architecture ties it to the input embedding, it is tied to the
        embedding of the backbone that is put in: an adapter leaves that as it was, full fine-tuning moved it, and the
        head moves along. The two share their tensors with `classifier`. Raises StudyError for an encoder, and for a base
        without such a head.
        """
        from peft import PeftModel

        self.require_decoder()
        loaded = read_model("AutoModelForCausalLM", self.checkpoint, allows_pickle=allows_pickle(self.identity))
        model: Any = loaded.model
        if lacking := sorted({*loaded.missing, *loaded.mismatched}):
            raise StudyError(
                f"the base checkpoint of {self.id} is not a complete language model (it lacks {lacking[0]})",
                hint="serve the classification workload, or study a checkpoint that was saved with its head",
            )
        model.config.pad_token_id = self.base.pad_token_id
        if classifier is not None:
            inner: Any = classifier.get_base_model() if isinstance(classifier, PeftModel) else classifier
            assert type(inner.base_model) is type(model.base_model), "one architecture, one backbone"
            setattr(model, model.base_model_prefix, inner.base_model)
            model.tie_weights()
        return model.eval()

    def require_decoder(self) -> None:
        """Raises StudyError unless the base is an architecture that generates text."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        )

        kind = self.base.model.config.model_type
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise StudyError(
                f"{self.base.reference} ({kind}) is an encoder: it has no generation workload",
                hint="use the classification workload",
            )


def open_run(
    train: Artifact,
    data: Artifact,
    *,
    cache_dir: Path,
    device: str = "cpu",
    locations: Mapping[str, str] | None = None,
    warm: Warm | None = None,
) -> TrainedRun:
    """The run that a `train` artifact holds. data: the artifact of its task. locations: where the base's files are
    (default: where they were when it was trained). warm: a worker's memory, which keeps the base for the next run.

    Raises EnvironmentProblem if the base is gone from this machine.
    """
    step = train.step
    task = task_from_result(data.result)
    identity = step.params["model"]
    places = {"locations": step.locations if locations is None else locations, "cache_dir": cache_dir}
    tokenizer = task.inputs.load_processor(identity, **places)
    base = load_base(
        identity,
        head=task.head,
        pad_token_id=task.inputs.pad_token_id(tokenizer),
        device=device,
        warm=warm or Warm(),
        **places,
    )
    return TrainedRun(
        id=train.id,
        export=train.file("export"),
        base=base,
        checkpoint=checkpoint_directory(identity, **places),
        identity=identity,
        tokenizer=tokenizer,
        method=method_from_params(step.params["method"]),
        task=task,
    )
