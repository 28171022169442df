"""Training of two source trees of lorascope on one device, side by side: time, memory, and whether the bits agree.

    python benchmarks/numerics/gangs.py OLD/src NEW/src --device cuda:0 --repeats 3 --out FILE.json

Each side trains the same gangs of SmolLM2-135M's shape (random weights, made-up rows of MRPC's lengths) in a process of
its own, in turns. A refactor must leave every loss and weight as it was, and time and memory within 3%. `--side` is what
such a process runs; it knows how both trees are spoken to, so that it can measure one from before a change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {**SHAPE, "vocab_size": 256, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3}  # fmt: skip
GANGS = {
    "lora, 16 runs": {"kind": "lora", "runs": 16, "updates": 120, "compiled": False},
    "full, 4 runs": {"kind": "full", "runs": 4, "updates": 60, "compiled": False},
    "lora, 16 runs, compiled": {"kind": "lora", "runs": 16, "updates": 160, "compiled": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="*", help="two directories that hold the package lorascope")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gangs", nargs="+", default=list(GANGS))
    parser.add_argument("--tiny", action="store_true", help="a model of two layers and 6 updates: to try the script")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--old", default="the tree before", help="what results call the first tree")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        given.out.write_text(json.dumps({name: measure(name, given) for name in given.gangs}))
        return
    about, sides = about_machine(given), {name: [] for name in given.gangs}
    for _ in range(given.repeats):
        old, new = (run_side(tree, given) for tree in given.trees)
        for name in given.gangs:
            sides[name].append([old[name], new[name]])
        ratios.write_list(given.out, comparisons(sides, about))
    for row in comparisons(sides, about):
        figures = f"old {row['peer']:.6g}, new {row['ours']:.6g} {row['unit']}; old/new {row['ratio']:.4f}"
        print(f"{row['work']:50} {figures}; {row['note']}")


def run_side(tree: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What one tree measures, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "side.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--side", "--device", given.device, "--out", str(out)]
        command += ["--precision", given.precision, *(["--tiny"] if given.tiny else []), "--gangs", *given.gangs]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tree.resolve()), os.environ.get("PYTHONPATH", "")]),
        }
        subprocess.run(command, check=True, cwd=folder, env=environment, timeout=570)
        return json.loads(out.read_text())


def comparisons(sides: dict[str, list[list[dict[str, Any]]]], about: dict[str, Any]) -> list[ratios.Row]:
    """Time and memory of every gang, in the format of benchmark results. sides: gang -> its (old, new) of each repeat."""
    rows = []
    for name, repeats in sides.items():
        old, new = ([pair[place] for pair in repeats] for place in (0, 1))
        is_equal = len({side["sha256"] for side in (*old, *new)}) == 1
        for what, key, unit in (("an update and run", "ms", "ms"), ("peak memory", "peak_bytes", "byte")):
            row = ratios.compared(
                f"{name}: {what}", [s[key] for s in new], [s[key] for s in old], peer_name=about["old"], unit=unit
            )
            rows.append({**row, "note": f"losses and weights equal to the last bit: {'yes' if is_equal else 'NO'}"})
    shared = {key: about[key] for key in ("machine", "versions", "command")}
    return ratios.described(rows, **shared)


def about_machine(given: argparse.Namespace) -> dict[str, Any]:
    """What is the same for all comparisons."""
    import torch
    import transformers

    device = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "processor"
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; {device}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": ratios.command_line("benchmarks/numerics/gangs.py"),
        "old": given.old,
    }


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One gang, trained: ms an update and run over the second half, peak memory, and a hash of losses and weights."""
    import torch

    from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory
    from lorascope.training.preparation import make_deterministic

    gang_spec, device = {**GANGS[name], **({"updates": 6} if given.tiny else {})}, given.device
    make_deterministic(device)
    torch.zeros(1, device=device)  # CUDA counts no memory before it is begun
    reset_peak_memory(device)
    gang = make_gang(gang_spec, given)
    losses, half = [], gang_spec["updates"] // 2
    for update in range(gang_spec["updates"]):
        if update == half:
            _wait(device)
            started = time.perf_counter()
        losses.append(gang.advance())
    _wait(device)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256(torch.stack(losses).float().cpu().numpy().tobytes())
    digest.update(gang.flat.values.detach().float().cpu().numpy().tobytes())
    updates = gang_spec["updates"] - half
    found = {
        "ms": 1000 * seconds / updates / gang_spec["runs"],
        "peak_bytes": peak_memory_bytes(device),
        "sha256": digest.hexdigest(),
        "final_loss": float(losses[-1].float().mean()),
        "step": gang.describe_step(),
    }
    gang.close()
    return found


