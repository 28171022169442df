"""MRPC, SST-2, RTE and QNLI of GLUE (Wang et al. 2019), from files in the data directory or the hub at a pinned revision.

GLUE hides its test labels, but for MRPC's. Under the strict protocol the validation file is therefore the test set and
validation is carved out of train; MRPC's validation file selects and its own test set tests. Under the paper protocol the
validation file is both, as in the literature. `resplit` pools every labelled file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.errors import DataError, EnvironmentProblem
from lorascope.tasks.classification import Classification, class_examples

if TYPE_CHECKING:
    import pandas as pd

HUB = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

LORA = "Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, ICLR, table 2"
ADALORA = "Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, ICLR, table 1"
DEV_SET = "GLUE dev set, best epoch, median of 5 seeds"


class GLUE(Classification):
    """One configuration of the GLUE data set."""

    config: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    classes: ClassVar[tuple[str, ...]]
    reported: ClassVar[tuple[str, ...]] = ("accuracy",)
    figures: ClassVar[tuple[tuple[str, str, float, str, str], ...]] = ()
    tests_are_public: ClassVar[bool] = False
    has_parts: ClassVar[bool] = False

    @classmethod
    def files(cls, protocol: str) -> tuple[str, ...]:
        """The splits that are read under a protocol, as the hub calls them."""
        return (
            ("train", "validation", "test") if cls.tests_are_public and protocol != "paper" else ("train", "validation")
        )

    @classmethod
    def describe(cls, spec: Any, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        splits = cls.files(protocol)
        paths = {split: data_dir / f"{cls.config}_{split}.parquet" for split in splits} if data_dir else {}
        present = [path for path in paths.values() if path.exists()]
        if not present:
            more = {"splits": list(splits)} if "test" in splits else {}
            return SourceDescription({"hub": HUB, "config": cls.config, "revision": REVISION, **more})
        if absent := [split for split, path in paths.items() if path not in present]:
            raise DataError(
                f"{data_dir} has {present[0].name} but not {paths[absent[0]].name}",
                hint=cls._where_to_get(absent[0]),
            )
        return describe_files(paths)

    @classmethod
    def _where_to_get(cls, split: str) -> str:
        if split != "test":
            return f"Put both files there, or none of {cls.config} to take the task from the hub."
        return (
            f"The labels of {cls.config}'s own test set are public, so it is the test set. Get it where there is a network: "
            f"datasets.load_dataset('{HUB}', '{cls.config}', revision='{REVISION}', split='test')"
            f".to_parquet('{cls.config}_test.parquet'); or remove the other files to take the task from the hub."
        )

    @classmethod
    def read(cls, spec: Any, *, source: SourceDescription, protocol: str) -> RawExamples:
        from lorascope.data.tables import read_table

        if "files" in source.fingerprint:
            paths = {split: Path(source.locations[split]) for split in cls.files(protocol)}
            tables = {split: (path, read_table(path)) for split, path in paths.items()}
            origin = f"GLUE {cls.config}, parquet files"
        else:
            hub = f"{HUB}/{cls.config}"
            tables = {
                split: (Path(f"{hub}/{split}"), _load_from_hub(source.fingerprint, split))
                for split in cls.files(protocol)
            }
            origin = f"GLUE {cls.config}, {HUB} at {source.fingerprint['revision'][:12]}"
        splits = {split: cls._examples(*table, split=split) for split, table in tables.items()}
        if protocol == "paper":
            splits["test"] = splits["validation"]
        elif protocol == "strict" and "test" not in splits:
            splits["test"] = splits.pop("validation")
        raw = class_examples(
            splits,
            label_names=cls.classes,
            text_columns=cls.columns,
            metrics=cls.reported,
            source=origin,
            disjoint=protocol != "paper",
        )
        return replace(raw, has_parts=cls.has_parts)

    @classmethod
    def _examples(cls, path: Path, table: pd.DataFrame, *, split: str) -> pd.DataFrame:
        from lorascope.data.tables import number_labels, select_examples

        numbers = [str(number) for number in range(len(cls.classes))]
        examples = select_examples(table, path=path, text=cls.columns, label="label")
        examples = number_labels(examples, path=path, labels=numbers, declared=f"of {cls.config}")
        rows = table["idx"] if "idx" in table else range(len(table))
        examples.insert(0, "example_id", [f"{cls.config}-{split}-{row}" for row in rows])
        return examples

    def published(self) -> list[dict[str, Any]]:
        fields = ("model", "method", "value", "citation", "setting")
        return [{**dict(zip(fields, figure, strict=True)), "metric": self.primary_metric} for figure in self.figures]


class MRPC(GLUE):
    """Microsoft Research Paraphrase Corpus (Dolan and Brockett 2005): do two sentences mean the same?

    Its figures in the literature are on the validation file, which here selects: `paper` reproduces them.
    """

    tests_are_public = True

    config = "mrpc"
    columns = ("sentence1", "sentence2")
    classes = ("not_equivalent", "equivalent")
    reported = ("accuracy", "f1")
    figures = (
        ("roberta-base", "lora", 0.897, LORA, f"{DEV_SET}; starts from the adapter trained on MNLI"),
        ("deberta-v3-base", "adalora", 0.9069, ADALORA, "GLUE dev set, mean of 5 seeds"),
    )


class SST2(GLUE):
    """Stanford Sentiment Treebank, binary (Socher et al. 2013). Train rows are phrases, test rows sentences."""

    has_parts = True

    config = "sst2"
    columns = ("sentence",)
    classes = ("negative", "positive")
    figures = (
        ("roberta-base", "lora", 0.951, LORA, DEV_SET),
        ("deberta-v3-base", "adalora", 0.9610, ADALORA, "GLUE dev set, mean of 5 seeds"),
    )


class RTE(GLUE):
    """Recognising Textual Entailment, challenges 1 to 3 and 5 (Dagan et al. 2006 and later)."""

    config = "rte"
    columns = ("sentence1", "sentence2")
    classes = ("entailment", "not_entailment")
    figures = (
        ("roberta-base", "lora", 0.866, LORA, f"{DEV_SET}; starts from the adapter trained on MNLI"),
        ("deberta-v3-base", "adalora", 0.8809, ADALORA, "GLUE dev set, mean of 5 seeds"),
    )


class QNLI(GLUE):
    """Question-answering NLI, made of SQuAD (Rajpurkar et al. 2016): does a sentence hold the answer to a question?"""

    config = "qnli"
    columns = ("question", "sentence")
    classes = ("entailment", "not_entailment")
    figures = (
        ("roberta-base", "lora", 0.933, LORA, DEV_SET),
        ("deberta-v3-base", "adalora", 0.9455, ADALORA, "GLUE dev set, mean of 5 seeds"),
    )


def _load_from_hub(fingerprint: Any, split: str) -> pd.DataFrame:
    """One split of the pinned revision. Raises EnvironmentProblem when it is neither cached nor reachable."""
    splits = fingerprint.get("splits", ["train", "validation"])
    *others, last = [f"{fingerprint['config']}_{name}.parquet" for name in splits]
    remedy = (
        f"Download it once where there is a network (datasets.load_dataset('{fingerprint['hub']}', "
        f"'{fingerprint['config']}', revision='{fingerprint['revision']}')), or give --data a directory with "
        f"{', '.join(others)} and {last}."
    )
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise EnvironmentProblem(
            "the package `datasets` is not installed, and the examples are on the hub",
            hint=f"pip install datasets. {remedy}",
        ) from None
    try:
        loaded = datasets.load_dataset(
            fingerprint["hub"], fingerprint["config"], revision=fingerprint["revision"], split=split
        )
    except (OSError, ValueError, DatasetsError) as error:  # offline, unknown, broken cache
        raise EnvironmentProblem(
            f"{fingerprint['hub']} ({fingerprint['config']}) could not be loaded from the hub: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint=remedy,
        ) from error
    return loaded.to_pandas()  # type: ignore[union-attr]
