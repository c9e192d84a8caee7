"""Every layer and model of ours that can stand alone: how to make one, and what to call it on."""

import keras
import numpy as np

import keras_sam
from keras_sam.layers.feature_pyramid import FeaturePyramid
from keras_sam.layers.hiera_block import HieraAttention, HieraBlock
from keras_sam.layers.hq_mask_decoder import MaskRefinement
from keras_sam.layers.mask_upscaler import MaskUpscaler
from keras_sam.layers.positional_embedding import PositionEmbedding, WindowedPositionEmbedding
from keras_sam.layers.prompt_encoder import MaskDownscaler
from keras_sam.layers.window_attention import DropPath

# Frame 48 x 80 in patches of 16: an embedding of 3 x 5, mask prompts of 12 x 20.
GRID, FRAME, MASK = (3, 5), (48, 80), (12, 20)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def _encoder(**settings):
    arguments = {
        "hidden_size": 12,
        "num_layers": 2,
        "intermediate_dim": 20,
        "num_heads": 3,
        "global_attention_layer_indices": [1],
        "image_shape": (*FRAME, 3),
        "window_size": 2,
        "num_output_channels": 8,
    }
    return keras_sam.ViTDetBackbone(**{**arguments, **settings})


def _hiera(**settings):
    arguments = {
        "hidden_size": 8,
        "num_blocks": [1, 1, 2, 1],
        "global_attention_layer_indices": [3],
        "image_shape": (64, 96, 3),
        "num_output_channels": 16,
    }
    return keras_sam.HieraBackbone(**{**arguments, **settings})


def _prompt_encoder(**settings):
    arguments = {
        "hidden_size": 8,
        "image_embedding_size": GRID,
        "input_image_size": FRAME,
        "mask_in_channels": 4,
    }
    return keras_sam.SAMPromptEncoder(**{**arguments, **settings})


def _mask_decoder(cls=None, **settings):
    arguments = {
        "hidden_size": 8,
        "intermediate_dim": 12,
        "num_heads": 2,
        "iou_head_hidden_dim": 7,
    }
    return (cls or keras_sam.SAMMaskDecoder)(**{**arguments, **settings})


def _sam2_decoder(**settings):
    return _mask_decoder(keras_sam.SAM2MaskDecoder, **settings)


def _hq_mask_decoder(**settings):
    arguments = {
        "early_dim": 12,
        "hidden_size": 16,
        "intermediate_dim": 12,
        "num_heads": 2,
        "iou_head_hidden_dim": 7,
    }
    return keras_sam.SAMHQMaskDecoder(**{**arguments, **settings})


def _backbone(dtype=None):
    parts = (_encoder(dtype=dtype), _prompt_encoder(dtype=dtype), _mask_decoder(dtype=dtype))
    return keras_sam.SAMBackbone(*parts, dtype=dtype)


def _segmenter(dtype=None):
    return keras_sam.SAMImageSegmenter(_backbone(dtype), dtype=dtype)


def _tiny_vit(**settings):
    return keras_sam.TinyViTBackbone(
        **{
            "hidden_sizes": (4, 6, 8, 12),
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 2, 2, 3),
            "window_sizes": (3, 3, 4, 3),
            "image_shape": (*FRAME, 3),
            "num_output_channels": 8,
            **settings,
        }
    )


_IMAGES = 100 + 50 * _normal(2, *FRAME, 3)
_PROMPTS = {
    "points": np.array([[[10.0, 20.0], [70.0, 5.0]], [[30.0, 40.0], [1.0, 2.0]]], "float32"),
    "labels": np.array([[1, 0], [1, -1]], "int32"),
    "boxes": np.array([[[[5.0, 5.0], [60.0, 40.0]]], [[[0.0, 9.0], [20.0, 30.0]]]], "float32"),
    "masks": _normal(2, 1, *MASK, 1),
}
_DECODER_INPUTS = {
    "image_embeddings": _normal(2, *GRID, 8),
    "prompt_dense_positional_embeddings": _normal(1, *GRID, 8, seed=1),
    "prompt_sparse_embeddings": _normal(2, 3, 8, seed=2),
    "prompt_dense_embeddings": _normal(2, *GRID, 8, seed=3),
}
_HQ_DECODER_INPUTS = {
    "image_embeddings": _normal(2, *GRID, 16),
    "prompt_dense_positional_embeddings": _normal(1, *GRID, 16, seed=1),
    "prompt_sparse_embeddings": _normal(2, 3, 16, seed=2),
    "prompt_dense_embeddings": _normal(2, *GRID, 16, seed=3),
    "early_features": _normal(2, *GRID, 12, seed=4),
}
_FINER = {
    "high_res_features_0": _normal(2, 12, 20, 1, seed=4),
    "high_res_features_1": _normal(2, 6, 10, 2, seed=5),
}

