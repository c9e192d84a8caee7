"""Mask quality: simulated annotators, IoU after N clicks, clicks to reach an IoU, recall."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_sam import masks as mask_tools
from keras_sam.files import whole_file
from keras_sam.masks.measures import iou_of_areas
from keras_sam.outputs import best_index
from keras_sam.preprocessing.targets import read_targets
from keras_sam.prompts import VOID
from keras_sam.prompts.nested import describe_value, to_numpy

if TYPE_CHECKING:
    from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
    from keras_sam.predictor import SAMPredictor


def _ndimage() -> ModuleType:
    try:
        import scipy.ndimage
    except ImportError as error:
        raise ImportError(
            '`keras_sam.evaluation` needs scipy. Install it with: pip install "keras-sam[train]".'
        ) from error
    return scipy.ndimage


def interior_distance(region: np.ndarray) -> np.ndarray:
    """Distance in pixels to the nearest pixel outside a bool region `(H0, W0)` or the image."""
    padded = np.pad(np.asarray(region, bool), 1)
    return _ndimage().distance_transform_edt(padded)[1:-1, 1:-1]


def center_click(mask: np.ndarray) -> tuple[int, int]:
    """Where a careful annotator clicks first: the pixel farthest from the object's boundary.

    Args:
        mask: bool array `(H0, W0)`, not empty.

    Returns:
        `(x, y)`; if several pixels are equally far, the first in row order.

    Raises:
        ValueError: if the mask is empty.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix D.1.
    """
    if not np.any(mask):
        raise ValueError("`mask` must have at least one pixel: there is nothing to click on.")
    y, x = np.unravel_index(np.argmax(interior_distance(mask)), np.shape(mask))
    return int(x), int(y)


def next_click(prediction: np.ndarray, target: np.ndarray) -> tuple[tuple[int, int], int] | None:
    """Where a careful annotator clicks next: the middle of the largest error outside void.

    Arguments are those of `mask_iou`. Returns `(x, y)` and a label, 1 for a false negative and 0
    for a false positive, or None.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix D.1; the kind of error with
        the larger distance is chosen as in Sofiiuk et al. 2021, https://arxiv.org/abs/2102.06583.
    """
    return _next_click(*_read(prediction, target))


def _next_click(prediction, target):
    missing = interior_distance((target == 1) & ~prediction)
    surplus = interior_distance((target == 0) & prediction)
    distance, label = (missing, 1) if missing.max() >= surplus.max() else (surplus, 0)
    if distance.max() == 0:
        return None
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return (int(x), int(y)), label


def mask_iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union without the target's void pixels; 1 if both masks are empty.

    Args:
        prediction: bool array `(H0, W0)`, or numbers of which all but 0 are inside.
        target: array `(H0, W0)` of 0, 1 and 255 for void, or black and white, as for `fit`.

    Returns:
        float in 0..1.

    Raises:
        ValueError: if `prediction` holds logits or probabilities, `target` is no mask, or their
            sizes differ.

    Example:

    >>> target = np.zeros((4, 6), "uint8")
    >>> target[1:3, 1:5] = 1
    >>> keras_sam.evaluation.mask_iou(target > 0, target)
    1.0
    """
    return _mask_iou(*_read(prediction, target))


def _mask_iou(prediction, target):
    prediction, target = prediction & (target != VOID), target == 1
    areas = map(np.count_nonzero, (prediction & target, prediction, target))
    return float(iou_of_areas(*areas, if_empty=1.0))


def boundary_iou(prediction: np.ndarray, target: np.ndarray, dilation_ratio: float = 0.02) -> float:
    """Intersection over union of the pixels near the boundaries of the two masks.

    Unlike the IoU of whole masks it stays sensitive to coarse outlines of large objects.
    `dilation_ratio` is the width of the boundary as a fraction of the image's diagonal, the other
    arguments are those of `mask_iou`.

    Source:
        Cheng et al. 2021, https://arxiv.org/abs/2103.16562.
    """
    return _boundary_iou(*_read(prediction, target), dilation_ratio)


