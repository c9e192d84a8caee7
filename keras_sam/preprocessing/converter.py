"""From images as people have them to the model's input.

Everything runs on the host, in numpy and pillow, the same on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import presets
from keras_sam.geometry import RESAMPLING, SIZES, ResizePlan, resampling_code, size_pair
from keras_sam.images import (
    PIXEL_MEAN,
    PIXEL_STD,
    check_choice,
    is_image_file,
    is_pillow_image,
    load_image,
)
from keras_sam.pixel_values import check_value_range
from keras_sam.preprocessing.tensorflow_graph import call_on_host, is_graph_tensor
from keras_sam.prompts import CANONICAL_KEYS, KEYS
from keras_sam.prompts.nested import describe_value, is_ragged_tensor, read_ragged, to_numpy
from keras_sam.prompts.spellings import is_other_name, meant_by, unknown_names


class BuiltInPresets:
    """`SomeClass.presets`: the built-in presets, all of which have an image converter."""

    def __get__(self, instance: Any, owner: type) -> dict[str, dict]:
        return presets.list_presets()


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageConverter(keras.layers.Layer):
    """Turns images of any size into the model's input.

    Each image is scaled to fit `size` with its proportions kept, with
    pillow's antialiased filters, and padded at the right and the bottom. The
    model normalises inside its graph, so by default pixels stay 0..255 and
    the padding is the mean colour, which becomes the 0 that the released
    checkpoints were trained with. With `do_rescale` and `do_normalize` on,
    the output is what transformers' `SamImageProcessor` gives.

    For SAM 2 images are stretched to `size`, as floats: rounding to uint8
    before the model's normalisation would not be what its released code does.

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
        value_range: which values become 0..255. `"auto"` goes by the type:
            uint8 as it is, uint16 divided by 257, other integers if they are
            within 0..255, floats as they are, but times 255 if all of an
            image lie within 0..1. A pair `(low, high)` becomes 0 and 255,
            and what is beyond is clipped, as for cameras of 12 bits, `(0,
            4095)`, or a window of CT, `(-160, 240)`; uint8 stays as it is.
            `"percentile"` takes the 0.5th and 99.5th percentile of each
            image. NaN, with a range, and masked values become 0. It can be
            set on the converter, too. Defaults to `"auto"`.
        stretch: bool. Scales each side to that of `size`, as SAM 2 does,
            instead of keeping proportions and padding. Defaults to `False`.

    Call arguments:
        images: array or tensor `(B, H0, W0, C)`, or a list of images of any
            sizes: arrays, tensors, pillow images, or files: paths, their
            bytes, or opened. One image without a batch axis gives an output
            without one. In `tf.data`, a tensor of one image, of a batch, or
            of paths: `dataset.map(converter)`.
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

    presets = BuiltInPresets()

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
        self.built = True

    @property
    def image_size(self) -> tuple[int, int]:
        """Size `(H, W)` in pixels of the images it makes, padding included."""
        return self.pad_size

    @classmethod
    def from_preset(cls, preset: Any, **kwargs: Any) -> SAMImageConverter:
        """Loads the image converter of a preset, without its weights.

        Args:
            preset: built-in name, address or path, see `Backbone.from_preset`.
            **kwargs: `image_shape`, `num_channels`, `pixel_mean` and `pixel_std` as in
                `Backbone.from_preset`; anything else goes to the constructor.

        Returns:
            The converter that was saved with the preset, or the one that fits its model.

        Raises:
            ValueError: if there is no such preset, or it is damaged.

        Example:

        ```python
        converter = keras_sam.SAMImageConverter.from_preset("sam_base_sa1b")
        converter([np.zeros((30, 40, 3))])
        ```
        """
        found, kwargs = read_without_weights(preset, kwargs)
        if found.preprocessor is not None:
            config = found.preprocessor["config"]["image_converter"]["config"]
        else:
            config = cls.for_config(found.encoder)._settings()
        return cls.from_config({**config, **kwargs})

    @classmethod
    def for_encoder(
        cls,
        image_shape: Sequence[int],
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        stretch: bool = False,
    ) -> SAMImageConverter:
        """The converter that fits an image encoder's frame `(H, W, channels)` and mean colour."""
        mean, std = np.asarray(pixel_mean), np.asarray(pixel_std)
        unit_range = takes_unit_range(pixel_mean, pixel_std)
        return cls(
            size=tuple(image_shape[:2]),
            do_rescale=unit_range,
            num_channels=image_shape[2],
            image_mean=(mean if unit_range else mean / 255).tolist(),
            image_std=(std if unit_range else std / 255).tolist(),
            pad_value=mean.tolist(),
            stretch=stretch,
            name="image_converter",
        )

    @classmethod
    def for_config(cls, encoder: dict[str, Any], stretch: bool = False) -> SAMImageConverter:
        """`for_encoder`, from the arguments of a `ViTDetBackbone`."""
        names = ("image_shape", "pixel_mean", "pixel_std")
        given = {name: encoder[name] for name in names if name in encoder}
        return cls.for_encoder(**given, stretch=stretch)

    @property
    def value_range(self) -> str | tuple[float, float] | None:
        """Which values become 0..255, see above; None takes them for such already."""
        return self._value_range

    @value_range.setter
    def value_range(self, value_range: str | Sequence[float] | None) -> None:
        self._value_range = check_value_range(value_range)

    def __call__(self, images: Any, **overrides: Any) -> np.ndarray:
        # Not `Layer.__call__`, which would cast the pixels and put them on a device.
        return self.call(images, **overrides)

    def call(self, images: Any, **overrides: Any) -> np.ndarray:
        if is_graph_tensor(images):
            return self._call_in_graph(images, overrides)
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

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._settings()}

    def _settings(self) -> dict[str, Any]:
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

    def _with(self, overrides: dict[str, Any]) -> SAMImageConverter:
        # Not `from_config`, which would turn the error of a wrong value into a TypeError, nor
        # `get_config`, for which Keras imports TensorFlow, which is slow and large.
        return type(self)(**{**self._settings(), **overrides})

    def _call_in_graph(self, images: Any, overrides: dict[str, Any]) -> Any:
        converter = self._with(overrides) if overrides else self
        frame = None  # one image, or several
        if images.shape.rank is not None:
            batch = () if is_one_image(images) else images.shape[:1]
            sides = converter.pad_size if converter.do_pad else (None, None)
            frame = (*batch, *sides, converter.num_channels)
        outputs = call_on_host(
            lambda x: {"images": converter.call(x["images"])},
            {"images": images},
            {"images": ("float32", frame)},
        )
        return outputs["images"]

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