def make_gang(gang_spec: dict[str, Any], given: argparse.Namespace) -> Any:
    """The gang, in the words of the tree that is measured."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from lorascope.models.loading import BaseModel
    from lorascope.study.spec import Seeds, TrainSpec
    from lorascope.training import member
    from lorascope.training.gang import Gang
    from lorascope.training.preparation import method_from_params, prepared_model

    device = given.device
    torch.manual_seed(0)
    with torch.device(device):
        config = LlamaConfig(**(TINY if given.tiny else SHAPE), num_labels=2, pad_token_id=0, use_cache=False)
        model = LlamaForSequenceClassification(config).requires_grad_(False).eval()
    lora = {"rank": 8, "alpha": 16, "dropout": 0.05, "sites": ["query", "value"]} if gang_spec["kind"] == "lora" else {}
    train = TrainSpec.model_validate(
        {"epochs": 1, "batch_size": 16, "precision": given.precision, "early_stopping": None}
    )
    texts = {"label_names": ["no", "yes"], "text_columns": ["text"], "metrics": ["accuracy"]}
    try:
        from lorascope.tasks.classification import Classification
        from lorascope.training.reading import Reading
    except ImportError:  # the tree of before a task was inputs, head and scoring
        from lorascope.data.classification import Classification  # type: ignore[no-redef]

        reads, places = {"task": Classification("made-up", **texts)}, {"pad_token_id": 0, "device": device}
        base = BaseModel(model, ("score",), 0, "made-up", None)
    else:
        reads = {"reading": Reading(Classification("made-up", **texts), 0, device, given.precision)}
        places, base = {}, BaseModel(model, ("score",), 0, "made-up", None, "SEQ_CLS")
    columns = made_up_rows(16 * gang_spec["updates"], vocabulary=config.vocab_size)
    members = []
    for seed in range(1, gang_spec["runs"] + 1):
        recipe = {"train": train, "learning_rate": 5e-4 if lora else 5e-5, "seeds": Seeds.model_validate(seed)}
        callbacks = {"validate": lambda model: {}}
        if hasattr(member, "Recipe"):
            settings = {"recipe": member.Recipe(**recipe), "callbacks": member.Callbacks(**callbacks)}
        else:  # the tree of before a run's settings were two objects
            settings = {**recipe, **callbacks}
        method = method_from_params({"kind": gang_spec["kind"], **lora})
        members.append(member.Member(method=method, columns=columns, **settings, **reads))
    return Gang(
        members,
        prepare=lambda members: prepared_model(base, [m.method for m in members], [m.seeds for m in members]),
        compiles=lambda members: gang_spec["compiled"],
        **places,
    )


def made_up_rows(count: int, *, vocabulary: int) -> Any:
    """Rows of MRPC's lengths (SmolLM2's tokens: 53 on average), random tokens, random classes."""
    import numpy as np

    from lorascope.data.columns import ColumnStore

    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(51), 0.28, size=count)), 18, 110).astype(int)
    columns = {
        "input_ids": [generator.integers(1, vocabulary, size=length).astype(np.int32) for length in lengths],
        "label": [np.asarray(generator.integers(0, 2), dtype=np.int64) for _ in lengths],
    }
    folder = Path(tempfile.mkdtemp()) / "rows"
    ColumnStore.write(folder, columns, [str(index) for index in range(count)])
    return ColumnStore.open(folder)


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
