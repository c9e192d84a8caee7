"""Fits a model's arrays to another frame, other channels, or other pixel statistics."""

import re

import numpy as np

from keras_sam.converters import Tensor
from keras_sam.enlarging import bilinear_weights

# What each channel count starts from; see `adapt_channels`.
_RGB_MEAN = (123.675, 116.28, 103.53)
_RGB_STD = (58.395, 57.12, 57.375)


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

    Args:
        arrays: dict from variable paths to arrays or tensors.
        encoder: dict of `ViTDetBackbone`'s arguments.

    Returns:
        A new dict.
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

    Args:
        arrays: dict from variable paths to arrays or tensors.
        encoder: dict of `ViTDetBackbone`'s arguments, of the old model.
        num_channels: int. Channels of the new model.
        statistics: dict of `pixel_mean` and `pixel_std`, those that the caller gave.

    Returns:
        A new dict of arrays. `encoder` is updated.
    """
    old = encoder["image_shape"][2]
    mean = np.broadcast_to(np.float64(encoder.get("pixel_mean", _RGB_MEAN)), (old,))
    std = np.broadcast_to(np.float64(encoder.get("pixel_std", _RGB_STD)), (old,))
    new_mean, new_std = _fit_statistics(mean, num_channels), _fit_statistics(std, num_channels)
    encoder["image_shape"] = [*encoder["image_shape"][:2], num_channels]
    encoder["pixel_mean"], encoder["pixel_std"] = new_mean.tolist(), new_std.tolist()
    if arrays is None or "patch_embedding/kernel" not in arrays:
        return arrays
    kernel = np.asarray(arrays["patch_embedding/kernel"]).astype("f8")
    bias = np.asarray(arrays["patch_embedding/bias"]).astype("f8")
    if num_channels < old:
        if statistics:
            kernel = np.repeat(kernel.sum(2, keepdims=True), num_channels, 2) / num_channels
        else:
            per_value = np.einsum("hwco,c->hwo", kernel, 1 / std)
            offset = np.einsum("hwco,c->o", kernel, mean / std)
            share = per_value[:, :, None] / num_channels  # of each new channel, per pixel value
            kernel = share * new_std[:, None]
            bias = bias + np.einsum("hwco,c->o", np.repeat(share, num_channels, 2), new_mean)
            bias = bias - offset
    elif old == 1:
        kernel = np.repeat(kernel, num_channels, 2) / num_channels
    else:
        kernel = np.pad(kernel, [(0, 0), (0, 0), (0, num_channels - old), (0, 0)])
    return {
        **arrays,
        "patch_embedding/kernel": Tensor.of(kernel.astype("f4")),
        "patch_embedding/bias": Tensor.of(bias.astype("f4")),
    }


def _fit_statistics(values, count):
    """The first values when channels are added, filled up by the average; or the average."""
    average = np.full(count, values.mean())
    if count > len(values) > 1:
        average[: len(values)] = values
    return average
