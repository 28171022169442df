"""Tables of origin: what the data are, what was trained how, and on what machine and code the numbers were made."""

from __future__ import annotations

import json
from typing import Any

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.report.study.ledger import number_columns


def sizes_table(facts: Facts) -> Table | None:
    if not facts.data:
        return None
    splits = _splits(facts)
    rows = []
    for task, data in facts.data.items():
        duplicates = data.get("duplicates") or {}
        overlap = wording.listing(f"{wording.count(n)} {pair.replace('~', '/')}" for pair, n in duplicates.items() if n)
        rows.append(
            (
                wording.name(task),
                *(wording.count(data["num_examples"].get(split)) for split in splits),
                overlap or "none",
                wording.count(data.get("dropped_duplicates", 0)),
                _truncation(data),
                data["source"],
            )
        )
    return Table(
        name="data",
        title="Examples",
        columns=(
            *number_columns("task", *splits, "duplicates left", "duplicates dropped", "truncated"),
            Column("source"),
        ),
        rows=tuple(rows),
        note="Duplicates left: texts that occur in two splits. Truncated: share of examples longer than the "
        "study's maximal "
        "length, the largest over splits.",
    )


def _splits(facts: Facts) -> list[str]:
    return list(dict.fromkeys(split for data in facts.data.values() for split in data["num_examples"]))


def _truncation(data: dict[str, Any]) -> str:
    worst = {model: max(parts.values(), default=0.0) for model, parts in (data.get("truncated_fraction") or {}).items()}
    if not worst:
        return wording.ABSENT
    texts = {model: wording.fraction(value) for model, value in worst.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} {model}" for model, text in texts.items())


def balance_table(facts: Facts) -> Table | None:
    rows = [
        (
            wording.name(task),
            str(label),
            *(_share(data, split, str(label)) for split in _splits(facts)),
        )
        for task, data in facts.data.items()
        for label in data.get("label_names", ())
    ]
    if not rows:
        return None
    return Table(
        name="balance",
        title="Label balance",
        columns=number_columns("task", "label", *_splits(facts), numeric_from=2),
        rows=tuple(rows),
    )


def _share(data: dict[str, Any], split: str, label: str) -> str:
    counts = data["label_counts"].get(split) or {}
    total = sum(counts.values())
    if not total:
        return wording.ABSENT
    number = counts.get(label, 0)
    return f"{wording.count(number)} ({wording.fraction(number / total)})"


def checksums_table(facts: Facts) -> Table | None:
    rows = [
        (wording.name(task), split, digest, (data.get("example_ids_sha256") or {}).get(split, wording.ABSENT))
        for task, data in facts.data.items()
        for split, digest in (data.get("sha256") or {}).items()
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
    provenance = facts.raw.get("provenance") or {}
    rows: list[tuple[str, str]] = []
    for key, heading in (("command", "command"), ("started", "started"), ("finished", "finished")):
        if provenance.get(key):
            rows.append((heading, str(provenance[key])))
    for group in ("hardware", "git", "versions"):
        for key, value in (provenance.get(group) or {}).items():
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


_TRAINED = {"full": "all weights"}
"""What methods without settings of their own train."""


def _as_trained(facts: Facts, method: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(place, settings) of a method: as the study has it, or, where a search or a file set some of them, as each task's runs
    were trained."""
    tuned = [row for row in facts.raw.get("tuned") or [] if row["method"] == method["name"]]
    found = [(facts.place(row["model"], row["task"]), {**method, **row["settings"]}) for row in tuned]
    return found or [("", method)]


def settings_table(facts: Facts) -> Table:
    """How each method was trained: the study's settings with the method's own in their place."""
    shared = facts.study.get("train") or {}
    rows = []
    for written in facts.study["methods"]:
        for place, method in _as_trained(facts, written):
            train = {
                **shared,
                **{key: value for key, value in (method.get("train") or {}).items() if value is not None},
            }
            rank = f"rank {method['rank']}, alpha {method['alpha']:g}" if "rank" in method else ""
            sites = f"on {wording.listing(method['sites'])}" if method.get("sites") else ""
            rows.append(
                (
                    wording.name(method["name"]) + (f" ({place})" if place else ""),
                    ", ".join(filter(None, (rank, sites))) or _TRAINED.get(method["kind"], method["kind"]),
                    wording.rate(method.get("learning_rate")),
                    _plain("epochs", train.get("epochs")),
                    _plain("batch_size", train.get("batch_size")),
                    f"{train.get('schedule', wording.ABSENT)}, {wording.fraction(train.get('warmup'), 0)} warm-up",
                    _plain("weight_decay", train.get("weight_decay")),
                    _plain("gradient_clip", train.get("gradient_clip")),
                )
            )
    headings = ("method", "what is trained", "learning rate", "epochs", "batch", "schedule", "weight decay", "clip")
    numeric = {"learning rate", "epochs", "batch", "weight decay", "clip"}
    patience = (shared.get("early_stopping") or {}).get("patience")
    stop = (
        f"early stopping after {wording.plural(patience, 'evaluation')} without gain"
        if patience
        else "no early stopping"
    )
    return Table(
        name="settings",
        title="How the methods were trained",
        columns=tuple(Column(heading, numeric=heading in numeric) for heading in headings),
        rows=tuple(rows),
        note=f"AdamW, {shared.get('precision')}, at most {shared.get('max_length')} tokens, {stop}; "
        f"seeds {wording.listing(facts.seeds)}.",
    )
