"""KerasCV 0.9's Segment Anything under its own names of classes, arguments and outputs.

The models are constructors of ours: what they return is a `keras_sam.ViTDetBackbone` or a
`keras_sam.SAMImageSegmenter`. The layers are ours with a table of names before them. Our
arguments are accepted beside KerasCV's, so everything that ours can do is there too.

Images are 0..255, as for KerasCV's presets and for `include_rescaling=True`. A
`ViTDetBackbone(include_rescaling=False)` takes 0..1, as it did.

`model.backbone` is the whole `SAMBackbone`: KerasCV's, the image encoder, is
`model.image_encoder`. `fit` trains, where KerasCV's raises.
"""

from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import keras

from keras_sam.layers import mask_decoder as decoding
from keras_sam.layers import positional_embedding as positions
from keras_sam.layers import prompt_encoder as prompting
from keras_sam.layers import two_way_transformer as two_way
from keras_sam.layers import window_attention as windows
from keras_sam.layers.arguments import KeptArguments
from keras_sam.layers.multi_head_attention import MultiHeadAttentionWithDownsampling
from keras_sam.models import vit_det_backbone as encoding
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.presets import read_preset

_register = keras.saving.register_keras_serializable(package="keras_sam.compat.keras_cv")


def _renamed(values: dict, names: dict) -> dict:
    return {names.get(name, name): value for name, value in values.items()}


class _KerasCVNames:
    """Before a layer of ours: KerasCV's names for its arguments and attributes.

    `names` and `call_names` map KerasCV's names to ours, for the constructor and the call.
    Configs keep our names, by which presets are read and written; `unused` are arguments of
    KerasCV's that ours does without, and that configs keep.
    """

    names: dict[str, str] = {}
    call_names: dict[str, str] = {}
    unused: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for theirs, ours in cls.names.items():
            setattr(cls, theirs, property(attrgetter(ours)))

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **_renamed(kwargs, self.names))

    def __call__(self, *args: Any, **kwargs: Any):
        return super().__call__(*args, **_renamed(kwargs, self.call_names))

    def get_config(self):
        return super().get_config() | {name: getattr(self, name) for name in self.unused}


@_register
class TwoWayMultiHeadAttention(_KerasCVNames, two_way.TwoWayMultiHeadAttention):
    """`keras_sam.TwoWayMultiHeadAttention` under KerasCV's names.

    Args:
        mlp_dim: int, our `intermediate_dim`.
        skip_first_layer_pe: bool, our `skip_first_layer_pos_embedding`.
        **kwargs: our other arguments; KerasCV's have the same names.

    Call arguments:
        queries: float tensor `(B, T, C)`.
        keys: float tensor `(B, Eh * Ew, C)`.
        query_pe: float tensor `(B, T, C)`, our `query_pos_embedding`.
        key_pe: float tensor `(B, Eh * Ew, C)`, our `key_pos_embedding`.
    """

    names = {"mlp_dim": "intermediate_dim", "skip_first_layer_pe": "skip_first_layer_pos_embedding"}
    call_names = {"query_pe": "query_pos_embedding", "key_pe": "key_pos_embedding"}


@_register
class TwoWayTransformer(_KerasCVNames, two_way.TwoWayTransformer):
    """`keras_sam.TwoWayTransformer` under KerasCV's names.

    Args:
        depth: int, our `num_layers`.
        embed_dim: int, our `hidden_size`.
        mlp_dim: int, our `intermediate_dim`.
        **kwargs: our other arguments; KerasCV's have the same names.

    Call arguments:
        image_embedding: float tensor `(B, Eh, Ew, C)`.
        image_pe: float tensor `(B, Eh, Ew, C)`, our `image_positional_embeddings`.
        point_embedding: float tensor `(B, T, C)`.
    """

    names = {"depth": "num_layers", "embed_dim": "hidden_size", "mlp_dim": "intermediate_dim"}
    call_names = {"image_pe": "image_positional_embeddings"}

    def __init__(self, *, name: str = "transformer", **kwargs: Any):
        # The name it has inside a mask decoder of ours, so that variables' paths are the same.
        super().__init__(name=name, **kwargs)


