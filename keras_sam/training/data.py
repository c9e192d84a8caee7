"""Batches to train on: images and objects from a source, augmented, with sampled prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam.geometry import resize_image
from keras_sam.losses import VOID
from keras_sam.masks import mask_to_box
from keras_sam.training.cached import CachedEmbeddings
from keras_sam.training.clicks import BOX_NOISE, BOX_NOISE_LIMIT
from keras_sam.training.sources import item_name, read_item, report_unreadable

PROMPTS = ("none", "points", "boxes", "points or boxes")


def sample_point(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random pixel of the object, float32 x y. `target` is 1 at the object, and not empty."""
    y, x = np.nonzero(target == 1)
    chosen = rng.integers(len(x))
    return np.float32([x[chosen], y[chosen]])


def sample_box(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object's box with noise: `clicks.noisy_box` for a single target, in numpy.

    Returns float32 x1, y1, x2, y2 within the image.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A.
    """
    box = mask_to_box(target == 1, inclusive=False).astype("float32")
    sides = np.tile(box[2:] - box[:2], 2)
    box = box + np.clip(rng.normal(0, BOX_NOISE, 4) * sides, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
    height, width = target.shape
    box = np.clip(box, 0, [width, height, width, height])
    return np.float32([*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])])


def flip(image: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors image `(H0, W0, C)` and targets `(P, H0, W0)` left to right."""
    return image[:, ::-1], targets[:, :, ::-1]


def jitter_scale(
    image: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    scales: tuple[float, float] = (0.1, 2.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Scales image `(H0, W0, C)` and targets `(P, H0, W0)` by a random factor within `scales`.

    Larger ones are cropped at random to the old size.

    Source:
        Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177 (large-scale jitter).
    """
    scale = rng.uniform(*scales)
    old = image.shape[:2]
    size = tuple(max(1, round(n * scale)) for n in old)
    resized = resize_image(image, size)
    if image.dtype.kind in "iu" and resized.dtype != image.dtype:
        resized = np.rint(resized).astype(image.dtype)  # which says how it is taken to 0..255
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, old, strict=True)
    )
    targets = targets[:, rows][:, :, columns]
    top, left = (int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(size, old, strict=True))
    window = np.s_[top : top + old[0], left : left + old[1]]
    return resized[window], targets[(slice(None), *window)]


class ObjectBatches(keras.utils.PyDataset):
    """Batches `(x, y)` of images, sampled prompts and targets, for `fit` on any backend.

    Random draws depend only on the seed, the epoch and the image, not on the number of workers.

    Args:
        source: sequence of tuples of an image, uint8 `(H0, W0, 3)`, and its objects, uint8
            `(P, H0, W0)` of 0, 1 and 255 for void, such as `MaskFolder`, `CocoObjects`
            and `SA1BFolder`; or `CachedEmbeddings` of one, whose batches have
            what the encoder gave, such as `image_embeddings`, and `original_sizes` instead of
            `images`.
        batch_size: int. Images in a batch. Defaults to 1.
        prompts: `"none"` for `SAMTrainer`, which simulates them; `"points"` for one click per
            object; `"boxes"`; or `"points or boxes"`, which draws one of the two for each batch.
        max_objects: int. The most objects of an image in a batch, drawn in every epoch.
        max_area: float. Objects that cover a larger fraction of their image are left out.
        flips: bool. Whether to mirror half of the images.
        scales: optional pair of floats for `jitter_scale`.
        shuffle: bool. Whether images come in a new order every epoch.
        skip_unreadable: bool. Leave out images that cannot be read, with a warning that names them.
        seed: int. Seed of all random draws.
        **kwargs: `workers`, `use_multiprocessing`, `max_queue_size` of `keras.utils.PyDataset`.

    Raises:
        ValueError: if a setting is not usable, or no image of a batch has an object.

    Example:

    ```python
    objects = np.zeros((1, 60, 90), "uint8")
    objects[0, 20:40, 30:60] = 1
    data = ObjectBatches([(np.zeros((60, 90, 3), "uint8"), objects)], prompts="boxes", seed=1)
    x, y = data[0]
    sorted(x)  # ["boxes", "images"]
    ```
    """

    def __init__(
        self,
        source: Sequence,
        batch_size: int = 1,
        prompts: str = "none",
        max_objects: int = 64,
        max_area: float = 0.9,
        flips: bool = False,
        scales: tuple[float, float] | None = None,
        shuffle: bool = True,
        skip_unreadable: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if prompts not in PROMPTS:
            raise ValueError(f"`prompts` must be one of {PROMPTS}. Received: {prompts!r}.")
        if batch_size < 1 or max_objects < 1:
            raise ValueError(
                "`batch_size` and `max_objects` must be at least 1. "
                f"Received: batch_size={batch_size}, max_objects={max_objects}."
            )
        if len(source) == 0:
            raise ValueError("`source` holds no image.")
        self._is_cached = isinstance(source, CachedEmbeddings)
        if self._is_cached and (flips or scales is not None):
            raise ValueError(
                "`flips` and `scales` change images, but a cache holds only their embeddings. "
                f"Received: flips={flips}, scales={scales}. Leave them out, or train on images."
            )
        self.source = source
        self.batch_size = batch_size
        self.prompts = prompts
        self.max_objects = max_objects
        self.max_area = max_area
        self.flips = flips
        self.scales = scales
        self.shuffle = shuffle
        self.skip_unreadable = skip_unreadable
        self.seed = seed
        self.epoch = 0

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def describe(self, index: int) -> str:
        """The names of the images in a batch of this epoch."""
        return ", ".join(item_name(self.source, int(i)) for i in self._chosen(index))

    def _chosen(self, index: int) -> np.ndarray:
        order = np.arange(len(self.source))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        start = index * self.batch_size
        return order[start : start + self.batch_size]

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        chosen = self._chosen(index)
        examples = [example for i in chosen if (example := self._example(int(i))) is not None]
        if not examples:
            raise ValueError(
                "No image of this batch has an object that can be trained on: "
                f"{self.describe(index)}. Objects larger than `max_area`, {self.max_area:.0%} of "
                "their image, do not count. Leave them out of `source`, or use larger batches."
            )
        if self._is_cached:
            names = examples[0][0]
            x = {name: np.stack([features[name] for features, _, _ in examples]) for name in names}
            x["original_sizes"] = np.array([t.shape[1:] for _, t, _ in examples], "int64")
        else:
            x = {"images": [np.ascontiguousarray(image) for image, _, _ in examples]}
        rng = np.random.default_rng((self.seed, self.epoch, index, 1))
        x |= self._prompts(examples, rng)
        return x, {"masks": [targets for _, targets, _ in examples], "void": VOID}

    def _example(self, index: int) -> tuple[Any, np.ndarray, np.random.Generator] | None:
        """Image or features, targets and generator of an item; None if it has no usable object."""
        try:
            image, targets = read_item(self.source, index)
        except (OSError, ValueError) as error:
            report_unreadable(self.source, index, error, self.skip_unreadable)
            return None
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if self.flips and rng.random() < 0.5:
            image, targets = flip(image, targets)
        if self.scales is not None:
            image, targets = jitter_scale(image, targets, rng, self.scales)
        areas = (targets == 1).sum(axis=(1, 2))
        size = targets.shape[1] * targets.shape[2]
        usable = np.flatnonzero((areas > 0) & (areas <= self.max_area * size))
        if not len(usable):
            return None
        if len(usable) > self.max_objects:
            usable = np.sort(rng.choice(usable, self.max_objects, replace=False))
        return image, np.ascontiguousarray(targets[usable]), rng

    def _prompts(self, examples: list[tuple], rng: np.random.Generator) -> dict[str, Any]:
        kind = self.prompts
        if kind == "points or boxes":
            kind = ("points", "boxes")[rng.integers(2)]
        if kind == "boxes":
            return {"boxes": [[sample_box(t, r) for t in targets] for _, targets, r in examples]}
        if kind == "points":
            points = [[[sample_point(t, r)] for t in targets] for _, targets, r in examples]
            return {"points": points, "labels": [[[1]] * len(t) for _, t, _ in examples]}
        return {}
