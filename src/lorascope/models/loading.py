"""Base models with a task's head, loaded once a worker and handed out as cheap copies.

The pristine model stays in the worker. A run that trains adapters gets a new module tree over the same frozen tensors;
a run that trains everything gets tensors of its own. The head is new in either case and drawn from the run's
initialisation seed (models/heads.py), so base, full fine-tuning and LoRA differ in nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.engine.warm import Kept, Warm
from lorascope.errors import EnvironmentProblem
from lorascope.models.checkpoint import allows_pickle, checkpoint_directory
from lorascope.models.heads import Head, HeadOrigin, initialise_head, place_head
from lorascope.models.reading import Loaded, listed, read_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BaseModel:
    """A pristine model on its device. head: names of the modules that are new for the task ("score", "classifier"); none
    where the head is the checkpoint's own. peft_task: what PEFT calls the task. pad_token_id: None for a model of images.
    reference, revision: what an exported adapter names as its base (hub id and commit, else the checkpoint's name).
    origin: where the layers of a new head come from; None where that is not known.
    """

    model: PreTrainedModel
    head: tuple[str, ...]
    pad_token_id: int | None
    reference: str
    revision: str | None
    peft_task: str | None = None
    origin: HeadOrigin | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def copy(self, generator: torch.Generator, *, share_frozen: bool) -> PreTrainedModel:
        """A model of one run's own, its head drawn (`initialise_head`). generator: a CPU generator.

        share_frozen: keep the base's tensors (they must stay frozen) and copy only the head's.
        """
        head_ids = {id(p) for name in self.head for p in self.model.get_submodule(name).parameters()}
        shared = {id(p): p for p in self.model.parameters() if share_frozen and id(p) not in head_ids}
        model = copy.deepcopy(self.model, memo=dict(shared))
        initialise_head(model, self.head, generator)
        return model


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
    for a task with other names for as many classes. Its backbone equals the checkpoint, tensor by tensor.

    Raises EnvironmentProblem if the checkpoint does not load, is not whole, or lacks the head that should be its own.
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
    directory = checkpoint_directory(model, locations=locations, cache_dir=cache_dir)
    loaded = read_model(head.auto_class, directory, allows_pickle=allows_pickle(model), config=head.config)
    plain = loaded.model
    if pad_token_id is not None:
        plain.config.pad_token_id = pad_token_id
    plain.config.use_cache = False
    plain.requires_grad_(False)
    names, origin = (), None
    if head.is_new:
        names, origin = place_head(loaded)
    else:
        _require_whole(loaded, directory)
    reference = model.get("hub", directory.name)
    on_device = plain.to(device).eval()  # type: ignore[arg-type] - transformers hides torch's signature
    return BaseModel(on_device, names, pad_token_id, reference, model.get("revision"), head.peft_task, origin)


def _require_whole(loaded: Loaded, directory: Path) -> None:
    """Raises EnvironmentProblem for a checkpoint that lacks weights of a model whose head is the checkpoint's own."""
    if lacking := sorted({*loaded.missing, *loaded.mismatched}):
        raise EnvironmentProblem(
            f"the checkpoint in {directory} is not a whole {type(loaded.model).__name__}: it lacks {listed(lacking)}",
            hint="this task uses the checkpoint's own head: take a checkpoint that was saved with it",
        )
