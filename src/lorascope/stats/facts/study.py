"""The facts of a study as data: everything a report states besides the statistics (analysis.json) and the measurements.

`StudyFacts` is what the `analysis` step commits as facts.json. Each class is a typed view of one JSON object: `from_json`
takes what is there, so that files of older versions, which lack a key, can still be read, and keeps what it has no field
for in `more`; `to_json` gives the same object back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorascope.stats.facts.declared import StudyDeclared
from lorascope.stats.facts.fact import Fact
from lorascope.stats.facts.found import (
    BaselineFacts,
    DataFacts,
    DriftDefinition,
    FailureFacts,
    GapFacts,
    GateFacts,
    NotMeasuredFacts,
    ProvenanceFacts,
    PublishedFacts,
    RunFacts,
    TunedFacts,
)
from lorascope.stats.facts.searches import SearchFacts
from lorascope.stats.facts.served import ServingFacts

Seeding = Literal["shared", "derived"]
"""How tasks get the numbers that runs start from: all from the study's seed itself, or each from numbers derived for it."""


@dataclass(frozen=True)
class MeasureFacts(Fact):
    """What a measure that has no section of its own in the report states: a title and sentences."""

    title: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFacts(Fact):
    """facts.json. data: by task. primary: task -> its primary metric. missing_runs: planned and not evaluated. serving: None
    where nothing was served. measures: what further measures state, by their kind. seeding: files of before tasks had seeds of
    their own do not name it. drift: how it was defined, by (model, task); empty where it was not measured, and in facts from
    before a study could name several poolings."""

    study: StudyDeclared
    data: Mapping[str, DataFacts] = field(default_factory=dict)
    primary: Mapping[str, str] = field(default_factory=dict)
    runs: tuple[RunFacts, ...] = ()
    gates: tuple[GateFacts, ...] = ()
    baselines: tuple[BaselineFacts, ...] = ()
    published: tuple[PublishedFacts, ...] = ()
    failures: tuple[FailureFacts, ...] = ()
    missing_runs: int = 0
    provenance: ProvenanceFacts = field(default_factory=ProvenanceFacts)
    protocol_gap: tuple[GapFacts, ...] | None = None
    not_measured: tuple[NotMeasuredFacts, ...] = ()
    tuned: tuple[TunedFacts, ...] = ()
    search: tuple[SearchFacts, ...] = ()
    serving: ServingFacts | None = None
    measures: Mapping[str, MeasureFacts] = field(default_factory=dict)
    seeding: Seeding = "shared"
    drift: tuple[DriftDefinition, ...] = ()
