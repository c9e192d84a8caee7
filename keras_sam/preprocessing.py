"""From a user's images and prompts to the model's input, and from its logits back to their pixels.

Everything runs on the host, in numpy and pillow, the same on every backend, and nothing is
remembered between calls: what the way back needs is in the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import prompts as prompt_tools
from keras_sam.geometry import RESAMPLING, ResizePlan, resampling_code, size_pair
from keras_sam.images import check_choice, is_pillow_image, read_image, warn_of_range
from keras_sam.nested import is_ragged_tensor, read_ragged, to_numpy
from keras_sam.tensorflow_graph import call_on_host, is_graph_tensor


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageConverter(keras.layers.Layer):
    """Turns images of any size into the model's input.

    Each image is scaled to fit `size` with its proportions kept, with
    pillow's antialiased filters, and padded at the right and the bottom. The
    model normalises inside its graph, so by default pixels stay 0..255 and
    the padding is the mean colour, which becomes the 0 that the released
    checkpoints were trained with. With `do_rescale` and `do_normalize` on,
    the output is what transformers' `SamImageProcessor` gives (in
    `test_normalised_output_equals_transformers`).

    Args:
        size: int, pair `(H, W)`, `{"longest_edge": n}` or `{"height": H,
            "width": W}`. What images are scaled to fit. Defaults to `1024`.
        resample: str or int. Pillow's filter by name or code.
        do_resize: bool. Off: images are only padded and must fit.
        do_rescale: bool. Multiplies the pixels by `rescale_factor`.
        rescale_factor: float. Defaults to `1 / 255`.
        do_normalize: bool. Subtracts `image_mean`, divides by `image_std`.
        image_mean: number or one per channel, after rescaling.
        image_std: number or one per channel, after rescaling.
        do_pad: bool. Off: all images of a call must have one scaled size.
        pad_size: as `size`, not smaller. Defaults to `size`.
        pad_value: number or one per channel, in the units of the output.
            Defaults to the mean colour in those units.
        do_convert_rgb: bool. With three channels, repeat a grey one and drop
            alpha.
        num_channels: int. Channels that the model takes. Defaults to `3`;
            with another number give `image_mean` and `image_std` as numbers
            or with that many entries.
        channel_order: `"rgb"` or `"bgr"`, the order in arrays.
        data_format: `"channels_last"` or `"channels_first"`, of input arrays;
            the output is channels last.

    Call arguments:
        images: array or tensor `(B, H0, W0, C)`, or a list of images of any
            sizes: arrays, tensors, pillow images or paths. One image without
            a batch axis gives an output without one.
        **overrides: any of the arguments above, for this call.

    Returns:
        float32 numpy array `(B, H, W, C)`.

    Raises:
        ValueError: if an image or a setting is not usable; the message says
            which and what to do.

    Example:

    >>> converter = keras_sam.SAMImageConverter(size=64)
    >>> converter([np.zeros((30, 40, 3), "uint8"), np.zeros((9, 7), "uint8")]).shape
    (2, 64, 64, 3)
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
        if self.do_resize and (self.pad_size[0] < self.size[0] or self.pad_size[1] < self.size[1]):
            raise ValueError(
                "`pad_size` must not be smaller than `size`. "
                f"Received: pad_size={self.pad_size}, size={self.size}."
            )
        self.built = True

    def __call__(self, images: Any, **overrides: Any) -> np.ndarray:
        # Not `Layer.__call__`, which would cast the pixels and put them on a device.
        return self.call(images, **overrides)

    def call(self, images: Any, **overrides: Any) -> np.ndarray:
        if is_one_image(images):
            return self.convert([images], **overrides)[0][0]
        return self.convert(images, **overrides)[0]

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
            # Not `from_config`, which would turn the error of a wrong value into a TypeError, nor
            # `get_config`, for which Keras imports TensorFlow: seconds, and hundreds of megabytes.
            return type(self)(**{**self._settings(), **overrides}).convert(images)
        loaded = [self._read(image) for image in batch_of(images)]
        warn_of_range(loaded)
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
            target[:height, :width] = self._scale_values(plan.scale_image(image, self.resample))
        return pixels, plans

    def plan(self, original_size: tuple[int, int]) -> ResizePlan:
        """How an image of this size is scaled and padded.

        Args:
            original_size: pair of ints `(H0, W0)`.

        Returns:
            A `ResizePlan`.
        """
        if not self.do_resize:
            frame = self.pad_size if self.do_pad else original_size
            return ResizePlan(tuple(original_size), frame, pad_only=True)
        if self.do_pad:
            return ResizePlan(tuple(original_size), self.pad_size, fit_size=self.size)
        scaled = ResizePlan(tuple(original_size), self.size).scaled_size
        return ResizePlan(tuple(original_size), scaled, fit_size=self.size)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._settings()}

    def _settings(self) -> dict[str, Any]:
        names = (
            "size resample do_resize do_rescale rescale_factor do_normalize image_mean image_std "
            "do_pad pad_size pad_value do_convert_rgb num_channels channel_order data_format"
        )
        values = {name: getattr(self, name) for name in names.split()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def _read(self, image: Any) -> np.ndarray:
        return read_image(
            image, self.channel_order, self.num_channels, self.do_convert_rgb, self.data_format
        )

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


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageSegmenterPreprocessor(keras.layers.Layer):
    """Turns a user's images and prompts into the model's canonical input.

    Images go through the converter, prompts through `prompts.complete`, in
    the frame of the image that they belong to. The caller's dict and arrays
    stay as they are, and nothing is remembered between calls. Inside
    `tf.data` the same code runs through `tf.numpy_function`; batch first,
    then map: `dataset.ragged_batch(n).map(preprocessor)` takes images of
    different sizes and ragged prompts. (Don't `unbatch` the result:
    TensorFlow 2.21 crashes on the zero-length axis of an absent mask.)

    Args:
        image_converter: `SAMImageConverter`. Defaults to one for 1024 x 1024.
        mask_size: int or pair of ints `(Lh, Lw)`, the model's mask frame.
            Defaults to a quarter of the image's, as patches of 16 pixels give.

    Call arguments:
        x: dict of `"images"`, `(B, H0, W0, C)` or a list, and any of
            `"points"` with `"labels"`, `"boxes"`, `"masks"` in original
            pixels; see `prompts.complete`.
        y: targets, handed through. Defaults to `None`.
        sample_weight: handed through. Defaults to `None`.
        **overrides: any argument of the converter, for this call.

    Returns:
        Dict of numpy arrays: `images` float32 `(B, H, W, C)`; `points`
        `(B, P, T, 2)` in model pixels, `labels` `(B, P, T)`, `masks`
        `(B, P, Lh, Lw, 1)` or `(B, 0, Lh, Lw, 1)`, `mask_given` `(B, P)` or
        `(B, 0)`, `num_prompts` `(B,)`, as `prompts.complete` returns them;
        `single_object` bool `(B,)`, the same for all; `original_sizes` and
        `scaled_sizes` int32 `(B, 2)`. A tuple `(x, y)` or
        `(x, y, sample_weight)` if those were given.

    Raises:
        ValueError: if images or prompts are not usable; the message names
            the argument, what it received and the remedy.

    Example:

    >>> preprocessor = keras_sam.SAMImageSegmenterPreprocessor()
    >>> image = np.zeros((480, 640, 3), "uint8")
    >>> x = preprocessor({"images": [image], "boxes": [[[0, 0, 320, 240]]]})
    >>> x["points"][0, 0].tolist(), x["labels"][0, 0].tolist()
    ([[0.0, 0.0], [512.0, 384.0]], [2, 3])
    """

    def __init__(
        self,
        image_converter: SAMImageConverter | None = None,
        mask_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_converter = SAMImageConverter() if image_converter is None else image_converter
        quarter = tuple(max(1, n // 4) for n in self.image_converter.pad_size)
        self.mask_size = quarter if mask_size is None else size_pair(mask_size, "mask_size")
        self.built = True

    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None, **overrides: Any) -> Any:
        # Not `Layer.__call__`: see `SAMImageConverter.__call__`.
        return self.call(x, y=y, sample_weight=sample_weight, **overrides)

    def call(self, x: Any, y: Any = None, sample_weight: Any = None, **overrides: Any) -> Any:
        check_keys(x)
        if is_one_image(x["images"]):
            raise ValueError(
                "`images` must be a batch: an array (B, H0, W0, C) or a list of images. Received: "
                f"one image, {_describe_image(x['images'])}. Put it in a list, and one entry per "
                "image in every prompt; in `tf.data`, use `dataset.ragged_batch(n)` first."
            )
        in_graph = any(is_graph_tensor(value) for value in x.values())
        outputs = (self._call_in_graph if in_graph else self._call_on_host)(x, overrides)
        return keras.utils.pack_x_y_sample_weight(outputs, y, sample_weight)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["image_converter"] = keras.saving.serialize_keras_object(self.image_converter)
        config["mask_size"] = list(self.mask_size)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SAMImageSegmenterPreprocessor:
        config = dict(config)
        if isinstance(config.get("image_converter"), dict):
            config["image_converter"] = keras.saving.deserialize_keras_object(
                config["image_converter"]
            )
        return cls(**config)

    def _call_on_host(self, x: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        images, plans = self.image_converter.convert(x["images"], **overrides)
        completed = prompt_tools.complete(x, plans, self.mask_size)
        completed["single_object"] = np.full(len(plans), completed["single_object"])
        return {
            "images": images,
            **completed,
            "original_sizes": np.array([plan.original_size for plan in plans], "int32"),
            "scaled_sizes": np.array([plan.scaled_size for plan in plans], "int32"),
        }

    def _call_in_graph(self, x: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        converter = self.image_converter
        height, width = converter.pad_size
        if overrides or not converter.do_pad:
            height = width = None
        rank = x["images"].shape.rank
        batch = x["images"].shape[0] if rank else None
        outputs = {
            "images": ("float32", (batch, height, width, converter.num_channels)),
            "points": ("float32", (batch, None, None, 2)),
            "labels": ("int32", (batch, None, None)),
            "masks": ("float32", (batch, None, *self.mask_size, 1)),
            "mask_given": ("bool", (batch, None)),
            "num_prompts": ("int32", (batch,)),
            "single_object": ("bool", (batch,)),
            "original_sizes": ("int32", (batch, 2)),
            "scaled_sizes": ("int32", (batch, 2)),
        }
        return call_on_host(lambda arrays: self._call_on_host(arrays, overrides), x, outputs)


def restore_masks(
    logits: Any,
    original_sizes: Any,
    model_size: int | tuple[int, int],
    mask_threshold: float = 0.0,
    binarize: bool = True,
    pad_only: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Maps the model's mask logits to masks of the original images.

    Padding is cut off and the logits are resized as floats (see
    `ResizePlan.masks_to_original`); only then the threshold is applied.

    Args:
        logits: float array or tensor `(B, K, Lh, Lw)` or `(B, P, K, Lh, Lw)`.
        original_sizes: int array `(B, 2)` or list of pairs `(H0, W0)`; the
            preprocessor's output has it.
        model_size: int or pair of ints, the model's input `(H, W)`.
        mask_threshold: float. A logit above it is inside. Defaults to `0.0`.
        binarize: bool. Off: the resized logits. Defaults to `True`.
        pad_only: bool. The images were padded without scaling.

    Returns:
        bool or float32 array `(B, K, H0, W0)` or `(B, P, K, H0, W0)` if all
        images have one size, otherwise a list of one array per image, without
        `B`.

    Raises:
        ValueError: if the shapes do not fit together.

    Example:

    >>> logits = np.ones((2, 3, 256, 256), "float32")
    >>> [m.shape for m in keras_sam.restore_masks(logits, [(30, 40), (50, 20)], 1024)]
    [(3, 30, 40), (3, 50, 20)]
    """
    logits = to_numpy(logits)
    sizes = np.asarray(to_numpy(original_sizes))
    if logits.ndim not in (4, 5):
        raise ValueError(
            "`logits` must have shape (B, K, Lh, Lw) or (B, P, K, Lh, Lw), as the model returns "
            f"them. Received: shape={logits.shape}."
        )
    if sizes.shape != (len(logits), 2):
        raise ValueError(
            "`original_sizes` must have one (height, width) per image, shape "
            f"({len(logits)}, 2). Received: shape={sizes.shape}."
        )
    model_size = size_pair(model_size, "model_size")
    plans = [ResizePlan(tuple(size), model_size, pad_only) for size in sizes.tolist()]
    leading, dtype = logits.shape[1:-2], bool if binarize else "float32"
    one_size = len({plan.original_size for plan in plans}) == 1
    if one_size:
        restored = np.empty((len(plans), *leading, *plans[0].original_size), dtype)
    else:
        restored = [np.empty((*leading, *plan.original_size), dtype) for plan in plans]
    for plan, image_logits, target in zip(plans, logits, restored, strict=True):
        target[...] = plan.masks_to_original(image_logits, mask_threshold if binarize else None)
    return restored


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


# --- input ---


def check_keys(x: Any) -> None:
    """Raises unless `x` is a dict of images and kinds of prompts that there are."""
    known = ("images", *prompt_tools.KEYS)
    if not isinstance(x, dict) or "images" not in x:
        received = f"keys {sorted(x)}" if isinstance(x, dict) else type(x).__name__
        raise ValueError(
            f"`x` must be a dict with the key 'images' and any of {prompt_tools.KEYS}. "
            f"Received: {received}."
        )
    unknown = sorted(set(x) - set(known))
    if unknown:
        raise ValueError(f"`x` must have no keys but {known}. Received also: {unknown}.")


def is_one_image(images: Any) -> bool:
    """Whether this is one image instead of a batch of them."""
    if isinstance(images, (str, bytes)) or hasattr(images, "__fspath__"):
        return True
    if is_pillow_image(images):
        return True
    shape = getattr(images, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None or images.dtype == object:
        return False
    return len(shape) in (2, 3)


def batch_of(images: Any) -> list[Any]:
    """A batch of images as a list of images, not yet read."""
    if is_ragged_tensor(images):
        images = read_ragged(images)
    if not isinstance(images, (list, tuple)):
        images = to_numpy(images)
        if images.ndim not in (1, 4):  # (B,) of paths or arrays, (B, H0, W0, C)
            raise ValueError(
                "`images` must have shape (B, H0, W0, C) or be a list of images. "
                f"Received: shape={images.shape}."
            )
    if len(images) == 0:
        raise ValueError("`images` must hold at least one image. Received: an empty batch.")
    return list(images)


def _describe_image(image: Any) -> str:
    return f"shape={tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
