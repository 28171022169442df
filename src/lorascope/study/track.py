"""Which trackers show a study while it runs: settings of tools, which do not affect what is computed.

A tracker's project, its account and where it keeps its data may be left out: then the tool's own environment variables
and defaults decide, so that a study can be handed on without its author's account in it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lorascope.study.base import Spec

Attached = Literal["report", "weights"]


class WandbSpec(Spec):
    """Weights & Biases. artifacts: what is uploaded besides numbers."""

    kind: Literal["wandb"]
    project: str | None = None
    entity: str | None = None
    artifacts: tuple[Attached, ...] = ()


class TrackioSpec(Spec):
    """trackio: a dashboard on this machine (`trackio show`), or on a Hugging Face Space that its environment names."""

    kind: Literal["trackio"]
    project: str | None = None
    artifacts: tuple[Attached, ...] = ()


class MlflowSpec(Spec):
    """MLflow. uri: of the tracking server or database."""

    kind: Literal["mlflow"]
    experiment: str | None = None
    uri: str | None = None
    artifacts: tuple[Attached, ...] = ()


class TensorboardSpec(Spec):
    """TensorBoard's event files, in `tracking/tensorboard/` next to the report."""

    kind: Literal["tensorboard"]


def _from_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyTrackerSpec = WandbSpec | TrackioSpec | MlflowSpec | TensorboardSpec
TrackerSpec = Annotated[Annotated[AnyTrackerSpec, Field(discriminator="kind")], BeforeValidator(_from_name)]
