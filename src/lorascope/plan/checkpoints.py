"""What the files of a study's models show before anything starts: whether they may be read, are whole, and fit each other.

Only names, sizes and headers are looked at; the values of weights are compared when a model is loaded (models/reading.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem
from lorascope.models.architectures import known_architecture
from lorascope.models.blocks import usual_parts
from lorascope.models.catalog import source_of
from lorascope.models.checkpoint_files import require_readable, tensor_names, weight_files
from lorascope.models.config_facts import depth_of, present_blocks, vocabulary_rows
from lorascope.models.configuration import model_directory
from lorascope.models.tokenizer_files import has_vocabulary, largest_id, no_vocabulary, too_many_ids
from lorascope.study.loading.document import Mistake
from lorascope.study.measure import DriftSpec
from lorascope.study.spec import HubSource, ModelSpec, PackageSource, PathSource


def check_checkpoint(
    model: ModelSpec,
    config: Mapping[str, Any],
    index: int,
    *,
    drift: DriftSpec | None = None,
    reads_text: bool = True,
) -> Iterator[Mistake]:
    """Every mistake that a model's directory shows. index: of the model in the study. drift: what is measured of it.
    reads_text: whether it needs a tokenizer."""
    directory, here = model_directory(model), ("models", index)
    if directory is None:
        return
    source = source_of(model)
    files: Sequence[Path] = ()
    try:
        if not isinstance(source, PackageSource):
            require_readable(directory)
        if not isinstance(source, HubSource) or is_downloaded(directory):
            files = weight_files(directory, allows_pickle=model.pickle == "allow")
    except EnvironmentProblem as problem:
        yield Mistake(here, f"models[{index}]: {problem.message}", problem.hint or "")
        return
    architecture, depth = known_architecture(config.get("model_type")), depth_of(config)
    names = tensor_names(files)
    if architecture is not None and depth is not None and names:
        present = present_blocks(architecture, names)
        # config.json may announce any number of layers: the first few that are absent say enough
        absent = _few(str(block) for block in range(depth) if block not in present)
        beyond = _few(str(block) for block in sorted(present) if block >= depth)
        if present and (absent or beyond):
            found = (
                f"no weights of layer {', '.join(absent)}" if absent else f"weights of layer {', '.join(beyond)} too"
            )
            text = f"models[{index}]: the {depth} layers of {model.name}'s config.json are 0 to {depth - 1}; there are {found}"
            yield Mistake(here, text, "save or download the checkpoint again, or correct its config.json")
    one_stack = architecture is None and depth is not None and not config.get("is_encoder_decoder")
    if drift is not None and one_stack and depth is not None and names:
        yield from _parts(model, names, drift, depth)
    if reads_text and files and not has_vocabulary(directory):
        text, hint = no_vocabulary(directory)
        yield Mistake(here, f"models[{index}]: {text}", hint)
    rows, largest = vocabulary_rows(config), largest_id(directory)
    if rows is not None and largest is not None and largest[0] >= rows:
        text, hint = too_many_ids(*largest, rows)
        yield Mistake(here, f"models[{index}]: {model.name}: {text}", hint)


def is_downloaded(snapshot: Path) -> bool:
    """Whether a snapshot of the hub's cache holds weights, and all shards that its index names."""
    try:
        weight_files(snapshot, allows_pickle=True)
    except EnvironmentProblem:
        return False
    return True


def lacks_weights(model: ModelSpec) -> bool:
    """Whether a hub model's config.json is on this machine, and its weights are not."""
    directory = model_directory(model)
    return directory is not None and isinstance(source_of(model), HubSource) and not is_downloaded(directory)


def check_config(model: ModelSpec, config: Mapping[str, Any] | None, index: int) -> Iterator[Mistake]:
    """A directory's config.json that is absent, unreadable, or names no architecture."""
    if not isinstance(model.source, PathSource) or not Path(model.source.path).expanduser().is_dir():
        return
    path = Path(model.source.path).expanduser() / "config.json"
    if config is None:
        found = "is not a JSON object" if path.is_file() else "is not a file" if path.exists() else "does not exist"
    elif not isinstance(config.get("model_type"), str):
        found = "names no `model_type`"
    else:
        return
    text = f"models[{index}]: {path} {found}, so nothing says which architecture {model.name} has"
    yield Mistake(("models", index), text, "give the directory that `save_pretrained` wrote")


def _parts(model: ModelSpec, names: Sequence[str], drift: DriftSpec, depth: int) -> Iterator[Mistake]:
    """Sites of drift that an architecture outside the table has no modules for, by the usual names (models/blocks.py)."""
    parts = usual_parts(names, depth)
    absent = [site for site in drift.sites if site not in parts]
    if absent:
        text = (
            f"measure.drift.sites: no {' and no '.join(absent)} of {model.name} can be told by the names of its weights"
        )
        hint = f"measure {', '.join(parts)} alone" if parts else "leave drift out for this model"
        yield Mistake(("measure", "drift", "sites"), text, hint)


def _few(names: Iterator[str], *, limit: int = 6) -> list[str]:
    found = list(islice(names, limit + 1))
    return found if len(found) <= limit else [*found[:limit], "..."]
