"""The README.md of an exported run: the front matter that the Hugging Face hub reads, and what a person wants to know.

It goes where the run goes, so nothing in it names a place on this machine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.metrics.quality import QUALITY
from lorascope.printable import markdown_line
from lorascope.serving.forms import Dtype, Form
from lorascope.serving.precision import MergePrecision
from lorascope.serving.trained import SERVED_HEAD, TrainedRun
from lorascope.study.measure import Workload

if TYPE_CHECKING:
    from lorascope.engine.store.artifact import Artifact

_LANGUAGES = {"transformers": "python", "peft": "python", "vllm": "sh"}
_PIPELINES = {
    SERVED_HEAD: "text-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForCausalLM": "text-generation",
}


def model_card(
    run: TrainedRun,
    train: Artifact,
    *,
    form: Form,
    workload: Workload,
    dtype: Dtype,
    load: Mapping[str, str],
    precision: MergePrecision | None,
) -> str:
    """load: tool -> what to write to load it, without places on this machine."""
    method = train.step.params["method"]
    settings = ", ".join(f"{name} {value}" for name, value in method.items() if name != "kind")
    what = {
        "adapter": "the adapter alone",
        "merged": "the base with the adapter folded in",
        "full": "the fully fine-tuned model",
        "base": "the base as adapters are served on it" + (
            ", with a classification head drawn at random" if workload == "classification" else ""
        ),
    }[form]  # fmt: skip
    blocks = [f"{tool}:\n\n```{_LANGUAGES[tool]}\n{text}\n```" for tool, text in load.items()]
    parts = [
        _front_matter(run, train, form=form, workload=workload),
        f"# {run.id}",
        f"Written by lorascope: {what}, for {workload}, in {dtype}.",
        f"- base: {_base_text(run)}\n- method: {method['kind']}" + (f" ({settings})" if settings else "")
        + f"\n- task: {run.task.name}" + (f"\n- classes, by index: {_classes(run)}" if run.class_names else ""),
        *([_precision_text(precision)] if precision else []),
        "## Load it",
        *blocks,
        "`lorascope.json` says the same for programs, with all versions.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front_matter(run: TrainedRun, train: Artifact, *, form: Form, workload: Workload) -> str:
    """What the hub files a model under; what is not known is left out."""
    from ruamel.yaml import YAML

    hub, licence = run.identity.get("hub"), _licence(run.checkpoint)
    auto = "AutoModelForCausalLM" if workload == "generation" else run.task.head.auto_class
    trained = [] if form == "base" else [train.step.params["method"]["kind"]]
    relation = {"adapter": "adapter", "merged": "finetune", "full": "finetune"}.get(form)
    fields: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        **({"base_model": hub} if hub else {}),
        **({"base_model_relation": relation} if hub and relation else {}),
        "library_name": "peft" if form == "adapter" else "transformers",
        **({"pipeline_tag": _PIPELINES[auto]} if auto in _PIPELINES else {}),
        "tags": ["lorascope", *trained, run.task.name],
        "metrics": [name for name in run.task.metric_names if name in QUALITY],
    }
    stream = io.StringIO()
    yaml = YAML()
    yaml.dump(fields, stream)
    return f"---\n{stream.getvalue()}---"


def _licence(checkpoint: Path) -> str | None:
    """Of the base, as the card beside its weights says; None where it has none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    card = checkpoint / "README.md"
    if not card.is_file():
        return None
    opening, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if opening.strip() or "\n---" not in rest:
        return None
    try:
        fields = YAML(typ="safe").load(rest.partition("\n---")[0])
    except YAMLError:  # a card that the hub could not read either
        return None
    found = fields.get("license") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else None


def _classes(run: TrainedRun) -> str:
    return markdown_line(", ".join(f"{index} {name}" for index, name in enumerate(run.class_names)))


def _base_text(run: TrainedRun) -> str:
    identity = run.identity
    if "hub" in identity:
        return f"{identity['hub']} at revision {identity['revision']}"
    if "package" in identity:
        return f"{identity['file']} of the package {identity['package']} {identity['version']}"
    return f"the local checkpoint {run.checkpoint.name} (sha256 {identity['checkpoint_sha256'][:16]})"


def _precision_text(precision: MergePrecision) -> str:
    lines = [
        "| compared | dtype | largest logit difference | largest probability difference | decisions that differ |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row.what} | {row.dtype} | {row.max_abs_logit_difference:.2g} | {row.max_probability_difference:.2g} "
            f"| {row.flip_rate:.2%} of {row.n} |"
            for row in precision.rows
        ),
    ]
    return "\n".join(lines)
