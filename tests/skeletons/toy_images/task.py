"""Images with classes: scored as texts with classes are, read by a model of images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from toy_images.settings import ImagesTask

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Columns
from lorascope.data.raw import RawExamples, Strata
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.models.heads import classification_head
from lorascope.study.tasks.base import TaskSettings
from lorascope.tasks.class_scoring import ClassScoring
from lorascope.tasks.inputs import Inputs
from lorascope.tasks.task import Task

NUMBERS = "preprocessor_config.json"


@dataclass(frozen=True)
class Pixels:
    """What a checkpoint wants of an image's pixels. Numbers are one a channel; sizes are the images' own."""

    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def read(self, encoded: bytes) -> np.ndarray:
        """An encoded image as float32 [channels, height, width], normalised."""
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), dtype=np.float32) / 255
        normalised = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def save_pretrained(self, directory: Path) -> None:
        (Path(directory) / NUMBERS).write_text(json.dumps(asdict(self)))


class ImageInputs(Inputs):
    """Images of one size, "pixel_values" float32 [channels, height, width]."""

    unit: ClassVar[str] = "image"
    largest_batch: ClassVar[Mapping[str, int]] = {"cpu": 128, "cuda": 1024, "mps": 256}
    uses = (ColumnUse("pixel_values", "pixel_values"),)

    def load_processor(self, model: Mapping[str, Any], *, locations: Mapping[str, str], cache_dir: Path) -> Pixels:
        from lorascope.models.checkpoint import checkpoint_directory

        numbers = checkpoint_directory(model, locations=locations, cache_dir=cache_dir) / NUMBERS
        found = json.loads(numbers.read_text())
        return Pixels(tuple(found["image_mean"]), tuple(found["image_std"]))

    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        return {"pixel_values": [processor.read(example["image"]["bytes"]) for example in examples]}


class ToyImages(Task):
    """The task of an `ImagesTask`. names: of the classes, by index."""

    settings: ClassVar[type[TaskSettings] | None] = ImagesTask
    reads: ClassVar[type[Inputs]] = ImageInputs

    def __init__(self, name: str, names: Sequence[str]) -> None:
        super().__init__(
            name,
            inputs=ImageInputs(),
            head=classification_head(tuple(names), auto_class="AutoModelForImageClassification", peft_task=None),
            scoring=ClassScoring(names, metrics=("accuracy",)),
        )

    @classmethod
    def describe(cls, spec: ImagesTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        return describe_files({"images": Path(spec.images)})

    @classmethod
    def read(cls, spec: ImagesTask, *, source: SourceDescription, protocol: str) -> RawExamples:
        """An image is what its bytes are, whatever its file is called."""
        import pandas as pd

        path = Path(source.locations["images"])
        frame = pd.read_parquet(path)
        names = sorted(set(frame["label"]))
        frame["label"] = [names.index(name) for name in frame["label"]]
        frame["sha256"] = [hashlib.sha256(image["bytes"]).hexdigest() for image in frame["image"]]
        frame.insert(0, "example_id", [image["path"] for image in frame["image"]])
        return RawExamples(
            {"train": frame},
            {"names": names},
            content=("sha256",),
            source=f"file: {path.name}",
            strata=Strata("label", tuple(names)),
        )

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ToyImages:
        return cls(description["name"], description["names"])
