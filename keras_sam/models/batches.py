"""Iterating over whatever holds the images and prompts of a `predict` call."""

import itertools
import math
import numbers

import keras
import numpy as np

from keras_sam import prompts as prompt_forms
from keras_sam.models.model_frame import check_batch, describe
from keras_sam.nested import is_ragged_tensor, read_ragged, to_numpy

CANONICAL_KEYS = ("points", "labels", "masks", "mask_given")


def iterate_batches(x, batch_size: int | None = 1, steps: int | None = None):
    """Batches of a dict, a data set or any other iterable of batches.

    Args:
        x: dict of arrays, tensors or lists whose first axis is `B`, and `images` among
            them; or a `keras.utils.PyDataset`; or an iterable of batches.
        batch_size: int. Images in a batch, when `x` is a dict; None is 1.
        steps: optional int. Stop after so many batches.

    Returns:
        Tuple of an iterator of dicts and their number, None if it is not known.

    Raises:
        ValueError: if `x` is none of these, is endless, holds no image, or `batch_size` or
            `steps` is below 1.
    """
    if steps is not None:
        check_at_least_one(steps, "steps")
    if isinstance(x, dict):
        batches, total = _slices(x, 1 if batch_size is None else batch_size)
    elif isinstance(x, keras.utils.PyDataset):
        batches, total = _batches_of_py_dataset(x)
    elif hasattr(x, "__iter__") and not hasattr(x, "shape") and not isinstance(x, (str, bytes)):
        batches, total = map(_inputs_of, x), _length(x)
    else:
        raise ValueError(
            "`x` must be a dict with `images` and prompts, or a data set of such dicts. "
            f"Received: {describe(x)}."
        )
    if steps is not None:
        total = steps if total is None else min(steps, total)
        batches = itertools.islice(batches, steps)
    elif total == math.inf:
        raise ValueError("`x` never ends: pass `steps`, the number of batches to predict for.")
    first = next(batches, None)
    if first is None:
        raise ValueError(
            f"`x` must hold at least one batch. Received: {describe(x)} without any. A generator "
            "that has been read to its end has to be made again."
        )
    return itertools.chain([first], batches), total


def check_at_least_one(value, name: str) -> None:
    """Raises unless `value` is a positive integer."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}.")


def read_canonical(batch: dict) -> dict:
    """A batch whose prompts are canonical already, as numpy arrays and with nothing left out.

    Args:
        batch: dict with `points`, `labels`, `masks`, `mask_given` as `prompts.complete` returns
            them. `num_prompts` defaults to the prompt sets up to the last with a prompt,
            `single_object` to False.

    Returns:
        A new dict.

    Raises:
        ValueError: if one of the four is missing.
    """
    missing = [name for name in CANONICAL_KEYS if batch.get(name) is None]
    if missing:
        raise ValueError(
            "A dict with `mask_given` holds canonical prompts and must have all of "
            f"{CANONICAL_KEYS}. Received none of: {missing}. Leave `mask_given` out to pass "
            "prompts as they are."
        )
    batch = {name: to_numpy(value) for name, value in batch.items() if value is not None}
    count, prompt_sets = batch["labels"].shape[:2]
    if "num_prompts" not in batch:
        used = (batch["labels"] != prompt_forms.PADDING).any(axis=-1)
        if batch["mask_given"].shape[1]:
            used |= batch["mask_given"].astype(bool)
        ends = np.where(used, np.arange(1, prompt_sets + 1), 0)
        batch["num_prompts"] = ends.max(axis=1, initial=0)
    batch.setdefault("single_object", np.zeros(count, bool))
    return batch


def _slices(x, batch_size):
    check_at_least_one(batch_size, "batch_size")
    x = _checked(x)
    count = len(x["images"])
    if "mask_given" not in x:
        # Before the first image is encoded, not when its batch's turn comes.
        prompt_forms.survey(x, count)
    sized = {name: value for name, value in x.items() if value is not None}
    without = [name for name, value in sized.items() if not _is_sized(value)]
    wrong = {k: len(v) for k, v in sized.items() if k not in without and len(v) != count}
    # An empty list says that nobody has such a prompt.
    wrong = {k: n for k, n in wrong.items() if n or k not in prompt_forms.KEYS}
    if wrong or without:
        received = [f"{k} with {n}" for k, n in wrong.items()]
        received += [f"{k}={sized[k]!r:.60}" for k in without]
        raise ValueError(
            f"Every entry of the dict must have one item per image, of which there are {count}. "
            f"Received: {', '.join(received)}."
        )
    sized = {name: value for name, value in sized.items() if len(value) == count}
    batches = (
        {name: value[start : start + batch_size] for name, value in sized.items()}
        for start in range(0, count, batch_size)
    )
    return batches, math.ceil(count / batch_size)


def _is_sized(value):
    """Whether the value has a length; arrays without an axis have the method, but no length."""
    return hasattr(value, "__len__") and getattr(value, "shape", None) != ()


def _batches_of_py_dataset(x):
    total = x.num_batches  # None says that it never ends
    indices = itertools.count() if total is None else range(total)
    return (_inputs_of(x[i]) for i in indices), math.inf if total is None else total


def _inputs_of(batch):
    """The dict of inputs of one batch of a data set, which may carry targets and weights too."""
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, dict):
        raise ValueError(
            "A data set must give dicts with `images` and prompts, or tuples that start with one. "
            f"Received: {describe(batch)}."
        )
    return _checked(batch)


def _checked(x):
    """The dict with TensorFlow's ragged tensors as lists, which have a length and slices."""
    if "images" not in x:
        raise ValueError(
            "The dict must have the key 'images', next to prompts. "
            f"Received: the keys {sorted(map(str, x))}."
        )
    x = {k: read_ragged(v) if is_ragged_tensor(v) else v for k, v in x.items()}
    check_batch(x["images"])
    return x


def _length(x):
    try:
        return len(x)
    except TypeError:  # a generator, or a tf.data.Dataset of unknown or endless length
        cardinality = getattr(x, "cardinality", None)
        return math.inf if cardinality is not None and int(cardinality()) == -1 else None
