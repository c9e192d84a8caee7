"""SAM 2's models with random weights, small and of odd sizes, and ours with the same weights."""

import functools

import keras_sam
from keras_sam import backends, converters
from keras_sam.presets.assign import assign
from tests.parity.oracles import randomize
from tests.sam2_oracle import sam2_like
from tests.tiny import without_random_values

# Windows of 4 and then 2 fit the map, those of 6 and 3 do not; two heads of 6 channels, later
# four, eight and sixteen; one block is global. The tables of positions are not square.
ENCODER = {
    "hidden_size": 12,
    "num_blocks": [1, 2, 3, 2],
    "num_heads": 2,
    "global_attention_layer_indices": [4],
    "image_shape": (160, 160, 3),
    "window_sizes": [4, 2, 6, 3],
    "position_background_size": (5, 3),
    "num_output_channels": 32,
}


@functools.cache
def meta_model(version="2.1"):
    """Meta's model for images and videos, of the sizes above."""
    return randomize(sam2_like(ENCODER, version), 3)


def state_of(model):
    """A torch model's tensors as arrays."""
    return {name: values.detach().numpy() for name, values in model.state_dict().items()}


@functools.cache
def transformers_model(cls="Sam2Model", config_cls="Sam2Config"):
    """transformers' model of the same sizes, for images or for videos, with random weights."""
    import transformers

    width, side, heads = ENCODER["hidden_size"], ENCODER["image_shape"][0], ENCODER["num_heads"]
    channels = ENCODER["num_output_channels"]
    parts = {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": width,
                "num_attention_heads": heads,
                "image_size": [side, side],
                "window_positional_embedding_background_size": list(
                    ENCODER["position_background_size"]
                ),
                "blocks_per_stage": ENCODER["num_blocks"],
                "embed_dim_per_stage": [width * n for n in (1, 2, 4, 8)],
                "num_attention_heads_per_stage": [heads * n for n in (1, 2, 4, 8)],
                "window_size_per_stage": ENCODER["window_sizes"],
                "global_attention_blocks": ENCODER["global_attention_layer_indices"],
            },
            "backbone_channel_list": [width * n for n in (8, 4, 2, 1)],
            "backbone_feature_sizes": [[side // n, side // n] for n in (4, 8, 16)],
            "fpn_hidden_size": channels,
        },
        "prompt_encoder_config": {"hidden_size": channels, "image_size": side},
        "mask_decoder_config": {"hidden_size": channels, "mlp_dim": 40, "iou_head_hidden_dim": 20},
    }
    if cls == "Sam2VideoModel":
        parts |= {
            "memory_attention_hidden_size": channels,
            "memory_attention_feed_forward_hidden_size": 24,
            "memory_attention_num_layers": 1,
            "memory_encoder_hidden_size": channels,
            "memory_encoder_output_channels": 16,
            "mask_downsampler_embed_dim": channels,
            "memory_fuser_embed_dim": channels,
            "memory_fuser_intermediate_dim": 24,
            "memory_fuser_num_layers": 1,
        }
    model = getattr(transformers, cls)(getattr(transformers, config_cls)(**parts))
    model = randomize(model, 5)
    # Two names for what is one matrix in the published files.
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data = shared.clone()
    return model


def our_encoder(arrays, image_shape=ENCODER["image_shape"]):
    """A `HieraBackbone` of the sizes above with arrays of a converted file, or some of them."""
    with without_random_values():
        encoder = keras_sam.HieraBackbone(**{**ENCODER, "image_shape": image_shape})
    ignore = (r"(prompt_encoder|mask_decoder)/.*",)
    assign(encoder.weights, arrays, backends.assign_value, ignore)
    return encoder


@functools.cache
def meta_arrays():
    return converters.rename(state_of(meta_model())).arrays
