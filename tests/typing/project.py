"""A small program of somebody who uses the package and `mypy --strict`; checked, never run.

`assert_type` fails where a type is lost, and an unused `type: ignore` where a mistake is not seen.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import keras_sam
from keras_sam import annotations, boxes, evaluation, masks, training, visualization
from keras_sam.layers import SAMMaskDecoder
from keras_sam.models import SAMImageSegmenter

Mask = npt.NDArray[np.bool_]


def load(name: str) -> SAMImageSegmenter:
    segmenter = keras_sam.SAMImageSegmenter.from_preset(name)
    return assert_type(segmenter, SAMImageSegmenter)


def click(photo: Path, x: float, y: float) -> tuple[Mask, float]:
    predictor = keras_sam.SAMPredictor(load("sam_tiny_demo"))
    predictor.set_image(photo)
    found, scores, logits = predictor.predict(points=[[x, y]], labels=[1])
    assert_type(found, np.ndarray)
    best = int(np.argmax(scores))
    return found[best], float(scores[best])


def everything(photo: Path, out: Path) -> int:
    generator = keras_sam.SAMAutomaticMaskGenerator(load("sam_tiny_demo"), points_per_side=8)
    count = 0
    for records in generator.stream([photo]):
        if records is not None:
            found = annotations.ImageAnnotations(photo.name, records.original_size, records)
            annotations.write_coco(out, [found])
            count += len(records.filter(pred_iou_thresh=0.9))
    return count


def outline(mask: Mask) -> list[list[np.ndarray[Any, Any]]]:
    lengths = masks.encode_rle(mask)
    assert isinstance(lengths, dict)
    kept = boxes.nms(np.zeros((1, 4)), np.ones(1), 0.5)
    assert_type(kept, np.ndarray)
    return masks.mask_to_polygons(mask, tolerance=1.0)


def train(segmenter: SAMImageSegmenter, photos: Path, labels: Path) -> float:
    source = training.MaskFolder(photos, labels, label_map=True)
    trainer = training.SAMTrainer(segmenter, num_clicks=2)
    trainer.fit(training.ObjectBatches(source, batch_size=2), epochs=2)
    result = evaluation.evaluate(keras_sam.SAMPredictor(segmenter), source, clicks=(1, 3))
    return float(result.summary["miou@3"])


def draw(photo: Path, found: Mask) -> None:
    visualization.overlay(photo, found).save("overlay.png")
    decoder = SAMMaskDecoder(hidden_size=16, num_heads=2)
    assert_type(decoder, SAMMaskDecoder)


def mistakes(predictor: keras_sam.SAMPredictor) -> None:
    predictor.set_picture("photo.jpg")  # type: ignore[attr-defined]
    predictor.predict(colour="red")  # type: ignore[call-arg]
    masks.mask_to_polygons(np.zeros((2, 2)), tolerance="fine")  # type: ignore[arg-type]
    keras_sam.NoSuchName  # type: ignore[attr-defined]  # noqa: B018
