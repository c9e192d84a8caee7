"""The neck of SAM 2's image encoder: maps of four sizes become what the mask decoder takes."""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import KeptArguments, Shape, Tensor
from keras_sam.layers.hiera_block import from_windows
from keras_sam.layers.initialization import build_part


@keras.saving.register_keras_serializable(package="keras_sam")
class FeaturePyramid(KeptArguments, keras.layers.Layer):
    """Convolutions of 1 x 1 cell from four maps to the image embedding and two finer maps.

    The coarsest map is enlarged and added to the one before it; the sum, with the embedding of no
    memory, which all images get and only videos do not, is the image embedding. The two finest
    have two convolutions with nothing in between, whose kernels are multiplied first.

    Args:
        output_dim: int. Channels `C` of the embedding; the finer maps have `C / 4` and `C / 8`.
        initializer_range: see `MLP`.

    Call arguments:
        maps: list of four float tensors `(B, n, h, w, channels)`, see `hiera_block`, the finest
            first, each with half the sides of the one before it. The last one is not in windows.

    Returns:
        Dict of float tensors: `image_embeddings` `(B, Eh, Ew, C)`, `high_res_features_0`
        `(B, 4 Eh, 4 Ew, C / 8)` and `high_res_features_1` `(B, 2 Eh, 2 Ew, C / 4)`.

    Raises:
        ValueError: if `output_dim` is not a multiple of 8.

    Source:
        Ravi et al. 2024, https://arxiv.org/abs/2408.00714, and the package sam2 1.1.0,
        modeling/backbones/image_encoder.py.
    """

    def __init__(
        self, output_dim: int = 256, initializer_range: float | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if output_dim % 8:
            raise ValueError(
                "`num_output_channels` must be a multiple of 8, for the finer maps have a quarter "
                f"and an eighth of them. Received: num_output_channels={output_dim}."
            )
        self.keep_arguments(locals())
        self.convs = [self._conv(output_dim, f"conv_{i}") for i in range(4)]
        self.high_res_convs = [
            self._conv(output_dim // (8, 4)[i], f"high_res_conv_{i}") for i in range(2)
        ]

    def _conv(self, filters, name):
        return keras.layers.Conv2D(filters, 1, dtype=self.dtype_policy, name=name)

    def build(self, maps_shape: list[Shape]) -> None:
        for conv, shape in zip(self.convs, maps_shape, strict=True):
            build_part(conv, (None, None, None, shape[-1]), self.initializer_range)
        for conv in self.high_res_convs:
            build_part(conv, (None, None, None, self.output_dim), self.initializer_range)
        self.no_memory_embedding = self.add_weight(
            name="no_memory_embedding",
            shape=(1, 1, self.output_dim),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        )

    def call(self, maps: list[Tensor], training: bool | None = None) -> dict[str, Tensor]:
        kernels, biases = zip(*map(self._matrix_and_bias, self.convs), strict=True)
        features = {}
        grids = _grids(maps[3].shape)
        for i, conv in enumerate(self.high_res_convs):
            kernel, bias = self._matrix_and_bias(conv)
            bias = ops.matmul(biases[i][None], kernel)[0] + bias
            kernel = ops.matmul(kernels[i], kernel)
            x = backends.dense(maps[i], kernel, bias, None, training)
            features[f"high_res_features_{i}"] = from_windows(x, grids[i])[:, 0]
        fine, coarse = from_windows(maps[2], grids[2])[:, 0], maps[3][:, 0]
        coarse = backends.dense(coarse, kernels[3], biases[3], None, training)
        coarse = coarse + ops.cast(self.no_memory_embedding, coarse.dtype)[0, 0]
        fine = backends.dense(fine, kernels[2], biases[2], None, training)
        h, w, channels = coarse.shape[1:]
        fine = ops.reshape(fine, (-1, h, 2, w, 2, channels))
        x = fine + ops.reshape(coarse, (-1, h, 1, w, 1, channels))
        return {"image_embeddings": ops.reshape(x, (-1, 2 * h, 2 * w, channels)), **features}

    def _matrix_and_bias(self, conv):
        """The kernel of a convolution as a matrix, and its bias."""
        kernel = ops.cast(conv.kernel, self.compute_dtype)
        return ops.reshape(kernel, kernel.shape[2:]), ops.cast(conv.bias, self.compute_dtype)

    def compute_output_shape(self, maps_shape: list[Shape]) -> dict[str, Shape]:
        batch, grids, c = maps_shape[0][0], _grids(maps_shape[3]), self.output_dim
        return {
            "image_embeddings": (batch, *grids[2], c),
            "high_res_features_0": (batch, *grids[0], c // 8),
            "high_res_features_1": (batch, *grids[1], c // 4),
        }


def _grids(coarsest):
    """Cells `(h, w)` of the four maps, from the shape of the last one."""
    return [(coarsest[2] * n, coarsest[3] * n) for n in (8, 4, 2, 1)]
