"""What other libraries' `config.json` files say that the shapes of tensors do not."""

import numpy as np

_KERAS_HUB_CLASSES = ("SAMImageSegmenter", "SAMBackbone", "ViTDetBackbone")
_KERAS_CV_CLASSES = ("SegmentAnythingModel", "ViTDetBackbone")
_TRANSFORMERS_TYPES = ("sam", "sam_vision_model")


def kind_of(config: dict) -> str:
    """Which library wrote a `config.json`: keras_sam, keras_hub, keras_cv or transformers.

    Raises:
        ValueError: if it is none of them, or not a SAM's.
    """
    config = config if isinstance(config, dict) else {}
    registered = str(config.get("registered_name") or "")
    package, _, name = registered.partition(">")
    if package == "keras_sam":
        return "keras_sam"
    if package in ("keras_hub", "keras_nlp") and name in _KERAS_HUB_CLASSES:
        return "keras_hub"
    if package.startswith("keras_cv") and name in _KERAS_CV_CLASSES:
        return "keras_cv"
    if config.get("model_type") in _TRANSFORMERS_TYPES:
        return "transformers"
    said = registered or config.get("model_type") or config.get("class_name") or "nothing"
    raise ValueError(
        "Its config.json must be that of a SAM, written by keras_sam, KerasHub, KerasCV or "
        f"transformers. Received: {said!r}."
    )


def hints_of(kind: str, config: dict) -> dict:
    """Arguments of our parts that `converters.infer_config` cannot see in the tensors."""
    if kind == "transformers":
        return _transformers_hints(config)
    if str(config.get("registered_name")).endswith(">SAMImageSegmenter"):
        config = config["config"]["backbone"]
    inner = config["config"]
    encoder = inner.get("image_encoder") or inner.get("backbone") or config
    decoder = inner.get("mask_decoder", {}).get("config", {})
    transformer = decoder.get("transformer") or {}
    heads = decoder.get("num_heads") or transformer.get("config", {}).get("num_heads")
    return {
        "image_encoder": {
            ours: encoder["config"][theirs]
            for ours, theirs in _KERAS_ENCODER
            if encoder["config"].get(theirs) is not None
        },
        "mask_decoder": {"num_heads": heads} if heads else {},
    }


# Ours and theirs. KerasHub's `layer_norm_epsilon` has no effect there: always 1e-6.
_KERAS_ENCODER = (
    ("num_heads", "num_heads"),
    ("window_size", "window_size"),
    ("global_attention_layer_indices", "global_attention_layer_indices"),
    ("global_attention_layer_indices", "global_attention_indices"),
)


def _transformers_hints(config):
    """Published files leave out what equals the default, so absence means ViT-B's value."""
    vision = config.get("vision_config", {}) if config["model_type"] == "sam" else config
    decoder = config.get("mask_decoder_config") or {}
    vision = vision or {}
    return {
        "image_encoder": {
            "num_heads": vision.get("num_attention_heads", 12),
            "window_size": vision.get("window_size", 14),
            "global_attention_layer_indices": list(
                vision.get("global_attn_indexes", (2, 5, 8, 11))
            ),
            "layer_norm_epsilon": vision.get("layer_norm_eps", 1e-6),
            "activation": vision.get("hidden_act", "gelu"),
        },
        "mask_decoder": {
            "num_heads": decoder.get("num_attention_heads", 8),
            "transformer_activation": decoder.get("hidden_act", "relu"),
        },
    }


def pixel_statistics(config: dict) -> dict:
    """Mean and standard deviation of pixels 0..255 from transformers' preprocessor config."""
    scale = 1.0 / (config.get("rescale_factor") or 1 / 255)
    found = {}
    for ours, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if config.get(theirs) is not None:
            found[ours] = np.round(np.float64(config[theirs]) * scale, 9).tolist()
    return found


def to_transformers(parts: dict) -> dict:
    """The `config.json` with which `SamModel` reads what `converters.to_hugging_face` wrote.

    Args:
        parts: dict of `image_encoder`, `prompt_encoder` and `mask_decoder` arguments.

    Raises:
        ValueError: if transformers has no such model.
    """
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
    }
    return {
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


def to_transformers_preprocessor(encoder: dict) -> dict:
    """The `preprocessor_config.json` that goes with it, for `SamProcessor`."""
    side = encoder["image_shape"][0]
    mean = encoder.get("pixel_mean", (123.675, 116.28, 103.53))
    std = encoder.get("pixel_std", (58.395, 57.12, 57.375))
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
