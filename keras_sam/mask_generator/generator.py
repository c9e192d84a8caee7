"""Segmenting everything: a grid of clicks over the image and its crops, the good masks kept."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_sam.boxes import build_layer_point_grids, generate_crop_boxes
from keras_sam.encode_decode import EncodesAndDecodes
from keras_sam.framing import batch_of, is_one_image
from keras_sam.generator_settings import check_generator_settings
from keras_sam.mask_generator.candidates import CandidateFile, Candidates, Crop
from keras_sam.mask_generator.records import MaskRecords, Thresholds, select_records
from keras_sam.notices import warn
from keras_sam.predictor import SAMPredictor
from keras_sam.prompts.nested import check_at_least_one
from keras_sam.prompts.spellings import refuses_unknown_arguments

UNUSABLE = ("raise", "skip")


class UnfinishedImagesError(ValueError):
    """Raised when some of several images have no records; `results` has those of the others.

    Args:
        message: str. Names the images, and says what is wrong with each.
        results: list with the `MaskRecords` of each image, None for those without.

    Example:

    ```python
    generator = keras_sam.SAMAutomaticMaskGenerator(tiny_segmenter, points_per_side=2)
    try:
        results = generator.generate([image, "no_such_file.jpg"], verbose=0)
    except keras_sam.UnfinishedImagesError as error:
        results = error.results
    [records is None for records in results]  # [False, True]
    ```
    """

    def __init__(self, message: str, results: list[MaskRecords | None]):
        super().__init__(message)
        self.results = results


def _as_recommended(init):
    """What is not passed to `init` is as the model recommends, or else has `init`'s default."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_as_recommended(self, segmenter, *args, **kwargs):
        is_predictor = isinstance(segmenter, SAMPredictor)
        predictor = segmenter if is_predictor else SAMPredictor(segmenter)
        given = signature.bind(self, predictor, *args, **kwargs).arguments
        recommended = getattr(predictor.segmenter, "generator_settings", None)
        init(**{**check_generator_settings(recommended), **given})

    return init_as_recommended


