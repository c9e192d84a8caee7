"""From images and prompts to the model's input.

Everything runs on the host, the same on every backend, and nothing is remembered between calls:
what the way back needs is in the output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam.framing import batch_of, is_one_image
from keras_sam.geometry import ResizePlan, size_pair, sizes_of
from keras_sam.preprocessing.converter import (
    BuiltInPresets,
    SAMImageConverter,
    check_images,
    check_keys,
    read_without_weights,
)
from keras_sam.preprocessing.tensorflow_graph import call_on_host, is_graph_tensor
from keras_sam.presets.adapt import mask_size_of
from keras_sam.prompts import Prompts, read


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch in the model frame, and the way back to the original images."""

    images: np.ndarray | dict[str, np.ndarray]  # float32 (B, H, W, C), or what it was encoded to
    prompts: Prompts
    plans: Sequence[ResizePlan]

    def arrays(self) -> dict[str, np.ndarray]:
        """The batch as a dict of arrays, see `SAMImageSegmenterPreprocessor`."""
        return {
            "images": self.images,
            **self.prompts.arrays(),
            "num_prompts": self.prompts.num_prompts,
            "single_object": np.full(len(self.images), self.prompts.single_object),
            **sizes_of(self.plans),
        }


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMImageSegmenterPreprocessor(keras.layers.Layer):
    """Turns a user's images and prompts into the model's canonical input.

    Images go through the converter, prompts through `prompts.read`, and then to
    the frame of the image that they belong to. The caller's dict and arrays
    stay as they are, and nothing is remembered between calls. Inside
    `tf.data` the same code runs through `tf.numpy_function`; batch first,
    then map: `dataset.ragged_batch(n).map(preprocessor)` takes images of
    different sizes and ragged prompts. (Don't `unbatch` the result:
    TensorFlow 2.21 crashes on the zero-length axis of an absent mask.) One
    image and its prompts, without the axis `B`, give an output without it, so
    that a data set may also be mapped first and batched then, if all images
    have equally many prompts.

    Args:
        image_converter: `SAMImageConverter`. Defaults to one for 1024 x 1024.
        mask_size: int or pair of ints `(Lh, Lw)`, the model's mask frame.
            Defaults to a quarter of the image's, as patches of 16 pixels give.

    Call arguments:
        x: dict of `"images"`, `(B, H0, W0, C)` or a list, and any of
            `"points"` with `"labels"`, `"boxes"`, `"masks"` in original
            pixels; see `prompts.read`.
        y: targets, handed through. Defaults to `None`.
        sample_weight: handed through. Defaults to `None`.
        **overrides: any argument of the converter, for this call.

    Returns:
        Dict of numpy arrays: `images` float32 `(B, H, W, C)`; `points`
        `(B, P, T, 2)` in model pixels, `labels` `(B, P, T)`, `masks`
        `(B, P, Lh, Lw, 1)` or `(B, 0, Lh, Lw, 1)`, `mask_given` `(B, P)` or
        `(B, 0)`, `num_prompts` `(B,)`, see `prompts.Prompts`;
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

    presets = BuiltInPresets()
    stretch = False  # whether images are stretched where no converter says otherwise

    def __init__(
        self,
        image_converter: SAMImageConverter | None = None,
        mask_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_converter is None:
            image_converter = SAMImageConverter(stretch=self.stretch)
        self.image_converter = image_converter
        quarter = tuple(max(1, n // 4) for n in self.image_converter.pad_size)
        self.mask_size = quarter if mask_size is None else size_pair(mask_size, "mask_size")
        self.built = True

    @property
    def image_size(self) -> tuple[int, int]:
        """Size `(H, W)` in pixels of the model's images, as the converter makes them."""
        return self.image_converter.pad_size

    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None, **overrides: Any) -> Any:
        # Not `Layer.__call__`: see `SAMImageConverter.__call__`.
        return self.call(x, y=y, sample_weight=sample_weight, **overrides)

    def call(self, x: Any, y: Any = None, sample_weight: Any = None, **overrides: Any) -> Any:
        check_keys(x)
        check_images(x)
        if any(is_graph_tensor(value) for value in x.values()):
            outputs = self._call_in_graph(x, overrides)
        else:
            outputs = self._call_on_host(x, overrides)
        return keras.utils.pack_x_y_sample_weight(outputs, y, sample_weight)

    @classmethod
    def for_backbone(cls, backbone: Any) -> SAMImageSegmenterPreprocessor:
        """The preprocessor that fits a `SAMBackbone`'s frame, channels and mean colour."""
        encoder = backbone.image_encoder
        converter = SAMImageConverter.for_encoder(
            backbone.image_shape, encoder.pixel_mean, encoder.pixel_std, cls.stretch
        )
        return cls(converter, mask_size=backbone.mask_size, name="preprocessor")

    @classmethod
    def from_preset(cls, preset: Any, **kwargs: Any) -> SAMImageSegmenterPreprocessor:
        """Loads the preprocessor of a preset, without its weights.

        Args:
            preset: built-in name, address or path, see `Backbone.from_preset`.
            **kwargs: `image_shape`, `num_channels`, `pixel_mean` and `pixel_std` as in
                `Backbone.from_preset`, `value_range` as in `SAMImageConverter`; anything else
                goes to the constructor.

        Returns:
            The preprocessor that was saved with the preset, or the one that fits its model.

        Raises:
            ValueError: if there is no such preset, or it is damaged.

        Example:

        ```python
        preprocessor = keras_sam.SAMImageSegmenterPreprocessor.from_preset("sam_base_sa1b")
        preprocessor({"images": [np.zeros((30, 40, 3))], "boxes": [[[1, 2, 30, 20]]]})
        ```
        """
        found, kwargs = read_without_weights(preset, kwargs)
        value_range = kwargs.pop("value_range", None)
        if found.preprocessor is not None:
            preprocessor = cls.from_config({**found.preprocessor["config"], **kwargs})
        else:
            defaults = {
                "image_converter": SAMImageConverter.for_config(found.encoder, cls.stretch),
                "mask_size": mask_size_of(found),
                "name": "preprocessor",
            }
            preprocessor = cls(**{**defaults, **kwargs})
        if value_range is not None:
            preprocessor.image_converter.value_range = value_range
        return preprocessor

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
        is_one = is_one_image(x["images"])
        images = [x["images"]] if is_one else batch_of(x["images"])
        prompts = read(x, None if is_one else len(images))
        frames, plans = self.image_converter.convert(images, **overrides)
        arrays = Prepared(frames, prompts.to_model(plans, self.mask_size), plans).arrays()
        return {name: array[0] for name, array in arrays.items()} if is_one else arrays

    def _call_in_graph(self, x: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        converter = self.image_converter
        height, width = converter.pad_size
        if overrides or not converter.do_pad:
            height = width = None
        shape = x["images"].shape
        # A path has no axes, a batch of paths one.
        lead = () if shape.rank == 0 or is_one_image(x["images"]) else (shape[0],)
        outputs = {
            "images": ("float32", (*lead, height, width, converter.num_channels)),
            "points": ("float32", (*lead, None, None, 2)),
            "labels": ("int32", (*lead, None, None)),
            "masks": ("float32", (*lead, None, *self.mask_size, 1)),
            "mask_given": ("bool", (*lead, None)),
            "num_prompts": ("int32", lead),
            "single_object": ("bool", lead),
            "original_sizes": ("int32", (*lead, 2)),
            "scaled_sizes": ("int32", (*lead, 2)),
        }
        if shape.rank is None:  # whatever the images are: one, or a batch
            outputs = {name: (dtype, None) for name, (dtype, _) in outputs.items()}
        return call_on_host(lambda arrays: self._call_on_host(arrays, overrides), x, outputs)


@keras.saving.register_keras_serializable(package="keras_sam")
class SAM2ImageSegmenterPreprocessor(SAMImageSegmenterPreprocessor):
    """`SAMImageSegmenterPreprocessor` for SAM 2: images are stretched to the model's frame.

    Args:
        image_converter: `SAMImageConverter`. Defaults to one that stretches to 1024 x 1024.
        mask_size: as in `SAMImageSegmenterPreprocessor`.

    Example:

    >>> preprocessor = keras_sam.SAM2ImageSegmenterPreprocessor()
    >>> image = np.zeros((480, 640, 3), "uint8")
    >>> x = preprocessor({"images": [image], "boxes": [[[0, 0, 320, 240]]]})
    >>> x["points"][0, 0].tolist(), x["scaled_sizes"][0].tolist()
    ([[0.0, 0.0], [512.0, 512.0]], [1024, 1024])
    """

    stretch = True


def resizing_preprocessor(segmenter: Any) -> Any:
    """A segmenter's preprocessor, or the one that fits its backbone if it has none."""
    if segmenter.preprocessor is not None:
        return segmenter.preprocessor
    return segmenter.default_preprocessor(segmenter.backbone)


def check_preprocessor(preprocessor: Any, backbone: Any) -> None:
    """Raises if a preprocessor of ours makes other images or masks than the backbone takes."""
    if not isinstance(preprocessor, SAMImageSegmenterPreprocessor):
        return
    converter = preprocessor.image_converter
    made = (*converter.pad_size, converter.num_channels)
    if made != backbone.image_shape or preprocessor.mask_size != backbone.mask_size:
        raise ValueError(
            f"`preprocessor` must make images {backbone.image_shape} and masks "
            f"{backbone.mask_size} for this backbone. Received: images {made} and masks "
            f"{preprocessor.mask_size}. Give its converter `size` and `num_channels`, and itself "
            "`mask_size`."
        )
