"""Reading a checkpoint into a model, and proving that the model holds what the checkpoint holds.

transformers initialises at random what a checkpoint lacks, and says so in a warning. Here only a head that the task adds may
be new: every other tensor must be in the files, of the right shape, finite, and equal to them after loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import EnvironmentProblem, LorascopeError
from lorascope.models.architectures import known_architecture
from lorascope.models.checkpoint_files import weight_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_NAMED = 6
_POOLER = "pooler"
"""A layer between the backbone and a head that some checkpoints are saved without: part of the head where it is new."""


@dataclass(frozen=True)
class Loaded:
    """A model in fp32 on the CPU. missing: its tensors that the checkpoint lacks. mismatched: those that have another shape
    there, with that shape. Neither holds a tensor of the backbone, but for a pooler."""

    model: PreTrainedModel
    missing: frozenset[str] = frozenset()
    mismatched: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_model(
    auto_class: str, directory: Path, *, allows_pickle: bool = False, config: Mapping[str, Any] | None = None
) -> Loaded:
    """The checkpoint as a model of one of transformers' automatic classes, its backbone equal to the files.

    config: fields that replace those of config.json. Raises EnvironmentProblem for a checkpoint that does not load, or whose
    backbone is not whole, by the names of the tensors.
    """
    import torch
    import transformers

    files = weight_files(directory, allows_pickle=allows_pickle)
    with reading_checkpoint(directory):
        model, info = getattr(transformers, auto_class).from_pretrained(
            directory,
            **(config or {}),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=files[0].suffix == ".safetensors",
            weights_only=True,
        )
    stored = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    loaded = Loaded(
        model,
        frozenset(name for name in info["missing_keys"] if name in stored),
        {name: tuple(found) for name, found, _ in info["mismatched_keys"]},
    )
    _require_backbone(loaded, directory)
    _require_all_layers(model, info["unexpected_keys"], directory)
    with reading_checkpoint(directory):
        _require_equal(loaded, files)
    _require_words(model, directory)
    return loaded


@contextmanager
def reading_checkpoint(place: Path) -> Iterator[None]:
    """While transformers reads a checkpoint whose head may be missing, which whoever reads looks at: without its warnings,
    and with EnvironmentProblem for one that does not load."""
    import torch
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except (LorascopeError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a file made to break its reader raises what it likes
        said = first_sentence(error)
        if said.startswith("Unrecognized configuration class"):
            said = "transformers has no model with such a head for this architecture"
        elif not isinstance(error, OSError | ValueError | RuntimeError):  # their text alone says little ('metadata')
            said = f"{type(error).__name__}: {said}"
        raise EnvironmentProblem(
            f"the model in {place} cannot be loaded: {said[:300]}",
            hint="the checkpoint must hold config.json and weights of an architecture transformers knows",
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def is_backbone(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor belongs to the pretrained body, not to what stands on top of it."""
    prefix = model.base_model_prefix
    return not hasattr(model, prefix) or name.startswith(f"{prefix}.")


