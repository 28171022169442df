"""What the files of a study's models show before anything starts: whether they may be read, are whole, and fit each other.

Only names, sizes and headers are looked at; the values of weights are compared when a model is loaded (models/reading.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.errors import EnvironmentProblem
from lorascope.models.architectures import known_architecture
from lorascope.models.checkpoint_files import require_readable, tensor_names, weight_files
from lorascope.models.config_facts import depth_of, present_blocks, vocabulary_rows
from lorascope.models.configuration import model_directory
from lorascope.models.tokenizer_files import largest_id, too_many_ids
from lorascope.study.loading.document import Mistake
from lorascope.study.spec import ModelSpec, PackageSource


def check_checkpoint(model: ModelSpec, config: Mapping[str, Any], index: int) -> Iterator[Mistake]:
    """Every mistake that a model's directory shows. index: of the model in the study."""
    directory, here = model_directory(model), ("models", index)
    if directory is None:
        return
    try:
        if not isinstance(model.source, PackageSource):
            require_readable(directory)
        files = weight_files(directory, allows_pickle=model.pickle == "allow")
    except EnvironmentProblem as problem:
        yield Mistake(here, f"models[{index}]: {problem.message}", problem.hint or "")
        return
    architecture, depth = known_architecture(config.get("model_type")), depth_of(config)
    names = tensor_names(files)
    if architecture is not None and depth is not None and names:
        present = present_blocks(architecture, names)
        absent = [str(block) for block in range(depth) if block not in present]
        beyond = [str(block) for block in sorted(present) if block >= depth]
        if present and (absent or beyond):
            found = (
                f"no weights of layer {', '.join(absent)}" if absent else f"weights of layer {', '.join(beyond)} too"
            )
            text = f"models[{index}]: the {depth} layers of {model.name}'s config.json are 0 to {depth - 1}; there are {found}"
            yield Mistake(here, text, "save or download the checkpoint again, or correct its config.json")
    rows, largest = vocabulary_rows(config), largest_id(directory)
    if rows is not None and largest is not None and largest[0] >= rows:
        text, hint = too_many_ids(*largest, rows)
        yield Mistake(here, f"models[{index}]: {model.name}: {text}", hint)
