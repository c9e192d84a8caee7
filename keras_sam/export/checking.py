"""Each file that was written, opened in its own runtime and compared with the segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sam.export.graphs import Graph, as_files_have_them, pixel_statistics
from keras_sam.predictor import SAMPredictor

# How far the outputs may be off, as a part of the largest value: rounding of float32 in another
# order, and of what is stored in fewer bits.
BOUNDS = {"float32": 2e-4, "float16": 2e-2, "int8": 0.5}
_OF_AN_IMAGE = 2e-2, 1e-1  # pixels are rounded after scaling, some of them by one grey level


def picture(size: tuple[int, int], channels: int) -> np.ndarray:
    """A drawn uint8 picture of discs on a gradient."""
    height, width = size
    y, x = np.mgrid[:height, :width] / max(size)
    image = np.stack([60 + 90 * x, 100 + 60 * y, 140 - 50 * x * y], axis=-1)
    for i, (cy, cx, radius) in enumerate(((0.25, 0.3, 0.12), (0.45, 0.7, 0.2), (0.6, 0.2, 0.07))):
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[inside] = np.roll([210, 120, 40], i)
    image = image.astype("uint8")
    return image[..., np.arange(channels) % 3]


def check_encoder(run: Any, segmenter: Any, image_input: bool, precision: str) -> dict[str, float]:
    """The largest differences of an encoder's outputs, as parts of the largest value of each."""
    height, width, channels = segmenter.image_shape
    image = picture((height * 3 // 2 + 1, width * 2), channels)
    # Files scale as the default does, however the segmenter's own preprocessor is set.
    frames = segmenter.default_preprocessor(segmenter.backbone).image_converter.convert([image])[0]
    expected = segmenter.encode_frames(frames)
    if image_input:
        outputs = run({"image": image})
    else:
        mean, std = pixel_statistics(segmenter)
        outputs = run({"pixels": ((frames - mean) / std).transpose(0, 3, 1, 2)})
    expected = as_files_have_them(segmenter, expected)
    bound = BOUNDS[precision]
    if image_input:
        change = _change_of_a_grey_level(segmenter, frames, expected)
        bound = max(bound, float(np.clip(change, *_OF_AN_IMAGE)))
    return compare(outputs, expected, bound)


def _change_of_a_grey_level(segmenter, frames, expected):
    """How far features move if one pixel value in ten is one grey level higher."""
    chosen = np.random.default_rng(0).random(frames.shape) < 0.1
    moved = segmenter.encode_frames(np.where(chosen, frames + 1, frames).astype("float32"))
    moved = as_files_have_them(segmenter, moved)
    return max(np.abs(moved[k] - x).max() / np.abs(x).max() for k, x in expected.items())


def check_metas(run: Any, segmenter: Any, settings: dict[str, Any]) -> dict[str, float]:
    """`check_encoder` for Meta's decoder, by the predictor's masks of a picture."""
    height, width, channels = segmenter.image_shape
    image = picture((height // 2 + 3, width * 3 // 4 + 1), channels)
    predictor = SAMPredictor(segmenter, segmenter.default_preprocessor(segmenter.backbone))
    predictor.set_image(image)
    h, w = image.shape[:2]
    clicks = np.float32([[0.3 * w, 0.25 * h], [0.7 * w, 0.45 * h]])
    masks, scores, low = predictor.predict(
        points=clicks, labels=[1, 0], multimask_output=None, return_logits=True
    )
    plan = predictor.preprocessor.image_converter.plan((h, w))
    points = np.concatenate([plan.to_model(clicks), np.zeros((1, 2), "float32")])
    outputs = run(
        {
            **as_files_have_them(segmenter, predictor.features),
            "point_coords": np.float32(points)[None],
            "point_labels": np.float32([[1, 0, -1]]),
            "mask_input": np.zeros((1, 1, *segmenter.mask_size), "float32"),
            "has_mask_input": np.zeros(1, "float32"),
            "orig_im_size": np.float32([h, w]),
        }
    )
    expected = {"masks": masks[None], "iou_predictions": scores[None], "low_res_masks": low[None]}
    if settings["return_single_mask"]:  # three points: mask 0
        expected = {name: x[:, :1] for name, x in expected.items()}
    if settings["use_stability_score"]:
        del expected["iou_predictions"]  # tested with known masks
    return compare(outputs, expected, BOUNDS[settings["precision"]])


def check_decoder(run: Any, graph: Graph, segmenter: Any, precision: str) -> dict[str, float]:
    """`check_encoder` for a decoder whose inputs are those of a graph: clicks, a box, a mask."""
    rng = np.random.default_rng(0)
    prompts = ("points", "labels", "mask_prompts", "mask_given")
    of_image = {  # features, or pixels
        a.name: rng.standard_normal(a.shape).astype("float32")
        for a in graph.arguments
        if a.name not in prompts
    }
    height, width = segmenter.image_shape[:2]
    lh, lw = segmenter.mask_size
    shape = np.zeros((lh, lw), bool)
    shape[lh // 4 : lh // 2, lw // 3 : lw // 2] = True
    points = np.float32([[[0.3, 0.4], [0.6, 0.5]], [[0.2, 0.2], [0.7, 0.6]], [[0.5, 0.5], [0, 0]]])
    points *= np.float32([width, height])
    labels = np.int32([[1, 0], [2, 3], [1, -1]])
    masks = np.zeros((3, lh, lw), "float32")
    masks[1] = np.where(shape, 6.9, -6.9)
    given = np.float32([0, 1, 0])
    arrays = (points[None], labels[None], masks[None], given[None])
    expected = _decoded(graph, [*of_image.values(), *arrays])
    outputs = run({**of_image, **dict(zip(prompts, arrays, strict=True))})
    return compare(outputs, expected, BOUNDS[precision])


def _decoded(graph, arrays):
    import keras

    tensors = [keras.ops.convert_to_tensor(x) for x in arrays]
    return {k: np.asarray(keras.ops.convert_to_numpy(x)) for k, x in graph(*tensors).items()}


def compare(
    outputs: dict[str, Any], expected: dict[str, np.ndarray], bound: float
) -> dict[str, float]:
    """The largest difference of each output, as a part of its largest value.

    Raises a RuntimeError where one is above `bound`.
    """
    differences = {}
    for name, wanted in expected.items():
        received = np.asarray(outputs[name], "float32")
        if received.shape != wanted.shape or not np.isfinite(received).all():
            raise RuntimeError(
                f"`{name}` of the exported file has shape {received.shape}, or values that are not "
                f"finite, where the model gives {wanted.shape}. Nothing was kept."
            )
        scale = max(float(np.abs(wanted).max()), 1e-12)
        differences[name] = float(np.abs(received - wanted).max()) / scale
        if differences[name] > bound:
            raise RuntimeError(
                f"`{name}` of the exported file is off by {differences[name]:.1e} of its largest "
                f"value, more than {bound:.0e}. Nothing was kept."
            )
    return differences
