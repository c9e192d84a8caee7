"""SAM-HQ's released code, PyPI's `segment-anything-hq`, as the oracle of the tests.

Besides Meta's four functions of torchvision it asks timm for four names: small modules with these
stand in for both.
"""

import functools

from tests.mobile_sam_oracle import import_with_timm


def import_segment_anything_hq():
    """Imports `segment_anything_hq`, or skips the test where it or torch is not installed."""
    return import_with_timm("segment_anything_hq", "segment-anything-hq")


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
