"""Meta's records, selected from the candidates of a click grid.

Numpy only. Full-size logits never exist: masks are made some rows at a time, one mask per thread,
and only in the part of the image where the mask can be.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_sam.annotations import ImageAnnotations, write_coco
from keras_sam.boxes import boxes_near_crop_edge, nms, nms_across_crops, uncrop_boxes
from keras_sam.enlarging import enlarged_rows
from keras_sam.geometry import ResizePlan, mask_axes, xywh_to_xyxy, xyxy_to_xywh
from keras_sam.mask_generator.candidates import (
    CandidateFile,
    Candidates,
    Crop,
    PackedMask,
    WaitingMasks,
    pack_mask,
)
from keras_sam.mask_generator.shortfall import Shortfall
from keras_sam.masks import (
    compress_rle,
    decode_rle,
    decompress_rle,
    encode_rle,
    mask_area,
    mask_to_box,
    remove_small_regions,
)
from keras_sam.masks.measures import stability_of_areas

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_MAX_THREADS = 4  # each holds one mask at full size; more would wait for the memory bus


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds by which candidates become records, and the records' form.

    See `SAMAutomaticMaskGenerator`; `mask_threshold` is the segmenter's.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    min_mask_region_area: float = 0
    output_mode: str = "binary_mask"
    mask_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name == "output_mode":
                if value not in OUTPUT_MODES:
                    raise ValueError(
                        f"`output_mode` must be one of {OUTPUT_MODES}. Received: {value!r}."
                    )
            elif not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number. Received: {value!r}.")

    def accept_score(self, score: float) -> bool:
        """Whether a predicted IoU is high enough."""
        return bool(self.pred_iou_thresh <= 0 or score > self.pred_iou_thresh)

    def accept_stability(self, stability: float) -> bool:
        """Whether a mask is stable enough. An empty one has 0 / 0, NaN, and is not."""
        return bool(self.stability_score_thresh <= 0 or stability >= self.stability_score_thresh)

    def replaced(self, changes: dict[str, Any]) -> Thresholds:
        """A copy with other values; raises a ValueError for unknown names."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "mask_threshold"]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ValueError(f"`filter` takes {', '.join(names)}. Received: {', '.join(unknown)}.")
        return dataclasses.replace(self, **changes)

    def looser_than(self, other: Thresholds) -> list[str]:
        """The names of thresholds that could bring back candidates which `other` has dropped."""
        stricter_is_more = ("pred_iou_thresh", "stability_score_thresh", "min_mask_region_area")
        stricter_is_less = ("box_nms_thresh", "crop_nms_thresh")
        return [
            *(n for n in stricter_is_more if getattr(self, n) < getattr(other, n)),
            *(n for n in stricter_is_less if getattr(self, n) > getattr(other, n)),
            *(
                n
                for n in ("stability_score_offset", "mask_threshold")
                if getattr(self, n) != getattr(other, n)
            ),
        ]


@dataclasses.dataclass
class _Mask:
    """A candidate that has not been dropped: the fields of its record, boxes as x1 y1 x2 y2."""

    run_lengths: Callable[[], dict]  # compressed, of the whole image
    box: np.ndarray
    score: float
    stability: float
    point: list
    crop_box: tuple[int, int, int, int]


class MaskRecords(list):
    """The masks of one image: a list of Meta's records that can be filtered again.

    Each record is a dict: `segmentation`, bool `(H0, W0)` or run lengths; `area`, pixels;
    `bbox`, x y width height from inclusive corners; `predicted_iou`; `point_coords`,
    `[[x, y]]`; `stability_score`; `crop_box`, x y width height.

    Args:
        records: iterable of records.
        original_size: pair of ints, `(H0, W0)`.
        thresholds: what the records were chosen by.
        candidates: optional `CandidateFile`, all that they were chosen from.
    """

    def __init__(
        self,
        records: Iterable[dict],
        original_size: tuple[int, int],
        thresholds: Thresholds,
        candidates: CandidateFile | None = None,
    ) -> None:
        super().__init__(records)
        self.original_size = original_size
        self.thresholds = thresholds
        self.candidates = candidates

    def __getitem__(self, index):
        chosen = super().__getitem__(index)
        if isinstance(index, slice):  # whose candidates would bring back the others
            return MaskRecords(chosen, self.original_size, self.thresholds)
        return chosen

    def copy(self) -> MaskRecords:
        """The same records in another list, without candidates."""
        return copy.copy(self)

    def save_coco(self, path: str | os.PathLike, file_name: str, polygons: bool = False) -> None:
        """Writes these records as a COCO file of one image.

        For several images see `keras_sam.annotations.write_coco`.

        Args:
            path: the file, written whole or not at all.
            file_name: the image's file, as the COCO file is to name it.
            polygons: bool. Writes outlines instead of run lengths.

        Raises:
            OSError: if the file cannot be written.
        """
        image = ImageAnnotations(os.fspath(file_name), self.original_size, self)
        write_coco(path, [image], polygons=polygons)

    def filter(self, **thresholds: Any) -> MaskRecords:
        """Selects again by other thresholds, without running the model.

        Of records that were generated with `keep_candidates=True`, this equals generating with
        those thresholds. Otherwise thresholds can only be stricter, and are applied to these
        records: a mask that was suppressed by one which is dropped now does not come back.

        Args:
            **thresholds: any of `pred_iou_thresh`, `stability_score_thresh`,
                `stability_score_offset`, `box_nms_thresh`, `crop_nms_thresh`,
                `min_mask_region_area` and `output_mode`; what is not given stays as it was.

        Returns:
            New `MaskRecords`; these stay as they are.

        Raises:
            ValueError: for other names, or if a threshold is looser and there are no candidates.
            OSError: if there is no space for the temporary file of masks that wait for suppression.
        """
        changed = self.thresholds.replaced(thresholds)
        if self.candidates is not None:
            return select_records(
                self.candidates.crops(), self.original_size, changed, self.candidates
            )
        looser = changed.looser_than(self.thresholds)
        if looser:
            values = [f"{name}={getattr(changed, name)}" for name in looser]
            raise ValueError(
                "Without candidates, thresholds can only be stricter than those of the records. "
                f"Received: {', '.join(values)}. Generate with `keep_candidates=True` first."
            )
        return _filter_records(self, changed)

    def __reduce__(self):
        # Copies and pickles hold the records, not the temporary file of candidates.
        return MaskRecords, (list(self), self.original_size, self.thresholds)


