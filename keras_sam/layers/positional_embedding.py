"""Where a point, a pixel or a patch lies: SAM's two positional encodings."""

import math
from typing import Any

import keras
from keras import ops

from keras_sam.layers.arguments import KeptArguments, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_sam")
class RandomFrequencyPositionalEmbeddings(KeptArguments, keras.layers.Layer):
    """Encodes image coordinates with fixed random spatial frequencies.

    A coordinate pair in `[0, 1]` becomes `concat(sin(f), cos(f))` with
    `f = 2 pi (2 xy - 1) @ G`, where `G` is a `(2, F)` Gaussian matrix drawn once
    and never trained. The multiplication by `2 pi` and `G` magnifies rounding, so
    this layer computes in float32 whatever its dtype policy.

    Args:
        num_positional_features: int. Number of frequencies `F`; the encoding has
            `C = 2 F` channels.
        scale: float. Standard deviation of the frequencies. Defaults to `1.0`.

    Call arguments:
        size: tuple `(height, width)` of the grid to encode at its cell centres.

    Returns:
        Float32 tensor `(height, width, C)`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A, after
        Tancik et al. 2020, https://arxiv.org/abs/2006.10739.

    Example:

    ```python
    encoding = keras_sam.RandomFrequencyPositionalEmbeddings(num_positional_features=8)
    encoding(size=(9, 11)).shape  # (9, 11, 16)
    ```
    """

    def __init__(self, num_positional_features: int, scale: float = 1.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.keep_arguments(locals())

    def build(self, input_shape: Shape | None = None) -> None:
        self.gaussian_matrix = self.add_weight(
            name="gaussian_matrix",
            shape=(2, self.num_positional_features),
            dtype="float32",
            autocast=False,
            trainable=False,
            initializer=keras.initializers.RandomNormal(stddev=self.scale),
        )

    def call(self, size: tuple[int, int]) -> Tensor:
        return self.encode_image(size)

    def encode_image(self, size: tuple[int, int]) -> Tensor:
        """Encodes the cell centres of a grid `(height, width)` as float32 `(height, width, C)`."""
        if not self.built:
            self.build()
        height, width = size
        y = (ops.arange(height, dtype="float32") + 0.5) / height
        x = (ops.arange(width, dtype="float32") + 0.5) / width
        x, y = ops.meshgrid(x, y)  # (height, width) each
        return self._encode(ops.stack([x, y], axis=-1))

    def encode_coordinates(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Encodes points that are given in pixels.

        Args:
            coords_input: tensor `(..., 2)`, x and y in pixels of an image of
                `image_size`; they may lie outside it.
            image_size: tuple of ints `(height, width)` in pixels.

        Returns:
            Float32 tensor `(..., C)`.
        """
        if not self.built:
            self.build()
        height, width = image_size
        size = ops.convert_to_tensor([width, height], dtype="float32")
        return self._encode(ops.cast(coords_input, "float32") / size)

    def _encode(self, unit_coords):
        phase = ops.matmul(2.0 * unit_coords - 1.0, self.gaussian_matrix) * (2.0 * math.pi)
        return ops.concatenate([ops.sin(phase), ops.cos(phase)], axis=-1)  # (..., C)

    def compute_output_shape(self, size: tuple[int, int]) -> Shape:
        return (*size, 2 * self.num_positional_features)


@keras.saving.register_keras_serializable(package="keras_sam")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned embedding, at first zero, to every cell of a feature map `(B, Eh, Ew, C)`."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def build(self, input_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            name="embeddings", shape=(1, *input_shape[1:]), initializer="zeros"
        )

    def call(self, x: Tensor) -> Tensor:
        return x + self.embeddings

    def get_config(self) -> dict[str, Any]:
        return super().get_config()  # of its own: Keras's refuses a policy as `dtype`

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape
