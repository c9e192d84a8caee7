"""From images, prompts and target masks as people have them to batches that `fit` takes."""

import math

import keras
import numpy as np

from keras_sam.geometry import ResizePlan
from keras_sam.losses import VOID
from keras_sam.models.programs import next_power_of_two, pad_to_bucket
from keras_sam.nested import to_numpy


class TrainingBatches(keras.utils.PyDataset):
    """A data set in the model frame over one in the frames of its images.

    Args:
        prepare: function from `(x, y, sample_weight)` to the same, in the model frame.
        x: dict of images and prompts as `SAMImageSegmenter.predict` takes it; or a
            `keras.utils.PyDataset` or other iterable of tuples `(x, y)` or
            `(x, y, sample_weight)`.
        y: dict with `masks`, when `x` is a dict.
        sample_weight: optional array `(B,)` or `(B, P)`, when `x` is a dict.
        batch_size: int. Images in a batch, when `x` is a dict.
        shuffle: bool. Whether a dict's images are drawn in a new order every epoch.

    Raises:
        ValueError: if `x` and `y` have different lengths, or there is nothing to train on.
    """

    def __init__(self, prepare, x, y=None, sample_weight=None, batch_size=1, shuffle=False):
        loading = {}
        if isinstance(x, keras.utils.PyDataset):
            loading = {
                "workers": x.workers,
                "use_multiprocessing": x.use_multiprocessing,
                "max_queue_size": x.max_queue_size,
            }
        super().__init__(**loading)
        self._prepare = prepare
        if isinstance(x, dict):
            self._source = _DictBatches(x, y, sample_weight, batch_size, shuffle)
        elif isinstance(x, keras.utils.PyDataset):
            self._source = x
        elif hasattr(x, "__iter__") and not hasattr(x, "shape"):
            self._source = _IterableBatches(x)
        else:
            raise ValueError(
                "`x` must be a dict with `images` and prompts, or a data set of tuples (x, y). "
                f"Received: {type(x).__name__}."
            )

    @property
    def num_batches(self):
        return self._source.num_batches

    def __getitem__(self, index):
        item = self._source[index]
        if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
            raise ValueError(
                "A data set to train on must give tuples (x, y) or (x, y, sample_weight). "
                f"Received: {type(item).__name__}."
            )
        return self._prepare(*item)

    def on_epoch_begin(self):
        self._source.on_epoch_begin()

    def on_epoch_end(self):
        self._source.on_epoch_end()


class _DictBatches(keras.utils.PyDataset):
    """Batches of one dict that holds all images, prompts and targets."""

    def __init__(self, x, y, sample_weight, batch_size, shuffle):
        super().__init__()
        if x.get("images") is None or not isinstance(y, dict) or y.get("masks") is None:
            raise ValueError(
                "Training needs `images` in `x`, and `y` with the target masks: "
                '{"masks": (B, H0, W0) or (B, P, H0, W0)}. '
                f"Received: x with {sorted(x)}, y of type {type(y).__name__}."
            )
        self._columns = {("x", k): v for k, v in x.items() if v is not None}
        self._columns |= {("y", k): v for k, v in y.items()}
        if sample_weight is not None:
            self._columns[("w", "")] = sample_weight
        count = len(x["images"])
        wrong = {k or "sample_weight": len(v) for (_, k), v in self._columns.items()}
        wrong = {k: n for k, n in wrong.items() if n != count}
        if wrong or not count:
            raise ValueError(
                f"Every entry of `x` and `y` must have one item per image, of which there are "
                f"{count}. Received: {', '.join(f'{k} with {n}' for k, n in wrong.items())}."
            )
        self._batch_size = batch_size
        self._order = np.arange(count)
        # Seeded by numpy's global generator, which `keras.utils.set_random_seed` fixes.
        seed = np.random.randint(2**31)  # noqa: NPY002
        self._rng = np.random.default_rng(seed) if shuffle else None
        self.on_epoch_end()

    @property
    def num_batches(self):
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, index):
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        parts = {"x": {}, "y": {}, "w": {}}
        for (part, name), values in self._columns.items():
            rows = [values[i] for i in chosen]
            parts[part][name] = rows
        weight = (np.asarray(parts["w"][""]),) if parts["w"] else ()
        return (parts["x"], parts["y"], *weight)

    def on_epoch_end(self):
        if self._rng is not None:
            self._rng.shuffle(self._order)


class _IterableBatches(keras.utils.PyDataset):
    """Batches of a `tf.data.Dataset`, a torch `DataLoader` or a generator, in their order."""

    def __init__(self, source):
        super().__init__()
        self._batches = source
        self._iterator = iter(source)
        try:
            self._length = len(source)
        except TypeError:
            self._length = None

    @property
    def num_batches(self):
        return self._length

    def __getitem__(self, index):
        batch = next(self._iterator, None)
        if batch is None:
            # A data set starts over; a generator that is exhausted stays so.
            self._iterator = iter(self._batches)
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(
                "The data set ran out of batches. Give `steps_per_epoch`, or a data set that can "
                "be iterated again."
            )
        return batch


