"""What steps that touch a model prepare alike: its base and processor from the worker's memory, the method of their
parameters, a model ready to train, and deterministic kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from lorascope.engine.context import StepContext
from lorascope.engine.warm import Kept
from lorascope.errors import StudyError
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.dropout import DropoutStreams, replace_dropouts
from lorascope.models.architectures import known_architecture
from lorascope.models.loading import BaseModel, load_base
from lorascope.registry import METHODS, resolve
from lorascope.study.spec import MethodSpec, Seeds
from lorascope.tasks.task import Task
from lorascope.training.reading import Reading

_PROCESSORS = Kept[Any]("tokenizers and their like")


def method_from_params(params: Mapping[str, Any]) -> Method:
    """The method whose spec a step carries."""
    from pydantic import TypeAdapter

    spec = TypeAdapter(MethodSpec).validate_python({**params, "name": params["kind"]})
    return resolve(METHODS, spec.kind)(spec)


def base_for(context: StepContext, task: Task) -> BaseModel:
    """The step's base model with the task's head, warm if the step before used it."""
    params, locations = context.step.params, context.step.locations
    return load_base(
        params["model"],
        head=task.head,
        pad_token_id=task.inputs.pad_token_id(processor_for(context, task)),
        device=context.device,
        locations=locations,
        cache_dir=context.cache_dir,
        warm=context.warm,
    )


def processor_for(context: StepContext, task: Task) -> Any:
    """What encodes the task's examples for the step's model (its tokenizer, for text), kept warm."""
    model, places = context.step.params["model"], {"locations": context.step.locations, "cache_dir": context.cache_dir}
    key = f"{task.inputs.unit}:{sorted(model.items())}"
    return context.warm.keep(_PROCESSORS, key, lambda: task.inputs.load_processor(model, **places))


def reading_for(context: StepContext, task: Task, base: BaseModel, *, precision: str) -> Reading:
    """How this step reads the task's examples."""
    return Reading(task, base.pad_token_id, context.device, precision)


def prepared_model(
    base: BaseModel, methods: Sequence[Method], seeds: Sequence[Seeds]
) -> tuple[PreTrainedModel, DropoutStreams]:
    """The model of one run, or of a gang, ready to train, and the streams of its dropout masks (`model.streams` too).

    methods, seeds: one of each a run; the methods are alike in kind and sites. Each run's head and method are drawn from
    its initialisation seed, as they would be alone. Raises NotStackable where the runs cannot be trained together.
    """
    first, generators = methods[0], [torch.Generator().manual_seed(s.initialisation) for s in seeds]
    if len(methods) > 1 and not first.stacks:
        raise NotStackable(f"{type(first).__name__} trains one run at a time")
    architecture = known_architecture(base.model.config.model_type)
    if len(methods) > 1 and architecture is not None and architecture.trains_alone:
        raise NotStackable(f"{type(base.model).__name__} takes one run at a time: {architecture.trains_alone}")
    specs = {"specs": [method.spec for method in methods]} if first.stacks else {}
    model = base.copy(generators[0], share_frozen=first.shares_base)
    first.prepare(model, head=base.head, generators=generators, **specs)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StudyError(
            f"the method `{first.spec.kind}` trains no parameter of {type(base.model).__name__}",
            hint="its `prepare` sets `requires_grad` of what is trained",
        )
    streams = DropoutStreams(len(methods), base.device)
    replace_dropouts(model, streams)
    return model, streams


def make_deterministic(device: str) -> None:
    """Chooses deterministic kernels on CUDA where they exist (CPU kernels already are). Whether that was enough, the
    gate "same seed, same losses" shows."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] - debugging aid, slow
