"""What transformers writes beside a SAM's tensors: `config.json` and `preprocessor_config.json`."""

from keras_sam.images import PIXEL_MEAN, PIXEL_STD


def transformers_hints(config):
    """Published files leave out what equals the default, so absence means ViT-B's value."""
    vision = config.get("vision_config", {}) if config["model_type"] == "sam" else config
    decoder = config.get("mask_decoder_config") or {}
    vision = vision or {}
    # 1e-10 is what transformers has for "not given": nothing could be trained from it.
    spread = vision.get("initializer_range", 1e-10)
    others = {k: v for k, v in config.items() if k == "initializer_range" and v is not None}
    return {
        "image_encoder": {
            "initializer_range": None if spread == 1e-10 else spread,
            "num_heads": vision.get("num_attention_heads", 12),
            "window_size": vision.get("window_size", 14),
            "global_attention_layer_indices": list(
                vision.get("global_attn_indexes", (2, 5, 8, 11))
            ),
            "layer_norm_epsilon": vision.get("layer_norm_eps", 1e-6),
            "activation": vision.get("hidden_act", "gelu"),
        },
        "prompt_encoder": others,
        "mask_decoder": {
            **others,
            "num_heads": decoder.get("num_attention_heads", 8),
            "transformer_activation": decoder.get("hidden_act", "relu"),
        },
    }


def transformers_config(parts: dict) -> dict:
    """The `config.json` with which `SamModel` reads what `sam.to_transformers` wrote."""
    encoder, decoder = parts["image_encoder"], parts["mask_decoder"]
    h, w, channels = encoder["image_shape"]
    if h != w:
        raise ValueError(
            f"transformers' SamModel works on square frames only. Received: {h} x {w}."
        )
    vision = {
        "model_type": "sam_vision_model",
        "hidden_size": encoder["hidden_size"],
        "output_channels": encoder["num_output_channels"],
        "num_hidden_layers": encoder["num_layers"],
        "num_attention_heads": encoder["num_heads"],
        "num_channels": channels,
        "image_size": h,
        "patch_size": encoder["patch_size"],
        "hidden_act": encoder.get("activation", "gelu"),
        "layer_norm_eps": encoder.get("layer_norm_epsilon", 1e-6),
        "qkv_bias": encoder["use_bias"],
        "use_abs_pos": encoder["use_abs_pos"],
        "use_rel_pos": encoder["use_rel_pos"],
        "window_size": encoder["window_size"],
        "global_attn_indexes": list(encoder["global_attention_layer_indices"]),
        "num_pos_feats": parts["prompt_encoder"]["hidden_size"] // 2,
        "mlp_dim": encoder["intermediate_dim"],
        **_initializer_range(encoder),
    }
    return {
        **_initializer_range(decoder),
        "architectures": ["SamModel"],
        "model_type": "sam",
        "dtype": "float32",
        "vision_config": vision,
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder",
            "hidden_size": parts["prompt_encoder"]["hidden_size"],
            "image_size": h,
            "patch_size": encoder["patch_size"],
            "mask_input_channels": parts["prompt_encoder"].get("mask_in_channels", 16),
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": decoder["hidden_size"],
            "hidden_act": decoder.get("transformer_activation", "relu"),
            "mlp_dim": decoder["intermediate_dim"],
            "num_hidden_layers": decoder["num_layers"],
            "num_attention_heads": decoder["num_heads"],
            "attention_downsample_rate": decoder.get("attention_downsample_rate", 2),
            "num_multimask_outputs": decoder["num_multimask_outputs"],
            "iou_head_depth": decoder["iou_head_depth"],
            "iou_head_hidden_dim": decoder["iou_head_hidden_dim"],
        },
    }


def _initializer_range(part):
    value = part.get("initializer_range")
    return {} if value is None else {"initializer_range": value}


def preprocessor_config(parts: dict) -> dict:
    """The `preprocessor_config.json` that goes with it, for `SamProcessor`."""
    encoder = parts["image_encoder"]
    side = encoder["image_shape"][0]
    mean = encoder.get("pixel_mean", PIXEL_MEAN)
    std = encoder.get("pixel_std", PIXEL_STD)
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [round(v / 255, 9) for v in mean],
        "image_std": [round(v / 255, 9) for v in std],
        "pad_size": {"height": side, "width": side},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": side},
    }
