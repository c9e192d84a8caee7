"""Small checkpoints of other libraries, made by those libraries, and the masks they predict."""

import functools

import numpy as np
import pytest

from tests.meta_oracle import import_segment_anything

# A grid of 7 x 7 patches and windows of 3, so that windows need padding; 8 heads in the decoder,
# which is what files that cannot say it have.
SIDE, PATCH, CHANNELS = 56, 8, 16
IMAGE = np.random.default_rng(4).uniform(0, 255, (SIDE, SIDE, 3)).astype("float32")
POINTS = np.array([[[20.5, 31.0], [40.0, 11.0]]], "float32")
LABELS = np.array([[1, 0]], "int32")


def meta_model(seed=0, depth=3, global_layers=(1,), **encoder):
    """Meta's `Sam`, small, every weight random."""
    sam = import_segment_anything()
    import torch

    torch.manual_seed(seed)
    grid = SIDE // PATCH
    settings = {
        "img_size": SIDE,
        "patch_size": PATCH,
        "embed_dim": 24,
        "depth": depth,
        "num_heads": 3,
        "mlp_ratio": 2,
        "out_chans": CHANNELS,
        "norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "qkv_bias": True,
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": global_layers,
    }
    model = sam.modeling.Sam(
        image_encoder=sam.modeling.ImageEncoderViT(**{**settings, **encoder}),
        prompt_encoder=sam.modeling.PromptEncoder(
            embed_dim=CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=8,
        ),
        mask_decoder=sam.modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=sam.modeling.TwoWayTransformer(
                depth=2, embedding_dim=CHANNELS, mlp_dim=20, num_heads=8
            ),
            transformer_dim=CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=12,
        ),
    )
    return _randomized(model.eval(), seed)


def meta_prediction(model, image=IMAGE):
    """Masks `(K, Lh, Lw)` and scores `(K,)` of Meta's model for the two points."""
    import torch

    with torch.no_grad():
        pixels = torch.tensor(image).permute(2, 0, 1)[None]
        embedding = model.image_encoder((pixels - model.pixel_mean) / model.pixel_std)
        sparse, dense = model.prompt_encoder(
            points=(torch.tensor(POINTS), torch.tensor(LABELS)), boxes=None, masks=None
        )
        masks, scores = model.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
    return masks[0].numpy(), scores[0].numpy()


def hugging_face_model(seed=0, iou_head_depth=3, decoder_heads=4):
    """transformers' `SamModel`, small, every weight random."""
    pytest.importorskip("torch", reason="transformers' SamModel runs on torch")
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 24,
            "output_channels": CHANNELS,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": SIDE,
            "patch_size": PATCH,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": CHANNELS // 2,
            "mlp_dim": 40,
        },
        prompt_encoder_config={
            "hidden_size": CHANNELS,
            "image_size": SIDE,
            "patch_size": PATCH,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": CHANNELS,
            "mlp_dim": 20,
            "num_attention_heads": decoder_heads,
            "iou_head_depth": iou_head_depth,
            "iou_head_hidden_dim": 12,
        },
    )
    return _randomized(transformers.SamModel(config).eval(), seed)


def hugging_face_prediction(model, image=IMAGE):
    """Masks `(K, Lh, Lw)` and scores `(K,)` of `SamModel`: its one mask, then its three."""
    import torch

    pixels = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    inputs = {
        "pixel_values": torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None],
        "input_points": torch.tensor(POINTS)[:, None],
        "input_labels": torch.tensor(LABELS)[:, None],
    }
    masks, scores = [], []
    with torch.no_grad():
        for several in (False, True):
            out = model(**inputs, multimask_output=several)
            masks.append(out.pred_masks[0, 0].numpy())
            scores.append(out.iou_scores[0, 0].numpy())
    return np.concatenate(masks), np.concatenate(scores)


def our_prediction(segmenter, image=IMAGE):
    """Masks and scores of ours for the two points."""
    outputs = segmenter.predict(
        {"images": image[None], "points": POINTS, "labels": LABELS}, verbose=0
    )
    return outputs["masks"][0], outputs["iou_pred"][0]


def assert_same_masks(found, wanted, tolerance=1e-4):
    """Masks and scores equal to `tolerance` of the scale of what is wanted."""
    for ours, theirs in zip(found, wanted):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def _randomized(model, seed):
    """Adds noise to every weight; Meta's biases and transformers' tables start at zero."""
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model