class SAMAutomaticMaskGenerator:
    """Segments everything in an image: clicks on a grid, and keeps good masks without duplicates.

    Parameters, order of steps and records are those of Meta's `SamAutomaticMaskGenerator`
    (`tests/test_mask_generator.py` compares them). What is not passed is as the model recommends,
    see `SAMImageSegmenter.generator_settings`, or else Meta's default. Only masks whose predicted
    IoU is high enough are enlarged, a few at a time, and kept packed until suppression, in a
    temporary file when they need more than 8 MB. So memory grows with the records, and little with
    the masks that wait.

    Args:
        segmenter: a `SAMImageSegmenter`, the name of a preset, or an `ExportedSegmenter`; or a
            `SAMPredictor`, whose preprocessor is then used, and whose images, when they are set,
            need no encoding.
        points_per_side: int. Clicks along each side of the image, or None with `point_grids`.
        points_per_batch: int. Clicks whose masks are in memory together.
        pred_iou_thresh: float. Masks with a predicted IoU above it stay; 0 keeps all.
        stability_score_thresh: float. Masks with a stability score of at least this stay; 0
            keeps all.
        stability_score_offset: float. How far the mask threshold is moved up and down for the
            stability score.
        box_nms_thresh: float. Of two masks of one crop whose boxes have a larger IoU, the one
            with the higher predicted IoU stays.
        crop_n_layers: int. Layers of crops that are segmented besides the whole image: layer
            `i` has `2**i` by `2**i`.
        crop_nms_thresh: float. Of two masks whose boxes have a larger IoU, the one of the
            smaller crop stays.
        crop_overlap_ratio: float. How much crops overlap, see `boxes.generate_crop_boxes`.
        crop_n_points_downscale_factor: int. Layer `i` has `points_per_side / factor**i` clicks
            per side of a crop.
        point_grids: optional list of float arrays `(N, 2)`, x y in 0..1: the clicks into the
            image, then into each crop of layer 1, and so on. Needs `points_per_side=None`.
        min_mask_region_area: float, pixels. Holes and islands that are smaller are removed.
        output_mode: `"binary_mask"`, `"uncompressed_rle"` or `"coco_rle"`, see `masks`.
        use_m2m: bool. Decode every mask once more, with itself as mask prompt, before anything
            is dropped: better edges, in four times the decoder's time.
        keep_candidates: bool. Keep all candidates in a temporary file, see `MaskRecords.filter`.
        prompt_chunk: optional int. Clicks that are decoded at once. By default as many as suit the
            backend.

    Raises:
        ValueError: if a parameter is out of range, or not exactly one of `points_per_side` and
            `point_grids` is given.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix B;
        facebookresearch/segment-anything@dca509f. `use_m2m`: facebookresearch/sam2.

    Example:

    ```python
    generator = keras_sam.SAMAutomaticMaskGenerator(
        tiny_segmenter, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0
    )
    records = generator.generate(image)
    sorted(records[0])[:3]  # ['area', 'bbox', 'crop_box']
    large = [record for record in records if record["area"] > 1000]
    fewer = records.filter(box_nms_thresh=0.5)
    ```
    """

    @refuses_unknown_arguments
    @_as_recommended
    def __init__(
        self,
        segmenter: EncodesAndDecodes | SAMPredictor | str | os.PathLike,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Any] | None = None,
        min_mask_region_area: float = 0,
        output_mode: str = "binary_mask",
        use_m2m: bool = False,
        keep_candidates: bool = False,
        prompt_chunk: int | None = None,
    ):
        self.predictor = segmenter  # by now it is one
        self.segmenter = self.predictor.segmenter
        check_at_least_one(points_per_batch, "points_per_batch")
        if crop_n_layers < 0 or not 0 <= crop_overlap_ratio < 1:
            raise ValueError(
                "`crop_n_layers` must be at least 0 and `crop_overlap_ratio` in [0, 1). Received: "
                f"crop_n_layers={crop_n_layers}, crop_overlap_ratio={crop_overlap_ratio}."
            )
        if (points_per_side is None) == (point_grids is None):
            raise ValueError(
                "Exactly one of `points_per_side` and `point_grids` must be given: pass "
                "`points_per_side=None` with `point_grids`. Received: points_per_side="
                f"{points_per_side}, point_grids={'None' if point_grids is None else 'given'}."
            )
        if point_grids is None:
            self.point_grids = build_layer_point_grids(
                points_per_side, crop_n_layers, crop_n_points_downscale_factor
            )
        else:
            self.point_grids = _check_grids(point_grids, crop_n_layers)
        self.thresholds = Thresholds(
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_nms_thresh=crop_nms_thresh,
            min_mask_region_area=min_mask_region_area,
            output_mode=output_mode,
            mask_threshold=self.segmenter.mask_threshold,
        )
        self.points_per_batch = points_per_batch
        self.crop_n_layers = crop_n_layers
        self.crop_overlap_ratio = crop_overlap_ratio
        self.use_m2m = use_m2m
        self.keep_candidates = keep_candidates
        self.prompt_chunk = self.segmenter.checked_chunk(prompt_chunk)

    @refuses_unknown_arguments
    def generate(
        self,
        image: Any = None,
        keep_candidates: bool | None = None,
        channel_order: str | None = None,
        verbose: Any = "auto",
        unusable: str = "raise",
    ) -> MaskRecords | list[MaskRecords | None]:
        """Segments everything in one image, or in each of several.

        Of several images, no finished one is lost: an unusable one is skipped and named at the
        end, in an error that holds the records of the others; after Ctrl-C the records so far are
        returned, with a warning.

        Args:
            image: array `(H0, W0, 3)`, PIL image or path; or a list of them, of any sizes. By
                default the images that are set in the predictor, without encoding them again.
            keep_candidates: optional bool, instead of the generator's.
            channel_order: optional `"rgb"` or `"bgr"`, as in `SAMPredictor.set_image`.
            verbose: `"auto"` for a progress bar over several images, 1 for one in any case, 0
                for none. It counts clicks.
            unusable: what to do about an unusable one of several images: `"raise"` an error after
                the others, or `"skip"` it with a warning and None in its place.

        Returns:
            `MaskRecords`, a list of Meta's records, empty if nothing was good enough; for
            several images a list of them.

        Raises:
            ValueError: if the only image is unusable, or too small for the layers of crops; or if
                crops are wanted and the predictor has only the image's embedding.
            OSError: if there is no folder or space for temporary files, with one image.
            UnfinishedImagesError: if some of several images are unusable, or there is no folder or
                space for temporary files; its `results` are the records of the others.
            RuntimeError: if there is no image.
        """
        if image is None:
            sources = self._embedded_images()
            several = len(sources) > 1
        else:
            several = not is_one_image(image)
            sources = batch_of(image) if several else [image]
        _check_unusable(unusable)
        progress = self._progress_bar(len(sources), verbose)
        if not several:
            return self._segment(self._open(sources[0], channel_order), keep_candidates, progress)
        results: list[MaskRecords | None] = []
        faults: list[str] = []
        count = len(sources)

        def note(fault, error):
            faults.append(fault)

        try:
            for records in self._stream(
                sources, count, keep_candidates, channel_order, progress, note
            ):
                results.append(records)
        except KeyboardInterrupt:
            if not any(records is not None for records in results):
                raise
            interrupted = f"Interrupted: records of the first {len(results)} of {count} images."
            warn(" ".join([interrupted, *faults]))
            return results
        except OSError as error:  # a temporary file: a full disk
            number = len(results)
            faults.append(_describe_fault(number, count, sources[number], error))
            missing = [None] * (count - number)
            raise UnfinishedImagesError(_report(faults), results + missing) from error
        if faults and unusable == "raise":
            raise UnfinishedImagesError(_report(faults), results)
        if faults:
            warn(" ".join(faults))
        return results

    @refuses_unknown_arguments
    def stream(
        self,
        images: Iterable[Any],
        keep_candidates: bool | None = None,
        channel_order: str | None = None,
        unusable: str = "raise",
        progress: Callable[[int], Any] | None = None,
    ) -> Iterator[MaskRecords | None]:
        """Segments everything in images one after the other, as the results are asked for.

        Args:
            images: iterable of images, each as in `generate`, read when its turn comes.
            keep_candidates: see `generate`.
            channel_order: see `generate`.
            unusable: what to do about an unusable image: `"raise"` an error, which ends the
                stream, or `"skip"` it with a warning and None in its place.
            progress: optional function that is called with the number of clicks that have been
                segmented since the call before, see `clicks_per_image`.

        Yields:
            The `MaskRecords` of each image, in their order.

        Raises:
            UnfinishedImagesError: if an image is unusable, see `generate`; with its number, and
                without `results`, for they have been yielded.
            OSError: if there is no folder or space for temporary files.
        """
        _check_unusable(unusable)

        def report(fault, error):
            if unusable == "raise":
                raise UnfinishedImagesError(fault, []) from error
            warn(fault)

        progress = progress or _no_progress
        return self._stream(images, None, keep_candidates, channel_order, progress, report)

    def segment_pixels(
        self, pixels: np.ndarray, progress: Callable[[int], Any] | None = None
    ) -> MaskRecords:
        """Segments everything in an image whose values are read already.

        Args:
            pixels: array `(H0, W0, channels)`, RGB and 0..255, as the preprocessor's
                `image_converter.read` returns it.
            progress: see `stream`.

        Returns:
            Its `MaskRecords`.
        """
        return self._segment(self._open_pixels(pixels), None, progress or _no_progress)

    @property
    def clicks_per_image(self) -> int:
        """How many clicks an image gets, including those in its crops."""
        layers = range(self.crop_n_layers + 1)
        return sum(4**layer * len(self.point_grids[layer]) for layer in layers)

    def _stream(self, images, count, keep_candidates, channel_order, progress, report):
        """The records of each image, or None after a call of `report` for an unusable one."""
        for number, image in enumerate(images):
            try:
                opened = self._open(image, channel_order)
            except (ValueError, FileNotFoundError) as error:
                report(_describe_fault(number, count, image, error), error)
                yield None
            else:
                yield self._segment(opened, keep_candidates, progress)

    def _open(self, image, channel_order):
        """Reads an image and checks it, before the model runs."""
        if isinstance(image, _OpenedImage):
            return image
        converter = self.predictor.preprocessor.image_converter
        order = channel_order or converter.channel_order
        return self._open_pixels(converter.read(image, channel_order=order))

    def _open_pixels(self, pixels):
        boxes, layers = generate_crop_boxes(
            pixels.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
        )
        crops = functools.partial(self._encode_crops, pixels, boxes.tolist(), layers)
        return _OpenedImage(pixels.shape[:2], crops)

    def _encode_crops(self, pixels, boxes, layers, progress):
        """The crops of an image, each with its candidates, encoded one after the other."""
        converter = self.predictor.preprocessor.image_converter
        for box, layer in zip(boxes, layers, strict=True):
            x1, y1, x2, y2 = box
            frame, (plan,) = converter.convert(
                [pixels[y1:y2, x1:x2]],
                channel_order="rgb",
                data_format="channels_last",
                value_range=None,
            )
            features = self.segmenter.encode_frames(frame)
            yield Crop(tuple(box), plan), self._candidates(features, plan, layer, progress)

    def _embedded_crop(self, features, plan, progress):
        """An image that is encoded already, as its only crop."""
        h, w = plan.original_size
        yield Crop((0, 0, w, h), plan), self._candidates(features, plan, 0, progress)

    def _segment(self, image, keep_candidates, progress):
        crops = image.crops(progress)
        keep = self.keep_candidates if keep_candidates is None else keep_candidates
        candidates = CandidateFile() if keep else None
        if candidates is not None:
            crops = candidates.recorded(crops)
        return select_records(crops, image.original_size, self.thresholds, candidates)

    def _candidates(self, features, plan, layer, progress):
        h, w = plan.original_size
        points = self.point_grids[layer] * np.array([w, h])
        for start in range(0, len(points), self.points_per_batch):
            part = points[start : start + self.points_per_batch]
            multimask = self.segmenter.num_mask_tokens > 1
            scores, logits = self._decode(features, plan, part, None, multimask)
            if self.use_m2m:
                scores, logits = self._refine(features, plan, part, logits)
            yield Candidates(part, scores, logits)
            progress(len(part))

    def _decode(self, features, plan, points, masks, multimask_output):
        """Scores `(N, K)` and logits `(N, K, Lh, Lw)` of one click each."""
        prompts = {"points": points[None, :, None], "labels": np.ones((1, len(points), 1), "int32")}
        if masks is not None:
            prompts["masks"] = masks[None, ..., None]  # (1, N, Lh, Lw, 1)
        outputs = self.segmenter.decode(
            features,
            prompts,
            original_sizes=[plan],
            prompt_chunk=self.prompt_chunk,
            multimask_output=multimask_output,
        )
        return outputs["iou_pred"][0], outputs["masks"][0]

    def _refine(self, features, plan, points, logits):
        """Mask 0 of the same clicks with each of their masks as prompt."""
        prompts = self.segmenter.logits_as_prompt(logits)
        refined = [
            self._decode(features, plan, points, prompts[:, k], False)
            for k in range(prompts.shape[1])
        ]
        return tuple(np.concatenate(arrays, axis=1) for arrays in zip(*refined, strict=True))

    def _embedded_images(self):
        if not self.predictor.is_image_set:
            raise RuntimeError(
                "No image: pass one to `generate`, or set one in the predictor that the generator "
                "was made with."
            )
        if self.crop_n_layers:
            raise ValueError(
                "Crops need the image itself, not its embedding alone: pass the image to "
                f"`generate`, or use `crop_n_layers=0`. Received: {self.crop_n_layers}."
            )
        plan = self.predictor.preprocessor.image_converter.plan
        opened = []
        for i, size in enumerate(self.predictor.original_sizes):
            features = {name: x[i : i + 1] for name, x in self.predictor.features.items()}
            crops = functools.partial(self._embedded_crop, features, plan(size))
            opened.append(_OpenedImage(size, crops))
        return opened

    def _progress_bar(self, images, verbose):
        """A function that advances the progress bar by a number of clicks."""
        if verbose in (0, False) or (verbose == "auto" and images == 1):
            return _no_progress
        return self.segmenter.progress_bar(images * self.clicks_per_image, "click")


