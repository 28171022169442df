"""Attention sinks: decided on the base alone, left out of a mean for every run alike, and measured by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import nn
from transformers import AutoTokenizer

from lorascope.data.columns import ColumnStore
from lorascope.drift.extraction import PooledSites, Shown, read_runs
from lorascope.drift.grams import grams
from lorascope.drift.similarity import linear_cka
from lorascope.drift.sinks import SINK_FACTOR, Sinks
from lorascope.models.blocks import find_blocks

POOLINGS: Mapping[str, PooledSites] = {
    name: PooledSites(name, ("residual",))  # type: ignore[arg-type]
    for name in ("decision-token", "non-sink-mean", "mean")
}
LAST = 2  # the tiny model has two blocks


@pytest.fixture(scope="module")
def llama(tiny_checkpoints: dict[str, Path]) -> nn.Module:
    return tiny_base(tiny_checkpoints["llama"]).model


@pytest.fixture(scope="module")
def columns(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ColumnStore:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["llama"])
    return tiny_columns(tmp_path_factory.mktemp("columns") / "llama", tiny_examples(40), tokenizer)


def with_first_token(model: nn.Module, size: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy whose last block gives the first token of an example so many times its state. size: of the state's first value,
    [examples], so that it differs between examples."""
    changed = copy.deepcopy(model)

    def enlarge(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        first = output[:, :1] * size(output[:, 0, 0])[:, None, None]
        return torch.cat([first, output[:, 1:]], dim=1)

    find_blocks(changed).blocks[-1].register_forward_hook(enlarge)
    return changed


def read(model: nn.Module, columns: ColumnStore, *, sinks: Sinks | None = None, max_tokens: int | None = None) -> Shown:
    return read_runs(
        model, columns, reading=tiny_reading(), wanted=POOLINGS, names=["it"], sinks=sinks, max_tokens=max_tokens
    )


def drift(base: Shown, run: Shown, pooling: str) -> float:
    """Of the last block's output."""
    first, second = (grams(shown.features[0][pooling]["residual"][LAST:]) for shown in (base, run))
    return float(1 - linear_cka(first, second))


def test_a_change_of_the_sinks_norm_alone_is_no_drift(llama: nn.Module, columns: ColumnStore) -> None:
    base = read(with_first_token(llama, lambda x: 200 + 0 * x), columns)
    run = read(with_first_token(llama, lambda x: 200 + 150 * torch.sign(x)), columns, sinks=base.sinks)
    assert drift(base, run, "decision-token") == pytest.approx(0, abs=1e-9)
    assert drift(base, run, "non-sink-mean") == pytest.approx(0, abs=1e-9)
    assert drift(base, run, "mean") > 0.01
    share, norm, change = (getattr(run.figures[0], name)["residual"][LAST] for name in ("share", "norm", "change"))
    assert share == pytest.approx(len(columns) / columns.lengths.sum())
    assert norm > SINK_FACTOR and abs(change) > 0.01


def test_a_sink_that_only_a_run_has_is_not_left_out_of_its_mean(llama: nn.Module, columns: ColumnStore) -> None:
    base = read(llama, columns)
    run = read(with_first_token(llama, lambda x: 200 + 150 * torch.sign(x)), columns, sinks=base.sinks)
    assert not any((norms > 0).any() for norms in base.sinks.norms.values())
    features = run.features[0]
    torch.testing.assert_close(features["non-sink-mean"]["residual"], features["mean"]["residual"])
    assert drift(base, run, "non-sink-mean") > 0.1
    assert base.figures[0].share["residual"][LAST] == 0 < run.figures[0].share["residual"][LAST]
    assert np.isnan(run.figures[0].change["residual"]).all()


def test_sinks_depend_neither_on_batches_nor_on_padding(llama: nn.Module, columns: ColumnStore) -> None:
    model = with_first_token(llama, lambda x: 200 + 150 * torch.sign(x))
    together, one_by_one = read(model, columns), read(model, columns, max_tokens=1)
    for site, norms in together.sinks.norms.items():
        torch.testing.assert_close(one_by_one.sinks.norms[site], norms, rtol=1e-4, atol=1e-4)
        assert ((norms > 0).sum(2)[LAST] == 1).all() and (norms[LAST, :, 0] > 0).all()
        assert not (norms[:LAST] > 0).any(), "the blocks before are as they were"
    for pooling in POOLINGS:
        pair = (shown.features[0][pooling]["residual"] for shown in (one_by_one, together))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-3)


def test_the_mean_without_sinks_is_that_of_the_other_tokens(llama: nn.Module, columns: ColumnStore) -> None:
    plain = read(llama, columns).features[0]["mean"]["residual"][LAST]
    base = read(with_first_token(llama, lambda x: 1000 + 0 * x), columns).features[0]
    lengths = torch.from_numpy(np.asarray(columns.lengths)).float()[:, None]
    enlarged, without = base["mean"]["residual"][LAST], base["non-sink-mean"]["residual"][LAST]
    first = (enlarged - plain) * lengths / 999
    torch.testing.assert_close(without, (plain * lengths - first) / (lengths - 1), rtol=1e-3, atol=1e-3)