def _is_replaceable(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor of the backbone may be new: its pooler, and what no task reads."""
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    architecture = known_architecture(model.config.model_type)
    return inner.split(".")[0] == _POOLER or (architecture is not None and inner in architecture.unused)


def _require_backbone(loaded: Loaded, directory: Path) -> None:
    model = loaded.model

    def of_backbone(names: Sequence[str]) -> list[str]:
        return [n for n in sorted(names) if is_backbone(model, n) and not _is_replaceable(model, n)]

    total = sum(is_backbone(model, name) for name, _ in model.named_parameters())
    if missing := of_backbone(list(loaded.missing)):
        raise EnvironmentProblem(
            f"the checkpoint in {directory} lacks {len(missing)} of the {total} tensors of a {type(model).__name__} without "
            f"its head: {listed(missing)}",
            hint="a model is fine-tuned from whole pretrained weights: save or download the checkpoint again, or correct "
            "config.json if it names more layers than were saved",
        )
    if mismatched := of_backbone(list(loaded.mismatched)):
        shapes = [
            f"{name} is {list(loaded.mismatched[name])}, config.json makes it {list(model.get_parameter(name).shape)}"
            for name in mismatched
        ]
        raise EnvironmentProblem(
            f"the checkpoint in {directory} has tensors of another shape than config.json gives them: {listed(shapes)}",
            hint="config.json and the weights are not of one checkpoint: save or download both again",
        )


def _require_all_layers(model: PreTrainedModel, unexpected: set[str], directory: Path) -> None:
    """Raises EnvironmentProblem where the files hold blocks beyond those that config.json has."""
    architecture = known_architecture(model.config.model_type)
    depth = getattr(model.config, "num_hidden_layers", None)
    if architecture is None or not isinstance(depth, int):
        return
    beyond = [
        name
        for name in sorted(unexpected)
        for spelling in architecture.spellings[:1]
        if (found := re.search(rf"(?:^|\.){re.escape(spelling.blocks)}\.(\d+)\.", name)) and int(found[1]) >= depth
    ]
    if beyond:
        raise EnvironmentProblem(
            f"the checkpoint in {directory} has more layers than the {depth} of its config.json: {listed(beyond)}",
            hint="correct `num_hidden_layers` in config.json, or save the shorter model as a checkpoint of its own",
        )


def _require_equal(loaded: Loaded, files: Sequence[Path]) -> None:
    """Raises EnvironmentProblem for a tensor that is not finite, or that differs from the file's."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    model, state = loaded.model, loaded.model.state_dict()
    places: tuple[Mapping[str, Tensor], ...] = (revert_weight_conversion(model, dict(state)), state)
    prefix = f"{model.base_model_prefix}."
    seen: set[int] = set()
    for file in files:
        for key, tensor in _tensors(file):
            names = (key, f"{prefix}{key}", key.removeprefix(prefix))
            found = next((place[name] for place in places for name in names if name in place), None)
            if found is None or found.shape != tensor.shape:
                continue  # transformers left it out, or a head of another shape will be new
            if found.is_floating_point() and (not tensor.is_floating_point() or tensor.element_size() == 1):
                raise EnvironmentProblem(
                    f"{key} in {file} is {str(tensor.dtype).removeprefix('torch.')}, which is no weight of a "
                    f"{type(model).__name__}: quantised weights need their scales",
                    hint="give the checkpoint in full precision",
                )
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                broken = int((~torch.isfinite(tensor)).sum())
                raise EnvironmentProblem(
                    f"{key} in {file} holds NaN or infinity ({broken} of {tensor.numel()} values)",
                    hint="these weights are broken: save or download the checkpoint again",
                )
            if not torch.equal(found.cpu(), tensor.to(found.dtype)):
                raise EnvironmentProblem(
                    f"{key} differs from {file} after transformers loaded it into a {type(model).__name__}",
                    hint="two tensors of the file may be meant for one place (tied weights that differ), or this version of "
                    "transformers reads the architecture wrongly: save the checkpoint again with it",
                )
            seen.add(found.data_ptr())
    converted = any(hasattr(c, "operations") for c in getattr(model, "_weight_conversions", None) or ())
    absent = {*loaded.missing, *loaded.mismatched}
    unseen = [
        name
        for name, p in model.named_parameters()
        if p.data_ptr() not in seen and name not in absent and is_backbone(model, name)
    ]
    if unseen and not converted:
        raise EnvironmentProblem(
            f"no tensor of the files could be compared with {listed(unseen)} of the loaded {type(model).__name__}",
            hint="save the checkpoint again with this version of transformers",
        )


def _require_words(model: PreTrainedModel, directory: Path) -> None:
    """Raises EnvironmentProblem where every token has the same vector: the model could tell no two texts apart."""
    try:
        rows = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # an architecture that reads no tokens
        return
    if rows is not None and rows.dim() == 2 and len(rows) > 1 and bool((rows == rows[0]).all()):
        raise EnvironmentProblem(
            f"the checkpoint in {directory} gives all of its {len(rows)} tokens the same embedding",
            hint="these weights are blank, not pretrained: save or download the checkpoint again",
        )


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, by name, one at a time."""
    import torch

    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)
        return
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        if isinstance(tensor, torch.Tensor):
            yield name, tensor


def first_sentence(error: Exception) -> str:
    """The first line of what an error says; the next one too where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
