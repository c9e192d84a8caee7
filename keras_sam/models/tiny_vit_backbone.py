"""The image encoder of MobileSAM: convolutions, then attention in windows, and SAM's neck."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.layers.arguments import Activation, DType, KeptArguments, Tensor
from keras_sam.layers.conv_norm import ConvNorm
from keras_sam.layers.tiny_vit import InvertedBottleneck, TinyViTBlock
from keras_sam.models.backbone import Backbone
from keras_sam.models.vit_det_backbone import check_frame, hash_model, neck, per_channel


@keras.saving.register_keras_serializable(package="keras_sam")
class TinyViTBackbone(KeptArguments, Backbone):
    """TinyViT, the small image encoder of MobileSAM, of 6 million parameters.

    Two convolutions make patches of 4 x 4 pixels. A stage of inverted bottlenecks and three stages
    of attention in windows follow, with a merging of patches after each but the last. Images
    are pixel values 0..255 and are normalised inside the graph, in float32.

    Convolutions are followed by batch norm. In training it uses the statistics of the batch, unless
    the layer is frozen; in prediction it is part of the convolutions.

    The defaults are MobileSAM's settings.

    Args:
        hidden_sizes: sequence of ints. Channels of each stage.
        depths: sequence of ints. Blocks of each stage.
        num_heads: sequence of ints. Attention heads `D` of each stage; of the first stage, which
            has no attention, the number has no effect.
        window_sizes: sequence of ints. Side of the attention windows of each stage, in cells;
            likewise.
        merge_strides: sequence of ints, one fewer than stages. By how much each merging of patches
            divides the sides of the map. Defaults to `(2, 2, 1)`: patches of 16 x 16 pixels.
        image_shape: tuple `(H, W, channels)`, sides that are multiples of `patch_size`, here 16.
            Defaults to `(1024, 1024, 3)`.
        num_output_channels: int. Channels `C` of the embedding. Defaults to `256`.
        mlp_ratio: float. Hidden channels of the MLPs, as a multiple. Defaults to `4`.
        expansion_ratio: float. Hidden channels of the first stage's blocks, as a multiple.
            Defaults to `4`.
        local_conv_size: int, odd. Side of the depthwise kernels between attention and MLP.
            Defaults to `3`.
        layer_norm_epsilon: float. Of the blocks. Defaults to `1e-5`.
        batch_norm_epsilon: float. Defaults to `1e-5`.
        batch_norm_momentum: float. How much of its averages batch norm keeps in a training step.
            Defaults to `0.9`.
        activation: str or callable. Defaults to `"gelu"`.
        dropout_rate: float. Dropout in the MLPs, in training.
        drop_path_rate: float. Probability that the last block's residual branches are dropped in
            training; it grows linearly from 0 at the first block.
        early_features: bool. Whether the output is a dict, with what the second stage gives to the
            third beside the embedding. Defaults to `False`.
        initializer_range: optional float. Standard deviation of the initial kernels; by default
            they start as in the released code.
        pixel_mean: see `ViTDetBackbone`.
        pixel_std: see `ViTDetBackbone`.
        dtype: optional str or `keras.DTypePolicy`.

    Call arguments:
        images: float or uint8 tensor `(B, H, W, channels)`, pixel values 0..255.

    Returns:
        Float tensor `(B, Eh, Ew, C)` with `Eh, Ew = H / patch_size, W / patch_size`. With
        `early_features=True` a dict of it, `image_embeddings`, and `early_features`, of the third
        stage's channels; with the default strides of the same size.

    Raises:
        ValueError: if the sides of `image_shape` are not multiples of `patch_size`, `pixel_mean`
            does not fit its channels, or the sequences differ in length.

    Source:
        Wu et al. 2022, https://arxiv.org/abs/2207.10666 (TinyViT); Zhang et al. 2023,
        https://arxiv.org/abs/2306.14289 (MobileSAM).

    Example:

    ```python
    encoder = keras_sam.TinyViTBackbone(
        hidden_sizes=(4, 8, 12, 16),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 3, 4),
        window_sizes=(3, 3, 4, 3),
        image_shape=(64, 96, 3),
        num_output_channels=8,
    )
    encoder.predict(np.zeros((1, 64, 96, 3)), verbose=0).shape  # (1, 4, 6, 8)
    ```
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        merge_strides: Sequence[int] = (2, 2, 1),
        image_shape: tuple[int, int, int] = (1024, 1024, 3),
        num_output_channels: int = 256,
        mlp_ratio: float = 4,
        expansion_ratio: float = 4,
        local_conv_size: int = 3,
        layer_norm_epsilon: float = 1e-5,
        batch_norm_epsilon: float = 1e-5,
        batch_norm_momentum: float = 0.9,
        activation: Activation = "gelu",
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        early_features: bool = False,
        initializer_range: float | None = None,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        dtype: DType = None,
        **kwargs: Any,
    ):
        hidden_sizes, depths, num_heads, window_sizes, merge_strides = map(
            list, (hidden_sizes, depths, num_heads, window_sizes, merge_strides)
        )
        _check_stages(hidden_sizes, depths, num_heads, window_sizes, merge_strides)
        h, w, channels = image_shape = _checked_image_shape(image_shape, merge_strides)
        dtype = keras.dtype_policies.get(dtype)
        pixel_mean = per_channel("pixel_mean", pixel_mean, PIXEL_MEAN, channels)
        pixel_std = per_channel("pixel_std", pixel_std, PIXEL_STD, channels)
        settings = {
            "activation": activation,
            "batch_norm_epsilon": batch_norm_epsilon,
            "batch_norm_momentum": batch_norm_momentum,
            "initializer_range": initializer_range,
            "dtype": dtype,
        }

        images = keras.Input((h, w, channels), dtype="float32", name="images")
        x = (images - np.float32(pixel_mean)) / np.float32(pixel_std)
        first = hidden_sizes[0]
        x = ConvNorm(first // 2, 3, 2, name="patch_embedding_conv1", **settings)(x)
        x = ConvNorm(first, 3, 2, name="patch_embedding_conv2", **{**settings, "activation": None})(
            x
        )  # (B, H / 4, W / 4, first)
        rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        early = None
        for i, (width, depth) in enumerate(zip(hidden_sizes, depths, strict=True)):
            for j in range(depth):
                own = {"drop_path_rate": next(rates), "name": f"stage_{i}_block_{j}", **settings}
                if i == 0:
                    hidden = int(width * expansion_ratio)
                    x = InvertedBottleneck(hidden, width, shortcut=True, **own)(x)
                    continue
                x = TinyViTBlock(
                    int(width * mlp_ratio),
                    num_heads[i],
                    window_sizes[i],
                    local_conv_size=local_conv_size,
                    layer_norm_epsilon=layer_norm_epsilon,
                    dropout_rate=dropout_rate,
                    **own,
                )(x)
            if i < len(merge_strides):
                width = hidden_sizes[i + 1]
                merge = InvertedBottleneck(
                    width, width, merge_strides[i], name=f"stage_{i}_merge", **settings
                )
                x = merge(x)
            if i == 1:
                early = x
        x = neck(x, num_output_channels, initializer_range, dtype)
        outputs = {"image_embeddings": x, "early_features": early} if early_features else x
        super().__init__(inputs=images, outputs=outputs, dtype=dtype, **kwargs)
        self.keep_arguments(locals())

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        check_frame(inputs, self.image_shape)
        return super().call(inputs, training=training, mask=mask)

    @property
    def input_spec(self) -> None:
        return None  # `call` says more

    @property
    def patch_size(self) -> int:
        """How many pixels a cell of the embedding stands for, on each side."""
        return _patch_size(self.merge_strides)

    @property
    def embedding_size(self) -> tuple[int, int]:
        """Size `(Eh, Ew)` of the embedding."""
        return tuple(n // self.patch_size for n in self.image_shape[:2])

    def fingerprint(self) -> str:
        """A hash of everything that embeddings depend on: weights, frame and settings.

        Returns:
            Hexadecimal string of 32 characters, equal on all backends.
        """
        # Settings that the weights' shapes do not determine. Dropout and names change no embedding.
        names = "image_shape num_heads window_sizes merge_strides layer_norm_epsilon "
        names += "batch_norm_epsilon activation pixel_mean pixel_std"
        config = self.get_config()
        return hash_model(self, {name: config[name] for name in names.split()})


def _patch_size(merge_strides):
    return 4 * math.prod(merge_strides)


def _check_stages(hidden_sizes, depths, num_heads, window_sizes, merge_strides):
    stages = len(hidden_sizes)
    lengths = [len(x) for x in (depths, num_heads, window_sizes)]
    if stages < 2 or lengths != [stages] * 3 or len(merge_strides) != stages - 1:
        raise ValueError(
            "`hidden_sizes`, `depths`, `num_heads` and `window_sizes` must have one entry per "
            "stage, of at least two, and `merge_strides` one fewer. Received: "
            f"hidden_sizes={hidden_sizes}, depths={depths}, num_heads={num_heads}, "
            f"window_sizes={window_sizes}, merge_strides={merge_strides}."
        )


def _checked_image_shape(image_shape, merge_strides):
    multiple = _patch_size(merge_strides)
    valid = np.ndim(image_shape) == 1 and len(image_shape) == 3 and None not in image_shape
    if not valid or any(n % multiple or n < multiple for n in image_shape[:2]):
        raise ValueError(
            "`image_shape` must be (H, W, channels) with sides that are multiples of "
            f"{multiple}, by which the encoder divides them. Received: image_shape={image_shape}."
        )
    return tuple(int(n) for n in image_shape)
