"""The files of a checkpoint's directory: which of them are read, and whether they may be, seen without loading a weight.

Weights are read from safetensors alone, unless the study allows pickles; no file outside the directory is read, no code that
comes with a checkpoint is run. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DESCRIBING = (
    "config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "special_tokens_map.json", "added_tokens.json",
    "chat_template.*", "additional_chat_templates/*", "bpe.codes", "dict.txt", "*.tiktoken", "preprocessor_config.json",
    "processor_config.json", "*.index.json",
)  # fmt: skip
_NAMES_CODE = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_NEVER_READ = ("special_tokens_map_file", "added_tokens_file", "tokenizer_config_file")
"""Paths of the machine that saved a tokenizer, which transformers passes over."""
_LARGEST_HEADER = 100_000_000
"""Bytes: what the safetensors library accepts."""
_CONVERT = (
    "save them as safetensors: `AutoModel.from_pretrained(DIR).save_pretrained(NEW)` with the class of the checkpoint, on a "
    "machine where you trust them; or write `pickle: allow` in the model's entry, and only their tensors are read"
)


def identifying_files(directory: Path) -> list[Path]:
    """Every file that what a model computes depends on, in order: config, tokenizer, index files, weights and the shards
    that an index names. Raises EnvironmentProblem for an index that names a file outside the directory, or none."""
    found = {file for pattern in (*_DESCRIBING, *WEIGHTS) for file in directory.glob(pattern) if file.is_file()}
    for name in (_SAFE[1], _PICKLED[1]):
        if (directory / name).is_file():
            found.update(shards(directory / name))
    return sorted(found)


def require_readable(directory: Path) -> None:
    """Raises EnvironmentProblem for a directory that is an adapter, asks for code of its own, is quantised, or has files that
    lead out of it."""
    if (directory / "adapter_config.json").is_file():
        raise EnvironmentProblem(
            f"{directory} is an adapter (it has adapter_config.json), not a model",
            hint="give the base model, or merge the adapter into it: "
            "`PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(NEW)`",
        )
    for file in sorted(directory.iterdir()):
        if file.exists() and not file.is_file() and not file.is_dir():  # reading it could wait for ever
            raise EnvironmentProblem(
                f"{file} is a pipe, a socket or a device, not a file",
                hint="put the file itself in its place, or remove it",
            )
    for name in _NAMES_CODE:
        if json_object(directory / name).get("auto_map"):
            raise EnvironmentProblem(
                f"{directory} comes with code of its own ({name}: auto_map), which lorascope does not run",
                hint="use a checkpoint of an architecture that transformers knows; where its own code reads this one as it "
                f"should, remove `auto_map` from the {name} of a local copy and give `source: {{path: COPY}}`",
            )
    if json_object(directory / "config.json").get("quantization_config"):
        raise EnvironmentProblem(
            f"the weights in {directory} are quantised (config.json: quantization_config), which lorascope does not train",
            hint="give the checkpoint in full precision that they were made from",
        )
    ends = (".json", ".txt", ".model", ".spm", ".jinja", ".safetensors", *_PICKLE_ENDS)
    for file in sorted({*directory.iterdir(), *directory.glob("additional_chat_templates/*")}):
        if file.suffix in ends:
            _require_inside(directory, file.relative_to(directory), f"{file.name} leads out of it")
    tokenizer = json_object(directory / "tokenizer_config.json")
    given = [value for key, value in tokenizer.items() if key.endswith("_file") and key not in _NEVER_READ]
    more = tokenizer.get("fast_tokenizer_files")
    for name in (*given, *(more if isinstance(more, list) else ())):
        if isinstance(name, str):
            _require_inside(directory, Path(name), f"tokenizer_config.json names {name}")


def weight_files(directory: Path, *, allows_pickle: bool) -> tuple[Path, ...]:
    """The files that hold the weights, in order; each safetensors file is whole.

    Raises EnvironmentProblem for weights that are absent, pickled without leave, cut short, or outside the directory.
    """
    named = json_object(directory / "config.json").get("transformers_weights")
    choices = [(named, "")] if isinstance(named, str) else [_SAFE, _PICKLED]
    for whole, index in choices:
        found: list[Path] = []
        if (directory / whole).is_file():
            found = [directory / whole]
            _require_inside(directory, Path(whole), f"config.json names {whole}")
        elif index and (directory / index).is_file():
            found = shards(directory / index)
        for file in found:
            if file.suffix == ".safetensors":
                require_whole(file)
            elif not allows_pickle:
                raise _pickled(directory, file)
        if found:
            return tuple(found)
    others = sorted(file for file in directory.iterdir() if file.suffix in (".safetensors", ".gguf", *_PICKLE_ENDS))
    if (pickles := [file for file in others if file.suffix in _PICKLE_ENDS]) and not allows_pickle:
        raise _pickled(directory, pickles[0])
    there = f" under a name that transformers reads (it has {', '.join(f.name for f in others[:3])})" if others else ""
    raise EnvironmentProblem(
        f"{directory} holds no weights{there}",
        hint=f"expected {_SAFE[0]}, or {_SAFE[1]} and its shards, beside config.json",
    )


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises EnvironmentProblem for one that is absent, or outside the index's directory."""
    named = json_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise EnvironmentProblem(
            f"{index} names no shards (`weight_map` is missing or not a table of names)",
            hint="save the checkpoint again, or download its index anew",
        )
    names = sorted(set(named.values()))
    for name in names:
        _require_inside(index.parent, Path(name), f"{index.name} names {name}")
        if not (index.parent / name).is_file():
            raise EnvironmentProblem(
                f"{index} names {name}, which is not there", hint="copy or download every shard that the index names"
            )
    return [index.parent / name for name in names]


