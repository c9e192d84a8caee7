"""From images of any size to a model's frame, by one object that holds the settings for it.

Numpy and pillow only: `SAMImageConverter` is this as a layer of Keras.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from keras_sam.geometry import RESAMPLING, ResizePlan, resampling_code, size_pair
from keras_sam.images import check_choice, is_image_file, is_pillow_image, load_image
from keras_sam.pixel_values import check_value_range
from keras_sam.prompts.nested import describe_value, is_ragged_tensor, read_ragged, to_numpy


class ImageFraming:
    """How images are read, scaled, padded and normalised. `SAMImageConverter` says what each
    argument means.
    """

    def __init__(
        self,
        size: Any = 1024,
        resample: str | int = "bilinear",
        do_resize: bool = True,
        do_rescale: bool = False,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = False,
        image_mean: float | Sequence[float] = (0.485, 0.456, 0.406),
        image_std: float | Sequence[float] = (0.229, 0.224, 0.225),
        do_pad: bool = True,
        pad_size: Any = None,
        pad_value: float | Sequence[float] | None = None,
        do_convert_rgb: bool = True,
        num_channels: int = 3,
        channel_order: str = "rgb",
        data_format: str = "channels_last",
        value_range: str | Sequence[float] = "auto",
        stretch: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice(channel_order, "channel_order", ("rgb", "bgr"))
        check_choice(data_format, "data_format", ("channels_last", "channels_first"))
        self.size = _frame_size(size, "size")
        self.resample = RESAMPLING[resampling_code(resample)]
        self.do_resize = bool(do_resize)
        self.do_rescale = bool(do_rescale)
        self.rescale_factor = float(rescale_factor)
        self.do_normalize = bool(do_normalize)
        self.num_channels = int(num_channels)
        self.image_mean = _per_channel(image_mean, "image_mean", self.num_channels)
        self.image_std = _per_channel(image_std, "image_std", self.num_channels)
        self.do_pad = bool(do_pad)
        self.pad_size = self.size if pad_size is None else _frame_size(pad_size, "pad_size")
        self.pad_value = (
            None if pad_value is None else _per_channel(pad_value, "pad_value", self.num_channels)
        )
        self.do_convert_rgb = bool(do_convert_rgb)
        self.channel_order = channel_order
        self.data_format = data_format
        self.value_range = value_range
        self.stretch = bool(stretch)
        if self.stretch and (self.pad_size != self.size or not self.do_resize):
            raise ValueError(
                "`stretch` needs `do_resize` and no `pad_size`: a stretched image has no padding. "
                f"Received: do_resize={do_resize}, pad_size={pad_size}."
            )
        if self.do_resize and (self.pad_size[0] < self.size[0] or self.pad_size[1] < self.size[1]):
            raise ValueError(
                "`pad_size` must not be smaller than `size`. "
                f"Received: pad_size={self.pad_size}, size={self.size}."
            )
        self.built = True  # for the layer: it has no weights

    @property
    def image_size(self) -> tuple[int, int]:
        """Size `(H, W)` in pixels of the images it makes, padding included."""
        return self.pad_size

    @property
    def value_range(self) -> str | tuple[float, float] | None:
        """Which values become 0..255, see above; None takes them for such already."""
        return self._value_range

    @value_range.setter
    def value_range(self, value_range: str | Sequence[float] | None) -> None:
        self._value_range = check_value_range(value_range)

    def convert(self, images: Any, **overrides: Any) -> tuple[np.ndarray, list[ResizePlan]]:
        """Converts a batch, and says how each image was scaled.

        Args:
            images: a batch of images, as for the call.
            **overrides: any constructor argument, for this call.

        Returns:
            Tuple of the float32 array `(B, H, W, C)` and a list of `B`
            `ResizePlan`s.
        """
        if overrides:
            return self._with(overrides).convert(images)
        loaded = [self.read(image) for image in batch_of(images)]
        plans = [self.plan(image.shape[:2]) for image in loaded]
        if not self.do_pad and len({plan.scaled_size for plan in plans}) > 1:
            raise ValueError(
                "Without `do_pad` all images of a call must have one scaled size. Received: "
                f"{[plan.scaled_size for plan in plans]}. Pass them one by one."
            )
        frame = self.pad_size if self.do_pad else plans[0].scaled_size
        pixels = np.empty((len(loaded), *frame, self.num_channels), "float32")
        pixels[...] = self._padding()
        for image, plan, target in zip(loaded, plans, pixels, strict=True):
            height, width = plan.scaled_size
            image = image.astype("float32") if self.stretch else image
            target[:height, :width] = self._scale_values(plan.scale_image(image, self.resample))
        return pixels, plans

    def read(self, image: Any, **overrides: Any) -> np.ndarray:
        """Reads one image as the model will see it, in its own size: to look at, or to crop.

        Args:
            image: one image, as for the call.
            **overrides: any constructor argument, for this call.

        Returns:
            uint8 or float32 array `(H0, W0, C)`, RGB, 0..255. It may share memory with `image`.
        """
        if overrides:
            return self._with(overrides).read(image)
        settings = (self.channel_order, self.num_channels, self.do_convert_rgb, self.data_format)
        return load_image(image, *settings, self.value_range)

    def plan(self, original_size: tuple[int, int]) -> ResizePlan:
        """How an image of this size, `(H0, W0)`, is scaled and padded."""
        if self.stretch:
            return ResizePlan(tuple(original_size), self.size, stretch=True)
        if not self.do_resize:
            frame = self.pad_size if self.do_pad else original_size
            return ResizePlan(tuple(original_size), frame, pad_only=True)
        if self.do_pad:
            return ResizePlan(tuple(original_size), self.pad_size, fit_size=self.size)
        scaled = ResizePlan(tuple(original_size), self.size).scaled_size
        return ResizePlan(tuple(original_size), scaled, fit_size=self.size)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        names = (
            "size resample do_resize do_rescale rescale_factor do_normalize image_mean image_std "
            "do_pad pad_size pad_value do_convert_rgb num_channels channel_order data_format"
        )
        values = {name: getattr(self, name) for name in names.split()}
        # Defaults are left out: earlier versions have no such keys.
        if self.value_range != "auto":
            values["value_range"] = self.value_range
        if self.stretch:
            values["stretch"] = True
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def _with(self, overrides: dict[str, Any]) -> Self:
        # Not `from_config`, which would turn the error of a wrong value into a TypeError, nor
        # `get_config`, for which Keras imports TensorFlow, which is slow and large.
        return type(self)(**{**self.settings(), **overrides})

    def _scale_values(self, image: np.ndarray) -> np.ndarray:
        image = image.astype("float32")
        if self.do_rescale:
            image = image * np.float32(self.rescale_factor)
        if self.do_normalize:
            image = (image - np.float32(self.image_mean)) / np.float32(self.image_std)
        return image

    def _padding(self) -> np.ndarray:
        if self.pad_value is not None:
            return np.float32(self.pad_value)
        if self.do_normalize:
            return np.float32(0)
        mean = np.asarray(self.image_mean)
        return np.float32(mean if self.do_rescale else mean / self.rescale_factor)


def takes_unit_range(pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> bool:
    """Whether an image encoder takes images 0..1: its mean and deviation are below 1.

    Ours take 0..255. One made through `compat.keras_cv` may not.
    """
    return max(*pixel_mean, *pixel_std) < 1


# --- settings ---


def _frame_size(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, dict):
        if set(size) == {"longest_edge"}:
            size = size["longest_edge"]
        elif set(size) == {"height", "width"}:
            size = (size["height"], size["width"])
    return size_pair(size, name)


def _per_channel(value: Any, name: str, num_channels: int) -> float | tuple[float, ...]:
    array = np.asarray(value, "float64")
    if array.shape not in ((), (num_channels,)):
        raise ValueError(
            f"`{name}` must be a number or one number per channel, {num_channels}. "
            f"Received: {value!r}."
        )
    return float(array) if array.ndim == 0 else tuple(array.tolist())


# --- batches ---


def is_one_image(images: Any) -> bool:
    """Whether this is one image instead of a batch of them."""
    if is_image_file(images) or is_pillow_image(images):
        return True
    shape = getattr(images, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return False
    return len(shape) in (0, 2, 3) and getattr(images, "dtype", None) is not np.dtype("O")


def batch_of(images: Any) -> list[Any]:
    """A batch of images as a list of images, not yet read."""
    images = sliceable(images)
    check_batch(images)
    if isinstance(images, (list, tuple)):
        return list(images)
    images = images if isinstance(images, np.ma.MaskedArray) else to_numpy(images)
    if images.ndim not in (1, 4):  # (B,) of paths or arrays, (B, H0, W0, C)
        raise ValueError(
            "`images` must have shape (B, H0, W0, C) or be a list of images. "
            f"Received: shape={images.shape}."
        )
    return list(images)


def sliceable(value: Any) -> Any:
    """A value whose first axis has a length and slices, which TensorFlow's ragged tensors and
    Keras's variables have not.
    """
    if is_ragged_tensor(value):
        return read_ragged(value)
    keras = sys.modules.get("keras")
    return to_numpy(value) if keras and isinstance(value, keras.Variable) else value


def check_batch(images: Any) -> None:
    """Raises unless `images` is a batch of images, which are not read."""
    if images is None:
        raise ValueError("`images` must hold at least one image. Received: None.")
    is_batch = hasattr(images, "__len__") and not isinstance(images, (dict, set))
    if not is_batch or is_one_image(images):
        raise not_a_batch(images)
    if len(images) == 0:
        raise ValueError("`images` must hold at least one image. Received: an empty batch.")


def not_a_batch(images: Any) -> ValueError:
    """The error for one image, or for something that is no image, in place of a batch."""
    what = "one image, " if is_one_image(images) else ""
    return ValueError(
        "`images` must be a batch: an array (B, H0, W0, channels) or a list of images. Received: "
        f"{what}{describe_value(images)}. Put it in a list, with one entry per image in every "
        "prompt; in `tf.data`, use `dataset.ragged_batch(n)` first."
    )
