"""The head of a task: which transformers class carries the output, and whether its weights are new.

A head that is new for the task ("score", "classifier") is drawn from each run's initialisation seed, and every method
trains it. A head that is the checkpoint's own (a language model's) is part of the base: it is never drawn anew, a
method that freezes the base freezes it too, and where it is tied to the embeddings it stays tied.

Of a new head, the layer with one output a class is always drawn; a layer before it that the checkpoint has in the right
shape starts as it is there. What is drawn is drawn by the model's own initialiser, so norms begin at 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lorascope.models.reading import Loaded

_KEPT = "lorascope_keeps_pretrained_weights"
_INITIALISED = "_is_hf_initialized"
"""How transformers marks tensors and modules that its initialisers pass over."""


@dataclass(frozen=True)
class Head:
    """auto_class: of transformers, by name. config: fields of the model's config (num_labels, id2label, ...). peft_task:
    what PEFT calls such a task; None where it has no word. is_new: drawn anew for every run. output: the field of the
    model's output that holds the prediction, [rows, ...]."""

    auto_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    peft_task: str | None = None
    is_new: bool = True
    output: str = "logits"

    @property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """What two heads must share for one model to serve both: everything but the names of classes."""
        fields = {name: value for name, value in self.config.items() if name not in ("id2label", "label2id")}
        return (
            ("auto_class", self.auto_class),
            ("output", self.output),
            *sorted((k, repr(v)) for k, v in fields.items()),
        )


def classification_head(names: tuple[str, ...], *, auto_class: str, peft_task: str | None) -> Head:
    """A new head with one output a class. names: of the classes, by index."""
    config = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    return Head(auto_class, config, peft_task)


# ------------------------------------------------------------------------------------------------------- a model's head


@dataclass(frozen=True)
class HeadOrigin:
    """Where the layers of a new head come from. drawn: from each run's seed. kept: from the checkpoint. replaced: those of
    the drawn ones that the checkpoint has for another task, with their shape there."""

    drawn: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    replaced: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def remark(self) -> str | None:
        """What a person should know of it; None where the head is new throughout."""
        parts = []
        if self.replaced:
            shapes = [f"{name} {list(shape)}" for name, shape in self.replaced.items()]
            parts.append(f"the checkpoint's head for another task is replaced: {', '.join(shapes)}")
        if self.kept:
            parts.append(f"layers of the head that start as they are in the checkpoint: {', '.join(self.kept)}")
        return "; ".join(parts) or None

    def to_json(self) -> dict[str, Any]:
        return {
            "drawn": list(self.drawn),
            "kept": list(self.kept),
            "replaced": {name: list(shape) for name, shape in self.replaced.items()},
        }


def head_modules(model: PreTrainedModel, missing: set[str]) -> tuple[str, ...]:
    """The modules that the task adds and every method trains: all that stands on top of the backbone, and what of the
    backbone's own pooler the checkpoint does not have. missing: names of tensors."""
    backbone = model.base_model_prefix
    outside = {
        name for name, _ in model.named_children() if name != backbone and list(model.get_submodule(name).parameters())
    }
    inside = {key.rpartition(".")[0] for key in missing if key.split(".")[0] == backbone}
    for name in sorted(inside, key=len):
        inside = {other for other in inside if other == name or not other.startswith(f"{name}.")}
    return tuple(sorted(outside | inside))


def place_head(loaded: Loaded) -> tuple[tuple[str, ...], HeadOrigin]:
    """The head of a model that was read from a checkpoint (`head_modules`), and where its layers come from. Marks the layers
    that are kept, so that `initialise_head` passes over them, in every copy of the model too."""
    model, absent = loaded.model, {*loaded.missing, *loaded.mismatched}
    head = head_modules(model, {name for name in absent if name in dict(model.named_parameters())})
    drawn, kept, replaced = [], [], {}
    for name, layer in _layers(model, head):
        own = {f"{name}.{key}": tensor for key, tensor in layer.named_parameters(recurse=False)}
        is_output = getattr(layer, "out_features", None) == model.config.num_labels
        if is_output or absent.intersection(own):
            drawn.append(name)
            present = {key: tuple(tensor.shape) for key, tensor in own.items() if key not in absent}
            replaced |= present | {key: loaded.mismatched[key] for key in own if key in loaded.mismatched}
        else:
            kept.append(name)
            setattr(layer, _KEPT, True)
    return head, HeadOrigin(tuple(drawn), tuple(kept), replaced)


def initialise_head(model: PreTrainedModel, head: Sequence[str], generator: torch.Generator) -> None:
    """Draws the head by the model's own initialiser, but for the layers that are kept. generator: a CPU generator."""
    import torch

    drawn = [(n, layer) for n, layer in _layers(model, head) if not getattr(layer, _KEPT, False)]
    if not drawn:
        return
    with torch.no_grad(), _on_cpu(drawn) as fresh, _only(model, drawn, fresh), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        model.initialize_weights()
        generator.set_state(torch.get_rng_state())


def run_heads(
    model: PreTrainedModel, head: Sequence[str], generators: Sequence[torch.Generator]
) -> list[dict[str, Tensor]]:
    """The head of each run of a gang, parameter name -> tensor. The model's present head is the first run's; each further
    run's is drawn from its generator as `BaseModel.copy` would draw it. The model is left as it was."""
    import torch

    def present() -> dict[str, Tensor]:
        parameters = {f"{root}.{name}": p for root in head for name, p in model.get_submodule(root).named_parameters()}
        return {name: p.detach().clone() for name, p in parameters.items()}

    heads = [present()]
    for generator in generators[1:]:
        initialise_head(model, head, generator)
        heads.append(present())
    with torch.no_grad():
        for name, tensor in heads[0].items():
            model.get_parameter(name).copy_(tensor)
    return heads


def _layers(model: PreTrainedModel, head: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the head that have parameters of their own."""
    for root in sorted(head):
        for name, module in model.get_submodule(root).named_modules():
            if list(module.parameters(recurse=False)):
                yield f"{root}.{name}".rstrip("."), module


@contextmanager
def _on_cpu(layers: Sequence[tuple[str, nn.Module]]) -> Iterator[list[Tensor]]:
    """Gives each layer new parameters on the CPU, on which a CPU generator draws, and copies them back at the end."""
    import torch
    from torch import nn

    own = [(layer, name, p) for _, layer in layers for name, p in layer.named_parameters(recurse=False)]
    fresh = [nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), requires_grad=False) for *_, p in own]
    for (layer, name, _), new in zip(own, fresh, strict=True):
        layer._parameters[name] = new
    try:
        yield list(fresh)
        for (*_, p), new in zip(own, fresh, strict=True):
            p.copy_(new)
    finally:
        for layer, name, p in own:
            layer._parameters[name] = p


@contextmanager
def _only(model: PreTrainedModel, layers: Sequence[tuple[str, nn.Module]], fresh: Sequence[Tensor]) -> Iterator[None]:
    """While it lasts, transformers takes everything for initialised but the fresh tensors of these layers."""
    drawn = {id(tensor) for tensor in fresh}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in drawn:
            setattr(tensor, _INITIALISED, True)
    ends = [name for name, _ in layers]
    for name, module in model.named_modules():
        is_above = any(end == name or end.startswith(f"{name}.") or not name for end in ends)
        setattr(module, _INITIALISED, not is_above)
    try:
        yield
    finally:
        for module in model.modules():
            setattr(module, _INITIALISED, True)
