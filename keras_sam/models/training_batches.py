"""From images, prompts and target masks as people have them to batches that `fit` takes."""

import math

import keras
import numpy as np

from keras_sam import prompts as prompt_forms
from keras_sam.geometry import ResizePlan
from keras_sam.losses import VOID
from keras_sam.models.programs import next_power_of_two, pad_to_bucket
from keras_sam.nested import to_numpy

_ARRAYS = ("image_embeddings", "original_sizes")


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
        # Keras gives TensorFlow the shapes of the first two batches (or of the only one) for all
        # of them, but these are ragged. It reads nothing else before, so the first reads get
        # shapes with free axes instead. May go when a `PyDataset` can say its own signature.
        self._signatures_due = 2 if keras.backend.backend() == "tensorflow" else 0
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
        if self.num_batches is not None:
            self._signatures_due = min(self._signatures_due, self.num_batches)

    @property
    def num_batches(self):
        return self._source.num_batches

    @property
    def epoch(self) -> int:
        """What the order and the random draws of batches depend on, beside a seed."""
        return getattr(self._source, "epoch", 0)

    @epoch.setter
    def epoch(self, value):
        if hasattr(self._source, "epoch"):
            self._source.epoch = value

    def describe(self, index: int) -> str:
        """The names of the images in a batch of this epoch, if the data set knows them."""
        describe = getattr(self._source, "describe", None)
        return "" if describe is None else describe(index)

    def __getitem__(self, index):
        if self._signatures_due:
            self._signatures_due -= 1
            return _with_free_axes(self._batch(index))
        return self._batch(index)

    def _batch(self, index):
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
        images = x.get("image_embeddings", x.get("images"))
        if images is None or not isinstance(y, dict) or y.get("masks") is None:
            raise ValueError(
                "Training needs `images` in `x`, and `y` with the target masks: "
                '{"masks": (B, H0, W0) or (B, P, H0, W0)}. '
                f"Received: x with {sorted(x)}, y of type {type(y).__name__}."
            )
        self._columns = {("x", k): v for k, v in x.items() if v is not None}
        self._columns |= {("y", k): v for k, v in y.items()}
        if sample_weight is not None:
            self._columns[("w", "")] = sample_weight
        count = len(images)
        wrong = {k or "sample_weight": len(v) for (_, k), v in self._columns.items()}
        wrong = {k: n for k, n in wrong.items() if n != count}
        if wrong or not count:
            raise ValueError(
                f"Every entry of `x` and `y` must have one item per image, of which there are "
                f"{count}. Received: {', '.join(f'{k} with {n}' for k, n in wrong.items())}."
            )
        self._batch_size = batch_size
        self._count = count
        # Seeded by numpy's global generator, which `keras.utils.set_random_seed` fixes.
        self._seed = np.random.randint(2**31) if shuffle else None  # noqa: NPY002
        self.epoch = 0

    @property
    def num_batches(self):
        return math.ceil(self._count / self._batch_size)

    def __getitem__(self, index):
        chosen = self._chosen(index)
        parts = {"x": {}, "y": {}, "w": {}}
        for (part, name), values in self._columns.items():
            rows = [values[i] for i in chosen]
            # What every image has in one shape stays an array.
            parts[part][name] = np.asarray(rows) if name in _ARRAYS else rows
        weight = (np.asarray(parts["w"][""]),) if parts["w"] else ()
        return (parts["x"], parts["y"], *weight)

    def _chosen(self, index):
        order = np.arange(self._count)
        if self._seed is not None:
            np.random.default_rng((self._seed, self.epoch)).shuffle(order)
        start = index * self._batch_size
        return order[start : start + self._batch_size]

    def describe(self, index):
        return ", ".join(f"image {i} of `x`" for i in self._chosen(index))

    def on_epoch_end(self):
        self.epoch += 1


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


# How many axes of a prepared batch's arrays differ from batch to batch.
_FREE_AXES = {"images": 1, "image_embeddings": 1, "points": 3, "labels": 3}


def _with_free_axes(batch):
    """A batch's shapes, with None for the axes that have another length in other batches."""
    inputs, *others = batch

    def free(x, axes):
        return keras.KerasTensor((*[None] * axes, *x.shape[axes:]), dtype=str(x.dtype))

    inputs = {name: free(x, _FREE_AXES.get(name, 2)) for name, x in inputs.items()}
    return inputs, *keras.tree.map_structure(lambda x: free(x, 2), others)


def prepare_training_batch(segmenter, x, y, sample_weight=None):
    """One batch in the model frame, padded so that few shapes are ever compiled.

    Args:
        segmenter: a `SAMImageSegmenter`.
        x: dict of images and prompts, or of `image_embeddings`, `original_sizes` and prompts.
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
    with_embeddings = "image_embeddings" in x
    inputs = prepare_embeddings(segmenter, x) if with_embeddings else segmenter.prepare(x)
    canonical = {k: np.asarray(inputs[k]) for k in ("points", "labels", "masks", "mask_given")}
    canonical = pad_to_bucket(canonical)
    batch, prompts = canonical["labels"].shape[:2]
    if keras.backend.backend() == "tensorflow" and not canonical["masks"].shape[1]:
        # TensorFlow 2.21 on a CPU gives a convolution over no masks at all another shape than it
        # should have, when the axis is free. Masks that are not given have no effect.
        canonical["masks"] = np.zeros((batch, prompts, *segmenter.mask_size, 1), "float32")
        canonical["mask_given"] = np.zeros((batch, prompts), bool)
    sizes = inputs.get("original_sizes", [segmenter.image_shape[:2]] * batch)
    plans = segmenter.plans(sizes, batch)
    targets = targets_to_frames(y, plans, segmenter.mask_size, inputs["num_prompts"], prompts)
    name = "image_embeddings" if with_embeddings else "images"
    prepared = {name: np.asarray(inputs[name], "float32"), **canonical}
    if sample_weight is None:
        return prepared, {"masks": targets}
    return prepared, {"masks": targets}, prompt_weights(sample_weight, batch, prompts)


def prepare_embeddings(segmenter, x) -> dict:
    """The canonical inputs of a batch whose images are encoded already.

    Args:
        segmenter: a `SAMImageSegmenter` with a frozen image encoder.
        x: dict of `image_embeddings` `(B, Eh, Ew, C)`, the `original_sizes` `(B, 2)` of their
            images in pixels, and perhaps prompts in those.

    Returns:
        Dict of numpy arrays; without the canonical prompts if `x` has none at all.

    Raises:
        ValueError: if the encoder is not frozen, or embeddings or prompts are malformed.
    """
    if segmenter.image_encoder.trainable_variables:
        raise ValueError(
            "`image_embeddings` do not train the image encoder. Freeze it with "
            '`segmenter.freeze("image_encoder")` and compile again, or train on images.'
        )
    embeddings = segmenter.checked_embeddings(x["image_embeddings"])
    count = len(embeddings)
    sizes = x.get("original_sizes", [segmenter.image_shape[:2]] * count)
    inputs = {"image_embeddings": embeddings, "original_sizes": sizes}
    prompts = {name: value for name, value in x.items() if name in prompt_forms.KEYS}
    if not prompts:
        return inputs
    plans = segmenter.plans(sizes, count)
    return {**inputs, **prompt_forms.complete(prompts, plans, segmenter.mask_size)}


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
