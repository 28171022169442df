"""Weight space: what a run's updates cost to measure, against two other ways of computing the same numbers.

    python benchmarks/drift/weights.py [--runs 5] [--layers 30] [--kinds full lora] [--device cuda]

The base is SmolLM2-135M; each run differs from it by a random update of the size that fine-tuning makes. README.md next to
this says what the sides are. Results: results/weights-<machine>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import clock
import ratios
import torch
from torch import Tensor

from lorascope.drift.updates import LowRank, Matrix, WeightUpdate, base_matrices
from lorascope.drift.weights import measure_updates

RANK, FULL_SCALE, LORA_SCALE, TOP, THRESHOLD = 8, 3e-3, 0.05, 10, 0.5
Spectrum = tuple[list[float], int, int]
"""Singular values of an update, intruders of the tuned matrix, intruders of the random control."""


def matrices_of(model: str, layers: int) -> list[Matrix]:
    """The linear weights of the first blocks."""
    from lorascope.engine.warm import Warm
    from lorascope.models.catalog import describe_model
    from lorascope.models.heads import Head
    from lorascope.models.loading import load_base
    from lorascope.study.spec import ModelSpec

    identity, locations = describe_model(ModelSpec(name=model))
    head = Head("AutoModelForSequenceClassification", {"num_labels": 2})
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(
            identity, head=head, pad_token_id=0, device="cpu",
            locations=locations, cache_dir=Path(folder), warm=Warm(),
        )  # fmt: skip
        return [m for m in base_matrices(base) if m.layer is not None and m.layer < layers]


def update_of(matrix: Matrix, kind: str, generator: torch.Generator) -> WeightUpdate:
    """full: noise and a few strong directions. lora: query and value by rank 8."""
    out, width = matrix.weight.shape
    size = float(matrix.weight.std())

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "full":
        change = FULL_SCALE * size * (draw(out, width) + 0.7 * draw(out, 16) @ draw(16, width))
        return WeightUpdate(matrix, matrix.weight + change)
    if matrix.site not in ("query", "value"):
        return WeightUpdate(matrix, None)
    return WeightUpdate(matrix, LowRank(LORA_SCALE * size * draw(out, RANK), draw(RANK, width)))


# --------------------------------------------------------------------------------------------------------------- sides


def ours(runs: Sequence[Sequence[WeightUpdate]], device: str) -> list[list[Spectrum]]:
    """An arm: all runs together, nothing known of the base beforehand."""
    generator = torch.Generator().manual_seed(0)
    found = measure_updates(zip(*runs, strict=True), generator=generator, device=device, known_vectors={})
    return [
        [(list(d.singular_values), d.intruders.count, d.control.count) for d in of_run if d.changed] for of_run in found
    ]


def batched(runs: Sequence[Sequence[WeightUpdate]], device: str) -> list[list[Spectrum]]:
    """Run by run, matrices of one shape in a batch, the batch's decompositions one after the other with all threads (or
    on the accelerator). The base's vectors are kept from the first run on."""
    known: dict[str, Tensor] = {}
    found = []
    for run in runs:
        generator, of_run = torch.Generator().manual_seed(0), {}
        groups: dict[Any, list[tuple[int, Tensor, Tensor, Tensor]]] = {}
        names = [u.matrix.name for u in run if u.change is not None]
        for position, tensors in enumerate(dense(run, generator)):
            groups.setdefault(tensors[0].shape, []).append((position, *tensors))
        for shape, group in groups.items():
            positions, parts = [g[0] for g in group], zip(*(g[1:] for g in group), strict=True)
            weight, update, random = (torch.stack(list(part)).to(device).double() for part in parts)
            values = torch.linalg.eigvalsh(smaller_gram(update)).clamp_min(0).sqrt().flip(-1)
            random *= (torch.linalg.matrix_norm(update) / torch.linalg.matrix_norm(random))[:, None, None]
            if any(names[p] not in known for p in positions):
                known |= dict(zip((names[p] for p in positions), left_vectors(weight, min(shape)), strict=True))
            base = torch.stack([known[names[p]] for p in positions])
            counts = [intruders(base, left_vectors(weight + change, TOP)) for change in (update, random)]
            for i, position in enumerate(positions):
                of_run[position] = (values[i, :64].tolist(), counts[0][i], counts[1][i])
        found.append([of_run[position] for position in sorted(of_run)])
    return found


def published(runs: Sequence[Sequence[WeightUpdate]], device: str) -> list[list[Spectrum]]:
    """As papers describe it: singular value decompositions of update, base, tuned and control, matrix by matrix."""
    found = []
    for run in runs:
        of_run = []
        for weight, update, random in dense(run, torch.Generator().manual_seed(0)):
            weight, update, random = (part.to(device).double() for part in (weight, update, random))
            random = random * (update.norm() / random.norm())
            values = torch.linalg.svdvals(update)
            base = torch.linalg.svd(weight, full_matrices=False)[0]
            tops = [torch.linalg.svd(weight + change, full_matrices=False)[0][:, :TOP] for change in (update, random)]
            of_run.append((values[:64].tolist(), *(intruders(base, top)[0] for top in tops)))
        found.append(of_run)
    return found


