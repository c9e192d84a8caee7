"""What transformers writes beside a SAM 2's tensors: `config.json`, `preprocessor_config.json`."""

from keras_sam.converters.family import TransformersLayout
from keras_sam.converters.sam_transformers import preprocessor_config

_MULTIMASK = (
    "dynamic_multimask_via_stability",
    "dynamic_multimask_stability_delta",
    "dynamic_multimask_stability_thresh",
)


def _hints(config):
    """Published files may leave out what equals the default, which is the tiny model's value."""
    vision = config.get("vision_config") or {}
    trunk = vision.get("backbone_config") or {}
    decoder = config.get("mask_decoder_config") or {}
    heads = trunk.get("num_attention_heads_per_stage") or [trunk.get("num_attention_heads", 1)]
    return {
        "image_encoder": {
            "num_heads": heads[0],
            "global_attention_layer_indices": _given(trunk, "global_attention_blocks", (5, 7, 9)),
            "window_sizes": _given(trunk, "window_size_per_stage", (8, 4, 14, 7)),
            "image_shape": _pair(trunk.get("image_size") or 1024),
            "patch_stride": _pair(trunk.get("patch_stride") or 4)[0],
            "layer_norm_epsilon": trunk.get("layer_norm_eps", 1e-6),
            "activation": trunk.get("hidden_act", "gelu"),
        },
        "mask_decoder": {
            "num_heads": decoder.get("num_attention_heads", 8),
            **{name: decoder[name] for name in _MULTIMASK if name in decoder},
        },
    }


def _given(config, name, default):
    value = config.get(name)
    return list(default if value is None else value)


def _pair(value):
    return list(value) if isinstance(value, list | tuple) else [value, value]


def _config(parts):
    """The `config.json` with which `Sam2Model` reads what `sam2.to_transformers` wrote."""
    encoder, decoder = parts["image_encoder"], parts["mask_decoder"]
    h, w, channels = encoder["image_shape"]
    if h != w:
        raise ValueError(
            f"transformers' Sam2Model works on square frames only. Received: {h} x {w}."
        )
    stride, kernel = encoder.get("patch_stride", 4), encoder.get("patch_kernel_size", 7)
    widths = [encoder["hidden_size"] * 2**i for i in range(4)]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": encoder["num_heads"],
        "num_channels": channels,
        "image_size": [h, w],
        "patch_kernel_size": [kernel, kernel],
        "patch_stride": [stride, stride],
        "patch_padding": [kernel // 2, kernel // 2],
        "window_positional_embedding_background_size": list(encoder["position_background_size"]),
        "blocks_per_stage": list(encoder["num_blocks"]),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [encoder["num_heads"] * 2**i for i in range(4)],
        "window_size_per_stage": list(encoder["window_sizes"]),
        "global_attention_blocks": list(encoder["global_attention_layer_indices"]),
        "mlp_ratio": float(encoder.get("mlp_ratio", 4.0)),
        "hidden_act": encoder.get("activation", "gelu"),
        "layer_norm_eps": encoder.get("layer_norm_epsilon", 1e-6),
    }
    return {
        "architectures": ["Sam2Model"],
        "model_type": "sam2",
        "dtype": "float32",
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": trunk,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[h // n, w // n] for n in (stride, 2 * stride, 4 * stride)],
            "fpn_hidden_size": encoder["num_output_channels"],
        },
        "prompt_encoder_config": {
            "model_type": "sam2_prompt_encoder",
            "hidden_size": parts["prompt_encoder"]["hidden_size"],
            "image_size": h,
            "patch_size": 4 * stride,
            "mask_input_channels": parts["prompt_encoder"].get("mask_in_channels", 16),
        },
        "mask_decoder_config": {
            "model_type": "sam2_mask_decoder",
            "hidden_size": decoder["hidden_size"],
            "mlp_dim": decoder["intermediate_dim"],
            "num_hidden_layers": decoder["num_layers"],
            "num_attention_heads": decoder["num_heads"],
            "attention_downsample_rate": decoder.get("attention_downsample_rate", 2),
            "num_multimask_outputs": decoder["num_multimask_outputs"],
            "iou_head_depth": decoder["iou_head_depth"],
            "iou_head_hidden_dim": decoder["iou_head_hidden_dim"],
            **{name: decoder[name] for name in _MULTIMASK if name in decoder},
        },
    }


def _preprocessor_config(parts):
    """The `preprocessor_config.json` that goes with it, for `Sam2Processor`."""
    config = preprocessor_config(parts)
    del config["do_pad"], config["pad_size"]
    side = parts["image_encoder"]["image_shape"][0]
    mask = side // parts["image_encoder"].get("patch_stride", 4)
    return {
        **config,
        "image_processor_type": "Sam2ImageProcessor",
        "processor_class": "Sam2Processor",
        "mask_size": {"height": mask, "width": mask},
        "size": {"height": side, "width": side},
    }


LAYOUT = TransformersLayout(
    # Files of the model for videos, which people download, hold that for images.
    model_types=("sam2", "sam2_video"),
    hints=_hints,
    config=_config,
    preprocessor_config=_preprocessor_config,
    tensors=dict,  # `sam2.to_transformers`
)
