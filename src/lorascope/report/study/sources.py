"""Tables of origin: what the data are, what was trained how, and on what machine and code the numbers were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.report.study.ledger import number_columns
from lorascope.stats.facts.declared import MethodFacts
from lorascope.stats.facts.found import DataFacts
from lorascope.study.methods import method_specs


def sizes_table(facts: Facts) -> Table | None:
    if not facts.data:
        return None
    splits = _splits(facts)
    has_parts = any(data.dropped_parts for data in facts.data.values())
    dropped = ["duplicates dropped", *(["parts dropped"] if has_parts else [])]
    rows = []
    for task, data in facts.data.items():
        overlap = wording.listing(
            f"{wording.count(n)} {pair.replace('~', '/')}" for pair, n in data.duplicates.items() if n
        )
        rows.append(
            (
                wording.name(task),
                facts.protocol(task),
                *(wording.count(data.num_examples.get(split)) for split in splits),
                overlap or "none",
                wording.count(data.dropped_duplicates),
                *((wording.count(data.dropped_parts),) if has_parts else ()),
                _truncation(data),
                data.source,
            )
        )
    return Table(
        name="data",
        title="Examples",
        columns=(
            *number_columns("task", "protocol", *splits, "duplicates left", *dropped, "truncated", numeric_from=2),
            Column("source"),
        ),
        rows=tuple(rows),
        note="Duplicates left: texts that occur in two splits. Truncated: share of examples longer than the "
        "study's maximal "
        f"length, the largest over splits.{_protocol_note(facts, has_parts=has_parts)}",
    )


def _protocol_note(facts: Facts, *, has_parts: bool) -> str:
    pooled = facts.protocols.get("resplit", [])
    parts = " Parts dropped: training examples that are parts of a test or validation example." if has_parts else ""
    if not pooled:
        return parts
    return f"{parts} `resplit`: labelled files pooled, a larger test set carved; not comparable with published scores."


def _splits(facts: Facts) -> list[str]:
    return list(dict.fromkeys(split for data in facts.data.values() for split in data.num_examples))


def _truncation(data: DataFacts) -> str:
    worst = {model: max(parts.values(), default=0.0) for model, parts in data.truncated_fraction.items()}
    if not worst:
        return wording.ABSENT
    texts = {model: wording.fraction(value) for model, value in worst.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} {model}" for model, text in texts.items())


def balance_table(facts: Facts) -> Table | None:
    """None where no task's examples fall into classes."""
    known = {task: data.balance for task, data in facts.data.items() if data.balance is not None}
    rows = [
        (
            wording.name(task),
            str(label),
            *(_share(balance.counts.get(split) or {}, str(label)) for split in _splits(facts)),
        )
        for task, balance in known.items()
        for label in balance.names
    ]
    if not rows:
        return None
    named = " or ".join(dict.fromkeys(balance.of for balance in known.values()))
    return Table(
        name="balance",
        title=f"{wording.sentence(named).rstrip('.')} balance",
        columns=number_columns("task", named, *_splits(facts), numeric_from=2),
        rows=tuple(rows),
    )


def _share(counts: Mapping[str, int], label: str) -> str:
    total = sum(counts.values())
    if not total:
        return wording.ABSENT
    number = counts.get(label, 0)
    return f"{wording.count(number)} ({wording.fraction(number / total)})"


def checksums_table(facts: Facts) -> Table | None:
    rows = [
        (wording.name(task), split, digest, data.example_ids_sha256.get(split, wording.ABSENT))
        for task, data in facts.data.items()
        for split, digest in data.sha256.items()
    ]
    if not rows:
        return None
    return Table(
        name="checksums",
        title="Checksums (SHA-256)",
        columns=number_columns("task", "split", "content", "example ids", numeric_from=9),
        rows=tuple((task, split, digest[:16], ids[:16]) for task, split, digest, ids in rows),
        note="First 16 of 64 digits; the full ones are in facts.json of the analysis artifact.",
    )


# ---------------------------------------------------------------------------------------------------------- provenance


def provenance_table(facts: Facts) -> Table:
    provenance = facts.stated.provenance
    rows: list[tuple[str, str]] = []
    for key, heading in (("command", "command"), ("started", "started"), ("finished", "finished")):
        if getattr(provenance, key):
            rows.append((heading, str(getattr(provenance, key))))
    for group in ("hardware", "git", "versions"):
        for key, value in getattr(provenance, group).items():
            if value is not None:
                rows.append((f"{group}: {key.removesuffix('_bytes').replace('_', ' ')}", _plain(key, value)))
    return Table(
        name="provenance", title="Provenance", columns=number_columns("what", "value", numeric_from=9), rows=tuple(rows)
    )