def dense(run: Sequence[WeightUpdate], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(weight, update, random update) of each changed matrix, float64 where factors are multiplied."""
    for update in run:
        weight, change = update.matrix.weight, update.change
        out, width = weight.shape
        if isinstance(change, LowRank):
            factors = (
                torch.randn(out, change.rank, generator=generator),
                torch.randn(change.rank, width, generator=generator),
            )
            left, right = (factor.double() for factor in factors)
            yield weight, change.left.double() @ change.right.double(), left @ right
        elif change is not None:
            control = torch.randn(out, width, generator=generator)
            yield weight, change.double() - weight.double(), control


def smaller_gram(matrices: Tensor) -> Tensor:
    return matrices @ matrices.mT if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT @ matrices


def left_vectors(matrices: Tensor, top: int) -> Tensor:
    vectors = torch.linalg.eigh(smaller_gram(matrices)).eigenvectors.flip(-1)[..., :top]
    if matrices.shape[-2] <= matrices.shape[-1]:
        return vectors
    vectors = matrices @ vectors
    return vectors / vectors.norm(dim=-2, keepdim=True)


def intruders(base: Tensor, top: Tensor) -> list[int]:
    found = ((base.mT @ top).abs().amax(-2) < THRESHOLD).sum(-1)
    return found.flatten().tolist()


SIDES: dict[str, Callable[..., list[list[Spectrum]]]] = {
    "lorascope": ours,
    "batched decompositions, run by run": batched,
    "published: an SVD each": published,
}


# ---------------------------------------------------------------------------------------------------------------- main


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    base = matrices_of(given.model, given.layers)
    for kind in given.kinds:
        runs = []
        for seed in range(given.runs):
            generator = torch.Generator().manual_seed(1000 + seed)
            runs.append([update_of(matrix, kind, generator) for matrix in base])
        sides = {name: SIDES[name] for name in SIDES if given.published or name != "published: an SVD each"}
        found = {name: side(runs, given.device) for name, side in sides.items()}
        agreement = {name: compared(found["lorascope"], other) for name, other in found.items() if name != "lorascope"}
        seconds = clock.seconds_in_turn(
            {name: partial(side, runs, given.device) for name, side in sides.items()},
            repeats=given.repeats, device=given.device, warm_up=False,
        )  # fmt: skip
        changed = len(found["lorascope"][0])
        work = (
            f"weight space of {given.runs} {kind} runs of {given.model}, {changed} matrices each, {given.layers} layers"
        )
        per_run = {name: [value / given.runs for value in values] for name, values in seconds.items()}
        for name in list(sides)[1:]:
            row = clock.compared(f"{work}: seconds a run", per_run["lorascope"], per_run[name], peer_name=name)
            yield {**row, "agreement": agreement[name]}


def compared(one: list[list[Spectrum]], two: list[list[Spectrum]]) -> dict[str, Any]:
    """The largest relative difference of singular values (those above 1e-6 of the largest), and how many matrices differ
    in a count."""
    worst, differing, total, number = 0.0, 0, 0, 0
    for (values, *counts), (others, *other_counts) in (
        pair for a, b in zip(one, two, strict=True) for pair in zip(a, b, strict=True)
    ):
        pairs = [(v, w) for v, w in zip(values, others, strict=False) if v > 1e-6 * values[0]]
        worst = max(worst, *(abs(v - w) / v for v, w in pairs))
        differing += counts != other_counts
        total += sum(counts)
        number += 1
    return {
        "largest_relative_error": worst,
        "matrices_with_other_counts": differing,
        "intruders": total,
        "matrices": number,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Weight-space measures against other ways to compute them.")
    parser.add_argument("--model", default="smollm2-135m", help="a registered model")
    parser.add_argument("--layers", type=int, default=30, help="blocks measured")
    parser.add_argument("--runs", type=int, default=5, help="runs of an arm")
    parser.add_argument("--kinds", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--published", action="store_true", help="the slowest side too")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    chip = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else f"threads: {given.threads}"
    load = os.getloadavg()[0]
    found = ratios.described(
        rows(given),
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; {chip}",
        versions={"python": platform.python_version(), "torch": torch.__version__},
        command=ratios.command_line("benchmarks/drift/weights.py"),
        load_before=load,
    )
    kind = "cuda" if given.device.startswith("cuda") else f"{given.threads}threads"
    name = f"weights-{platform.machine()}-{kind}-{datetime.date.today().isoformat()}.json"
    output = given.output or Path(__file__).parent / "results" / name
    ratios.write_list(output, found)
    for row in found:
        print(f"{row['work']}: {row['ours']:.3g} v {row['peer']:.3g} s ({row['peer_name']}), {ratios.spelled_ratio(row)}; "
              f"{row['agreement']}")  # fmt: skip


if __name__ == "__main__":
    main()
