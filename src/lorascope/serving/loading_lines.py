"""What to write to load an exported directory: with transformers, with peft, with vLLM."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.serving.trained import ADAPTER_CONFIG, SERVED_HEAD, TrainedRun

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that --max-lora-rank takes
_GENERATES = "AutoModelForCausalLM"


@dataclass(frozen=True)
class Places:
    """directory: where the export will lie. base: where the base lies, if it is on no hub. store: which the run is in."""

    directory: str
    base: str
    store: str


def loading_lines(run: TrainedRun, places: Places, *, form: str, workload: str) -> dict[str, str]:
    """tool -> code or command."""
    if form == "adapter":
        lines = _adapter_lines(run, places, workload)
    else:
        auto, place = _auto_class(run, workload), places.directory
        lines = {
            "transformers": f"from transformers import {auto}\nmodel = {auto}.from_pretrained({place!r})",
            "vllm": shlex.join(["vllm", "serve", place, *_runner(auto)]),
        }
    if _auto_class(run, workload) not in (SERVED_HEAD, _GENERATES):  # vLLM is not known to serve such a head
        lines.pop("vllm")
    return lines


def _auto_class(run: TrainedRun, workload: str) -> str:
    """The transformers class that loads the export: the task's own, or the one that generates text."""
    return _GENERATES if workload == "generation" else run.task.head.auto_class


def _adapter_lines(run: TrainedRun, places: Places, workload: str) -> dict[str, str]:
    auto, on_hub = _auto_class(run, workload), run.base.revision is not None
    base = run.base.reference if on_hub else places.base
    options = {"revision": run.base.revision} if on_hub else {}
    if workload == "classification":
        named = ("id2label", "label2id") if run.class_names else ("num_labels",)
        head = {name: value for name, value in run.task.head.config.items() if name in named}
        padding = {} if run.base.pad_token_id is None else {"pad_token_id": run.base.pad_token_id}
        options |= head | padding
        if run.base.origin is not None and run.base.origin.replaced:  # the base comes with a head for another task
            options["ignore_mismatched_sizes"] = True
    arguments = ", ".join([repr(base), *(f"{name}={value!r}" for name, value in options.items())])
    peft = (
        f"from peft import PeftModel\nfrom transformers import {auto}\n"
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({arguments}), {places.directory!r})"
    )
    return {"peft": peft, "vllm": _vllm_with_adapter(run, base, places, workload)}


def _vllm_with_adapter(run: TrainedRun, base: str, places: Places, workload: str) -> str:
    place = places.directory
    rank = _largest_rank(json.loads((run.export / ADAPTER_CONFIG).read_text()))
    served = base
    before: list[str] = []
    if workload == "classification" and run.task.head.is_new:  # vLLM needs a base that has a head to be replaced
        served = f"{place}-base"
        before = [
            shlex.join(["lorascope", "export", run.id, "--format", "base", "--to", served, "--store", places.store])
        ]
    revision = ["--revision", run.base.revision] if served == base and run.base.revision else []
    largest = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), rank)
    command = [
        "vllm", "serve", served, *revision, *_runner(_auto_class(run, workload)), "--enable-lora",
        "--max-lora-rank", str(largest), "--lora-modules", f"{Path(place).name}={place}",
    ]  # fmt: skip
    return "\n".join([*before, shlex.join(command)])


def _largest_rank(config: dict[str, Any]) -> int:
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def _runner(auto_class: str) -> list[str]:
    return ["--runner", "pooling"] if auto_class == SERVED_HEAD else []
