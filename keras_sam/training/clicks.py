"""A simulated annotator: first prompts drawn from a target, then clicks where masks are wrong.

Everything is `keras.ops`, so that all rounds of clicks are one compiled graph. Maps are in the
frame of mask logits, `(B, P, Lh, Lw)`; points are returned in pixels of the model frame.
"""

import keras
from keras import ops

from keras_sam.losses import Tensor

# Noise of boxes: the standard deviation of each side, as a fraction of the box's width or height,
# and the largest displacement in pixels. Values of the paper (appendix A).
BOX_NOISE = 0.1
BOX_NOISE_LIMIT = 20.0


def random_pixel(region: Tensor, seed: keras.random.SeedGenerator) -> Tensor:
    """One pixel x y, int32 `(B, P, 2)`, of each bool region `(B, P, Lh, Lw)`, all equally likely.

    For an empty region it is any pixel of the map.
    """
    width = region.shape[-1]
    noise = keras.random.uniform(ops.shape(region), dtype="float32", seed=seed)
    score = ops.where(region, 1.0 + noise, noise)  # pixels of the region beat all others
    flat = ops.reshape(score, (*ops.shape(region)[:2], region.shape[-2] * width))
    index = ops.cast(ops.argmax(flat, axis=-1), "int32")
    return ops.stack([index % width, index // width], axis=-1)


def pixel_to_model(xy: Tensor, scale: Tensor) -> Tensor:
    """Centres of mask pixels `(..., 2)` in float32 pixels of the model frame.

    `scale` is a float tensor `(2,)`: model pixels per mask pixel along x and y.
    """
    return (ops.cast(xy, "float32") + 0.5) * scale - 0.5


def first_click(
    foreground: Tensor, scale: Tensor, seed: keras.random.SeedGenerator
) -> tuple[Tensor, Tensor]:
    """A foreground click at a random pixel of the bool target `(B, P, Lh, Lw)`.

    In a target without a pixel it is a background click anywhere.

    Returns:
        Tuple of float32 points `(B, P, 1, 2)` and int32 labels `(B, P, 1)`.
    """
    points = ops.expand_dims(pixel_to_model(random_pixel(foreground, seed), scale), 2)
    return points, ops.cast(ops.any(foreground, axis=(-2, -1))[..., None], "int32")


def noisy_box(
    foreground: Tensor, scale: Tensor, seed: keras.random.SeedGenerator
) -> tuple[Tensor, Tensor]:
    """The corners of the target's box, with noise.

    Args:
        foreground: bool tensor `(B, P, Lh, Lw)`; the box of an empty one means nothing.
        scale: see `pixel_to_model`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tuple of float32 points `(B, P, 2, 2)`, top-left and bottom-right, and int32 labels
        `(B, P, 2)`, 2 and 3.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A.
    """
    low, high = [], []
    for axis in (-2, -1):  # over rows, which leaves columns, x; then y
        line = ops.any(foreground, axis=axis)  # (B, P, Lw) or (B, P, Lh)
        length = line.shape[-1]
        index = ops.cast(ops.arange(length), "float32")
        low.append(ops.min(ops.where(line, index, float(length)), axis=-1))
        high.append(ops.max(ops.where(line, index, -1.0), axis=-1))
    low = pixel_to_model(ops.stack(low, axis=-1) - 0.5, scale)  # outer edges of the pixels
    high = pixel_to_model(ops.stack(high, axis=-1) + 0.5, scale)
    corners = ops.stack([low, high], axis=2)  # (B, P, 2, 2)
    noise = keras.random.normal(ops.shape(corners), dtype="float32", seed=seed)
    noise = noise * BOX_NOISE * ops.expand_dims(high - low, 2)
    corners = corners + ops.clip(noise, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
    corners = ops.sort(corners, axis=2)  # noise can swap the sides of a thin box
    labels = ops.convert_to_tensor([2, 3], "int32")
    return corners, ops.broadcast_to(labels, ops.shape(corners)[:3])


def next_click(
    logits: Tensor,
    foreground: Tensor,
    valid: Tensor,
    scale: Tensor,
    seed: keras.random.SeedGenerator,
) -> tuple[Tensor, Tensor]:
    """A click at a random pixel where the mask is wrong: foreground where it lacks the object.

    Args:
        logits: float tensor `(B, P, Lh, Lw)`.
        foreground: bool tensor `(B, P, Lh, Lw)`, the target.
        valid: bool tensor `(B, P, Lh, Lw)`, False where the target is void.
        scale: see `pixel_to_model`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tuple of float32 points `(B, P, 1, 2)` and int32 labels `(B, P, 1)`. If a mask has no
        error, this is a foreground click in the target.
    """
    wrong = ops.logical_and(ops.not_equal(logits > 0, foreground), valid)
    nothing = ops.logical_not(ops.any(wrong, axis=(-2, -1), keepdims=True))
    region = ops.where(nothing, foreground, wrong)
    pixel = random_pixel(region, seed)
    width = region.shape[-1]
    flat = ops.reshape(foreground, (*ops.shape(foreground)[:2], foreground.shape[-2] * width))
    index = pixel[..., 1:] * width + pixel[..., :1]  # (B, P, 1)
    label = ops.take_along_axis(ops.cast(flat, "int32"), index, axis=-1)
    return ops.expand_dims(pixel_to_model(pixel, scale), 2), label