def _plain(key: str, value: Any) -> str:
    if value is None:
        return wording.ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return wording.bytes_text(value) if key.endswith("_bytes") else f"{value:,}".removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _what_is_trained(method: MethodFacts) -> str:
    """In words; the kind alone of a method whose plug-in is not installed here."""
    spec = method_specs().get(method.kind)
    if spec is None or not spec.trains:
        return method.kind
    settings = {name: value for name, value in vars(method).items() if value is not None}
    try:
        return spec.trains.format(**{k: wording.listing(v) if isinstance(v, tuple) else v for k, v in settings.items()})
    except KeyError:  # a setting that the facts of a study do not hold
        return spec.title


def _as_trained(facts: Facts, method: MethodFacts) -> list[tuple[str, MethodFacts]]:
    """(place, settings) of a method: as the study has it, or, where a search, a file or a task set some of them, as each
    task's runs were trained."""
    tuned = [row for row in facts.stated.tuned if row.method == method.name]
    found = [(facts.place(row.model, row.task), method.changed_by(row.settings)) for row in tuned]
    return found or [("", method)]


def heads_table(facts: Facts) -> Table | None:
    """None where every head is new throughout, and the checkpoints had none."""
    rows: dict[tuple[str, ...], None] = {}
    for run in facts.runs:
        if run.head is not None and (run.head.kept or run.head.replaced):
            replaced = [f"{name} ({' x '.join(map(str, shape))})" for name, shape in run.head.replaced.items()]
            parts = [wording.listing(names) or "none" for names in (run.head.drawn, run.head.kept, replaced)]
            rows[run.model, wording.name(run.task), *parts] = None
    if not rows:
        return None
    return Table(
        name="heads",
        title="Heads of the models",
        columns=number_columns("model", "task", "drawn from the seed", "kept", "replaced", numeric_from=9),
        rows=tuple(rows),
        note="Kept: layers of the head that the checkpoint has in the right shape. Replaced: tensors that the checkpoint has "
        "for other classes, with their shape there; they are drawn anew.",
    )


def _longest(facts: Facts) -> str:
    """ "384", or "384 (SST-2: 128)" where a task has a limit of its own."""
    own = {task.name: task.settings.get("max_length") for task in facts.study.tasks}
    texts = [f"{wording.name(task)}: {length}" for task, length in own.items() if length]
    return f"{facts.study.train.max_length}" + (f" ({', '.join(texts)})" if texts else "")


def settings_table(facts: Facts) -> Table:
    """How each method was trained: the study's settings with the method's own in their place."""
    shared = facts.study.train
    rows = []
    for written in facts.study.methods:
        for place, method in _as_trained(facts, written):
            train = shared.changed_by(method.train) if method.train is not None else shared
            rows.append(
                (
                    wording.name(method.name) + (f" ({place})" if place else ""),
                    _what_is_trained(method),
                    wording.rate(method.learning_rate),
                    _plain("epochs", train.epochs),
                    _plain("batch_size", train.batch_size),
                    f"{train.schedule or wording.ABSENT}, {wording.fraction(train.warmup, 0)} warm-up",
                    _plain("weight_decay", train.weight_decay),
                    _plain("gradient_clip", train.gradient_clip),
                )
            )
    headings = ("method", "what is trained", "learning rate", "epochs", "batch", "schedule", "weight decay", "clip")
    numeric = {"learning rate", "epochs", "batch", "weight decay", "clip"}
    patience = shared.early_stopping.patience if shared.early_stopping else None
    stop = (
        f"early stopping after {wording.plural(patience, 'evaluation')} without gain"
        if patience
        else "no early stopping"
    )
    limit = f"at most {_longest(facts)} tokens, " if "token" in facts.unit else ""
    return Table(
        name="settings",
        title="How the methods were trained",
        columns=tuple(Column(heading, numeric=heading in numeric) for heading in headings),
        rows=tuple(rows),
        note=f"AdamW, {shared.precision}, {limit}{stop}; seeds {wording.listing(facts.seeds)}.",
    )
