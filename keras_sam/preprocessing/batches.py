"""One adapter from whatever holds images, prompts and targets to batches.

`predict`, `fit` and `SAMTrainer` share it, on images and on embeddings that were cached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_sam import backends
from keras_sam.framing import check_batch, is_one_image, sliceable
from keras_sam.preprocessing.converter import check_images, check_keys
from keras_sam.preprocessing.targets import with_image_axis
from keras_sam.prompts import KEYS, Prompts, read, read_canonical
from keras_sam.prompts.nested import check_at_least_one, describe_value

_DICT_OR_DATA_SET = "`x` must be a dict with `images` and prompts, or a data set of such dicts."


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images and prompts as people pass them, the prompts read."""

    # `images`, or what they were encoded to and perhaps their sizes, and prompts.
    x: dict[str, Any]
    prompts: Prompts | None  # in pixels of the original images
    # Whether images and prompts are in the model frame already: the dict has `mask_given`.
    in_model_frame: bool = False
    y: Any = None
    sample_weight: Any = None

    @classmethod
    def read(
        cls,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        allow_none: bool = False,
        allow_embeddings: bool = False,
        any_keys: bool = False,
    ) -> Batch:
        """Reads a dict, all of whose images belong to the batch; or one image and its prompts.

        With `allow_none` it may be that no image has an object, with `allow_embeddings` that `x`
        has `image_embeddings` instead of `images`, with `any_keys` that it has other keys, which
        are for a preprocessor of the user's own.
        """
        is_embedded = allow_embeddings and isinstance(x, dict) and "image_embeddings" in x
        if not is_embedded:
            check_images(x)
        if not any_keys:
            check_keys(x)
        x = {name: sliceable(value) for name, value in x.items()}
        in_model_frame = "mask_given" in x
        is_one = not (in_model_frame or is_embedded or any_keys) and is_one_image(x["images"])
        if is_one:
            sample_weight = None if sample_weight is None else [sample_weight]
        prompts = None
        if in_model_frame:
            prompts = read_canonical(x)
        else:
            if not is_embedded and not is_one:
                check_batch(x["images"])
            if any(x.get(key) is not None for key in KEYS):
                prompts = read(x, None if is_one else _count(x), allow_none=allow_none)
        x = {"images": [x["images"]]} if is_one else x
        if isinstance(y, dict) and y.get("masks") is not None:
            y = {**y, "masks": with_image_axis(y["masks"], _count(x))}
        return cls(x, prompts, in_model_frame, y, sample_weight)


def iterate_batches(
    x: Any, batch_size: int | None = 1, steps: int | None = None, any_keys: bool = False
) -> tuple[Iterator[Batch], int | None]:
    """Batches to predict for, of a dict, a data set or any other iterable, at most `steps`.

    `batch_size` is for a dict, `any_keys` as in `Batch.read`. Returns their number too, or None if
    it is not known.
    """
    if steps is not None:
        check_at_least_one(steps, "steps")
    if isinstance(x, dict):
        batch_size = 1 if batch_size is None else batch_size
        check_at_least_one(batch_size, "batch_size")
        source = DictBatches(Batch.read(x, any_keys=any_keys), batch_size)
        batches, total = map(source.__getitem__, range(source.num_batches)), source.num_batches
    elif _holds_images(x):
        raise _no_dict(
            x, "`x` must be a dict with `images` and prompts, or a data set of such dicts."
        )
    elif isinstance(x, keras.utils.PyDataset):
        total = math.inf if x.num_batches is None else x.num_batches
        indices = itertools.count() if total == math.inf else range(total)
        batches = (_inputs_of(x[i], any_keys) for i in indices)
    elif _is_iterable(x):
        batches, total = (_inputs_of(batch, any_keys) for batch in x), _length(x)
    else:
        raise _no_dict(
            x, "`x` must be a dict with `images` and prompts, or a data set of such dicts."
        )
    if steps is not None:
        total = steps if total is None else min(steps, total)
        batches = itertools.islice(batches, steps)
    elif total == math.inf:
        raise ValueError("`x` never ends: pass `steps`, the number of batches to predict for.")
    first = next(batches, None)
    if first is None:
        raise ValueError(
            f"`x` must hold at least one batch. Received: {describe_value(x)} without any. A "
            "generator that has been read to its end has to be made again."
        )
    return itertools.chain([first], batches), total


