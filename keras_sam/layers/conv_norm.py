"""A convolution and the batch norm of what it gives, which are one convolution in prediction."""

from typing import Any

import keras
from keras import ops

from keras_sam import backends
from keras_sam.layers.arguments import Activation, KeptArguments, Shape, Tensor
from keras_sam.layers.initialization import build_part


@keras.saving.register_keras_serializable(package="keras_sam")
class ConvNorm(KeptArguments, keras.layers.Layer):
    """A convolution without bias, batch norm, and an activation.

    In training, the norm uses the statistics of the batch and moves its averages towards them, as
    `keras.layers.BatchNormalization` does. Otherwise, and where it is not trainable, the averages
    are constants: then the kernel is scaled by them and there is one convolution. That is done in
    the graph, so that it follows every change of the weights.

    Args:
        filters: int. Output channels; in a depthwise convolution those of the input.
        kernel_size: int, odd. Side of the kernel; as many zeros are put around the map as keep its
            size with `strides=1`. Defaults to `1`.
        strides: int. Defaults to `1`.
        depthwise: bool. Whether each channel is convolved by itself. Defaults to `False`.
        activation: str or callable. Defaults to `None`.
        batch_norm_epsilon: float. Defaults to `1e-5`.
        batch_norm_momentum: float, how much of the averages a training step keeps. Defaults to
            `0.9`.
        gamma_initializer: str. Defaults to `"ones"`.
        initializer_range: see `MLP`.

    Call arguments:
        x: float tensor `(B, h, w, channels)`.
        edges: tuple of two bools, of a depthwise convolution. Whether the first and the last row
            are the map's, so that zeros come before and after them. Defaults to both.

    Returns:
        Float tensor `(B, ceil(h / strides), ceil(w / strides), filters)`.

    Raises:
        ValueError: if a depthwise convolution gets another number of channels than `filters`.

    Example:

    ```python
    layer = keras_sam.layers.ConvNorm(12, kernel_size=3, strides=2, activation="gelu")
    layer(np.zeros((1, 9, 11, 5), "float32")).shape  # (1, 5, 6, 12)
    ```
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        depthwise: bool = False,
        activation: Activation | None = None,
        batch_norm_epsilon: float = 1e-5,
        batch_norm_momentum: float = 0.9,
        gamma_initializer: str = "ones",
        initializer_range: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        settings = {
            "strides": strides,
            "padding": "same",
            "use_bias": False,
            "dtype": self.dtype_policy,
            "name": "conv",
        }
        if depthwise:
            self.conv = keras.layers.DepthwiseConv2D(kernel_size, **settings)
        else:
            self.conv = keras.layers.Conv2D(filters, kernel_size, **settings)
        self.norm = keras.layers.BatchNormalization(
            epsilon=batch_norm_epsilon,
            momentum=batch_norm_momentum,
            gamma_initializer=gamma_initializer,
            dtype=self.dtype_policy,
            name="norm",
        )

    def build(self, input_shape: Shape) -> None:
        if self.depthwise and input_shape[-1] != self.filters:
            raise ValueError(
                "`filters` of a depthwise convolution must be the number of input channels. "
                f"Received: filters={self.filters}, channels={input_shape[-1]}."
            )
        build_part(self.conv, input_shape, self.initializer_range)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(
        self, x: Tensor, training: bool | None = None, edges: tuple[bool, bool] = (True, True)
    ) -> Tensor:
        options = {"strides": self.strides, "training": training}
        if self.depthwise:
            convolve, options["edges"] = backends.convolve_depthwise, edges
        else:
            convolve = backends.convolve
        if training and self.norm.trainable:
            kernel = ops.convert_to_tensor(self.conv.kernel)
            x = self.norm(convolve(x, kernel, **options), training=True)
            return backends.activate(x, self.activation, training)
        kernel, bias = self.folded()
        if self.kernel_size == self.strides == 1:
            x = ops.cast(x, self.compute_dtype)
            return backends.dense(x, kernel[0, 0], bias, self.activation, training)
        return convolve(x, kernel, bias, activation=self.activation, **options)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias, in float32, of the convolution that does the work of both."""
        norm = self.norm
        kernel, gamma, beta, mean, variance = (
            ops.cast(v, "float32")
            for v in (
                self.conv.kernel,
                norm.gamma,
                norm.beta,
                norm.moving_mean,
                norm.moving_variance,
            )
        )
        scale = gamma / ops.sqrt(variance + norm.epsilon)
        # One scale for each output channel, which is the third axis of a depthwise kernel.
        return kernel * (scale[:, None] if self.depthwise else scale), beta - mean * scale

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        size = (n if n is None else -(-n // self.strides) for n in input_shape[1:3])
        return (input_shape[0], *size, self.filters)