# name: (make(**settings), positional arguments, keyword arguments)
PARTS = {
    "MLP": (lambda **s: keras_sam.MLP(7, 5, **{"num_layers": 3, **s}), [_normal(2, 3, 4)], {}),
    "DropPath": (lambda **s: DropPath(0.5, **s), [_normal(4, 3)], {}),
    "MultiHeadAttentionWithDownsampling": (
        lambda **s: keras_sam.MultiHeadAttentionWithDownsampling(2, 4, downsample_rate=2, **s),
        [],
        {"query": _normal(2, 3, 8), "value": _normal(2, 5, 8), "key": _normal(2, 5, 8, seed=1)},
    ),
    "TwoWayMultiHeadAttention": (
        lambda **s: keras_sam.TwoWayMultiHeadAttention(2, 4, 12, False, **s),
        [],
        {
            "queries": _normal(2, 3, 8),
            "keys": _normal(2, 15, 8, seed=1),
            "query_pos_embedding": _normal(2, 3, 8, seed=2),
            "key_pos_embedding": _normal(1, 15, 8, seed=3),
        },
    ),
    "TwoWayTransformer": (
        lambda **s: keras_sam.TwoWayTransformer(
            **{"hidden_size": 8, "num_heads": 2, "intermediate_dim": 12, **s}
        ),
        [],
        {
            "image_embedding": _normal(2, *GRID, 8),
            "image_positional_embeddings": _normal(1, *GRID, 8, seed=1),
            "point_embedding": _normal(2, 4, 8, seed=2),
        },
    ),
    "RandomFrequencyPositionalEmbeddings": (
        lambda **s: keras_sam.RandomFrequencyPositionalEmbeddings(4, **s),
        [],
        {"size": GRID},
    ),
    "PositionEmbedding": (PositionEmbedding, [_normal(2, *GRID, 4)], {}),
    "MaskDownscaler": (lambda **s: MaskDownscaler(8, 4, **s), [_normal(2, *MASK, 1)], {}),
    "SAMPromptEncoder": (_prompt_encoder, [], _PROMPTS),
    "MaskUpscaler": (lambda **s: MaskUpscaler(16, **s), [_normal(2, *GRID, 16)], {}),
    "SAMMaskDecoder": (_mask_decoder, [], _DECODER_INPUTS),
    "MaskRefinement": (lambda **s: MaskRefinement(4, **s), [_normal(2, *MASK, 4)], {}),
    "SAMHQMaskDecoder": (_hq_mask_decoder, [], _HQ_DECODER_INPUTS),
    "SAM2MaskDecoder": (_sam2_decoder, [], {**_DECODER_INPUTS, **_FINER}),
    "WindowAttention": (
        lambda **s: keras_sam.WindowAttention(3, **{"window_size": 2, **s}),
        [_normal(2, *GRID, 12)],
        {},
    ),
    "WindowedTransformerEncoder": (
        lambda **s: keras_sam.WindowedTransformerEncoder(20, 3, window_size=2, **s),
        [_normal(2, *GRID, 12)],
        {},
    ),
    "ConvNorm": (
        lambda **s: keras_sam.layers.ConvNorm(6, **{"kernel_size": 3, "strides": 2, **s}),
        [_normal(2, *GRID, 4)],
        {},
    ),
    "InvertedBottleneck": (
        lambda **s: keras_sam.layers.InvertedBottleneck(9, 4, **{"shortcut": True, **s}),
        [_normal(2, *GRID, 4)],
        {},
    ),
    "OffsetBiasAttention": (
        lambda **s: keras_sam.layers.OffsetBiasAttention(3, 2, **s),
        [_normal(2, *GRID, 12)],
        {},
    ),
    "TinyViTBlock": (
        lambda **s: keras_sam.layers.TinyViTBlock(20, 3, 2, **s),
        [_normal(2, *GRID, 12)],
        {},
    ),
    "WindowedPositionEmbedding": (
        lambda **s: WindowedPositionEmbedding((2, 3), 2, **s),
        [_normal(2, 4, 6, 5)],
        {},
    ),
    "HieraAttention": (
        lambda **s: HieraAttention(3, 12, **{"window_size": 4, "pools_queries": True, **s}),
        [_normal(2, 1, 6, 10, 8)],
        {},
    ),
    "HieraBlock": (
        lambda **s: HieraBlock(3, 12, 20, **{"window_size": 2, "pools_queries": True, **s}),
        [_normal(2, 3, 2, 2, 8)],
        {},
    ),
    "FeaturePyramid": (
        lambda **s: FeaturePyramid(16, **s),
        [[_normal(2, 1, 24 >> i, 40 >> i, 4 + i) for i in range(4)]],
        {},
    ),
    "HieraBackbone": (_hiera, [_normal(2, 64, 96, 3)], {}),
    "ViTDetBackbone": (_encoder, [_IMAGES], {}),
    "TinyViTBackbone": (_tiny_vit, [_IMAGES], {}),
    "SAMBackbone": (_backbone, [{"images": _IMAGES, **_PROMPTS}], {}),
    "SAMImageSegmenter": (_segmenter, [{"images": _IMAGES, **_PROMPTS}], {}),
}
LAYERS = [name for name in PARTS if not name.endswith(("Backbone", "Segmenter"))]


def make(name, **settings):
    """One of `PARTS`, built, as a function of nothing but Keras's random seed."""
    keras.utils.set_random_seed(5)
    part = PARTS[name][0](**settings)
    if not part.built:
        symbolic_call(part, name)
    return part


def symbolic_call(part, name):
    """The symbols of its outputs, in a flat list; no number is computed."""
    _, args, kwargs = PARTS[name]
    if name == "RandomFrequencyPositionalEmbeddings":  # is called with a size, not with tensors
        part.build()
        return []
    args, kwargs = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, keras.backend.standardize_dtype(x.dtype)),
        (args, kwargs),
    )
    return keras.tree.flatten(part(*args, **kwargs))


def call(part, name, **more):
    """Its outputs on the inputs of `PARTS`, as float32 numpy arrays in a flat list."""
    _, args, kwargs = PARTS[name]
    return numpy(part(*args, **kwargs, **more))


def numpy(outputs):
    """Every tensor of a nested structure as a float32 array; bool and int ones too."""
    return [
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
        for x in keras.tree.flatten(outputs)
    ]