def prepare_training_batch(segmenter, x, y, sample_weight=None):
    """One batch in the model frame, padded so that few shapes are ever compiled.

    Args:
        segmenter: a `SAMImageSegmenter`.
        x: dict of images and prompts.
        y: dict of `masks`: `(B, H0, W0)` or `(B, P, H0, W0)`, or ragged lists, values 0, 1 and
            255 for void, each the size of its image.
        sample_weight: optional array `(B,)` or `(B, P)`.

    Returns:
        Tuple of the canonical inputs, `{"masks": uint8 (B, P, Lh, Lw)}`, and, if weights were
        given, float32 weights `(B, P)`. Prompt sets that only fill up the batch have a target
        that is void altogether, as has the padding of every image.

    Raises:
        ValueError: if targets do not fit images and prompts, or hold other values.
    """
    inputs = segmenter.prepare(x)
    canonical = {k: np.asarray(inputs[k]) for k in ("points", "labels", "masks", "mask_given")}
    canonical = pad_to_bucket(canonical)
    batch, prompts = canonical["labels"].shape[:2]
    sizes = inputs.get("original_sizes", [segmenter.image_shape[:2]] * batch)
    plans = segmenter.plans(sizes, batch)
    targets = targets_to_frames(y, plans, segmenter.mask_size, inputs["num_prompts"], prompts)
    prepared = {"images": np.asarray(inputs["images"], "float32"), **canonical}
    if sample_weight is None:
        return prepared, {"masks": targets}
    return prepared, {"masks": targets}, prompt_weights(sample_weight, batch, prompts)


def targets_to_frames(y, plans, mask_size, counts=None, prompts=None) -> np.ndarray:
    """The targets of a batch in the model frame.

    Args:
        y: dict of `masks`: `(B, H0, W0)` or `(B, P, H0, W0)`, or ragged lists.
        plans: list of `B` `ResizePlan`.
        mask_size: tuple `(Lh, Lw)`.
        counts: optional int array `(B,)`, the prompt sets that targets have to be for.
        prompts: optional int, `P`. Defaults to the largest count, to the next power of two.

    Returns:
        uint8 array `(B, P, Lh, Lw)` of 0, 1 and 255; void altogether where there is no target.

    Raises:
        ValueError: if a target has the wrong size or values, or there are too many or too few.
    """
    masks = y.get("masks") if isinstance(y, dict) else None
    if masks is None or len(masks) != len(plans):
        raise ValueError(
            '`y` must be {"masks": targets} with the targets of every image. Received: '
            f"{'no masks' if masks is None else f'targets of {len(masks)} images'} for "
            f"{len(plans)} images."
        )
    masks = [_stack_targets(of_image, plan) for of_image, plan in zip(masks, plans, strict=True)]
    counts = [len(of_image) for of_image in masks] if counts is None else counts
    prompts = next_power_of_two(max(counts)) if prompts is None else prompts
    targets = np.full((len(plans), prompts, *mask_size), VOID, "uint8")
    for image, (of_image, plan, count) in enumerate(zip(masks, plans, counts, strict=True)):
        if of_image.ndim != 3 or len(of_image) != count or of_image.shape[1:] != plan.original_size:
            raise ValueError(
                f"`y['masks']` of image {image} must have shape ({count}, "
                f"{plan.original_size[0]}, {plan.original_size[1]}): one target per prompt set, "
                f"the size of the image. Received: shape={of_image.shape}."
            )
        for prompt, target in enumerate(of_image):
            targets[image, prompt] = target_to_frame(target, plan, mask_size)
    return targets


def _stack_targets(of_image, plan):
    """The targets of one image as `(P, H0, W0)`, from one array, a list of them, or none."""
    if len(of_image) == 0:
        return np.zeros((0, *plan.original_size), "uint8")
    of_image = to_numpy(of_image)
    return of_image[None] if of_image.ndim == 2 else of_image


def target_to_frame(target, plan: ResizePlan, mask_size) -> np.ndarray:
    """A target of the original image, in the frame of the model's mask logits.

    Args:
        target: bool or integer array `(H0, W0)` of 0, 1 and 255 for void.
        plan: the image's `ResizePlan`.
        mask_size: tuple `(Lh, Lw)`.

    Returns:
        uint8 array `(Lh, Lw)`. A pixel is void where at least half of it is, foreground where
        at least half of the rest is, and void in the padding, which is no part of the image.

    Raises:
        ValueError: if it holds other values.
    """
    values = np.unique(target)
    if target.dtype.kind not in "biu" or not np.isin(values, (0, 1, VOID)).all():
        raise ValueError(
            "Target masks must be bool, or integers 0, 1 and 255 for void. "
            f"Received: {target.dtype} with values {values[:5].tolist()}."
        )
    foreground = plan.masks_to_model(target == 1, mask_size, pad_value=0.0)
    void = plan.masks_to_model(target == VOID, mask_size, pad_value=1.0)
    is_foreground = (foreground > 0) & (foreground >= 0.5 * (1.0 - void))
    return np.where(void >= 0.5, VOID, is_foreground).astype("uint8")


def prompt_weights(weights, batch: int, prompts: int) -> np.ndarray:
    """Sample weights `(B,)` or `(B, up to P)` as float32 `(B, P)`; anything else is an error."""
    weights = to_numpy(weights).astype("float32")
    if weights.ndim == 1 and len(weights) == batch:
        return np.repeat(weights[:, None], prompts, axis=1)
    if weights.ndim != 2 or len(weights) != batch or weights.shape[1] > prompts:
        raise ValueError(
            f"`sample_weight` must have shape (B,) or (B, P), here ({batch},) or "
            f"({batch}, up to {prompts}). Received: shape={weights.shape}."
        )
    return np.pad(weights, [(0, 0), (0, prompts - weights.shape[1])])
