"""The decoder's image features at the size of its masks."""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.dense import LayerNormalization
from keras_sam.layers.initialization import build_part


@keras.saving.register_keras_serializable(package="keras_sam")
class MaskUpscaler(KeptArguments, keras.layers.Layer):
    """From the decoder's features `(B, Eh, Ew, C)` to `(B, 4 Eh, 4 Ew, C / 8)`.

    Arguments are those of `SAMMaskDecoder`.
    """

    def __init__(
        self,
        hidden_size: int,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_size % 8:
            raise ValueError(
                f"`hidden_size` must be a multiple of 8. Received: hidden_size={hidden_size}."
            )
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.conv1 = keras.layers.Conv2DTranspose(
            hidden_size // 4, 2, strides=2, dtype=policy, name="conv1"
        )
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.conv2 = keras.layers.Conv2DTranspose(
            hidden_size // 8, 2, strides=2, dtype=policy, name="conv2"
        )

    def build(self, input_shape: Shape | None = None) -> None:
        quarter = (None, None, None, self.hidden_size // 4)
        build_part(self.conv1, (None, None, None, self.hidden_size), self.initializer_range)
        self.norm1.build(quarter)
        build_part(self.conv2, quarter, self.initializer_range)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        h, w, channels = x.shape[1:]
        cells = ops.reshape(x, (-1, h * w, channels))
        return depth_to_space(self.upscale_unordered(cells, training), (h, w))

    def upscale_unordered(
        self,
        x: Tensor,
        training: bool | None = None,
        finer: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`call`, with the pixels of each cell side by side, for `depth_to_space`.

        The kernels do not overlap, so each of the two transposed convolutions is one matrix
        product, after which a cell holds its own pixels. A caller that reduces the channels, as
        masks do, orders the pixels afterwards and so moves fewer numbers.

        Args:
            x: float tensor `(..., Eh * Ew, C)`.
            training: optional bool.
            finer: optional pair of float tensors that broadcast to `(..., Eh * Ew * 4, C / 4)` and
                `(..., Eh * Ew * 16, C / 8)`, `space_to_depth` of finer features of the image. They
                are added after the first and the second convolution.

        Returns:
            Float tensor `(..., Eh * Ew * 16, C / 8)`; a cell's pixels go by row and column of its
            2 x 2 quarters, then by row and column within them.
        """
        x = self._quarters(self.conv1, x, None, training)  # (..., Eh * Ew * 4, C / 4)
        x = x if finer is None else x + finer[0]
        x = backends.activate(self.norm1(x, training=training), self.activation, training)
        if finer is None:
            return self._quarters(self.conv2, x, self.activation, training)
        x = self._quarters(self.conv2, x, None, training) + finer[1]
        return backends.activate(x, self.activation, training)

    def _quarters(self, conv, x, activation, training):
        """A transposed convolution: `(..., N, C)` pixels to 2 x 2 each, `(..., 4 N, C')`."""
        kernel = ops.cast(conv.kernel, x.dtype)  # (2, 2, C', C)
        kernel = ops.transpose(ops.reshape(kernel, (-1, kernel.shape[3])))
        bias = ops.tile(conv.bias, 4)
        shape = (*ops.shape(x)[:-2], 4 * x.shape[-2], conv.filters)
        return ops.reshape(backends.dense(x, kernel, bias, activation, training), shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, h, w, _ = input_shape
        return (batch, h and 4 * h, w and 4 * w, self.hidden_size // 8)


def depth_to_space(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """`upscale_unordered`'s pixels `(B, Eh * Ew * 16, c)` in order: `(B, 4 Eh, 4 Ew, c)`."""
    h, w = grid
    channels = x.shape[-1]
    x = ops.reshape(x, (-1, h, w, 2, 2, 2, 2, channels))
    x = ops.transpose(x, (0, 1, 3, 5, 2, 4, 6, 7))  # (B, Eh, 2, 2, Ew, 2, 2, c)
    return ops.reshape(x, (-1, 4 * h, 4 * w, channels))


def space_to_depth(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels `(B, s Eh, s Ew, c)`, `s` 2 or 4, as `upscale_unordered` has them: `(B, pixels, c)`.

    The reverse of `depth_to_space` for `s = 4`.
    """
    h, w = grid
    channels = x.shape[-1]
    if x.shape[1] == 2 * h:
        x = ops.reshape(x, (-1, h, 2, w, 2 * channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4))  # (B, Eh, Ew, 2, 2 c)
        return ops.reshape(x, (-1, 4 * h * w, channels))
    x = ops.reshape(x, (-1, h, 2, 2, w, 2, 2 * channels))
    x = ops.transpose(x, (0, 1, 4, 2, 5, 3, 6))  # (B, Eh, Ew, 2, 2, 2, 2 c)
    return ops.reshape(x, (-1, 16 * h * w, channels))