@dataclasses.dataclass(frozen=True)
class _OpenedImage:
    """An image that was checked, and a function of `progress` that yields its crops."""

    original_size: tuple[int, int]
    crops: Callable[[Callable], Iterator[tuple[Crop, Iterator[Candidates]]]]


def _no_progress(points: int) -> None:
    """Ignores progress."""


def _check_unusable(unusable):
    if unusable not in UNUSABLE:
        raise ValueError(f"`unusable` must be one of {UNUSABLE}. Received: {unusable!r}.")


def _describe_fault(number: int, count: int | None, image: Any, error: Exception) -> str:
    """One sentence that names an image and says what is wrong with it."""
    name = f" ({os.fspath(image):.200})" if isinstance(image, (str, os.PathLike)) else ""
    of = "" if count is None else f" of {count}"
    return f"Image {number}{of}, counted from 0{name}: {error}"


def _report(faults: list[str]) -> str:
    return " ".join([*faults, "The records of the other images are in this error's `results`."])


def _check_grids(point_grids: Sequence[Any], layers: int) -> list[np.ndarray]:
    grids = [np.asarray(grid, "float64") for grid in point_grids]
    if len(grids) <= layers:
        raise ValueError(
            f"`point_grids` must have one grid for the image and one per layer of crops, "
            f"{layers + 1} in all. Received: {len(grids)}."
        )
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(
                "Each of `point_grids` must have shape (N, 2) with at least one point, x y in "
                f"0..1. Received: shape={grid.shape}."
            )
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(
                "`point_grids` must be x y in 0..1, parts of the image's width and height, not "
                f"pixels. Received: values in {grid.min()}..{grid.max()}."
            )
    return grids
