"""SAM 2's image encoder: a hierarchical vision transformer, and a feature pyramid."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.layers.arguments import Activation, DType, KeptArguments, Tensor
from keras_sam.layers.feature_pyramid import FeaturePyramid
from keras_sam.layers.hiera_block import HieraBlock, from_windows, to_windows
from keras_sam.layers.initialization import build_part
from keras_sam.layers.positional_embedding import WindowedPositionEmbedding
from keras_sam.models.backbone import Backbone
from keras_sam.models.vit_det_backbone import check_frame, hash_model, per_channel

_POOLINGS = 3  # each halves the sides: the first block of every stage but the first


@keras.saving.register_keras_serializable(package="keras_sam")
class HieraBackbone(KeptArguments, Backbone):
    """The image encoder of SAM 2 and 2.1: Hiera in four stages, and a neck.

    Each stage has half the sides of the one before it, twice its channels and twice its heads.
    Images are pixel values 0..255 and are normalised inside the graph, in float32.

    What the published code computes once per image, though the weights are its mask decoder's or
    its memory's, is part of this model: the convolutions of the finer maps, and the embedding that
    is added where there is no memory of earlier frames.

    Args:
        hidden_size: int. Channels of the first stage. Defaults to `96`, as everything else here
            to the values of the model called tiny.
        num_blocks: sequence of four ints. Blocks of each stage.
        num_heads: int. Attention heads of the first stage, `D`.
        global_attention_layer_indices: sequence of ints. Blocks, counted over all stages, that
            attend over the whole image instead of windows.
        image_shape: tuple `(H, W, channels)`, sides that are multiples of
            `patch_stride * window_sizes[0]` and of `8 * patch_stride`: both 32 in all released
            models. Defaults to `(1024, 1024, 3)`.
        window_sizes: sequence of four ints. Side of a window in each stage; the first block of a
            stage still has the windows of the stage before it, so that the first three are even.
        position_background_size: tuple of ints. Cells `(h, w)` of the position table that is
            enlarged to the whole image.
        patch_kernel_size: int. Side of the first convolution's kernel, in pixels. Defaults to `7`.
        patch_stride: int. Pixels from patch to patch. Defaults to `4`.
        mlp_ratio: float. Hidden channels of the blocks' MLPs, as a multiple of the others.
        num_output_channels: int. Channels `C` of the embedding. Defaults to `256`.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        activation: str or callable. Activation of the MLPs. Defaults to `"gelu"`.
        drop_path_rate: float. Probability that the last block's residual branches are dropped
            in training; it grows linearly from 0 at the first block.
        initializer_range: optional float. Standard deviation of the initial kernels; by
            default they start as in the released code.
        pixel_mean: sequence of floats, one per channel. Defaults to the RGB means of ImageNet, or
            their average for other numbers of channels.
        pixel_std: sequence of floats, likewise.
        dtype: optional str or `keras.DTypePolicy`.

    Call arguments:
        images: float or uint8 tensor `(B, H, W, channels)`, pixel values 0..255.

    Returns:
        Dict of float tensors: `image_embeddings` `(B, Eh, Ew, C)` with `Eh, Ew` a quarter of the
        patches along each side, `high_res_features_0` `(B, 4 Eh, 4 Ew, C / 8)` and
        `high_res_features_1` `(B, 2 Eh, 2 Ew, C / 4)`.

    Raises:
        ValueError: if the sides of `image_shape` are no such multiples, an argument of the stages
            has not four values, or `pixel_mean` does not fit the channels.

    Source:
        Ryali et al. 2023, https://arxiv.org/abs/2306.00989; Ravi et al. 2024,
        https://arxiv.org/abs/2408.00714, section 4.

    Example:

    ```python
    encoder = keras_sam.HieraBackbone(
        hidden_size=8,
        num_blocks=[1, 1, 2, 1],
        global_attention_layer_indices=[3],
        image_shape=(64, 96, 3),
        num_output_channels=16,
    )
    features = encoder.predict(np.zeros((1, 64, 96, 3)), verbose=0)
    features["image_embeddings"].shape  # (1, 4, 6, 16)
    features["high_res_features_0"].shape  # (1, 16, 24, 2)
    ```
    """

    def __init__(
        self,
        hidden_size: int = 96,
        num_blocks: Sequence[int] = (1, 2, 7, 2),
        num_heads: int = 1,
        global_attention_layer_indices: Sequence[int] = (5, 7, 9),
        image_shape: tuple[int, int, int] = (1024, 1024, 3),
        window_sizes: Sequence[int] = (8, 4, 14, 7),
        position_background_size: tuple[int, int] = (7, 7),
        patch_kernel_size: int = 7,
        patch_stride: int = 4,
        mlp_ratio: float = 4.0,
        num_output_channels: int = 256,
        layer_norm_epsilon: float = 1e-6,
        activation: Activation = "gelu",
        drop_path_rate: float = 0.0,
        initializer_range: float | None = None,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        dtype: DType = None,
        **kwargs: Any,
    ):
        num_blocks, window_sizes = list(num_blocks), list(window_sizes)
        _check_stages(num_blocks, window_sizes)
        image_shape = _checked_image_shape(image_shape, patch_stride, window_sizes[0])
        h, w, channels = image_shape
        global_attention_layer_indices = list(global_attention_layer_indices)
        position_background_size = tuple(position_background_size)
        dtype = keras.dtype_policies.get(dtype)
        pixel_mean = per_channel("pixel_mean", pixel_mean, PIXEL_MEAN, channels)
        pixel_std = per_channel("pixel_std", pixel_std, PIXEL_STD, channels)

        images = keras.Input((h, w, channels), dtype="float32", name="images")
        x = (images - np.float32(pixel_mean)) / np.float32(pixel_std)
        before = patch_kernel_size // 2
        after = max(patch_kernel_size - patch_stride - before, 0)
        x = keras.layers.ZeroPadding2D(((before, after),) * 2, dtype=dtype, name="padding")(x)
        patches = keras.layers.Conv2D(
            hidden_size, patch_kernel_size, patch_stride, dtype=dtype, name="patch_embedding"
        )
        x = build_part(patches, x.shape, initializer_range)(x)
        x = WindowedPositionEmbedding(
            position_background_size, window_sizes[0], dtype=dtype, name="position_embedding"
        )(x)
        grid = tuple(x.shape[1:3])
        x = keras.ops.expand_dims(x, 1)  # (B, n, h, w, C) from here on, see `hiera_block`
        maps, layer, size, last = [], 0, window_sizes[0], max(sum(num_blocks) - 1, 1)
        for stage, count in enumerate(num_blocks):
            width = hidden_size * 2**stage
            for i in range(count):
                pools_queries = i == 0 and stage > 0
                window = 0 if layer in global_attention_layer_indices else size
                block = HieraBlock(
                    num_heads * 2**stage,
                    width,
                    int(width * mlp_ratio),
                    window_size=window,
                    pools_queries=pools_queries,
                    layer_norm_epsilon=layer_norm_epsilon,
                    activation=activation,
                    drop_path_rate=drop_path_rate * layer / last,
                    initializer_range=initializer_range,
                    dtype=dtype,
                    name=f"block_{layer}",
                )
                x = block(_arrange(x, grid, window))
                if pools_queries:
                    grid = tuple(n // 2 for n in grid)
                size, layer = window_sizes[stage], layer + 1
            maps.append(x)
        maps[-1] = from_windows(x, grid)
        neck = FeaturePyramid(num_output_channels, initializer_range, dtype=dtype, name="neck")
        super().__init__(inputs=images, outputs=neck(maps), dtype=dtype, **kwargs)
        self.keep_arguments(locals())

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        check_frame(inputs, self.image_shape)
        return super().call(inputs, training=training, mask=mask)

    @property
    def input_spec(self) -> None:
        return None  # `call` says more

    @property
    def embedding_size(self) -> tuple[int, int]:
        """Size `(Eh, Ew)` of the embedding."""
        return tuple(n // (4 * self.patch_stride) for n in self.image_shape[:2])

    def fingerprint(self) -> str:
        """See `ViTDetBackbone.fingerprint`."""
        names = "image_shape num_heads num_blocks global_attention_layer_indices window_sizes "
        names += "layer_norm_epsilon activation pixel_mean pixel_std"
        config = self.get_config()
        return hash_model(self, {name: config[name] for name in names.split()})


def _arrange(x, grid, size):
    """A map or its windows, as a block with windows of this size takes it with the least copies.

    Where all cells attend to each other, windows may stay; where windows do not fit the map, the
    block fills it up.
    """
    if not size or x.shape[2:4] == (size, size):
        return x
    x = from_windows(x, grid)
    return x if any(n % size for n in grid) else to_windows(x, size)


def _check_stages(num_blocks, window_sizes):
    if len(num_blocks) != 4 or min(num_blocks) < 1:
        raise ValueError(
            "`num_blocks` must have four values of at least 1, one per stage. "
            f"Received: num_blocks={num_blocks}."
        )
    if len(window_sizes) != 4 or min(window_sizes) < 1 or any(n % 2 for n in window_sizes[:3]):
        raise ValueError(
            "`window_sizes` must have four values, one per stage, the first three even: their "
            f"windows are halved at the start of the next stage. Received: {window_sizes}."
        )


def _checked_image_shape(image_shape, stride, window):
    multiple = stride * math.lcm(window, 2**_POOLINGS)
    valid = np.ndim(image_shape) == 1 and len(image_shape) == 3 and None not in image_shape
    if not valid or any(n % multiple or n < multiple for n in image_shape[:2]):
        raise ValueError(
            f"`image_shape` must be (H, W, channels) with sides that are multiples of {multiple}: "
            f"patches of {stride} pixels in windows of {window}, of which the sides are halved "
            f"three times. Received: image_shape={image_shape}."
        )
    return tuple(int(n) for n in image_shape)