@_register
class SAMPromptEncoder(_KerasCVNames, prompting.SAMPromptEncoder):
    """`keras_sam.SAMPromptEncoder` under KerasCV's names.

    Args:
        embed_dim: int, our `hidden_size`.
        mask_in_chans: int, our `mask_in_channels`.
        **kwargs: our other arguments; KerasCV's have the same names.

    Call arguments:
        inputs: dict of `points`, `labels`, `boxes`, `masks`, any of them.

    Returns:
        Dict of `sparse_embeddings` `(B, T, C)`, `dense_embeddings` `(B, Eh, Ew, C)` and
        `dense_positional_embeddings` `(1, Eh, Ew, C)`. Called with keyword arguments
        instead of a dict: what ours returns.
    """

    names = {"embed_dim": "hidden_size", "mask_in_chans": "mask_in_channels"}

    def __call__(self, *args: Any, **kwargs: Any):
        if not args or not isinstance(args[0], dict):
            return super().__call__(*args, **kwargs)
        outputs = super().__call__(**args[0], **kwargs)
        names = ("sparse_embeddings", "dense_embeddings", "dense_positional_embeddings")
        return {name: outputs[f"prompt_{name}"] for name in names}


@_register
class SAMMaskDecoder(_KerasCVNames, decoding.SAMMaskDecoder):
    """`keras_sam.SAMMaskDecoder` under KerasCV's names.

    Args:
        transformer_dim: int, our `hidden_size`.
        transformer: optional `TwoWayTransformer`, or another layer as ours takes it.
        **kwargs: our other arguments; KerasCV's have the same names.

    Call arguments:
        inputs: dict of `image_embeddings` `(B, Eh, Ew, C)`, `image_pe`
            `(1, Eh, Ew, C)`, `sparse_prompt_embeddings` `(B, T, C)` and
            `dense_prompt_embeddings` `(B, Eh, Ew, C)`.

    Returns:
        Dict of `masks` `(B, K, 4 Eh, 4 Ew)` and `iou_pred` `(B, K)`.
    """

    names = {"transformer_dim": "hidden_size"}
    call_names = {
        "image_pe": "prompt_dense_positional_embeddings",
        "sparse_prompt_embeddings": "prompt_sparse_embeddings",
        "dense_prompt_embeddings": "prompt_dense_embeddings",
    }

    def __call__(self, *args: Any, **kwargs: Any):
        if args and isinstance(args[0], dict):
            return super().__call__(*args[1:], **args[0], **kwargs)
        return super().__call__(*args, **kwargs)


@_register
class WindowedTransformerEncoder(_KerasCVNames, windows.WindowedTransformerEncoder):
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
        return _renamed(super().get_config(), {"intermediate_dim": "mlp_dim"})


@_register
class MultiHeadAttentionWithRelativePE(_KerasCVNames, windows.WindowAttention):
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
        super().__init__(num_heads, use_bias=use_bias, use_rel_pos=use_rel_pos, **kwargs)
        self.key_dim, self.input_size = key_dim, input_size


@_register
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


@_register
class AddPositionalEmbedding(KeptArguments, positions.PositionEmbedding):
    """The encoder's learned absolute positions.

    Args:
        img_size: int. Side of the image in pixels.
        patch_size: int. Side of a patch in pixels.
        embed_dim: int. Channels of the map.
        **kwargs: other arguments of `keras.layers.Layer`.
    """

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.keep_arguments(locals())


_ENCODER_NAMES = {
    "input_shape": "image_shape",
    "embed_dim": "hidden_size",
    "depth": "num_layers",
    "mlp_dim": "intermediate_dim",
    "out_chans": "num_output_channels",
    "global_attention_indices": "global_attention_layer_indices",
}
# The same normalisation as ours, of images within 0..1.
_UNIT_STATISTICS = {
    "pixel_mean": [value / 255 for value in encoding.PIXEL_MEAN],
    "pixel_std": [value / 255 for value in encoding.PIXEL_STD],
}


def _size_arguments(name):
    """The arguments that the released image encoders differ in."""
    encoder = read_preset(f"{name}_sa1b", load_weights=False).encoder
    theirs = ("embed_dim", "depth", "mlp_dim", "num_heads", "global_attention_indices")
    ours = [_ENCODER_NAMES.get(name, name) for name in theirs]
    return {name: encoder[name] for name in ours}


