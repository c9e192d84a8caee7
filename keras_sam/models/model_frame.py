"""The model frame: its images, its prompts, and the preprocessor that takes others there."""

import numpy as np

from keras_sam import prompts as prompt_forms
from keras_sam.geometry import ResizePlan
from keras_sam.images import read_image, warn_of_range
from keras_sam.nested import to_numpy
from keras_sam.preprocessing import (
    SAMImageConverter,
    SAMImageSegmenterPreprocessor,
    batch_of,
    check_keys,
    is_one_image,
)


def takes_unit_range(backbone) -> bool:
    """Whether the image encoder takes images 0..1: its mean and deviation are below 1.

    Ours take 0..255. One made through `compat.keras_cv` may not.
    """
    encoder = backbone.image_encoder
    statistics = [*getattr(encoder, "pixel_mean", [255]), *getattr(encoder, "pixel_std", [255])]
    return max(statistics) < 1


def preprocessor_for(backbone) -> SAMImageSegmenterPreprocessor:
    """The preprocessor that fits a backbone's frame, channels and mean colour.

    Args:
        backbone: a `SAMBackbone`.

    Returns:
        A `SAMImageSegmenterPreprocessor`.
    """
    h, w, channels = backbone.image_shape
    mean = np.asarray(backbone.image_encoder.pixel_mean)
    std = np.asarray(backbone.image_encoder.pixel_std)
    unit_range = takes_unit_range(backbone)
    converter = SAMImageConverter(
        size=(h, w),
        do_rescale=unit_range,
        num_channels=channels,
        image_mean=(mean if unit_range else mean / 255).tolist(),
        image_std=(std if unit_range else std / 255).tolist(),
        pad_value=mean.tolist(),
        name="image_converter",
    )
    return SAMImageSegmenterPreprocessor(
        converter, mask_size=backbone.mask_size, name="preprocessor"
    )


def check_preprocessor(preprocessor, backbone) -> None:
    """Raises if a preprocessor makes other images or masks than the backbone takes.

    Args:
        preprocessor: a `SAMImageSegmenterPreprocessor`; anything else is trusted.
        backbone: a `SAMBackbone`.
    """
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


def prepare_in_model_frame(batch: dict, image_shape, mask_size, unit_range=False) -> dict:
    """The canonical inputs of a batch whose images and prompts are in the model frame already.

    Args:
        batch: dict as `SAMImageSegmenter.predict` takes it.
        image_shape: tuple `(H, W, channels)`.
        mask_size: tuple `(Lh, Lw)`.
        unit_range: see `read_frames`.

    Returns:
        Dict of numpy arrays, as `SAMImageSegmenterPreprocessor` returns it.

    Raises:
        ValueError: if an image has another size, or a prompt is malformed.
    """
    check_keys(batch)
    images = read_frames(batch["images"], image_shape, unit_range)
    count, size = len(images), tuple(image_shape[:2])
    completed = prompt_forms.complete(batch, [ResizePlan(size, size)] * count, mask_size)
    sizes = np.full((count, 2), size, "int32")
    return {
        "images": images,
        **completed,
        "single_object": np.full(count, completed["single_object"]),
        "original_sizes": sizes,
        "scaled_sizes": sizes,
    }


def read_frames(images, image_shape, unit_range: bool = False) -> np.ndarray:
    """Images of the model's own size, read by the rules for all images.

    Args:
        images: array `(B, H, W, channels)` or list of images, each as in `predict`.
        image_shape: tuple `(H, W, channels)`.
        unit_range: bool. Whether the model takes 0..1, so that this needs no warning.

    Returns:
        Float32 array `(B, H, W, channels)`.

    Raises:
        ValueError: if an image has another size, or cannot be read.
    """
    height, width, channels = image_shape
    check_batch(images)
    images = [read_image(image, num_channels=channels) for image in batch_of(images)]
    for image in images:
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"`images` must be {height} pixels high and {width} wide: without a preprocessor "
                f"the model works in its own frame. Received: shape={image.shape}. Resize them, or "
                "make the segmenter with `preprocessor=`."
            )
    if not unit_range:
        warn_of_range(images)
    return np.stack(images).astype("float32")


def check_frames(frames, image_shape, name: str) -> np.ndarray:
    """Arrays in the model frame as one float32 array `(B, H, W, channels)`, or an error.

    Args:
        frames: array or tensor.
        image_shape: tuple `(H, W, channels)`.
        name: what the user calls them.
    """
    frames = to_numpy(frames)
    if frames.shape[1:] != tuple(image_shape) or not len(frames):
        raise ValueError(
            f"`{name}` must have shape (B, {', '.join(map(str, image_shape))}), images in the "
            f"model frame, pixel values 0..255. Received: shape={frames.shape}."
        )
    return frames.astype("float32", copy=False)


def check_batch(images) -> None:
    """Raises unless `images` is a batch of images, whatever they are like.

    Args:
        images: what the user calls `images`.
    """
    if images is None:
        raise ValueError("`images` must hold at least one image. Received: None.")
    if is_one_image(images) or not hasattr(images, "__len__"):
        raise ValueError(
            "`images` must be a batch: an array (B, H0, W0, channels) or a list of images. "
            f"Received: {describe(images)}. Put one image in a list, and give every prompt one "
            "entry per image too."
        )
    if len(images) == 0:
        raise ValueError("`images` must hold at least one image. Received: an empty batch.")


def describe(value) -> str:
    """Type and shape of a value, for messages."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return name if shape is None else f"{name} of shape {tuple(shape)}"