def read_without_weights(preset: Any, kwargs: dict[str, Any]) -> tuple[presets.Preset, dict]:
    """A preset for the model frame in `kwargs`, and what else is in there."""
    names = ("image_shape", "num_channels", "pixel_mean", "pixel_std")
    frame = {name: value for name, value in kwargs.items() if name in names}
    others = {name: value for name, value in kwargs.items() if name not in names}
    return presets.read_preset(preset, load_weights=False, **frame), others


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


# --- input ---


def check_images(x: Any) -> None:
    """Raises unless `x` is a dict with images."""
    if not isinstance(x, dict) or "images" not in x:
        received = f"the keys {sorted(map(str, x))}" if isinstance(x, dict) else describe_value(x)
        raise ValueError(
            f"`x` must be a dict and must have the key 'images', next to any of {KEYS}. "
            f"Received: {received}.{meant_by(x, ('images',))}"
        )


def check_keys(x: Any) -> None:
    """Raises unless `x` is a dict of images and of kinds of prompts alone.

    With `image_embeddings` in place of images, the model knows which features are beside them; a
    key that other systems have for a kind of prompt is none.
    """
    if isinstance(x, dict) and "image_embeddings" in x and "images" not in x:
        theirs = [key for key in x if key not in KEYS and is_other_name(key, KEYS)]
        if theirs:
            raise unknown_names("x", theirs, ("image_embeddings", *SIZES, *KEYS))
        return
    check_images(x)
    made = (*CANONICAL_KEYS, "num_prompts", "single_object", *SIZES) if "mask_given" in x else ()
    unknown = set(x) - {"images", *KEYS, *made}
    if unknown:
        raise unknown_names("x", unknown, ("images", *KEYS))


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
    return to_numpy(value) if isinstance(value, keras.Variable) else value


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
