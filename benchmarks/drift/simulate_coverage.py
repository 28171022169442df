"""How often the bootstrap's 95% percentile interval holds the true CKA, on features whose CKA is known.

    python benchmarks/drift/simulate_coverage.py [--samples 400] [--draws 500] [--only NAME] [--output FILE]

Features of the base are Gaussian with a diagonal covariance S; a model's are base @ T + noise of covariance e^2 S, so
its linear CKA to the base is ||S T||_F^2 / (||S||_F ||T' S T + e^2 S||_F). T is the identity plus `drift` times a random
matrix. A second model with its own T gives the true difference of two. "Copies" takes an example's copies in a resample
for different examples, which is what gathering rows does. Prints the table of docs/drift.md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import bootstrap
import numpy as np
import torch

from lorascope.drift.grams import grams
from lorascope.drift.resampling import bootstrap_cka, bootstrap_counts
from lorascope.drift.similarity import linear_cka


@dataclass(frozen=True)
class Scenario:
    """spectrum: variance of feature k is (k + 1)^-spectrum. outlier: variance of one feature as a multiple of all others'.
    drift: None means independent of the base. heavy_tails: each example's features are scaled by one |t_5|-like factor,
    which multiplies all covariances alike and so leaves the true CKA."""

    examples: int
    hidden: int
    spectrum: float
    drift: float | None
    outlier: float = 0.0
    heavy_tails: bool = False


SCENARIOS: Mapping[str, Scenario] = {
    "isotropic": Scenario(64, 256, 0.0, 0.3),
    "decaying spectrum": Scenario(64, 256, 1.0, 0.3),
    "decaying spectrum, more examples": Scenario(256, 256, 1.0, 0.3),
    "decaying spectrum, 750 examples": Scenario(750, 576, 1.0, 0.3),
    "small drift": Scenario(256, 256, 1.0, 0.02),
    "one outlier feature": Scenario(256, 256, 1.0, 0.3, outlier=1.0),
    "heavy-tailed examples": Scenario(256, 256, 1.0, 0.3, heavy_tails=True),
    "independent": Scenario(64, 256, 0.0, None),
}


def simulate(name: str, *, samples: int, draws: int, copies: int = 60) -> dict[str, float | str | int]:
    """Coverage over `samples` samples; of the copies' interval over the first `copies`."""
    scenario = SCENARIOS[name]
    rng = np.random.default_rng(0)
    variances = (1.0 + np.arange(scenario.hidden)) ** -scenario.spectrum
    variances[0] += scenario.outlier * variances.sum()
    models = [_model(scenario, variances, rng) for _ in range(2)]
    truth = np.array([_population_cka(variances, *model) for model in models])
    estimates, covered, covered_normal, covered_difference, copies_covered, copies_centre, spread = (
        [] for _ in range(7)
    )
    for sample in range(samples):
        features = _features(scenario, variances, models, rng)
        base, *others = [grams(torch.from_numpy(x[None])) for x in features]
        counts = bootstrap_counts(scenario.examples, generator=rng, draws=draws)
        drawn = bootstrap_cka(base, others, counts=counts)[..., 0].numpy()
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        covered.append(((low <= truth) & (truth <= high)).mean())
        low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975])
        covered_difference.append(low <= truth[0] - truth[1] <= high)
        found = np.array([linear_cka(base, other).item() for other in others])
        covered_normal.append((np.abs(found - truth) <= 1.96 * drawn.std(0, ddof=1)).mean())
        estimates.append(found[0])
        spread.append(drawn[:, 0].std())
        if sample < copies:
            values = _of_copies(*features[:2], counts[:200])
            low, high = np.quantile(values, [0.025, 0.975])
            copies_covered.append(low <= truth[0] <= high)
            copies_centre.append(np.median(values))
    return {
        "scenario": name,
        "examples": scenario.examples,
        "hidden": scenario.hidden,
        "true_cka": float(truth[0]),
        "mean_estimate": float(np.mean(estimates)),
        "sd_of_estimates": float(np.std(estimates)),
        "mean_bootstrap_sd": float(np.mean(spread)),
        "coverage": float(np.mean(covered)),
        "coverage_of_estimate_plus_minus_1.96_sd": float(np.mean(covered_normal)),
        "coverage_of_differences": float(np.mean(covered_difference)),
        "copies_coverage": float(np.mean(copies_covered)),
        "copies_centre": float(np.mean(copies_centre)),
        "samples": samples,
        "draws": draws,
    }


def table(rows: list[dict]) -> str:
    """The results as docs/drift.md shows them."""
    lines = [
        "| features | n x d | true CKA | mean estimate | its sd | bootstrap sd | coverage | of differences "
        "| copies: coverage | copies: centre |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['scenario']} | {r['examples']} x {r['hidden']} | {r['true_cka']:.5f} | {r['mean_estimate']:.5f} | "
            f"{r['sd_of_estimates']:.2g} | {r['mean_bootstrap_sd']:.2g} | {r['coverage']:.1%} | "
            f"{r['coverage_of_differences']:.1%} | {r['copies_coverage']:.0%} | {r['copies_centre']:.5f} |"
        )
    return "\n".join(lines)


def _model(scenario: Scenario, variances: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """T and the variance of its noise as a multiple of S."""
    if scenario.drift is None:
        return np.zeros((scenario.hidden, scenario.hidden)), 1.0
    mixing = rng.normal(size=(scenario.hidden, scenario.hidden)) / math.sqrt(scenario.hidden)
    return np.eye(scenario.hidden) + scenario.drift * mixing, scenario.drift**2 / 2


def _population_cka(variances: np.ndarray, transform: np.ndarray, noise: float) -> float:
    cross = variances[:, None] * transform
    own = transform.T @ cross + noise * np.diag(variances)
    return float(np.sum(cross**2) / (np.linalg.norm(variances) * np.linalg.norm(own)))


def _features(scenario: Scenario, variances: np.ndarray, models: list, rng: np.random.Generator) -> list[np.ndarray]:
    shape, scale = (scenario.examples, scenario.hidden), np.sqrt(variances)
    base = rng.normal(size=shape) * scale
    features = [base, *(base @ t + math.sqrt(noise) * scale * rng.normal(size=shape) for t, noise in models)]
    if scenario.heavy_tails:
        factor = np.sqrt(5 / rng.chisquare(5, size=(scenario.examples, 1)))
        features = [factor * x for x in features]
    return features


def _of_copies(first: np.ndarray, second: np.ndarray, counts: torch.Tensor) -> np.ndarray:
    """CKA of resampled rows, each taken for an example of its own."""
    gram = [torch.from_numpy(x @ x.T) for x in (first - first.mean(0), second - second.mean(0))]
    return bootstrap.a_resample_at_a_time(*gram, counts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the bootstrap of debiased CKA.")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--only", choices=list(SCENARIOS), default=None)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    given = parser.parse_args()
    about = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "command": shlex.join(["python", "benchmarks/drift/simulate_coverage.py", *sys.argv[1:]]),
    }
    names = [given.only] if given.only else list(SCENARIOS)
    rows = [{**simulate(name, samples=given.samples, draws=given.draws), **about} for name in names]
    given.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
