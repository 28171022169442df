"""What merging alone does to a model's answers, before anything is served: differences in fp32 and in bf16.

The one idea: rounding changes answers too, so what merging changes in bf16 is shown next to what bf16 changes without merging.
"""

from __future__ import annotations

from lorascope.report.page import wording
from lorascope.report.page.document import Table
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import place_name
from lorascope.report.study.ledger import number_columns


def merging_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            place_name(facts, (row.model, row.workload)),
            row.what,
            row.dtype,
            wording.drift(row.max_abs_logit_difference),
            wording.drift(row.max_probability_difference),
            f"{wording.fraction(row.flip_rate)} of {wording.count(row.n)}",
        )
        for row in facts.served.merging
    )
    if not rows:
        return None
    return Table(
        name="serving_merging",
        title="What merging does to the answers",
        columns=number_columns(
            "workload", "compared", "in", "largest difference of a logit", "of a probability", "decisions that differ",
            numeric_from=3,
        ),
        rows=rows,
        note="The first adapter's run on its validation examples, computed by transformers and peft. Merging costs something "
        "where merged and adapter differ by more than the adapter in bfloat16 and in float32 do.",
    )  # fmt: skip
