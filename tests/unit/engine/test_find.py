"""Finding a step by how its id begins, in a store of any size."""

from __future__ import annotations

import hashlib
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lorascope.engine.find import find_artifact
from lorascope.errors import StudyError

IDS = [
    f"train-smollm2-135m-{task}-lora-{seed}-{hashlib.sha256(f'{task}{seed}'.encode()).hexdigest()[:16]}"
    for task in ("mrpc", "qnli", "rte", "sst2")
    for seed in range(2500)
]


@pytest.mark.parametrize(("change", "wanted"), [(lambda i: i[:-1] + "x", True), (lambda i: "rian" + i[5:], False)])
def test_a_wrong_id_among_ten_thousand_is_answered_within_a_second(change: Any, wanted: bool) -> None:
    store: Any = SimpleNamespace(ids=lambda kind: IDS, place="store")
    began = time.process_time()
    with pytest.raises(StudyError, match="holds no train step") as error:
        find_artifact(change(IDS[5000]), store, kind="train")
    assert time.process_time() - began < 1.0
    assert (f"did you mean `{IDS[5000]}`?" in str(error.value)) is wanted
