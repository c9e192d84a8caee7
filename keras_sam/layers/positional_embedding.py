"""Where a point, a pixel or a patch lies: the positional encodings of SAM and SAM 2."""

import math
from typing import Any

import keras
import numpy as np
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


@keras.saving.register_keras_serializable(package="keras_sam")
class WindowedPositionEmbedding(KeptArguments, keras.layers.Layer):
    """Adds two learned tables, at first zero, to a feature map `(B, Eh, Ew, C)`.

    One is of few cells and is enlarged to the whole map, bicubically; the other is of one window
    and is repeated. So the same tables serve maps of every size. Computed in float32.

    Args:
        background_size: tuple of ints, cells `(h, w)` of the first table.
        window_size: int. Side of the second one, which divides the sides of the map.

    Source:
        Bolya et al. 2023, https://arxiv.org/abs/2311.05613, section 4.
    """

    def __init__(self, background_size: tuple[int, int], window_size: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        background_size = tuple(background_size)
        self.keep_arguments(locals())

    def build(self, input_shape: Shape) -> None:
        _, h, w, channels = input_shape
        self.background = self.add_weight(
            name="background", shape=(1, *self.background_size, channels), initializer="zeros"
        )
        self.window = self.add_weight(
            name="window",
            shape=(1, self.window_size, self.window_size, channels),
            initializer="zeros",
        )
        self._rows = bicubic_matrix(self.background_size[0], h)
        self._columns = bicubic_matrix(self.background_size[1], w)

    def call(self, x: Tensor) -> Tensor:
        h, w, channels = x.shape[1:]
        size, (rows, columns) = self.window_size, self.background_size
        background = ops.reshape(ops.cast(self.background, "float32"), (rows, -1))
        background = ops.matmul(self._rows, background)  # (Eh, columns * C)
        background = ops.matmul(self._columns, ops.reshape(background, (h, columns, channels)))
        background = ops.reshape(background, (h // size, size, w // size, size, channels))
        window = ops.reshape(ops.cast(self.window, "float32"), (1, size, 1, size, channels))
        x = ops.cast(x, self.compute_dtype)
        return x + ops.cast(ops.reshape(background + window, (1, h, w, channels)), x.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


def bicubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """`(size_out, size_in)` weights of cubic interpolation between the centres of equal cells.

    Ends are repeated, and nothing is smoothed when the number shrinks, as in torch's
    `interpolate(mode="bicubic")`, with its coefficient of -0.75.
    """
    places = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((size_out, size_in))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(places - first - tap)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(size_out), np.clip(first + tap, 0, size_in - 1)), weight)
    return matrix.astype("float32")