def tensor_names(files: Sequence[Path]) -> list[str]:
    """The tensors that safetensors files hold, from their headers."""
    return [name for file in files if file.suffix == ".safetensors" for name in require_whole(file)]


def require_whole(file: Path) -> list[str]:
    """The names of a safetensors file's tensors. Raises EnvironmentProblem for one that is cut short, or is none."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise EnvironmentProblem(
                f"{file} is a pointer of Git LFS, not weights", hint="fetch the file itself: `git lfs pull`"
            )
        if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise _damaged(file, f"its {size:,} bytes do not hold the header they announce")
        text = opened.read(length)
    try:
        header = json.loads(text)
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        announced = 8 + length + max(ends.values(), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise _damaged(file, "its header cannot be read") from None
    if announced != size:
        raise _damaged(file, f"its header announces {announced:,} bytes, and it has {size:,}")
    return list(ends)


def _damaged(file: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{file} is cut short or no safetensors file: {why}", hint="copy or download the file again"
    )


def _pickled(directory: Path, file: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the weights in {directory} are pickled ({file.name}), and unpickling can run any program",
        hint=_CONVERT,
    )


def _require_inside(directory: Path, name: Path, how: str) -> None:
    """name: relative to the directory, or absolute. how: it comes to be read, in words."""
    root = directory.resolve()
    try:
        real = (directory / name).resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise EnvironmentProblem(
            f"{directory / name} cannot be read: {error}", hint="put the file itself in its place"
        ) from None
    if not any(real.is_relative_to(place) for place in (root, *_hub_blobs(root))):
        raise EnvironmentProblem(
            f"{directory}: {how}, and nothing outside the directory is read ({real})",
            hint="copy the file into the directory (`cp -L`)",
        )


def _hub_blobs(root: Path) -> Iterator[Path]:
    """Where the links of a snapshot in the hub's cache may lead: models--OWNER--NAME/snapshots/COMMIT -> .../blobs."""
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        yield root.parent.parent / "blobs"


def json_object(file: Path) -> Mapping[str, Any]:
    """What a file holds; nothing where it is absent or unreadable, which whoever reads it for its own sake says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