def _boundary_iou(prediction, target, dilation_ratio=0.02):
    width = max(1, round(dilation_ratio * float(np.hypot(*target.shape))))
    square, rims = np.ones((3, 3), bool), []
    for mask in (prediction, target == 1):
        eroded = _ndimage().binary_erosion(np.pad(mask, 1), square, iterations=width)
        rims.append(mask & ~eroded[1:-1, 1:-1])
    return _mask_iou(rims[0], np.where(target == VOID, VOID, rims[1]))


def _read(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A prediction as bool, and a target of 0, 1 and 255 by the rule that `fit` reads it by."""
    prediction, target = to_numpy(prediction), to_numpy(target)
    if prediction.ndim != 2 or prediction.shape != target.shape or not target.size:
        raise ValueError(
            "`prediction` and `target` must be masks of one image, (H0, W0) both. Received: shapes "
            f"{prediction.shape} and {target.shape}."
        )
    if prediction.dtype.kind == "f" and not np.isin(prediction, (0, 1)).all():
        raise ValueError(
            "`prediction` must be a bool mask. Received: floats within "
            f"{prediction.min():.3g}..{prediction.max():.3g}. Make a mask of logits first, with "
            "`logits > 0`, and of probabilities with `probabilities > 0.5`."
        )
    return prediction.astype(bool), read_targets(target)[0]


def average_recall(
    masks: Sequence[np.ndarray],
    scores: Sequence[float],
    targets: Sequence[np.ndarray],
    max_masks: int = 1000,
) -> float:
    """Recall of the targets, averaged over IoU thresholds 0.50, 0.55 .. 0.95.

    Args:
        masks: bool arrays `(H0, W0)`, for instance of the mask generator's records.
        scores: float per mask. In the order of descending scores, each mask is matched with the
            unmatched target that it overlaps most.
        targets: bool arrays `(H0, W0)`, at least one.
        max_masks: int. The number of masks, by score, that count. Defaults to `1000`.

    Returns:
        float in 0..1: AR@1000 as COCO defines it, ignoring classes.

    Raises:
        ValueError: if there is no target.

    Source:
        Lin et al. 2014, https://arxiv.org/abs/1405.0312; equality with pycocotools is tested.
    """
    if len(targets) == 0:
        raise ValueError("`targets` must hold at least one mask: recall of nothing is undefined.")
    order = np.argsort(-np.asarray(scores, "float64"), kind="stable")[:max_masks]
    if not len(order):
        return 0.0
    iou = mask_tools.mask_iou([masks[i] for i in order], targets)
    recalls = []
    for threshold in np.linspace(0.5, 0.95, 10):
        free = np.ones(len(targets), bool)
        for row in iou:
            overlaps = np.where(free, row, -1.0)
            # Of equal overlaps the last one counts, as in COCO's own evaluation.
            best = len(overlaps) - 1 - int(np.argmax(overlaps[::-1]))
            if overlaps[best] >= min(threshold, 1 - 1e-10):
                free[best] = False
        recalls.append(1.0 - free.mean())
    return float(np.mean(recalls))


@dataclasses.dataclass
class Evaluation:
    """The results of `evaluate`.

    Args:
        objects: list of dicts, one per object: `image`, `object`, `iou@N` after `N` clicks,
            `oracle_iou@1`, `boundary_iou@1`, `box_iou`, and the numbers of clicks `noc@85` etc.
        summary: dict of the means over all objects, without `image` and `object`; `iou` is
            `miou` in their names.
    """

    objects: list[dict[str, Any]]
    summary: dict[str, float]

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row per object; the file appears complete or not at all."""
        with whole_file(path, text=True) as file:
            writer = csv.DictWriter(file, list(self.objects[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.objects)


def evaluate(
    predictor: SAMPredictor | SAMImageSegmenter | str | os.PathLike,
    data: Iterable[tuple[Any, Sequence[np.ndarray]]],
    clicks: int | Sequence[int] = (1, 2, 3, 5, 9),
    boxes: bool = True,
    noc: Sequence[float] = (0.85, 0.90),
    max_clicks: int = 20,
    void: int | str | None = "auto",
) -> Evaluation:
    """Lets a simulated annotator segment every object, and measures the masks.

    The first click is the object's centre. Each further click is the middle of the current mask's
    largest error, and the mask's logits are a prompt with it. The first mask is the best of
    three by predicted IoU, later ones are mask 0.

    Args:
        predictor: a `SAMPredictor`, or what it takes: a segmenter, or the name of a preset.
        data: iterable of tuples of an image, as `SAMPredictor.set_image` takes it, and its
            objects, arrays `(H0, W0)` of 0, 1 and 255 for void, or black and white. Empty objects
            are left out.
        clicks: int or ints. The numbers of clicks after which the IoU is measured.
        boxes: bool. Whether to measure the mask from each object's exact box.
        noc: floats. IoUs for which the number of clicks (NoC) is counted.
        max_clicks: int. The most clicks per object, and the NoC of an IoU that is not reached.
        void: the number that is void in the objects; `None` for none. Defaults to `"auto"`: 255 in
            objects that have a 1.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: if there is no object, `data` holds something else, or `clicks` are not
            positive.
    """
    clicks = (clicks,) if np.ndim(clicks) == 0 else clicks
    if not clicks or min(clicks) < 1 or max_clicks < 1:
        raise ValueError(
            "`clicks` and `max_clicks` must be at least 1. "
            f"Received: clicks={tuple(clicks)}, max_clicks={max_clicks}."
        )
    if not hasattr(predictor, "set_image"):
        from keras_sam.predictor import SAMPredictor  # imports Keras, which the measures need not

        predictor = SAMPredictor(predictor)
    rows = []
    for image_index, item in enumerate(data):
        image, targets = _checked_item(item)
        predictor.set_image(image)
        for object_index, target in enumerate(read_targets(targets, void=void)):
            if not (target == 1).any():
                continue
            row = {"image": image_index, "object": object_index}
            row |= _click_through(predictor, target, clicks, noc, max_clicks)
            if boxes:
                box = mask_tools.mask_to_box(target == 1, inclusive=False)
                masks, _, _ = predictor.predict(boxes=box, multimask_output=False)
                row["box_iou"] = _mask_iou(masks[0], target)
            rows.append(row)
    if not rows:
        raise ValueError("`data` holds no object: there is nothing to evaluate.")
    names = [name for name in rows[0] if name not in ("image", "object")]
    summary = {
        name.replace("iou", "miou"): float(np.mean([row[name] for row in rows])) for name in names
    }
    return Evaluation(rows, summary)


def _checked_item(item):
    if not isinstance(item, (tuple, list)) or len(item) != 2 or isinstance(item[0], dict):
        raise ValueError(
            "`data` must give tuples of an image and its objects, as `MaskFolder` and the other "
            f"sources do. Received: {describe_value(item)}. Of an `ObjectBatches`, pass `source`."
        )
    return item


def _click_through(
    predictor: SAMPredictor, target: np.ndarray, clicks: Sequence, noc: Sequence, max_clicks: int
) -> dict[str, Any]:
    """The row of one object, which is clicked on until every requested number is known."""
    points, labels = [center_click(target == 1)], [1]
    logits, ious, oracle, boundary = None, [], None, None
    last = max(max(clicks), max_clicks if noc else 0)
    while len(ious) < last:
        masks, scores, candidates = predictor.predict(
            points=points, labels=labels, masks=logits, multimask_output=logits is None
        )
        best = int(best_index(scores))
        logits = candidates[best]
        ious.append(_mask_iou(masks[best], target))
        if oracle is None:
            oracle = max(_mask_iou(mask, target) for mask in masks)
            boundary = _boundary_iou(masks[best], target)
        reached = not noc or max(ious) >= max(noc)
        if reached and len(ious) >= max(clicks):
            break
        click = _next_click(masks[best], target)
        if click is None:
            break
        points.append(click[0])
        labels.append(click[1])
    row = {f"iou@{n}": ious[min(n, len(ious)) - 1] for n in clicks}
    row |= {"oracle_iou@1": oracle, "boundary_iou@1": boundary}
    for wanted in noc:
        after = next((n for n, iou in enumerate(ious, start=1) if iou >= wanted), max_clicks)
        row[f"noc@{round(100 * wanted)}"] = min(after, max_clicks)
    return row