class TrainingBatches(keras.utils.PyDataset):
    """A data set in the model frame over one in the frames of its images.

    `prepare` makes of a `Batch` what Keras trains on; the other arguments are those of `fit`.
    """

    def __init__(
        self,
        prepare: Callable[[Batch], tuple],
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int = 1,
        shuffle: bool = False,
        any_keys: bool = False,
    ):
        is_data_set = isinstance(x, keras.utils.PyDataset)
        names = ("workers", "use_multiprocessing", "max_queue_size") if is_data_set else ()
        super().__init__(**{name: getattr(x, name) for name in names})
        self._prepare = prepare
        self._error: BaseException | None = None
        self._read = functools.partial(
            Batch.read, allow_none=True, allow_embeddings=True, any_keys=any_keys
        )
        if isinstance(x, dict):
            _check_targets(x, y)
            self._source = DictBatches(self._read(x, y, sample_weight), batch_size, shuffle)
        elif is_data_set:
            self._source = x
        elif _is_iterable(x) and not _holds_images(x):
            self._source = _IterableBatches(x)
        else:
            raise _no_dict(
                x, "`x` must be a dict with `images` and prompts, or a data set of tuples (x, y)."
            )
        # Keras takes the shapes of the first batches for those of all batches, but ours are ragged.
        # So its first reads get shapes with free axes. May go when a `PyDataset` can declare its
        # signature.
        self._signatures_due = backends.READS_SIGNATURES
        if self.num_batches is not None:
            self._signatures_due = min(self._signatures_due, self.num_batches)

    @property
    def num_batches(self) -> int | None:
        return self._source.num_batches

    @property
    def epoch(self) -> int:
        """The epoch, which the order and the random draws of batches depend on beside the seed."""
        return getattr(self._source, "epoch", 0)

    @epoch.setter
    def epoch(self, value: int) -> None:
        if hasattr(self._source, "epoch"):
            self._source.epoch = value

    def describe(self, index: int) -> str:
        """The names of the images in a batch of this epoch, if the data set knows them."""
        describe = getattr(self._source, "describe", None)
        return "" if describe is None else describe(index)

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raises what a batch raised, which TensorFlow's data sets turn into an error of theirs."""
        try:
            yield
        except Exception as error:
            if self._error is None or error is self._error:
                raise
            raise self._error from None

    def __getitem__(self, index: int) -> tuple:
        try:
            return self._read_and_prepare(index)
        except BaseException as error:
            self._error = error
            raise

    def _read_and_prepare(self, index):
        batch = self._source[index]
        if not isinstance(batch, Batch):
            if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
                raise ValueError(
                    "A data set to train on must give tuples (x, y) or (x, y, sample_weight). "
                    f"Received: {type(batch).__name__}."
                )
            if not isinstance(batch[0], dict):
                raise ValueError(
                    "A data set to train on must give tuples (x, y) of dicts, batches of images "
                    f"and of masks. Received: x of type {describe_value(batch[0])}. "
                    "`keras_sam.training.ObjectBatches(source)` makes batches of a `MaskFolder`, "
                    "`CocoObjects` or any other sequence of images with their objects."
                )
            batch = self._read(*batch)
        prepared = self._prepare(batch)
        if not self._signatures_due:
            return prepared
        self._signatures_due -= 1
        return _with_free_axes(prepared)

    def on_epoch_begin(self) -> None:
        self._source.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._source.on_epoch_end()


