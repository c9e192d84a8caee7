"""A preset in memory, and the same one for another frame, other channels or pixel statistics."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from keras_sam.converters import Tensor
from keras_sam.enlarging import bilinear_weights
from keras_sam.images import PIXEL_MEAN, PIXEL_STD


@dataclasses.dataclass
class Preset:
    """A saved model: the configs of its parts, its arrays, and what was saved with it.

    Args:
        parts: dict of `image_encoder` and, for a whole SAM, `prompt_encoder` and
            `mask_decoder`, each with `registered_name` and `config`.
        arrays: dict from variable paths to tensors, or None when there are no weights.
        backbone: dict with the `registered_name` and `config` of the model around the parts.
        task: dict with the `registered_name` and `config` of the task that was saved, or None.
        preprocessor: likewise, of the preprocessor.
    """

    parts: dict
    arrays: dict | None = None
    backbone: dict = dataclasses.field(
        default_factory=lambda: {"registered_name": "keras_sam>SAMBackbone", "config": {}}
    )
    task: dict | None = None
    preprocessor: dict | None = None

    @property
    def encoder(self) -> dict:
        """The image encoder's arguments."""
        return self.parts["image_encoder"]["config"]


def adapt(
    preset: Preset,
    image_shape: Sequence[int] | None = None,
    num_channels: int | None = None,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> Preset:
    """The same preset for another model frame, other channels or other pixel statistics.

    Args:
        preset: a `Preset`; it stays as it is.
        image_shape: see `read_preset`.
        num_channels: see `read_preset`.
        pixel_mean: see `read_preset`.
        pixel_std: see `read_preset`.

    Returns:
        A new `Preset`.

    Raises:
        ValueError: if `image_shape` and `num_channels` disagree.
    """
    preset = dataclasses.replace(preset, parts=copy.deepcopy(preset.parts))
    layout = ENCODERS.get(preset.parts["image_encoder"]["registered_name"])
    if layout is None:
        return preset
    encoder = preset.encoder
    given = {}
    for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
        if values is not None:
            given[name] = [float(v) for v in values]
    channels = _channels(image_shape, num_channels, encoder)
    changed = image_shape is not None or channels != encoder["image_shape"][2] or given
    if channels != encoder["image_shape"][2]:
        preset.arrays = layout.adapt_channels(preset.arrays, encoder, channels, given)
    encoder.update(given)
    if image_shape is not None:
        encoder["image_shape"] = [*(int(n) for n in image_shape[:2]), channels]
        if "prompt_encoder" in preset.parts:
            prompt_encoder = preset.parts["prompt_encoder"]["config"]
            h, w = encoder["image_shape"][:2]
            prompt_encoder["input_image_size"] = [h, w]
            stride = layout.stride(encoder)
            prompt_encoder["image_embedding_size"] = [h // stride, w // stride]
    if preset.arrays is not None:
        preset.arrays = layout.fit_tables(preset.arrays, encoder)
    if changed:
        preset.preprocessor = None  # it was made for another frame
    return preset


def _channels(image_shape, num_channels, encoder):
    if image_shape is not None and (np.ndim(image_shape) != 1 or len(image_shape) not in (2, 3)):
        raise ValueError(
            "`image_shape` must be (H, W) or (H, W, channels). "
            f"Received: image_shape={image_shape}."
        )
    named = image_shape[2] if image_shape is not None and len(image_shape) == 3 else None
    if None not in (named, num_channels) and named != num_channels:
        raise ValueError(
            "`num_channels` must equal the channels in `image_shape`. "
            f"Received: num_channels={num_channels}, image_shape={tuple(image_shape)}."
        )
    return int(num_channels or named or encoder["image_shape"][2])


def resample_matrix(size_in: int, size_out: int) -> np.ndarray:
    """`(size_out, size_in)` weights of linear interpolation between the centres of equal cells.

    Ends are repeated, and nothing is smoothed when the number shrinks, as in torch's
    `interpolate(align_corners=False)`. The identity when the sizes are equal.
    """
    places = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    return bilinear_weights(places, size_in)


def resize_absolute(table: Tensor, grid) -> Tensor:
    """Interpolates a position table `(1, Eh, Ew, C)` to another grid, bilinearly."""
    _, h, w, channels = table.shape
    if (h, w) == tuple(grid):
        return table
    down, across = resample_matrix(h, grid[0]), resample_matrix(w, grid[1])

    def resized(values):
        out = np.einsum("ih,bhwc,jw->bijc", down, values.astype("f8"), across, optimize=True)
        return out.astype("f4")

    return table.map(resized, (1, *grid, channels), "f4")


def resize_relative(table: Tensor, length: int) -> Tensor:
    """Interpolates a table of relative positions `(2 n - 1, c)` to another length, linearly."""
    if table.shape[0] == length:
        return table
    matrix = resample_matrix(table.shape[0], length)
    return table.map(
        lambda values: (matrix @ values.astype("f8")).astype("f4"), (length, table.shape[1]), "f4"
    )


def fit_position_tables(arrays: dict, encoder: dict) -> dict:
    """Interpolates the image encoder's position tables to the frame that its config gives.

    Absolute positions are interpolated bilinearly, as people who fine-tune SAM at other
    sizes do; tables of relative positions linearly, as Meta's code does by itself when a
    table's length is not the one it needs. Tables of the right size stay the very same.
    """
    arrays = dict(arrays)
    grid = tuple(n // encoder["patch_size"] for n in encoder["image_shape"][:2])
    if "position_embedding/embeddings" in arrays:
        table = Tensor.of(arrays["position_embedding/embeddings"])
        if len(table.shape) == 4:
            arrays["position_embedding/embeddings"] = resize_absolute(table, grid)
    for name in arrays:
        match = re.fullmatch(r"block_(\d+)/attention/rel_pos_([hw])", name)
        if match is None:
            continue
        whole = int(match.group(1)) in encoder["global_attention_layer_indices"]
        window = encoder.get("window_size", 14)
        cells = grid["hw".index(match.group(2))] if whole or not window else window
        table = Tensor.of(arrays[name])
        if whole and len(table.shape) == 2:
            arrays[name] = resize_relative(table, 2 * cells - 1)
    return arrays


def adapt_channels(arrays: dict, encoder: dict, num_channels: int, statistics: dict) -> dict:
    """Fits the first kernel to another number of image channels.

    * Fewer channels than before: each gets the sum of the old kernels divided by their new
      number. The normalisation of the old channels is folded in, and what is constant goes
      into the bias: a grey image, repeated on all old channels, gives the same embedding as on the
      new ones. (With `pixel_mean` or `pixel_std` given, old and new images are normalised
      each by their own, and nothing is folded.) The border that fills up images of
      another shape than the frame is the mean colour, where no such rule can hold.
    * More channels than before: from one to n, each gets an equal share of the kernel.
      Otherwise the first ones keep theirs and the others start at zero, so that an image
      whose first channels are RGB gives what it gave before.

    `encoder`, the old model's arguments, is updated. `statistics` are those that the caller gave.
    """
    mean, std, new_mean, new_std = _change_statistics(encoder, num_channels)
    if arrays is None or "patch_embedding/kernel" not in arrays:
        return arrays
    kernel, constant = _other_channels(
        arrays["patch_embedding/kernel"], mean, std, new_mean, new_std, statistics
    )
    bias = np.asarray(arrays["patch_embedding/bias"]).astype("f8") + constant
    return {
        **arrays,
        "patch_embedding/kernel": Tensor.of(kernel.astype("f4")),
        "patch_embedding/bias": Tensor.of(bias.astype("f4")),
    }


def adapt_channels_of_tiny_vit(
    arrays: dict, encoder: dict, num_channels: int, statistics: dict
) -> dict:
    """`adapt_channels` for TinyViT, where what is constant goes into batch norm's average.

    Its first convolution reaches over the border of the frame, where there is no constant: in the
    first row and column of its output the embedding differs a little.
    """
    mean, std, new_mean, new_std = _change_statistics(encoder, num_channels)
    first, average = (f"patch_embedding_conv1/{x}" for x in ("conv/kernel", "norm/moving_mean"))
    if arrays is None or first not in arrays:
        return arrays
    kernel, constant = _other_channels(arrays[first], mean, std, new_mean, new_std, statistics)
    moved = np.asarray(arrays[average]).astype("f8") - constant
    return {
        **arrays,
        first: Tensor.of(kernel.astype("f4")),
        average: Tensor.of(moved.astype("f4")),
    }


def _change_statistics(encoder, num_channels):
    """Sets channels, mean and deviation in the arguments; returns the old and the new ones."""
    old = encoder["image_shape"][2]
    mean = np.broadcast_to(np.float64(encoder.get("pixel_mean", PIXEL_MEAN)), (old,))
    std = np.broadcast_to(np.float64(encoder.get("pixel_std", PIXEL_STD)), (old,))
    new_mean, new_std = _fit_statistics(mean, num_channels), _fit_statistics(std, num_channels)
    encoder["image_shape"] = [*encoder["image_shape"][:2], num_channels]
    encoder["pixel_mean"], encoder["pixel_std"] = new_mean.tolist(), new_std.tolist()
    return mean, std, new_mean, new_std


def _other_channels(kernel, mean, std, new_mean, new_std, statistics):
    """A kernel `(h, w, channels, filters)` for other channels, and a constant for each filter."""
    kernel = np.asarray(kernel).astype("f8")
    old, num_channels = len(mean), len(new_mean)
    constant = np.zeros(kernel.shape[-1])
    if num_channels < old:
        if statistics:
            kernel = np.repeat(kernel.sum(2, keepdims=True), num_channels, 2) / num_channels
        else:
            per_value = np.einsum("hwco,c->hwo", kernel, 1 / std)
            offset = np.einsum("hwco,c->o", kernel, mean / std)
            share = per_value[:, :, None] / num_channels  # of each new channel, per pixel value
            kernel = share * new_std[:, None]
            constant = np.einsum("hwco,c->o", np.repeat(share, num_channels, 2), new_mean) - offset
    elif old == 1:
        kernel = np.repeat(kernel, num_channels, 2) / num_channels
    else:
        kernel = np.pad(kernel, [(0, 0), (0, 0), (0, num_channels - old), (0, 0)])
    return kernel, constant


def _fit_statistics(values, count):
    """The first values when channels are added, filled up by the average; or the average."""
    average = np.full(count, values.mean())
    if count > len(values) > 1:
        average[: len(values)] = values
    return average


class EncoderLayout(NamedTuple):
    """What `adapt` does for one class of image encoders, with the arguments in its config."""

    # Pixels of the frame for a cell of the embedding.
    stride: Callable[[dict], int]
    # Arrays, config, number of channels and given statistics: see `adapt_channels`.
    adapt_channels: Callable[[dict | None, dict, int, dict], dict | None]
    # Arrays and config to arrays for the config's frame.
    fit_tables: Callable[[dict, dict], dict]


# By the names under which the classes are registered with Keras.
ENCODERS = {
    "keras_sam>ViTDetBackbone": EncoderLayout(
        lambda encoder: encoder.get("patch_size", 16), adapt_channels, fit_position_tables
    ),
    "keras_sam>TinyViTBackbone": EncoderLayout(
        lambda encoder: 4 * math.prod(encoder.get("merge_strides", (2, 2, 1))),
        adapt_channels_of_tiny_vit,
        lambda arrays, encoder: arrays,  # offsets within windows do not depend on the frame
    ),
    # Its tables of positions are interpolated whenever it runs.
    "keras_sam>HieraBackbone": EncoderLayout(
        lambda encoder: 4 * encoder.get("patch_stride", 4),
        adapt_channels,
        lambda arrays, encoder: arrays,
    ),
}


def fit_tables(arrays: dict, class_name: str, encoder: dict) -> dict:
    """Arrays for the frame in an image encoder's config; those of an unknown class as they are."""
    layout = ENCODERS.get(class_name)
    return arrays if layout is None else layout.fit_tables(arrays, encoder)


def mask_size_of(preset: Preset) -> tuple[int, int]:
    """Size `(Lh, Lw)` of the mask logits, four to each side of a cell of the embedding."""
    part = preset.parts["image_encoder"]
    layout = ENCODERS.get(part["registered_name"])
    stride = 16 if layout is None else layout.stride(part["config"])
    return tuple(4 * n // stride for n in part["config"]["image_shape"][:2])