def select_records(
    crops: Iterable[tuple[Crop, Iterable[Candidates]]],
    original_size: tuple[int, int],
    thresholds: Thresholds,
    candidates: CandidateFile | None = None,
) -> MaskRecords:
    """Selects the masks of one image from the candidates of its crops.

    Per crop: predicted IoU, stability, boxes cut off by the crop's edge, suppression by
    predicted IoU. Then suppression across crops, smaller crops first, and small regions. The
    result keeps `candidates`.

    Source:
        `SamAutomaticMaskGenerator`, facebookresearch/segment-anything@dca509f.
    """
    masks: list[_Mask] = []
    count, shortfall = 0, Shortfall(thresholds)
    # One pool for all batches: new threads may get new heaps, whose gaps add up.
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    with pool, WaitingMasks(original_size) as waiting:
        for crop, batches in crops:
            count += 1
            crop_masks = []
            for batch in batches:
                crop_masks += _survivors(batch, crop, waiting, thresholds, pool)
                if not (masks or crop_masks):
                    shortfall.add(batch)
            masks += _suppress_in_crop(crop_masks, thresholds)
        if not masks:
            shortfall.report()
        if count > 1:
            masks = _suppress_across_crops(masks, thresholds)
        masks = _clean(masks, thresholds)
        return _records(masks, original_size, thresholds, candidates)


def _survivors(
    batch: Candidates,
    crop: Crop,
    waiting: WaitingMasks,
    thresholds: Thresholds,
    pool: ThreadPoolExecutor,
) -> Iterator[_Mask]:
    """The candidates of a high enough predicted IoU that are stable and not cut off, in order."""
    good = [
        place
        for place in np.ndindex(batch.scores.shape)
        if thresholds.accept_score(batch.scores[place])
    ]

    def enlarge(place):
        return _mask_at(place, batch, crop, waiting.original_size, thresholds)

    for packed, others in filter(None, pool.map(enlarge, good)):
        yield _Mask(waiting.add(packed), **others)


def _mask_at(
    place: tuple[int, int],
    batch: Candidates,
    crop: Crop,
    original_size: tuple[int, int],
    thresholds: Thresholds,
) -> tuple[PackedMask, dict] | None:
    """One candidate's mask and the other fields of `_Mask`, if it is stable and not cut off."""
    mask, (x, y), stability = _enlarge(batch.logits[place], crop.plan, thresholds)
    if not thresholds.accept_stability(stability):
        return None
    box = mask_to_box(mask) + ([x, y, x, y] if mask.any() else 0)
    if boxes_near_crop_edge(box, crop.box, original_size)[0]:
        return None
    x1, y1 = crop.box[0] + x, crop.box[1] + y
    place_in_image = (x1, y1, x1 + mask.shape[1], y1 + mask.shape[0])
    return pack_mask(mask, place_in_image, original_size), {
        "box": uncrop_boxes(box, crop.box),
        "score": float(batch.scores[place]),
        "stability": stability,
        "point": (batch.points[place[0]] + crop.box[:2]).tolist(),
        "crop_box": crop.box,
    }


