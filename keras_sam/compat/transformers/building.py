"""From a config to a model of ours, and back."""

from __future__ import annotations

import os

from keras_sam.compat.transformers.configuration import SamConfig, read_config
from keras_sam.converters.sam_transformers import transformers_config
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.vit_det_backbone import ViTDetBackbone


def config_of(address: str, segmenter: SAMImageSegmenter) -> SamConfig:
    """The config beside a model's weights, or one of the sizes of a model that came without."""
    if os.path.isdir(address) or address.startswith("hf://"):
        found = read_config(address, optional=True)
        if found.get("model_type") == SamConfig.model_type:
            return SamConfig.from_dict(found)
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    parts = {name: getattr(segmenter, name).get_config() for name in names}
    config = SamConfig.from_dict(transformers_config(parts))
    epsilon = parts["mask_decoder"]["transformer_layer_norm_epsilon"]
    config.mask_decoder_config.layer_norm_eps = epsilon
    return config


def build_backbone(config: SamConfig) -> SAMBackbone:
    """A model with random weights."""
    vision, prompts, decoder = (
        config.vision_config,
        config.prompt_encoder_config,
        config.mask_decoder_config,
    )
    side, stddev = vision.image_size, config.initializer_range
    return SAMBackbone(
        ViTDetBackbone(
            hidden_size=vision.hidden_size,
            num_layers=vision.num_hidden_layers,
            intermediate_dim=vision.mlp_dim,
            num_heads=vision.num_attention_heads,
            global_attention_layer_indices=list(vision.global_attn_indexes),
            image_shape=(side, side, vision.num_channels),
            patch_size=vision.patch_size,
            num_output_channels=vision.output_channels,
            use_bias=vision.qkv_bias,
            use_abs_pos=vision.use_abs_pos,
            use_rel_pos=vision.use_rel_pos,
            window_size=vision.window_size,
            layer_norm_epsilon=vision.layer_norm_eps,
            activation=vision.hidden_act,
            attention_dropout_rate=vision.attention_dropout,
            initializer_range=stddev,
        ),
        SAMPromptEncoder(
            hidden_size=prompts.hidden_size,
            image_embedding_size=(prompts.image_embedding_size,) * 2,
            input_image_size=(prompts.image_size,) * 2,
            mask_in_channels=prompts.mask_input_channels,
            activation=prompts.hidden_act,
            layer_norm_epsilon=prompts.layer_norm_eps,
            initializer_range=stddev,
        ),
        SAMMaskDecoder(
            hidden_size=decoder.hidden_size,
            num_layers=decoder.num_hidden_layers,
            intermediate_dim=decoder.mlp_dim,
            num_heads=decoder.num_attention_heads,
            num_multimask_outputs=decoder.num_multimask_outputs,
            iou_head_depth=decoder.iou_head_depth,
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
            attention_downsample_rate=decoder.attention_downsample_rate,
            transformer_activation=decoder.hidden_act,
            initializer_range=stddev,
        ),
    )
