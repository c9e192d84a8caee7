"""What the compat rooms share: arrays as tensors of the library that the caller works with.

Inputs of any library are read as numpy arrays. A library is imported only to make a tensor for
a user who has passed one of its tensors, or asked for one by name.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from keras_sam import backends
from keras_sam.enlarging import axis_weights, enlarge_masks
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.notices import notice
from keras_sam.prompts import PADDING, Prompts, read_canonical

TORCH, TENSORFLOW, JAX, NUMPY, KERAS = "pt", "tf", "jax", "np", "keras"
LIBRARIES = (TORCH, TENSORFLOW, JAX, NUMPY, KERAS)
_OF_MODULE = {"torch": TORCH, "tensorflow": TENSORFLOW, "jax": JAX, "jaxlib": JAX}


def library_of(value: Any) -> str:
    """The library whose tensor this is, `"np"` for everything else."""
    return _OF_MODULE.get(type(value).__module__.partition(".")[0], NUMPY)


def to_tensor(array: np.ndarray, library: str | None, device: Any = None) -> Any:
    """A numpy array as a tensor of a library.

    Args:
        array: numpy array.
        library: `"pt"`, `"tf"`, `"jax"`, `"np"`, or `"keras"` for the running backend's; None
            leaves the array as it is.
        device: optional, where a tensor of torch is to be.

    Raises:
        ValueError: if there is no such library.
    """
    library = getattr(library, "value", library)  # of an enum, as transformers has one
    if library in (None, NUMPY):
        return array
    if library == TORCH:
        import torch

        # torch shares the memory, and warns where it must not write.
        return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device or "cpu")
    if library == TENSORFLOW:
        import tensorflow as tf

        return tf.convert_to_tensor(array)
    if library == JAX:
        import jax.numpy as jnp

        return jnp.asarray(array)
    if library == KERAS:
        return keras.ops.convert_to_tensor(array)
    raise ValueError(f"`return_tensors` must be one of {LIBRARIES} or None. Received: {library!r}.")


def like(reference: Any, array: np.ndarray) -> Any:
    """A numpy array as a tensor of the library and on the device of `reference`."""
    return to_tensor(array, library_of(reference), getattr(reference, "device", None))


def native(array: np.ndarray) -> Any:
    """A numpy array as a tensor of torch where torch is imported, for results without inputs."""
    return to_tensor(array, TORCH if sys.modules.get("torch") else NUMPY)


def first_given(*values: Any) -> Any:
    """The first that is not None: the one whose library the results are in."""
    return next((value for value in values if value is not None), None)


def no_prompts(segmenter: SAMImageSegmenter, batch: int) -> Prompts:
    """What stands for no prompt at all: one object per image, whose only token is padding."""
    empty = {
        "points": np.zeros((batch, 1, 1, 2), "float32"),
        "labels": np.full((batch, 1, 1), PADDING, "int32"),
        "masks": np.zeros((batch, 0, *segmenter.mask_size, 1), "float32"),
        "mask_given": np.zeros((batch, 0), bool),
    }
    return read_canonical({**empty, "num_prompts": np.ones(batch, "int32")})


def channels_first(array: np.ndarray) -> np.ndarray:
    """`(..., h, w, C)` to `(..., C, h, w)`."""
    return np.ascontiguousarray(np.moveaxis(array, -1, -3))


def channels_last(array: np.ndarray) -> np.ndarray:
    """`(..., C, h, w)` to `(..., h, w, C)`."""
    return np.ascontiguousarray(np.moveaxis(array, -3, -1))


def restore(
    masks: np.ndarray,
    original_size: tuple[int, int],
    input_size: tuple[int, int],
    model_size: tuple[int, int],
    mask_threshold: float | None = None,
) -> np.ndarray:
    """Masks of the model's frame at the image's size, whatever way the image was resized.

    Args:
        masks: float array `(..., Lh, Lw)`.
        original_size: pair of ints, `(H0, W0)`.
        input_size: pair of ints, the image's size in the model's frame, without its padding.
        model_size: pair of ints, `(H, W)`.
        mask_threshold: optional float. Return which logits are above it.

    Returns:
        Array `(..., H0, W0)`, float32 or bool.
    """
    sizes = (original_size, input_size, model_size, masks.shape[-2:])
    along = zip(*([int(n) for n in size] for size in sizes), strict=True)
    return enlarge_masks(masks, *(axis_weights(*axis) for axis in along), mask_threshold)


class OnDevice:
    """The methods of a torch module that say where it is and what it is used for.

    Keras runs on the device that its backend finds, so they only keep the name for tensors that
    are made for the model. Whatever else a module has, such as `train` and `parameters`, it has
    for gradients, and the error for it names what has them here.
    """

    _device: Any = "cpu"

    @property
    def device(self) -> Any:
        """The device of the last `to`, a `torch.device` where torch is imported."""
        torch = sys.modules.get("torch")
        return torch.device(self._device) if torch else self._device

    def to(self, device: Any = None) -> Any:
        """Keeps the name of the device, and returns the model itself.

        Args:
            device: str, int or `torch.device`. Results are put where the inputs are, in any case.

        Raises:
            TypeError: for a dtype, which a model gets when it is loaded.
        """
        if "dtype" in type(device).__name__ or "float" in str(device):
            raise TypeError(
                f"`device` must be a device. Received: {device}. Load the model with "
                '`dtype="bfloat16"` or another dtype instead.'
            )
        if device is not None:
            self._device = device
            if not str(device).startswith("cpu") and not backends.has_device("gpu"):
                notice(
                    f"Keras's {backends.NAME} backend finds no GPU, so the model stays "
                    f"on the CPU, in spite of `to({str(device)!r})`.",
                    topic="compat: no such device",
                )
        return self

    def cuda(self, device: Any = None) -> Any:
        """See `to`."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> Any:
        """See `to`."""
        return self.to("cpu")

    def eval(self) -> Any:
        """Returns the model itself: it predicts, always."""
        return self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"`{type(self).__name__}` has no attribute `{name}` here: it only predicts, with the "
            "`keras_sam.SAMImageSegmenter` that the whole model keeps as `segmenter`. That one has "
            "the weights and the parts, and trains with `freeze`, `compile` and `fit`."
        )
