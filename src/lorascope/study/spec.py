"""What a study is: the frozen pydantic models a YAML file is read into.

Everything here is the question (models x tasks x methods x seeds, protocol, hypotheses); nothing says where or how it
runs. Shorthands ("mrpc", "full", 42) are widened to their full form by validators, so the rest of lorascope sees one
shape. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from lorascope.study.base import Name, Spec, branch_by_key
from lorascope.study.html import html_line, html_page, html_table
from lorascope.study.hypothesis import Hypothesis
from lorascope.study.measure import MeasureSpec
from lorascope.study.methods import MethodSpec, reference_arm
from lorascope.study.methods.base import MethodBase
from lorascope.study.origin import Origin
from lorascope.study.search import SearchSpec
from lorascope.study.seeds import DEFAULT as DEFAULT_SEEDS
from lorascope.study.seeds import Seed, SeedList
from lorascope.study.seeds import Seeds as Seeds
from lorascope.study.tasks import TaskSpec
from lorascope.study.track import TrackerSpec
from lorascope.study.train import TrainSpec
from lorascope.study.units import Fraction

# ---------------------------------------------------------------------------------------------------------- models


class HubSource(Spec):
    """A model on the Hugging Face hub, at a pinned revision (a commit hash)."""

    hub: str
    revision: str


class PathSource(Spec):
    """A checkpoint directory on this machine; its files' checksums are its identity."""

    path: str


class PackageSource(Spec):
    """A checkpoint inside an installed Python package. file: a GGUF file or a directory, relative to the package."""

    package: str
    module: str
    file: str


ModelSource = Annotated[
    Annotated[HubSource, Tag("<HubSource>")]
    | Annotated[PathSource, Tag("<PathSource>")]
    | Annotated[PackageSource, Tag("<PackageSource>")],
    Discriminator(
        branch_by_key(hub=HubSource, path=PathSource, package=PackageSource),
        custom_error_type="no_branch",
        custom_error_message="a source is one of {hub, revision}, {path}, {package, module, file}",
    ),
]


class ModelSpec(Spec):
    """A base model: a registered name alone, or a name of your own with a source. pickle: "allow" reads weights that lie in a
    pickle (pytorch_model.bin), which are refused otherwise; nothing but tensors is read from them."""

    name: Name
    source: ModelSource | None = None
    pickle: Literal["allow"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


# ----------------------------------------------------------------------------------------------------------- tasks


class DataSpec(Spec):
    """Caps and carving, the same for every task. A cap keeps a stratified sample; None keeps every row.

    validation_fraction: share of train carved out for selection where a task has no validation set of its own.
    split_seed: seed of that carving and of the caps.
    """

    train_examples: Annotated[int, Field(ge=10)] | None = None
    validation_examples: Annotated[int, Field(ge=4)] | None = None
    test_examples: Annotated[int, Field(ge=4)] | None = None
    validation_fraction: Fraction = 0.1
    split_seed: Seed = 0


# ----------------------------------------------------------------------------------------------------------- study


class Study(Spec):
    """The question, whole. See docs/writing-a-study.md for every field and why its default is what it is.

    Its validator is built when it is first used, so that methods of plug-ins are among those that it knows.
    """

    model_config = ConfigDict(defer_build=True)

    name: Name
    question: str
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    methods: Annotated[tuple[MethodSpec, ...], Field(min_length=1)]
    seeds: SeedList = DEFAULT_SEEDS
    protocol: Literal["strict", "paper"] = "strict"
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    search: SearchSpec | None = None
    measure: MeasureSpec = MeasureSpec()
    track: tuple[TrackerSpec, ...] = ()
    hypotheses: dict[Name, Hypothesis] = Field(default={})
    conclusion: str | None = None
    _origin: Origin = PrivateAttr(default=Origin())

    @model_validator(mode="before")
    @classmethod
    def _widen_shorthands(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("methods"), (list, tuple)):
            value = {**value, "methods": [_widen_method(method) for method in value["methods"]]}
        if isinstance(value, dict) and value.get("search") is True:
            value = {**value, "search": {}}
        return value

    def _repr_html_(self) -> str:
        return _in_a_notebook(self)

    @property
    def origin(self) -> Origin:
        """Where it was read from."""
        return self._origin

    @property
    def content(self) -> str:
        """SHA-256 of all that it states."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def read_from(self, file: Path, *, overrides: Sequence[str]) -> Study:
        """The same study, which knows where it came from."""
        known = self.model_copy()
        known._origin = Origin(file.resolve(), tuple(overrides), self.content)
        return known

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return reference_arm((method.name, method.kind) for method in self.methods)

    def method(self, name: str) -> MethodBase:
        """The method the study calls `name`. Raises KeyError."""
        return {method.name: method for method in self.methods}[name]


def _in_a_notebook(study: Study) -> str:
    """The question and what is compared."""
    names = {
        "models": [model.name for model in study.models],
        "tasks": [task.name for task in study.tasks],
        "methods": [method.name for method in study.methods],
        "seeds": [seed.label for seed in study.seeds],
        "hypotheses": list(study.hypotheses),
    }
    rows = [(part, ", ".join(found)) for part, found in names.items() if found]
    return html_page(f"Study {study.name}", html_line(study.question), html_table(("what", "names"), rows))


def _widen_method(method: Any) -> Any:
    if isinstance(method, str):
        return {"kind": method, "name": method}
    if isinstance(method, dict) and "kind" in method:
        return {"name": method["kind"], **method}
    return method
