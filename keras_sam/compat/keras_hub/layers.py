"""`keras_hub.layers`, as far as Segment Anything goes."""

from typing import Any

import numpy as np

from keras_sam import preprocessing
from keras_sam.compat.constructors import ConstructsOurs
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder

__all__ = ["ImageConverter", "SAMImageConverter", "SAMMaskDecoder", "SAMPromptEncoder"]


class SAMImageConverter(preprocessing.SAMImageConverter, metaclass=ConstructsOurs):
    """Makes a `keras_sam.SAMImageConverter` from KerasHub's arguments.

    Images keep their proportions and are padded, with antialiasing, where KerasHub's crops unless
    it is told otherwise: prompts on what is cropped would point outside of the image.

    Args:
        image_size: optional pair of ints `(H, W)`, our `size`. Without it images stay as large as
            they are.
        scale: optional number, or one per channel, that pixels are multiplied by.
        offset: optional number, or one per channel, that is then added.
        crop_to_aspect_ratio: must be False.
        pad_to_aspect_ratio: must be True.
        interpolation: `"bilinear"`, `"nearest"`, `"bicubic"` or `"lanczos3"`.
        antialias: unused: it is always on.
        bounding_box_format: unused: boxes go through the preprocessor, with the other prompts.
        data_format: `"channels_last"`, the default, or `"channels_first"`.
        **kwargs: our other arguments.

    Raises:
        ValueError: if images are to be cropped or distorted.

    Example:

    ```python
    converter = SAMImageConverter(image_size=(128, 128), scale=1 / 255)
    converter(np.random.randint(0, 256, size=(2, 60, 90, 3))).shape  # (2, 128, 128, 3)
    ```
    """

    makes = preprocessing.SAMImageConverter

    def __new__(
        cls,
        image_size=None,
        scale=None,
        offset=None,
        crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = True,
        interpolation: str = "bilinear",
        antialias: bool = True,
        bounding_box_format: str | None = None,
        data_format: str | None = None,
        **kwargs: Any,
    ):
        if crop_to_aspect_ratio or not pad_to_aspect_ratio:
            raise ValueError(
                "`crop_to_aspect_ratio` must be False and `pad_to_aspect_ratio` True: prompts are "
                "mapped into images that keep their proportions. Received: "
                f"crop_to_aspect_ratio={crop_to_aspect_ratio}, "
                f"pad_to_aspect_ratio={pad_to_aspect_ratio}."
            )
        resample = "lanczos" if interpolation == "lanczos3" else interpolation
        size = {"do_resize": False, "do_pad": False} if image_size is None else {"size": image_size}
        ours = {"resample": resample, "data_format": data_format or "channels_last"}
        return cls.makes(**{**ours, **size, **_normalization(scale, offset), **kwargs})

    @classmethod
    def from_preset(cls, preset: str, image_size=None, scale=None, offset=None, **kwargs: Any):
        """The image converter of a preset; see `keras_sam.SAMImageConverter.from_preset`.

        Args:
            preset: str.
            image_size: optional pair of ints `(H, W)`.
            scale: see the class.
            offset: see the class.
            **kwargs: passed on, our arguments.
        """
        frame = {} if image_size is None else {"image_shape": image_size}
        return cls.makes.from_preset(preset, **frame, **_normalization(scale, offset), **kwargs)


def _normalization(scale, offset):
    """`x * scale + offset` in our arguments."""
    if offset is None and np.ndim(scale) == 0:
        return {} if scale is None else {"do_rescale": True, "rescale_factor": scale}
    scale = np.float64(1 if scale is None else scale)
    offset = np.float64(0 if offset is None else offset)
    return {
        "do_normalize": True,
        "image_mean": (-offset / scale).tolist(),
        "image_std": (1 / scale).tolist(),
    }


ImageConverter = SAMImageConverter
