"""What the HTTP API takes, as dataclasses: the server checks bodies by them and describes them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass
class EmbedRequest:
    """Encode a photograph."""

    photo: str
    ahead: bool = False  # only when nothing else waits, and without waiting for it
    canvas: str | None = None  # drops what waits for the same canvas


@dataclasses.dataclass
class Refinement:
    """A candidate of an earlier answer, which a prompt refines."""

    number: str
    candidate: int


@dataclasses.dataclass
class PredictRequest:
    """Segment one object. Points are x, y, a box x1, y1, x2, y2, in pixels of the photograph."""

    photo: str
    points: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    refine: Refinement | None = None
    mask: dict[str, Any] | None = None  # run lengths to correct, instead of an earlier answer
    multimask: bool | None = None
    canvas: str | None = None


@dataclasses.dataclass
class PhotoRequest:
    """A photograph."""

    photo: str


@dataclasses.dataclass
class LabelRequest:
    """A new label."""

    name: str


@dataclasses.dataclass
class NewObject:
    """An object to keep: run lengths as COCO has them, and the id of its label."""

    photo: str
    segmentation: dict[str, Any]
    category_id: int
    score: float | None = None


@dataclasses.dataclass
class ChangedObject:
    """What changes of an object."""

    segmentation: dict[str, Any] | None = None
    category_id: int | None = None
    photo: str | None = None  # which the object must be of
    score: float | None = (
        None  # of the new mask, as the two below; those of the old one are dropped
    )
    predicted_iou: float | None = None
    stability_score: float | None = None


@dataclasses.dataclass
class SaveRequest:
    """Save again, replace a file that another program changed, or take what is in it."""

    how: Literal["again", "replace", "load"] = "again"
