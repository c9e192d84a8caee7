"""From images as people have them to the model's input.

Everything runs on the host, in numpy and pillow, the same on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam import presets
from keras_sam.framing import ImageFraming, is_one_image, takes_unit_range
from keras_sam.geometry import SIZES
from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.preprocessing.tensorflow_graph import call_on_host, is_graph_tensor
from keras_sam.prompts import CANONICAL_KEYS, KEYS
from keras_sam.prompts.nested import describe_value
from keras_sam.prompts.spellings import is_other_name, meant_by, unknown_names


class BuiltInPresets:
    """`SomeClass.presets`: the built-in presets, all of which have an image converter."""

    def __get__(self, instance: Any, owner: type) -> dict[str, dict]:
        return presets.list_presets()


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageConverter(ImageFraming, keras.layers.Layer):
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
            config = cls.for_config(found.encoder).settings()
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

    def __call__(self, images: Any, **overrides: Any) -> np.ndarray:
        # Not `Layer.__call__`, which would cast the pixels and put them on a device.
        return self.call(images, **overrides)

    def call(self, images: Any, **overrides: Any) -> np.ndarray:
        if is_graph_tensor(images):
            return self._call_in_graph(images, overrides)
        if is_one_image(images):
            return self.convert([images], **overrides)[0][0]
        return self.convert(images, **overrides)[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings()}

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


def read_without_weights(preset: Any, kwargs: dict[str, Any]) -> tuple[presets.Preset, dict]:
    """A preset for the model frame in `kwargs`, and what else is in there."""
    names = ("image_shape", "num_channels", "pixel_mean", "pixel_std")
    frame = {name: value for name, value in kwargs.items() if name in names}
    others = {name: value for name, value in kwargs.items() if name not in names}
    return presets.read_preset(preset, load_weights=False, **frame), others


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
