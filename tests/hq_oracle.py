"""SAM-HQ's released code, PyPI's `segment-anything-hq`, as the oracle of the tests.

Besides Meta's four functions of torchvision it asks timm for four names: small modules with these
stand in for both.
"""

import functools
import importlib
import importlib.util
import sys
import types

import pytest

from tests import meta_oracle


def import_segment_anything_hq():
    """Imports `segment_anything_hq`, or skips the test where it or torch is not installed."""
    torch = pytest.importorskip("torch", reason="SAM-HQ's code, the oracle, runs on torch")
    if "segment_anything_hq" in sys.modules:
        return sys.modules["segment_anything_hq"]
    if importlib.util.find_spec("segment_anything_hq") is None:
        pytest.skip("segment-anything-hq, the oracle, is not installed")

    class DropPath(torch.nn.Module):
        """Stochastic depth, which the tests leave at a rate of 0."""

        def __init__(self, drop_prob=None):
            super().__init__()
            assert not drop_prob

    contents = {
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {
            "DropPath": DropPath,
            "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
            "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": lambda function: function},
    }
    for name, values in contents.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)
    names = [*contents]
    if importlib.util.find_spec("torchvision") is None:
        names += meta_oracle.install_stand_in()
    try:
        return importlib.import_module("segment_anything_hq")
    finally:
        # It has its functions now; other libraries must not believe that these are here.
        for name in names:
            del sys.modules[name]


def hq_like(encoder, prompts, decoder):
    """SAM-HQ's `Sam` of the sizes of one of ours, with the random weights that it starts with.

    Args:
        encoder: dict. The arguments of our image encoder; theirs has the longer side of its frame,
            for the code knows square frames only.
        prompts: dict. The arguments of our prompt encoder.
        decoder: dict. The arguments of our mask decoder.
    """
    import_segment_anything_hq()
    import torch
    from segment_anything_hq import modeling

    channels = decoder["hidden_size"]
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=max(encoder["image_shape"][:2]),
            patch_size=encoder["patch_size"],
            embed_dim=encoder["hidden_size"],
            depth=encoder["num_layers"],
            num_heads=encoder["num_heads"],
            mlp_ratio=encoder["intermediate_dim"] / encoder["hidden_size"],
            out_chans=encoder["num_output_channels"],
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=encoder["layer_norm_epsilon"]),
            use_abs_pos=encoder["use_abs_pos"],
            use_rel_pos=encoder["use_rel_pos"],
            window_size=encoder["window_size"],
            global_attn_indexes=encoder["global_attention_layer_indices"],
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=prompts["hidden_size"],
            image_embedding_size=prompts["image_embedding_size"],
            input_image_size=prompts["input_image_size"],
            mask_in_chans=prompts["mask_in_channels"],
        ),
        mask_decoder=modeling.MaskDecoderHQ(
            num_multimask_outputs=decoder["num_multimask_outputs"],
            transformer=modeling.TwoWayTransformer(
                depth=decoder["num_layers"],
                embedding_dim=channels,
                mlp_dim=decoder["intermediate_dim"],
                num_heads=decoder["num_heads"],
                attention_downsample_rate=decoder["attention_downsample_rate"],
            ),
            transformer_dim=channels,
            iou_head_depth=decoder["iou_head_depth"],
            iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
            vit_dim=decoder["early_dim"],
        ),
    )
