"""From a model's identity to an ordinary checkpoint directory that transformers, peft and vLLM can all read.

A GGUF file is de-quantised once and kept as a plain checkpoint in the store's cache; a hub model is fetched at its
pinned commit; everything else already is a directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem
from lorascope.models.catalog import MODEL_LOCATION
from lorascope.models.checkpoint_files import require_readable
from lorascope.models.reading import listed, reading_checkpoint


def checkpoint_directory(model: Mapping[str, Any], *, locations: Mapping[str, str], cache_dir: Path) -> Path:
    """The directory with config.json, weights and tokenizer of `model` (identity literals of `describe_model`).

    Raises EnvironmentProblem naming what to install or download if it cannot be had on this machine, and for a directory
    that may not be read (`models.checkpoint_files.require_readable`).
    """
    if "hub" in model:
        directory = _hub_snapshot(model["hub"], model["revision"], allows_pickle=allows_pickle(model))
        require_readable(directory)
        return directory
    location = Path(locations[MODEL_LOCATION])
    if not location.exists():
        raise EnvironmentProblem(f"the model's files are gone from {location}", hint="restore them, or run again")
    if location.suffix == ".gguf":
        return _dequantised(location, model, cache_dir)
    if "package" not in model:  # what an installer put there may be links
        require_readable(location)
    return location


def allows_pickle(model: Mapping[str, Any]) -> bool:
    """Whether a model's entry in the study allows weights that lie in a pickle."""
    return model.get("pickle") == "allow"


def _hub_snapshot(repository: str, revision: str, *, allows_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.txt"]
    patterns += ["*.bin"] if allows_pickle else []
    command = f"hf download {repository} --revision {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise EnvironmentProblem(
            f"{repository} is gated on the Hugging Face hub",
            hint=f"accept its licence on its page, then `hf auth login`, then `{command}`",
        ) from None
    except RepositoryNotFoundError:
        raise EnvironmentProblem(
            f"the Hugging Face hub has no model {repository} (or it is private)",
            hint="check the spelling of `source.hub`, or log in with `hf auth login`",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise EnvironmentProblem(
            f"{repository} at {revision[:12]} is neither in the local cache nor reachable ({type(error).__name__})",
            hint=f"on a machine with a connection run `{command}` and copy its cache (HF_HOME), "
            "or name a local copy in the study: source: {path: DIR}",
        ) from None


def _dequantised(gguf: Path, model: Mapping[str, Any], cache_dir: Path) -> Path:
    target = cache_dir / "checkpoints" / f"{gguf.stem}-{model['sha256'][:16]}"
    if target.exists():
        return target
    try:
        import gguf as _gguf  # noqa: F401
    except ImportError:
        raise EnvironmentProblem(f"reading {gguf.name} needs the package `gguf`", hint="pip install gguf") from None
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with reading_checkpoint(gguf):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype="float32", output_loading_info=True
        )
    quantised, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise EnvironmentProblem(
            f"{gguf} lacks {len(lacking)} tensors of a {type(quantised).__name__}: {listed(lacking)}",
            hint="this version of transformers may not know all names of the file: give the checkpoint as safetensors",
        )
    config = AutoConfig.for_model(
        quantised.config.model_type,
        **{k: v for k, v in quantised.config.to_dict().items() if k not in ("quantization_config", "model_type")},
    )
    plain = AutoModelForCausalLM.from_config(config, dtype="float32")
    plain.load_state_dict(quantised.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix="making-"))
    plain.save_pretrained(staging)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
    try:
        os.rename(staging, target)
    except OSError:  # another worker made the same checkpoint first
        shutil.rmtree(staging)
        if not target.exists():
            raise
    return target