def _enlarge(
    logits: np.ndarray, plan: ResizePlan, thresholds: Thresholds
) -> tuple[np.ndarray, tuple[int, int], float]:
    """The mask in the part of a crop where it can have pixels, its x y, and its stability.

    Enlarging takes weighted means, which stay below a level that all their pixels are below. So
    what is left out belongs to neither of the masks that stability compares.
    """
    rows, columns = mask_axes(plan, logits.shape)
    threshold, offset = thresholds.mask_threshold, thresholds.stability_score_offset
    above = np.asarray(logits) > threshold - abs(offset)
    y, x = rows.reach(above.any(axis=1)), columns.reach(above.any(axis=0))
    mask = np.empty((y.stop - y.start, x.stop - x.start), bool)
    inner = outer = 0
    for some, values in enlarged_rows(logits, rows, columns, (y, x)):
        np.greater(values, threshold, out=mask[some])
        inner += np.count_nonzero(values > threshold + offset)
        outer += np.count_nonzero(values > threshold - offset)
    return mask, (x.start, y.start), float(stability_of_areas(inner, outer))


def _boxes(masks: list[_Mask]) -> np.ndarray:
    return np.array([mask.box for mask in masks]).reshape(-1, 4)


def _suppress_in_crop(masks: list[_Mask], thresholds: Thresholds) -> list[_Mask]:
    scores = np.array([mask.score for mask in masks])
    return [masks[i] for i in nms(_boxes(masks), scores, thresholds.box_nms_thresh)]


def _suppress_across_crops(masks: list[_Mask], thresholds: Thresholds) -> list[_Mask]:
    crop_boxes = [mask.crop_box for mask in masks]
    kept = nms_across_crops(_boxes(masks), crop_boxes, thresholds.crop_nms_thresh)
    return [masks[i] for i in kept]


def _clean(masks: list[_Mask], thresholds: Thresholds) -> list[_Mask]:
    """Fills small holes, drops small islands, then suppresses duplicates, unchanged masks first."""
    area = thresholds.min_mask_region_area
    if area <= 0:
        return masks
    cleaned, unchanged = [], []
    for mask in masks:
        rle, box = mask.run_lengths(), mask.box
        pixels, filled = remove_small_regions(decode_rle(rle), area, "holes")
        pixels, dropped = remove_small_regions(pixels, area, "islands")
        unchanged.append(float(not filled and not dropped))
        if filled or dropped:
            rle, box = encode_rle(pixels), mask_to_box(pixels)
        made = functools.partial(dict, rle)
        cleaned.append(dataclasses.replace(mask, run_lengths=made, box=box))
    threshold = max(thresholds.box_nms_thresh, thresholds.crop_nms_thresh)
    return [cleaned[i] for i in nms(_boxes(cleaned), np.array(unchanged), threshold)]


def _records(
    masks: list[_Mask],
    original_size: tuple[int, int],
    thresholds: Thresholds,
    candidates: CandidateFile | None,
) -> MaskRecords:
    forms = {"binary_mask": decode_rle, "uncompressed_rle": decompress_rle, "coco_rle": dict}
    form = forms[thresholds.output_mode]
    records = (
        {
            "segmentation": form(rle := mask.run_lengths()),
            "area": int(mask_area(rle)),
            "bbox": xyxy_to_xywh(mask.box).tolist(),
            "predicted_iou": mask.score,
            "point_coords": [mask.point],
            "stability_score": mask.stability,
            "crop_box": xyxy_to_xywh(mask.crop_box).tolist(),
        }
        for mask in masks
    )
    return MaskRecords(records, original_size, thresholds, candidates)


def _filter_records(records: MaskRecords, thresholds: Thresholds) -> MaskRecords:
    """Applies stricter thresholds to records, each only where it has changed."""
    before = records.thresholds
    masks = [
        _read_record(record)
        for record in records
        if thresholds.accept_score(record["predicted_iou"])
        and thresholds.accept_stability(record["stability_score"])
    ]
    if thresholds.box_nms_thresh < before.box_nms_thresh:
        crops = dict.fromkeys(mask.crop_box for mask in masks)
        kept = [
            id(mask)
            for crop in crops
            for mask in _suppress_in_crop([m for m in masks if m.crop_box == crop], thresholds)
        ]
        masks = [mask for mask in masks if id(mask) in set(kept)]
    crops = {mask.crop_box for mask in masks}
    if thresholds.crop_nms_thresh < before.crop_nms_thresh and len(crops) > 1:
        masks = _suppress_across_crops(masks, thresholds)
    if thresholds.min_mask_region_area > before.min_mask_region_area:
        masks = _clean(masks, thresholds)
    return _records(masks, records.original_size, thresholds, None)


def _read_record(record: dict) -> _Mask:
    mask = record["segmentation"]
    rle = compress_rle(mask) if isinstance(mask, dict) else encode_rle(mask)
    return _Mask(
        run_lengths=functools.partial(dict, rle),
        box=xywh_to_xyxy(record["bbox"]),
        score=record["predicted_iou"],
        stability=record["stability_score"],
        point=record["point_coords"][0],
        crop_box=tuple(xywh_to_xyxy(record["crop_box"]).tolist()),
    )
