"""Base models with a task's head, loaded once a worker and handed out as cheap copies.

The pristine model stays in the worker. A run that trains adapters gets a new module tree over the same frozen tensors;
a run that trains everything gets tensors of its own. The head is new in either case and drawn from the run's
initialisation seed, so base, full fine-tuning and LoRA differ in nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.engine.warm import Kept, Warm
from lorascope.errors import EnvironmentProblem
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.heads import Head

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BaseModel:
    """A pristine model on its device. head: names of the modules that are new for the task ("score", "classifier"); none
    where the head is the checkpoint's own. peft_task: what PEFT calls the task. pad_token_id: None for a model of images.
    reference, revision: what an exported adapter names as its base (hub id and commit, else the checkpoint's name).
    """

    model: PreTrainedModel
    head: tuple[str, ...]
    pad_token_id: int | None
    reference: str
    revision: str | None
    peft_task: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def copy(self, generator: torch.Generator, *, share_frozen: bool) -> PreTrainedModel:
        """A model of one run's own, with a freshly drawn head. generator: a CPU generator.

        share_frozen: keep the base's tensors (they must stay frozen) and copy only the head's.
        """
        head_ids = {id(p) for name in self.head for p in self.model.get_submodule(name).parameters()}
        shared = {id(p): p for p in self.model.parameters() if share_frozen and id(p) not in head_ids}
        model = copy.deepcopy(self.model, memo=dict(shared))
        initialise_head(model, self.head, generator)
        return model


def initialise_head(model: PreTrainedModel, head: Sequence[str], generator: torch.Generator) -> None:
    """Draws every weight of the head from N(0, initializer_range) and zeroes its biases, in order of name."""
    import torch

    std = getattr(model.config, "initializer_range", 0.02)
    with torch.no_grad():
        for module_name in sorted(head):
            for name, parameter in sorted(model.get_submodule(module_name).named_parameters()):
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


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


BASE = Kept[BaseModel]("the base model", most=1)
"""Only the last: a second one would take memory that training needs."""


def load_base(
    model: Mapping[str, Any],
    *,
    head: Head,
    pad_token_id: int | None,
    device: str,
    locations: Mapping[str, str],
    cache_dir: Path,
    warm: Warm,
) -> BaseModel:
    """The base model in fp32 with the task's head, from the worker's memory if the last step used the same one, be it
    for a task with other names for as many classes.

    Raises EnvironmentProblem if the checkpoint does not load, or lacks the head that should be its own.
    """
    key = repr((sorted(model.items()), head.shape, pad_token_id, device))

    def load() -> BaseModel:
        return _load(model, head, pad_token_id=pad_token_id, device=device, locations=locations, cache_dir=cache_dir)

    return _relabelled(warm.keep(BASE, key, load), head.config)


def _relabelled(base: BaseModel, head_config: Mapping[str, Any]) -> BaseModel:
    """The same tensors under a config with these classes."""
    if all(getattr(base.model.config, name) == value for name, value in head_config.items()):
        return base
    model = copy.deepcopy(base.model, {id(t): t for t in (*base.model.parameters(), *base.model.buffers())})
    for name, value in head_config.items():
        setattr(model.config, name, value)
    return replace(base, model=model)


def _load(
    model: Mapping[str, Any],
    head: Head,
    *,
    pad_token_id: int | None,
    device: str,
    locations: Mapping[str, str],
    cache_dir: Path,
) -> BaseModel:
    import torch
    import transformers

    directory = checkpoint_directory(model, locations=locations, cache_dir=cache_dir)
    auto_class = getattr(transformers, head.auto_class)
    with reading_checkpoint(directory):
        loaded, info = auto_class.from_pretrained(
            directory, **head.config, dtype=torch.float32, output_loading_info=True
        )
    if pad_token_id is not None:
        loaded.config.pad_token_id = pad_token_id
    loaded.config.use_cache = False
    loaded.requires_grad_(False)
    if not head.is_new:
        _require_whole(loaded, info["missing_keys"], directory)
    head_names = head_modules(loaded, info["missing_keys"]) if head.is_new else ()
    reference = model.get("hub", directory.name)
    return BaseModel(
        loaded.to(device).eval(), head_names, pad_token_id, reference, model.get("revision"), head.peft_task
    )


def _require_whole(model: PreTrainedModel, missing: set[str], directory: Path) -> None:
    """Raises EnvironmentProblem for a checkpoint that lacks weights of a model whose head is the checkpoint's own."""
    if lacking := sorted(missing):
        raise EnvironmentProblem(
            f"the checkpoint in {directory} is not a whole {type(model).__name__}: it lacks {', '.join(lacking[:3])}"
            f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}",
            hint="this task uses the checkpoint's own head: take a checkpoint that was saved with it",
        )


@contextmanager
def reading_checkpoint(directory: Path) -> Iterator[None]:
    """While transformers reads a checkpoint whose head may be missing, which whoever reads looks at: without its warnings,
    and with EnvironmentProblem for one that does not load."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"the model in {directory} cannot be loaded: {str(error).splitlines()[0]}",
            hint="the checkpoint must hold config.json and weights of an architecture transformers knows",
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def head_modules(model: PreTrainedModel, missing: set[str]) -> tuple[str, ...]:
    """The modules whose weights the checkpoint does not have: what the task adds and every method trains.

    A task head that came with the checkpoint ("classifier", "score") counts too: it belongs to another task.
    """
    backbone = model.base_model_prefix
    outside = {
        name for name, _ in model.named_children() if name != backbone and list(model.get_submodule(name).parameters())
    }
    inside = {key.rpartition(".")[0] for key in missing if key.split(".")[0] == backbone}
    for name in sorted(inside, key=len):
        inside = {other for other in inside if other == name or not other.startswith(f"{name}.")}
    return tuple(sorted(outside | inside))
