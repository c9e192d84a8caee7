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
    """From features of the embedding's grid to `(B, 4 Eh, 4 Ew, C / 8)`.

    Args:
        hidden_size, activation, layer_norm_epsilon, initializer_range: those of `SAMMaskDecoder`.
        input_dim: optional int. Channels of the features. Defaults to `hidden_size`.
        inner_dim: optional int. Channels between the two transposed convolutions. Defaults to
            `hidden_size / 4`.
        activates_output: bool. Defaults to `True`.
    """

    def __init__(
        self,
        hidden_size: int,
        activation: Activation = "gelu",
        layer_norm_epsilon: float = 1e-6,
        initializer_range: float | None = None,
        input_dim: int | None = None,
        inner_dim: int | None = None,
        activates_output: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_size % 8:
            raise ValueError(
                f"`hidden_size` must be a multiple of 8. Received: hidden_size={hidden_size}."
            )
        input_dim = hidden_size if input_dim is None else input_dim
        inner_dim = hidden_size // 4 if inner_dim is None else inner_dim
        self.keep_arguments(locals())
        policy = self.dtype_policy
        self.conv1 = keras.layers.Conv2DTranspose(
            inner_dim, 2, strides=2, dtype=policy, name="conv1"
        )
        self.norm1 = LayerNormalization(epsilon=layer_norm_epsilon, dtype=policy, name="norm1")
        self.conv2 = keras.layers.Conv2DTranspose(
            hidden_size // 8, 2, strides=2, dtype=policy, name="conv2"
        )

    def build(self, input_shape: Shape | None = None) -> None:
        inner = (None, None, None, self.inner_dim)
        build_part(self.conv1, (None, None, None, self.input_dim), self.initializer_range)
        self.norm1.build(inner)
        build_part(self.conv2, inner, self.initializer_range)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return depth_to_space(self.upscale_unordered(x, training), x.shape[1:3])

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

        `finer` are features of the image, of twice and four times the grid and as many channels as
        the two convolutions make, as `cells_of` orders them. They are added to what these make;
        several prompts may share them, one after the other in the first axis of `x`.

        Returns `(B, Eh * Ew * 16, C / 8)`; a cell's pixels go by row and column of its 2 x 2
        quarters, then by row and column within them.
        """
        h, w, channels = x.shape[1:]
        x = ops.reshape(x, (-1, h * w, channels))
        half, full = (None, None) if finer is None else finer
        x = self._quarters(self.conv1, x, None, training, half)  # (B, Eh * Ew * 4, inner_dim)
        x = backends.activate(self.norm1(x, training=training), self.activation, training)
        last = self.activation if self.activates_output else None
        return self._quarters(self.conv2, x, last, training, full)

    def _quarters(self, conv, x, activation, training, added=None):
        """A transposed convolution: `(B, pixels, C)` to 2 x 2 pixels each, `(B, 4 pixels, C')`."""
        kernel = ops.cast(conv.kernel, x.dtype)  # (2, 2, C', C)
        kernel = ops.transpose(ops.reshape(kernel, (-1, kernel.shape[3])))
        bias = ops.tile(conv.bias, 4)
        pixels, channels = x.shape[1:]
        if added is None:
            x = backends.dense(x, kernel, bias, activation, training)  # (B, pixels, 4 C')
        else:
            x = ops.reshape(x, (ops.shape(added)[0], -1, pixels, channels))  # (B, P, pixels, C)
            x = backends.dense_add(x, kernel, bias, ops.expand_dims(added, 1), activation, training)
        return ops.reshape(x, (-1, 4 * pixels, conv.filters))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, h, w, _ = input_shape
        return (batch, h and 4 * h, w and 4 * w, self.hidden_size // 8)


def depth_to_space(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """`upscale_unordered`'s pixels `(B, Eh * Ew * 16, c)` in order: `(B, 4 Eh, 4 Ew, c)`."""
    h, w = grid
    channels = x.shape[-1]
    x = ops.reshape(x, (-1, w, 2, 2, 2, 2 * channels))  # (B Eh, Ew, 2, 2, 2, 2 c)
    x = ops.transpose(x, (0, 2, 4, 1, 3, 5))  # (B Eh, 2, 2, Ew, 2, 2 c)
    return ops.reshape(x, (-1, 4 * h, 4 * w, channels))


def cells_of(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels `(B, s Eh, s Ew, c)` cell by cell, in the order of `upscale_unordered`.

    Four pixels side by side, as one pixel of half the size becomes them: `(B, Eh * Ew, 4 c)` for
    `s = 2`, `(B, 4 Eh * Ew, 4 c)` for `s = 4`.
    """
    h, w = grid
    channels = x.shape[-1]
    if x.shape[1] == 2 * h:
        x = ops.reshape(x, (-1, h, 2, w, 2 * channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4))  # (B, Eh, Ew, 2, 2 c)
        return ops.reshape(x, (-1, h * w, 4 * channels))
    x = ops.reshape(x, (-1, 2, 2, w, 2, 2 * channels))
    x = ops.transpose(x, (0, 3, 1, 4, 2, 5))  # (B Eh, Ew, 2, 2, 2, 2 c)
    return ops.reshape(x, (-1, 4 * h * w, 4 * channels))