class DictBatches(keras.utils.PyDataset):
    """Batches of the `Batch` of a dict that holds all images, prompts and targets.

    With `shuffle` every epoch has an order of its own.
    """

    def __init__(self, whole: Batch, batch_size: int, shuffle: bool = False):
        super().__init__()
        if "images" in whole.x:
            check_batch(whole.x["images"])
        elif not _count(whole.x):
            raise ValueError("`image_embeddings` must hold at least one image. Received: none.")
        # Prompts of another length have a message of their own.
        entries = {k: v for k, v in whole.x.items() if whole.in_model_frame or k not in KEYS}
        y = {name: value for name, value in (whole.y or {}).items() if name != "void"}
        entries |= {f"y[{name!r}]": value for name, value in y.items()}
        _check_lengths({**entries, "sample_weight": whole.sample_weight}, _count(whole.x))
        self._whole = whole
        self.num_images = _count(whole.x)
        self._batch_size = batch_size
        # Seeded by numpy's global generator, which `keras.utils.set_random_seed` fixes.
        self._seed = np.random.randint(2**31) if shuffle else None  # noqa: NPY002
        self.epoch = 0

    @property
    def num_batches(self) -> int:
        return math.ceil(self.num_images / self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        whole, chosen = self._whole, self._chosen(index)

        def rows(values):
            # What is trained on needs no slices: images may be read one by one.
            if whole.y is not None:
                return [values[i] for i in chosen]
            return values[chosen[0] : chosen[-1] + 1]

        # An empty list says that no image has such a prompt.
        columns = {k: v for k, v in whole.x.items() if v is not None and len(v) == self.num_images}
        x = {name: rows(values) for name, values in columns.items()}
        if "images" not in x:  # features and sizes
            x |= {name: np.asarray(value) for name, value in x.items() if name not in KEYS}
        weight = whole.sample_weight
        return Batch(
            x,
            None if whole.prompts is None else whole.prompts[chosen],
            whole.in_model_frame,
            None
            if whole.y is None
            else {name: v if name == "void" else rows(v) for name, v in whole.y.items()},
            None if weight is None else np.asarray(rows(weight)),
        )

    def _chosen(self, index):
        order = np.arange(self.num_images)
        if self._seed is not None:
            np.random.default_rng((self._seed, self.epoch)).shuffle(order)
        start = index * self._batch_size
        return order[start : start + self._batch_size]

    def describe(self, index: int) -> str:
        return ", ".join(f"image {i} of `x`" for i in self._chosen(index))

    def on_epoch_end(self) -> None:
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


def _is_iterable(x):
    return hasattr(x, "__iter__") and not hasattr(x, "shape") and not isinstance(x, (str, bytes))


def _inputs_of(batch, any_keys):
    """One batch of a data set to predict for, which may carry targets and weights too."""
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, dict):
        raise _no_dict(
            batch,
            "A data set must give dicts with `images` and prompts, or tuples that start with one.",
        )
    return Batch.read(batch, allow_none=True, any_keys=any_keys)


def _holds_images(x):
    """Whether this is an image, or a list or array of them, in place of the dict that has them."""
    if isinstance(x, (list, tuple)):
        return bool(x) and is_one_image(x[0])
    return is_one_image(x) or len(getattr(x, "shape", ())) == 4


def _no_dict(x, required):
    """The error for images, or for anything else, in place of a dict or a data set."""
    received = describe_value(x) + (f" {x!r:.80}" if isinstance(x, str) else "")
    if not _holds_images(x):
        return ValueError(f"{required} Received: {received}.")
    if isinstance(x, (list, tuple)):
        received = f"a list of images, {len(x)} in all"
    return ValueError(
        f"{required} Received: {received}. Pass images with their prompts, "
        '`{"images": [...], "points": [...]}`; to click on one image again and again, use '
        "`keras_sam.SAMPredictor`, and for everything in it "
        "`keras_sam.SAMAutomaticMaskGenerator`."
    )


def _count(x):
    return len(x["image_embeddings"] if "image_embeddings" in x else x["images"])


def _check_lengths(entries, count):
    """Raises if an entry does not have one item per image; None stands for no entry."""
    received = []
    for name, value in entries.items():
        if value is None:
            continue
        # Arrays without an axis have the method, but no length.
        if not hasattr(value, "__len__") or getattr(value, "shape", None) == ():
            received.append(f"{name}={value!r:.60}")
        elif len(value) != count:
            received.append(f"{name} with {len(value)}")
    if received:
        raise ValueError(
            f"Every entry must have one item for each of the {count} images. "
            f"Received: {', '.join(received)}."
        )


def _check_targets(x, y):
    if x.get("image_embeddings", x.get("images")) is None or (
        not isinstance(y, dict) or y.get("masks") is None
    ):
        received = (
            f"with {sorted(map(str, y))}" if isinstance(y, dict) else f"of {type(y).__name__}"
        )
        raise ValueError(
            "Training needs `images` in `x`, and `y` with the target masks: "
            '{"masks": (B, H0, W0) or (B, P, H0, W0)}. '
            f"Received: x with {sorted(map(str, x))}, y {received}."
        )


def _length(x):
    try:
        return len(x)
    except TypeError:  # a generator, or a tf.data.Dataset of unknown or endless length
        cardinality = getattr(x, "cardinality", None)
        return math.inf if cardinality is not None and int(cardinality()) == -1 else None


# How many axes of a prepared batch's arrays differ from batch to batch; of images and features, 1.
_FREE_AXES = {"points": 3, "labels": 3, "masks": 2, "mask_given": 2, "targets": 2}


def _with_free_axes(batch):
    """A batch's shapes, with None for the axes that have another length in other batches."""
    inputs, *others = batch

    def free(x, axes):
        return keras.KerasTensor((*[None] * axes, *x.shape[axes:]), dtype=str(x.dtype))

    inputs = {name: free(x, _FREE_AXES.get(name, 1)) for name, x in inputs.items()}
    return inputs, *keras.tree.map_structure(lambda x: free(x, 2), others)
