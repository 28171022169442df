"""Which pooling a model's drift in one number is by."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_base

from lorascope.drift.poolings import ordered_poolings
from lorascope.errors import StudyError
from lorascope.models import blocks
from lorascope.models.architectures import Architecture
from lorascope.models.heads import Head
from lorascope.models.loading import BaseModel
from lorascope.study.measure import DriftSpec

CLASSES, SPANS = Head("AutoModelForSequenceClassification"), Head("AutoModelForQuestionAnswering")
LISTED = DriftSpec().pooling


def ordered(base: BaseModel, directory: Path, *, head: Head = CLASSES, listed: Any = LISTED) -> tuple[str, ...]:
    return ordered_poolings(listed, model=base.model, head=head, directory=directory)


def test_a_decoder_is_looked_at_where_it_decides_whatever_its_head(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["llama"])
    for head in (CLASSES, SPANS):
        assert ordered(base, tiny_checkpoints["llama"], head=head) == ("decision-token", "non-sink-mean", "mean")


def test_an_encoder_is_if_its_head_reads_the_first_token_alone(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["bert"])
    assert ordered(base, tiny_checkpoints["bert"])[0] == "decision-token"
    assert ordered(base, tiny_checkpoints["bert"], head=SPANS)[0] == "non-sink-mean"


@pytest.mark.parametrize(("reads_first", "expected"), [(False, "non-sink-mean"), (True, "decision-token")])
def test_a_sentence_encoder_is_looked_at_as_it_was_made_to_be_read(
    reads_first: bool, expected: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": reads_first, "pooling_mode_mean_tokens": not reads_first}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert ordered(tiny_base(tiny_checkpoints["bert"]), tmp_path)[0] == expected


def test_what_a_study_lists_alone_is_what_its_drift_is_by(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["llama"])
    assert DriftSpec.model_validate({"pooling": "mean"}).pooling == ("mean",)
    assert ordered(base, tiny_checkpoints["llama"], listed=("mean",)) == ("mean",)
    assert ordered(base, tiny_checkpoints["llama"], listed=("token", "mean")) == ("token", "mean")
    with pytest.raises(ValueError, match="lists `mean` twice"):
        DriftSpec.model_validate({"pooling": ["mean", "mean"]})


def test_a_model_without_a_first_token_has_no_decision_token(
    tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(tiny_checkpoints["bert"])
    known = SimpleNamespace(is_causal=False, has_first_token=False)
    assert Architecture(()).has_first_token
    for module in ("lorascope.drift.poolings", blocks.__name__):
        monkeypatch.setattr(f"{module}.known_architecture", lambda model_type: known)
    assert ordered(base, tiny_checkpoints["bert"]) == ("non-sink-mean", "mean")
    with pytest.raises(StudyError, match="has no token at which it decides"):
        ordered(base, tiny_checkpoints["bert"], listed=("decision-token",))
