"""`keras_cv.layers`: the layers that the models are made of."""

from typing import Any

import keras
from keras import ops

from keras_sam.compat.keras_cv.names import KerasCVNames, register, renamed
from keras_sam.layers import two_way_transformer as two_way
from keras_sam.layers import window_attention as windows
from keras_sam.layers.arguments import KeptArguments, Tensor
from keras_sam.layers.multi_head_attention import MultiHeadAttentionWithDownsampling
from keras_sam.layers.positional_embedding import (
    PositionEmbedding,
    RandomFrequencyPositionalEmbeddings,
)

__all__ = [
    "AddPositionalEmbedding",
    "MultiHeadAttentionWithDownsampling",
    "MultiHeadAttentionWithRelativePE",
    "RandomFrequencyPositionalEmbeddings",
    "TwoWayMultiHeadAttention",
    "ViTDetPatchingAndEmbedding",
    "WindowPartitioning",
    "WindowedTransformerEncoder",
]


@register
class TwoWayMultiHeadAttention(KerasCVNames, two_way.TwoWayMultiHeadAttention):
    """`keras_sam.TwoWayMultiHeadAttention` under KerasCV's names.

    Args:
        num_heads: int.
        key_dim: int.
        mlp_dim: int, our `intermediate_dim`.
        skip_first_layer_pe: bool, our `skip_first_layer_pos_embedding`.
        attention_downsample_rate: int. Defaults to `2`.
        activation: str or callable. Defaults to `"relu"`.
        **kwargs: our other arguments.

    Call arguments:
        queries: float tensor `(B, T, C)`.
        keys: float tensor `(B, Eh * Ew, C)`.
        query_pe: float tensor `(B, T, C)`, our `query_pos_embedding`.
        key_pe: float tensor `(B, Eh * Ew, C)`, our `key_pos_embedding`.
    """

    order = "num_heads key_dim mlp_dim skip_first_layer_pe attention_downsample_rate activation"
    names = {"mlp_dim": "intermediate_dim", "skip_first_layer_pe": "skip_first_layer_pos_embedding"}
    call_names = {"query_pe": "query_pos_embedding", "key_pe": "key_pos_embedding"}


@register
class WindowedTransformerEncoder(KerasCVNames, windows.WindowedTransformerEncoder):
    """`keras_sam.WindowedTransformerEncoder` under KerasCV's names.

    Args:
        project_dim: int. Channels of the input.
        mlp_dim: int, our `intermediate_dim`.
        use_bias: bool. Defaults to `True`.
        use_rel_pos: bool. Defaults to `False`, unlike ours.
        window_size: int. Defaults to `0`, global attention.
        input_size: optional tuple of ints, the map's `(Eh, Ew)`; ours reads it off the input.
        activation: str or callable. Defaults to `"gelu"`.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        **kwargs: our other arguments.
    """

    names = {"mlp_dim": "intermediate_dim"}
    unused = ("project_dim", "input_size")

    def __init__(
        self,
        project_dim: int,
        mlp_dim: int,
        num_heads: int,
        use_bias: bool = True,
        use_rel_pos: bool = False,
        window_size: int = 0,
        input_size=None,
        activation="gelu",
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ):
        super().__init__(
            intermediate_dim=mlp_dim,
            num_heads=num_heads,
            use_bias=use_bias,
            use_rel_pos=use_rel_pos,
            window_size=window_size,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            **kwargs,
        )
        self.project_dim, self.input_size = project_dim, input_size

    def get_config(self):
        return renamed(super().get_config(), {"intermediate_dim": "mlp_dim"})


@register
class MultiHeadAttentionWithRelativePE(KerasCVNames, windows.WindowAttention):
    """`keras_sam.WindowAttention` over the whole map, under KerasCV's names.

    Args:
        key_dim: int. Channels per head; ours divides the input's channels by `num_heads`.
        use_bias: bool. Defaults to `True`.
        use_rel_pos: bool. Defaults to `False`, unlike ours.
        input_size: optional tuple of ints, the map's `(Eh, Ew)`; ours reads it off the input.
        **kwargs: our other arguments.
    """

    unused = ("key_dim", "input_size")

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        use_bias: bool = True,
        use_rel_pos: bool = False,
        input_size=None,
        **kwargs: Any,
    ):
        super().__init__(num_heads=num_heads, use_bias=use_bias, use_rel_pos=use_rel_pos, **kwargs)
        self.key_dim, self.input_size = key_dim, input_size


@register
class ViTDetPatchingAndEmbedding(keras.layers.Conv2D):
    """The encoder's patch embedding: a convolution whose kernel is one patch.

    Args:
        kernel_size: tuple of ints. Defaults to `(16, 16)`.
        strides: tuple of ints. Defaults to `(16, 16)`.
        embed_dim: int. Channels of the output. Defaults to `768`.
        **kwargs: other arguments of `keras.layers.Conv2D`.
    """

    def __init__(self, kernel_size=(16, 16), strides=(16, 16), embed_dim: int = 768, **kwargs: Any):
        filters = kwargs.pop("filters", embed_dim)
        super().__init__(filters, kernel_size, strides=strides, **kwargs)
        self.embed_dim = filters


@register
class AddPositionalEmbedding(KeptArguments, PositionEmbedding):
    """The encoder's learned absolute positions.

    Args:
        img_size: int. Side of the image in pixels.
        patch_size: int. Side of a patch in pixels.
        embed_dim: int. Channels of the map.
        **kwargs: other arguments of `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(B, Eh, Ew, embed_dim)`, with `Eh = Ew = img_size / patch_size`.
    """

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.keep_arguments(locals())


@register
class WindowPartitioning(keras.layers.Layer):
    """Cuts a map into windows, and puts it together again.

    Args:
        window_size: int. Side of a window in cells.
        **kwargs: other arguments of `keras.layers.Layer`.
    """

    def __init__(self, window_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.window_size = window_size
        self.built = True

    def partition(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pads a map with zeros, at the right and the bottom, and cuts it into windows.

        Args:
            x: tensor `(B, Eh, Ew, C)`.

        Returns:
            Tuple of the windows `(B * windows, side, side, C)` and the padded map's size.
        """
        side, (_, h, w, channels) = self.window_size, x.shape
        rows, columns = -(-h // side), -(-w // side)
        x = ops.pad(x, [[0, 0], [0, rows * side - h], [0, columns * side - w], [0, 0]])
        x = ops.reshape(x, (-1, rows, side, columns, side, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, side, side, channels)), (rows * side, columns * side)

    def unpartition(
        self, windows: Tensor, HW_padded: tuple[int, int], HW: tuple[int, int]
    ) -> Tensor:
        """The map `(B, *HW, C)` of the windows that `partition` made.

        Args:
            windows: tensor `(B * windows, side, side, C)`.
            HW_padded: pair of ints, the padded map's size, as `partition` returns it.
            HW: pair of ints, the map's size.
        """
        side, channels = self.window_size, windows.shape[-1]
        rows, columns = HW_padded[0] // side, HW_padded[1] // side
        x = ops.reshape(windows, (-1, rows, columns, side, side, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, *HW_padded, channels))
        return x[:, : HW[0], : HW[1]]

    def get_config(self):
        return {**super().get_config(), "window_size": self.window_size}