class ViTDetBackbone(encoding.ViTDetBackbone):
    """Makes a `keras_sam.ViTDetBackbone` from KerasCV's arguments, of ViT-B's size by default.

    Args:
        include_rescaling: bool. True for images 0..255, False for images 0..1.
        input_shape: tuple, our `image_shape`. Defaults to `(1024, 1024, 3)`.
        input_tensor: must be None: call the model on the tensor instead.
        embed_dim: int, our `hidden_size`. Defaults to `768`.
        depth: int, our `num_layers`. Defaults to `12`.
        mlp_dim: int, our `intermediate_dim`. Defaults to `3072`.
        out_chans: int, our `num_output_channels`. Defaults to `256`.
        global_attention_indices: list of ints, our `global_attention_layer_indices`.
        **kwargs: our other arguments; KerasCV's have the same names.

    Raises:
        ValueError: if `input_tensor` is given.
    """

    _size = "vitdet_base"

    def __new__(cls, *, include_rescaling: bool, input_tensor=None, **kwargs: Any):
        if input_tensor is not None:
            raise ValueError(
                "`input_tensor` must be None: pass `input_shape=input_tensor.shape[1:]` and call "
                f"the model on the tensor. Received: input_tensor={input_tensor}."
            )
        statistics = {} if include_rescaling else _UNIT_STATISTICS
        arguments = {**_size_arguments(cls._size), **statistics, **_renamed(kwargs, _ENCODER_NAMES)}
        return encoding.ViTDetBackbone(**arguments)

    @classmethod
    def from_preset(cls, preset: str, **kwargs: Any):
        """The encoder of a preset, or a random one that has the size of its name.

        Args:
            preset: str. As for `keras_sam.ViTDetBackbone.from_preset`; or `"vitdet_base"`,
                `"vitdet_large"`, `"vitdet_huge"`, which have no weights.
            **kwargs: passed on.
        """
        if preset not in ("vitdet_base", "vitdet_large", "vitdet_huge"):
            return encoding.ViTDetBackbone.from_preset(preset, **kwargs)
        if kwargs.pop("load_weights", False):
            raise ValueError(
                f"{preset!r} has no weights. Received: load_weights=True. Take the "
                f'preset "{preset}_sa1b".'
            )
        return ViTDetBackbone(**{"include_rescaling": True, **_size_arguments(preset), **kwargs})


class ViTDetBBackbone(ViTDetBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-B, for images 0..255."""

    def __new__(cls, *, include_rescaling: bool = True, **kwargs: Any):
        return super().__new__(cls, include_rescaling=include_rescaling, **kwargs)


class ViTDetLBackbone(ViTDetBBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-L, for images 0..255."""

    _size = "vitdet_large"


class ViTDetHBackbone(ViTDetBBackbone):
    """Makes a random `keras_sam.ViTDetBackbone` of the size of ViT-H, for images 0..255."""

    _size = "vitdet_huge"


class SegmentAnythingModel(SAMImageSegmenter):
    """Makes a `keras_sam.SAMImageSegmenter` from KerasCV's three parts.

    Args:
        backbone: a `ViTDetBackbone`.
        prompt_encoder: a `SAMPromptEncoder`, ours or the one here.
        mask_decoder: a `SAMMaskDecoder`, ours or the one here.
        **kwargs: other arguments of `keras_sam.SAMImageSegmenter`.

    Example:

    ```python
    model = keras_sam.compat.keras_cv.SegmentAnythingModel(
        backbone=tiny_backbone.image_encoder,
        prompt_encoder=tiny_backbone.prompt_encoder,
        mask_decoder=tiny_backbone.mask_decoder,
    )
    images = np.zeros((1, *tiny_backbone.image_shape))
    outputs = model.predict({"images": images, "boxes": [[[[20, 30], [60, 80]]]]}, verbose=0)
    outputs["masks"].shape  # (1, 4, 28, 36)
    ```
    """

    def __new__(cls, *, backbone, prompt_encoder, mask_decoder, **kwargs: Any):
        return SAMImageSegmenter(SAMBackbone(backbone, prompt_encoder, mask_decoder), **kwargs)

    @classmethod
    def from_preset(cls, preset: str, **kwargs: Any):
        """`keras_sam.SAMImageSegmenter.from_preset`, whose presets have KerasCV's names."""
        return SAMImageSegmenter.from_preset(preset, **kwargs)


def _namespace(*classes):
    return SimpleNamespace(**{cls.__name__: cls for cls in classes})


models = _namespace(
    *(SAMMaskDecoder, SAMPromptEncoder, SegmentAnythingModel, TwoWayTransformer),
    *(ViTDetBackbone, ViTDetBBackbone, ViTDetHBackbone, ViTDetLBackbone),
)
models.segmentation = _namespace(SegmentAnythingModel)
layers = _namespace(
    *(AddPositionalEmbedding, ViTDetPatchingAndEmbedding, WindowedTransformerEncoder),
    *(MultiHeadAttentionWithDownsampling, MultiHeadAttentionWithRelativePE),
    *(positions.RandomFrequencyPositionalEmbeddings, TwoWayMultiHeadAttention),
)
