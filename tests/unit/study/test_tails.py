"""A claim about a percentile of few requests is refused before a study runs, and read where it has run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorascope.errors import StudyError
from lorascope.study.loading.load import load_study

STUDY = """\
name: served
question: What do four adapters cost?
models: [smollm2-135m]
tasks: [mrpc]
methods: [full, lora]
measure: {serving: {arms: [merged, 4], requests: REQUESTS}}
hypotheses:
  H2: {overhead: adapters-4, over: merged, on: ON, at_most: 30%}
"""


def study_file(tmp_path: Path, *, requests: int, on: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("REQUESTS", str(requests)).replace("ON,", f"{on},"))
    return path


@pytest.mark.parametrize("on", ["latency_p95", "latency_p99"])
def test_a_tail_of_few_requests_is_refused_with_the_mean_named(tmp_path, on):
    path = study_file(tmp_path, requests=199, on=on)
    with pytest.raises(StudyError) as error:
        load_study(path, files=True)
    text = str(error.value)
    assert f"study.yaml:8: hypotheses.H2: `{on}` needs at least 200 requests a load" in text
    assert "`on: latency_mean`, or raise `requests`" in text
    assert load_study(path).measure.serving.requests == 199, "results that there are can still be analysed"


@pytest.mark.parametrize(("requests", "on"), [(200, "latency_p95"), (16, "latency_mean"), (16, "latency_p50")])
def test_enough_requests_or_another_figure_is_taken(tmp_path, requests, on):
    assert load_study(study_file(tmp_path, requests=requests, on=on), files=True).hypotheses["H2"].on == on
