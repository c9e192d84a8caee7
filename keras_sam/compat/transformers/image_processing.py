"""transformers' `SamImageProcessor`, in numpy and pillow."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_sam.compat.tensors import channels_first, to_tensor
from keras_sam.compat.transformers.configuration import address_of, read_config
from keras_sam.compat.transformers.image_reading import (
    FIRST,
    LAST,
    as_list,
    height_width,
    in_format,
    longest_edge,
    read_pixels,
)
from keras_sam.compat.transformers.mask_processing import MaskProcessing
from keras_sam.compat.transformers.outputs import BatchFeature
from keras_sam.converters.sam_transformers import preprocessor_config
from keras_sam.geometry import ResizePlan, resize_image
from keras_sam.images import PIXEL_MEAN, PIXEL_STD, is_pillow_image
from keras_sam.presets.locate import PREPROCESSOR_FILE, names
from keras_sam.presets.read import read_preset
from keras_sam.prompts.nested import to_numpy

FILE = "preprocessor_config.json"
NEAREST, BILINEAR, BICUBIC = 0, 2, 3  # pillow's codes
_IMAGENET_MEAN = [round(value / 255, 9) for value in PIXEL_MEAN]
_IMAGENET_STD = [round(value / 255, 9) for value in PIXEL_STD]


class SamImageProcessor(MaskProcessing):
    """Makes the model's `pixel_values` from images, and masks of the images from its answers.

    Args:
        do_resize: bool.
        size: dict, `{"longest_edge": int}`, the longer side of a resized image. Defaults to 1024.
        resample: int, a filter of pillow's. Defaults to 2, bilinear.
        do_rescale: bool.
        rescale_factor: float.
        do_normalize: bool.
        image_mean: number or one per channel, after rescaling. Defaults to ImageNet's.
        image_std: likewise.
        do_pad: bool. Zeros at the right and the bottom.
        pad_size: dict, `{"height": int, "width": int}`. Defaults to 1024 by 1024.
        do_convert_rgb: bool.
        mask_size: dict, as `size`, for `segmentation_maps`. Defaults to 256.
        mask_pad_size: dict, as `pad_size`, likewise. Defaults to 256 by 256.
        **kwargs: what else is in transformers' files; kept as attributes.

    Call arguments: see `preprocess`.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = BILINEAR,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_pad: bool = True,
        pad_size: dict[str, int] | int | None = None,
        do_convert_rgb: bool = True,
        *,
        mask_size: dict[str, int] | None = None,
        mask_pad_size: dict[str, int] | int | None = None,
        **kwargs: Any,
    ):
        self.do_resize = do_resize
        self.size = longest_edge(1024 if size is None else size)
        self.resample = resample
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = _IMAGENET_MEAN if image_mean is None else image_mean
        self.image_std = _IMAGENET_STD if image_std is None else image_std
        self.do_pad = do_pad
        self.pad_size = height_width(1024 if pad_size is None else pad_size)
        self.do_convert_rgb = do_convert_rgb
        self.mask_size = longest_edge(256 if mask_size is None else mask_size)
        self.mask_pad_size = height_width(256 if mask_pad_size is None else mask_pad_size)
        vars(self).update(kwargs)

    # --- files ---

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Makes a processor from the entries of its file."""
        return cls(**{**image_processor_dict, **kwargs})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads `preprocessor_config.json` of a folder or a repository of the Hub.

        Args:
            pretrained_model_name_or_path: path of a folder, or a name as `facebook/sam-vit-base`;
                or a preset of this package, a folder or a built-in name, which says it its own way.
            revision: optional str, branch, tag or commit of the repository.
            **kwargs: settings to replace.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        address = address_of(pretrained_model_name_or_path, revision)
        return cls.from_dict(_of_preset(address) or read_config(address, FILE), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All settings, as they are written to a file."""
        return {**vars(self), "image_processor_type": "SamImageProcessor"}

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `preprocessor_config.json` into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")

    # --- one step at a time ---

    def resize(
        self,
        image: np.ndarray,
        size: dict[str, int],
        resample: int = BICUBIC,
        data_format: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Scales an image so that its longer side is `size["longest_edge"]`, antialiased.

        Args:
            image: array `(h, w, C)` or `(C, h, w)`.
            size: dict, `{"longest_edge": int}`.
            resample: int, a filter of pillow's. Defaults to 3, bicubic.
            data_format: optional `"channels_first"` or `"channels_last"`, of the result. Defaults
                to the image's.
            input_data_format: optional, of the image. By default read off its shape.
        """
        longest = longest_edge(size)["longest_edge"]

        def scaled(x):
            return resize_image(x, self._get_preprocess_shape(x.shape[:2], longest), int(resample))

        return in_format(image, input_data_format, data_format, scaled)

    def rescale(
        self,
        image: np.ndarray,
        scale: float,
        data_format: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Multiplies an image by `scale`, as float32; see `resize`."""
        return in_format(
            image, input_data_format, data_format, lambda x: (x * scale).astype("float32")
        )

    def normalize(
        self,
        image: np.ndarray,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        data_format: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Subtracts `mean`, then divides by `std`, as float32; see `resize`."""
        return in_format(
            image,
            input_data_format,
            data_format,
            lambda x: (x.astype("float32") - np.float32(mean)) / np.float32(std),
        )

    def pad_image(
        self,
        image: np.ndarray,
        pad_size: dict[str, int],
        data_format: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Pads an image with zeros, at the right and the bottom, to `pad_size`; see `resize`."""
        size = height_width(pad_size)
        size = (size["height"], size["width"])
        return in_format(
            image,
            input_data_format,
            data_format,
            lambda x: ResizePlan(x.shape[:2], size, pad_only=True).pad_image(x),
        )

    def _get_preprocess_shape(
        self, old_shape: tuple[int, int], longest_edge: int
    ) -> tuple[int, int]:
        return ResizePlan(old_shape, longest_edge).scaled_size

    # --- all steps ---

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int] | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_pad: bool | None = None,
        pad_size: dict[str, int] | int | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: str | None = None,
        data_format: str | None = FIRST,
        input_data_format: str | None = None,
        *,
        segmentation_maps: Any = None,
        mask_size: dict[str, int] | None = None,
        mask_pad_size: dict[str, int] | int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Makes a model's inputs from one image or several.

        Args:
            images: array or tensor `(h, w, C)` or `(C, h, w)`, pixels 0..255; pillow image; path;
                a list of these, or an array with one more axis.
            do_resize: optional, instead of the processor's, like all up to `do_convert_rgb`.
            size: see above.
            resample: see above.
            do_rescale: see above.
            rescale_factor: see above.
            do_normalize: see above.
            image_mean: see above.
            image_std: see above.
            do_pad: see above.
            pad_size: see above.
            do_convert_rgb: see above.
            return_tensors: optional: `"np"`, `"pt"`, `"tf"`, `"jax"`, or `"keras"` for tensors of
                the running backend. By default lists of arrays.
            data_format: `"channels_first"` or `"channels_last"`, of the results; None for that of
                the images.
            input_data_format: optional, of the images. By default read off their shapes.
            segmentation_maps: optional label maps `(h, w)`, one per image.
            mask_size: optional, instead of the processor's.
            mask_pad_size: optional, likewise.
            **kwargs: ignored, as in transformers.

        Returns:
            `BatchFeature` with `pixel_values` `(B, C, H, W)`; `original_sizes` and
            `reshaped_input_sizes` `(B, 2)`, height and width before and after resizing; with
            `segmentation_maps` also `labels`, int64 `(B, h, w)`.

        Raises:
            ValueError: if an image is not usable.
        """
        overrides = {
            "do_resize": do_resize,
            "size": size,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_pad": do_pad,
            "pad_size": pad_size,
            "do_convert_rgb": do_convert_rgb,
            "mask_size": mask_size,
            "mask_pad_size": mask_pad_size,
        }
        overrides = {name: value for name, value in overrides.items() if value is not None}
        settings = SamImageProcessor(**{**self._settings(), **overrides})
        pixels, original_sizes, sizes = [], [], []
        for image in as_list(images, 3):
            array, layout = read_pixels(image, settings.do_convert_rgb, input_data_format)
            original_sizes.append(array.shape[:2])
            array = settings._scaled(array)
            sizes.append(array.shape[:2])
            array = settings._finished(array)
            wanted = data_format or layout
            pixels.append(channels_first(array) if str(wanted).endswith("first") else array)
        made = {
            "pixel_values": pixels,
            "original_sizes": original_sizes,
            "reshaped_input_sizes": sizes,
        }
        if segmentation_maps is not None:
            made["labels"] = [settings._label_map(x) for x in as_list(segmentation_maps, 2)]
        if return_tensors is None:
            return BatchFeature(made)
        stacked = {name: np.stack([np.asarray(x) for x in made[name]]) for name in made}
        return BatchFeature({k: to_tensor(v, str(return_tensors)) for k, v in stacked.items()})

    __call__ = preprocess

    def _settings(self):
        names = (
            "do_resize size resample do_rescale rescale_factor do_normalize image_mean image_std "
            "do_pad pad_size do_convert_rgb mask_size mask_pad_size"
        )
        return {name: getattr(self, name) for name in names.split()}

    def _scaled(self, image):
        if not self.do_resize:
            return image
        return self.resize(image, self.size, self.resample, LAST, LAST)

    def _finished(self, image):
        if self.do_rescale:
            image = self.rescale(image, self.rescale_factor, LAST, LAST)
        if self.do_normalize:
            image = self.normalize(image, self.image_mean, self.image_std, LAST, LAST)
        return self.pad_image(image, self.pad_size, LAST, LAST) if self.do_pad else image

    def _label_map(self, labels):
        maps = SamImageProcessor(
            self.do_resize,
            self.mask_size,
            NEAREST,
            do_rescale=False,
            do_normalize=False,
            do_pad=self.do_pad,
            pad_size=self.mask_pad_size,
        )
        labels = to_numpy(np.asarray(labels) if is_pillow_image(labels) else labels)
        labels = np.asarray(labels, "float32").reshape(*labels.shape[-2:], 1)
        return maps._finished(maps._scaled(labels))[..., 0].astype("int64")


def _of_preset(address):
    """The entries of the file, of a preset that this package wrote; None for another one."""
    folder = os.path.expanduser(address)
    is_ours = address in names() or os.path.isfile(os.path.join(folder, PREPROCESSOR_FILE))
    if not is_ours or os.path.isfile(os.path.join(folder, FILE)):
        return None
    parts = read_preset(address, load_weights=False).parts
    return preprocessor_config({name: part["config"] for name, part in parts.items()})
