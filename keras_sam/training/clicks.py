"""A simulated annotator: first prompts drawn from a target, then clicks where masks are wrong.

Everything is `keras.ops`, so that a whole interactive session is one compiled graph. Maps are in
the frame of mask logits, `(B, P, Lh, Lw)`; points leave in pixels of the model frame.
"""

import keras
from keras import ops

# Corners of a drawn box are off by a tenth of its side on average, but by 20 pixels at most.
BOX_NOISE = 0.1
BOX_NOISE_LIMIT = 20.0


def random_pixel(region, seed):
    """One pixel of each region, all equally likely.

    Args:
        region: bool tensor `(B, P, Lh, Lw)`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        int32 tensor `(B, P, 2)`, x and y. Of an empty region it is any pixel at all.
    """
    width = region.shape[-1]
    noise = keras.random.uniform(ops.shape(region), dtype="float32", seed=seed)
    score = ops.where(region, 1.0 + noise, noise)  # pixels of the region beat all others
    flat = ops.reshape(score, (*ops.shape(region)[:2], region.shape[-2] * width))
    index = ops.cast(ops.argmax(flat, axis=-1), "int32")
    return ops.stack([index % width, index // width], axis=-1)


def pixel_to_model(xy, scale):
    """Centres of mask pixels as pixels of the model frame.

    Args:
        xy: int or float tensor `(..., 2)`, mask pixels.
        scale: float tensor `(2,)`, model pixels per mask pixel along x and y.

    Returns:
        float32 tensor `(..., 2)`.
    """
    return (ops.cast(xy, "float32") + 0.5) * scale - 0.5


def first_click(foreground, scale, seed):
    """A foreground click anywhere in the target.

    Args:
        foreground: bool tensor `(B, P, Lh, Lw)`.
        scale: see `pixel_to_model`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tuple of float32 points `(B, P, 1, 2)` and int32 labels `(B, P, 1)`.
    """
    points = ops.expand_dims(pixel_to_model(random_pixel(foreground, seed), scale), 2)
    return points, ops.ones(ops.shape(points)[:3], dtype="int32")


def noisy_box(foreground, scale, seed):
    """The corners of a box drawn around the target by a hand that is not exact.

    Args:
        foreground: bool tensor `(B, P, Lh, Lw)`, not empty.
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
    corners = ops.sort(corners, axis=2)  # noise may not turn a thin box upside down
    labels = ops.convert_to_tensor([2, 3], "int32")
    return corners, ops.broadcast_to(labels, ops.shape(corners)[:3])


def next_click(logits, foreground, valid, scale, seed):
    """A click in the region where a mask is wrong: foreground if it is missing there.

    Args:
        logits: float tensor `(B, P, Lh, Lw)`.
        foreground: bool tensor `(B, P, Lh, Lw)`, the target.
        valid: bool tensor `(B, P, Lh, Lw)`, False where the target is void.
        scale: see `pixel_to_model`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tuple of float32 points `(B, P, 1, 2)` and int32 labels `(B, P, 1)`. Where nothing is
        wrong the click confirms the target.
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
