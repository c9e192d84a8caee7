"""Other people's SAM with random weights, and ours with the same weights.

Small models of odd sizes: 10 x 10 patches in windows of 7, three heads of 16 channels. Every
parameter is drawn at random, the norms, biases and relative positions that start at zero or one
too, so that none is without effect.
"""

import functools

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends, converters
from keras_sam.converters import sam
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from keras_sam.presets.assign import assign
from tests.meta_oracle import import_segment_anything, meta_like
from tests.tiny import photograph, without_random_values

# What every comparison allows, as a part of the oracle's largest value. The package promises 1e-4;
# these models agree to 3e-6 on every backend, and a tighter bound sees more.
BOUND = 2e-5

HIDDEN, LAYERS, HEADS, MLP, WINDOW, GLOBAL = 48, 4, 3, 80, 7, (1, 3)
CHANNELS, MASK_CHANNELS, DECODER_HEADS, DECODER_MLP, IOU_HIDDEN = 32, 12, 4, 72, 20
PATCH = 16


def randomize(module, seed):
    """Draws every parameter of a torch module, in the order of their names.

    At a scale that keeps rounding small: activations near 1, soft attention.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    layers = dict(module.named_modules())
    with torch.no_grad():
        for name, values in sorted(module.named_parameters()):
            layer = layers[name.rpartition(".")[0]]
            noise = torch.randn(values.shape, generator=generator)
            if name.endswith("weight") and "norm" in type(layer).__name__.lower():
                values.copy_(1 + 0.3 * noise)
            elif isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and values.ndim > 1:
                values.copy_(1.5 * noise / np.sqrt(values[0].numel()))
            elif isinstance(layer, torch.nn.ConvTranspose2d) and values.ndim > 1:
                values.copy_(1.5 * noise / np.sqrt(len(values)))
            elif isinstance(layer, torch.nn.Embedding):
                values.copy_(noise)
            else:  # biases, and the positions in the image encoder
                values.copy_(0.3 * noise)
    return module.eval()


@functools.cache
def meta_model(grid=(10, 10), seed=3):
    """Meta's `Sam`. It knows square frames only; another grid gets tables of its sizes."""
    backbone = our_model(grid).backbone
    parts = (backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    import_segment_anything()
    import torch

    torch.manual_seed(seed)
    model = meta_like(*(part.get_config() for part in parts))
    encoder = model.image_encoder
    if grid[0] != grid[1]:
        encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, *grid, HIDDEN))
        for i in GLOBAL:
            for axis, length in zip("hw", grid, strict=True):
                table = torch.zeros(2 * length - 1, HIDDEN // HEADS)
                setattr(encoder.blocks[i].attn, f"rel_pos_{axis}", torch.nn.Parameter(table))
    return randomize(model, seed)


def transformers_model():
    """transformers' `SamModel`, with the epsilon 1e-5 of the released code in its decoder.

    Its own default there is 1e-6 for the blocks and 1e-5 for the last norm.
    """
    pytest.importorskip("torch", reason="transformers' SamModel runs on torch")
    import transformers

    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=HIDDEN,
            output_channels=CHANNELS,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=160,
            patch_size=PATCH,
            window_size=WINDOW,
            global_attn_indexes=list(GLOBAL),
            num_pos_feats=CHANNELS // 2,
            mlp_dim=MLP,
        ).to_dict(),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=CHANNELS,
            image_size=160,
            patch_size=PATCH,
            mask_input_channels=MASK_CHANNELS,
        ).to_dict(),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=CHANNELS,
            mlp_dim=DECODER_MLP,
            num_attention_heads=DECODER_HEADS,
            iou_head_hidden_dim=IOU_HIDDEN,
            layer_norm_eps=1e-5,
        ).to_dict(),
    )
    config._attn_implementation = "eager"  # the others return no attention maps
    return transformers.SamModel(config).eval()


@without_random_values()
def our_model(grid=(10, 10)):
    """A `SAMImageSegmenter` of the oracles' sizes; its weights are still to be loaded."""
    size = (grid[0] * PATCH, grid[1] * PATCH)
    backbone = keras_sam.SAMBackbone(
        keras_sam.ViTDetBackbone(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            intermediate_dim=MLP,
            num_heads=HEADS,
            global_attention_layer_indices=list(GLOBAL),
            image_shape=(*size, 3),
            patch_size=PATCH,
            num_output_channels=CHANNELS,
            window_size=WINDOW,
        ),
        keras_sam.SAMPromptEncoder(
            hidden_size=CHANNELS,
            image_embedding_size=grid,
            input_image_size=size,
            mask_in_channels=MASK_CHANNELS,
        ),
        keras_sam.SAMMaskDecoder(
            hidden_size=CHANNELS,
            intermediate_dim=DECODER_MLP,
            num_heads=DECODER_HEADS,
            iou_head_hidden_dim=IOU_HIDDEN,
        ),
    )
    return keras_sam.SAMImageSegmenter(
        backbone, SAMImageSegmenterPreprocessor.for_backbone(backbone)
    )


@functools.cache
def meta_pair(grid=(10, 10)):
    """Meta's model and ours with its weights."""
    oracle, ours = meta_model(grid), our_model(grid)
    tensors = {name: values.detach().numpy() for name, values in oracle.state_dict().items()}
    _, _, arrays = converters.convert(tensors)
    assign(ours.weights, arrays, backends.assign_value)
    return oracle, ours


@functools.cache
def transformers_pair():
    """transformers' model with the weights of ours, which are Meta's."""
    _, ours = meta_pair()
    oracle = transformers_model()
    import torch

    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in ours.weights}
    tensors = sam.to_transformers(arrays)
    oracle.load_state_dict({name: torch.tensor(np.asarray(t)) for name, t in tensors.items()})
    return oracle, ours


def frames(size, count=1, seed=0):
    """Photographs that fill the model's frame, `(B, H, W, 3)`, as float32."""
    return np.stack([photograph(size, seed + i) for i in range(count)]).astype("float32")


def assert_same(actual, expected, bound=BOUND):
    """Fails unless the arrays differ by at most `bound` of the expected array's largest value."""
    actual = keras.ops.convert_to_numpy(actual)
    expected = expected.detach().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all() and np.any(expected), "the oracle tells nothing"
    assert expected.size == 1 or np.std(expected) > 0, "the oracle tells nothing"
    error = np.abs(actual.astype("float64") - expected).max() / np.abs(expected).max()
    assert error <= bound, f"differs by {error:.2e} of the scale"
