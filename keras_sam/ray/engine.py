"""What a worker does with one photograph: the engine of the classes and of the command.

A photograph becomes a row: its hash and size, and a list per property of its masks, or the reason
why it has none. Neither Ray nor pyarrow is needed here.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sam.exported.manifest import is_export
from keras_sam.geometry import xyxy_to_xywh
from keras_sam.images import is_image_file
from keras_sam.mask_generator.generator import SAMAutomaticMaskGenerator, UnfinishedImagesError
from keras_sam.masks import encode_rle, mask_area, mask_to_box
from keras_sam.predictor import SAMPredictor

DEATHS = 2  # of workers with the same photograph, before it is left out
BOXES_AT_ONCE = 16  # whose masks are in memory at the photograph's size

# A property of a mask in a record, and the column that lists it. The prefix keeps them apart from
# the columns of a detector.
MASK_COLUMNS = {
    "counts": "mask_counts",
    "bbox": "mask_boxes",
    "area": "mask_areas",
    "predicted_iou": "mask_scores",
    "stability_score": "mask_stability_scores",
    "point_coords": "mask_points",
    "crop_box": "mask_crop_boxes",
}


class UnusablePhotographError(ValueError):
    """A photograph has no masks; the message is the reason."""


def open_segmenter(
    model: str | os.PathLike,
    backend: str | None = None,
    dtype: str | None = None,
    image_shape: Sequence[int] | None = None,
    mask_threshold: float | None = None,
    value_range: Any = None,
    providers: Sequence[str] | None = None,
) -> Any:
    """Loads a model in this process: what `from_preset` takes, or an exported folder."""
    if is_export(model):
        from keras_sam.exported import ExportedSegmenter

        segmenter = ExportedSegmenter.load(model, providers=providers)
        if mask_threshold is not None:
            segmenter.mask_threshold = mask_threshold
    else:
        if backend is not None:
            os.environ["KERAS_BACKEND"] = backend
        models = importlib.import_module("keras_sam.models.sam_image_segmenter")
        given = {"dtype": dtype, "image_shape": image_shape, "mask_threshold": mask_threshold}
        given = {name: value for name, value in given.items() if value is not None}
        segmenter = models.SAMImageSegmenter.from_preset(model, **given)
    if value_range is not None:
        segmenter.preprocessor.image_converter.value_range = value_range
    return segmenter


class Everything:
    """All masks of a photograph; `parameters` are `SAMAutomaticMaskGenerator`'s."""

    def __init__(self, segmenter: Any, parameters: dict[str, Any]):
        self._generator = SAMAutomaticMaskGenerator(
            segmenter, **{**parameters, "output_mode": "coco_rle"}
        )

    def masks(self, image: Any, prompts: None = None) -> dict[str, Any]:
        """The columns of one photograph's masks, and its size."""
        try:
            (records,) = self._generator.stream([image])
        except UnfinishedImagesError as error:
            raise UnusablePhotographError(str(error.__cause__)) from error
        return columns_of(records, records.original_size)


class Prompts:
    """The mask of each box in a photograph."""

    def __init__(self, segmenter: Any, parameters: dict[str, Any]):
        self._predictor = SAMPredictor(segmenter)
        self._parameters = parameters

    def masks(self, image: Any, prompts: Any) -> dict[str, Any]:
        """As `Everything.masks`; `prompts` are boxes `(P, 4)`, x1 y1 x2 y2 in pixels, or None."""
        boxes = _boxes(prompts)
        self._predictor.set_image(image)
        records = []
        for start in range(0, len(boxes), BOXES_AT_ONCE):
            some = boxes[start : start + BOXES_AT_ONCE]
            masks, scores, _ = self._predictor.predict(
                boxes=some, multimask_output=False, **self._parameters
            )
            for mask, score in zip(masks[:, 0], scores[:, 0]):
                records.append(_record(mask, float(score)))
        return columns_of(records, self._predictor.original_sizes[0], tuple(MASK_COLUMNS)[:4])


def segment(engine: Everything | Prompts, image: Any, prompts: Any = None) -> dict[str, Any]:
    """The row of one photograph, without its place: hash, size and masks, or the `error`.

    `image` is the file's bytes, or an array. What is wrong with a photograph does not raise.
    """
    row: dict[str, Any] = {"sha256": None, "error": None}
    try:
        row["sha256"] = sha256(image)
        return {**row, **engine.masks(image, prompts)}
    except Exception as error:  # noqa: BLE001
        # Where an accelerator's memory is too small, each backend and runtime raises another class.
        return {**row, "error": reason_of(error)}


def deadly(deaths: int) -> str:
    """Why a photograph is left out with which workers die."""
    return f"{deaths} workers died while they segmented it"


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:600] or type(error).__name__


def sha256(image: Any) -> str:
    """Hash of a file's bytes, or of an array's values, in hexadecimal digits."""
    if isinstance(image, io.BytesIO):
        return hashlib.sha256(image.getbuffer()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


class File(io.BytesIO):
    """The bytes of a photograph, with the name that messages call it by."""

    def __init__(self, data: bytes, name: str | None = None):
        super().__init__(data)
        if name is not None:
            self.name = name

    def __repr__(self) -> str:
        """As pillow's messages have it."""
        return repr(getattr(self, "name", f"{self.getbuffer().nbytes} bytes"))


def as_image(value: Any) -> Any:
    """What a column holds as something to segment: paths are read, other values stay."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return File(bytes(value))
    if is_image_file(value):
        from keras_sam.ray.sources import read_bytes  # pyarrow, for addresses

        return File(read_bytes(os.fspath(value)), os.fspath(value))
    if value is None:
        raise UnusablePhotographError("there is no image in this row")
    return np.asarray(value)


def columns_of(
    records: Sequence[dict], size: Sequence[int], properties: Sequence[str] = tuple(MASK_COLUMNS)
) -> dict[str, Any]:
    """Records as a list per property, the columns of a row."""
    flat = [{**record, "counts": record["segmentation"]["counts"]} for record in records]
    columns = {MASK_COLUMNS[name]: [record[name] for record in flat] for name in properties}
    return {"height": int(size[0]), "width": int(size[1]), **columns}


def records_of(row: dict[str, Any]) -> list[dict]:
    """The records of a row, as the mask generator made them."""
    size = [row["height"], row["width"]]
    columns = {name: row[column] for name, column in MASK_COLUMNS.items() if column in row}
    counts = columns.pop("counts")
    rows = zip(*columns.values())
    return [
        {"segmentation": {"size": size, "counts": text}, **dict(zip(columns, values))}
        for text, values in zip(counts, rows)
    ]


def _record(mask, score):
    rle = encode_rle(mask)
    return {
        "segmentation": rle,
        "bbox": xyxy_to_xywh(mask_to_box(mask)).tolist(),
        "area": int(mask_area(rle)),
        "predicted_iou": score,
    }


def _boxes(prompts):
    """Boxes of any nesting as float64 `(P, 4)`."""
    if prompts is None or len(prompts) == 0:
        return np.zeros((0, 4))
    boxes = np.array([np.asarray(box, "float64") for box in prompts])
    if boxes.ndim == 1 and len(boxes) == 4:
        boxes = boxes[None]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"A photograph's boxes must have shape (P, 4), x1 y1 x2 y2 in pixels. "
            f"Received: shape={boxes.shape}."
        )
    return boxes
