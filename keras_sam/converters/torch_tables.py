"""The names in torch checkpoints: Meta's, models fine-tuned with its code, and transformers'.

Source:
    https://github.com/facebookresearch/segment-anything at dca509f;
    https://github.com/huggingface/transformers at v5.23.0, models/sam.
"""

from keras_sam.converters.tables import Row, torch_rows, with_prefixes

# Names that every such file has; anything before them is a wrapper's prefix.
META_SIGNATURE = "image_encoder.patch_embed.proj.weight"
ENCODER_SIGNATURE = "patch_embed.proj.weight"
DECODER_SIGNATURE = "iou_token.weight"
PROMPTS_SIGNATURE = "no_mask_embed.weight"
TRANSFORMERS_SIGNATURE = "vision_encoder.patch_embed.projection.weight"
# transformers saves one matrix under two names; files may have either or both.
POSITIONAL = "shared_image_embedding.positional_embedding"
TIED_POSITIONAL = "prompt_encoder.shared_embedding.positional_embedding"

# Our name, the kind of layer, Meta's name, transformers' name.
_ENCODER = (
    *with_prefixes(
        ("", "image_encoder.", "vision_encoder."),
        ("position_embedding/embeddings", "tensor", "pos_embed", "pos_embed"),
        ("patch_embedding", "conv", "patch_embed.proj", "patch_embed.projection"),
        ("neck_conv1", "conv_no_bias", "neck.0", "neck.conv1"),
        ("neck_norm1", "norm", "neck.1", "neck.layer_norm1"),
        ("neck_conv2", "conv_no_bias", "neck.2", "neck.conv2"),
        ("neck_norm2", "norm", "neck.3", "neck.layer_norm2"),
    ),
    *with_prefixes(
        ("block_{i}/", "image_encoder.blocks.{i}.", "vision_encoder.layers.{i}."),
        ("norm1", "norm", "norm1", "layer_norm1"),
        ("attention/rel_pos_h", "tensor", "attn.rel_pos_h", "attn.rel_pos_h"),
        ("attention/rel_pos_w", "tensor", "attn.rel_pos_w", "attn.rel_pos_w"),
        ("attention/qkv", "dense", "attn.qkv", "attn.qkv"),
        ("attention/projection", "dense", "attn.proj", "attn.proj"),
        ("norm2", "norm", "norm2", "layer_norm2"),
        ("mlp/dense_0", "dense", "mlp.lin1", "mlp.lin1"),
        ("mlp/dense_1", "dense", "mlp.lin2", "mlp.lin2"),
    ),
)
_PROMPT_ENCODER = (
    (
        "prompt_encoder/positional_embedding/gaussian_matrix",
        "tensor",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        POSITIONAL,
    ),
    *with_prefixes(
        ("prompt_encoder/", "prompt_encoder.", "prompt_encoder."),
        ("background_point_embed", "embedding", "point_embeddings.0", "point_embed.0"),
        ("foreground_point_embed", "embedding", "point_embeddings.1", "point_embed.1"),
        ("top_left_corner_embed", "embedding", "point_embeddings.2", "point_embed.2"),
        ("bottom_right_corner_embed", "embedding", "point_embeddings.3", "point_embed.3"),
        ("not_a_point_embed", "embedding", "not_a_point_embed", "not_a_point_embed"),
        ("no_mask_embed", "embedding", "no_mask_embed", "no_mask_embed"),
        ("mask_downscaler/conv1", "conv", "mask_downscaling.0", "mask_embed.conv1"),
        ("mask_downscaler/norm1", "norm", "mask_downscaling.1", "mask_embed.layer_norm1"),
        ("mask_downscaler/conv2", "conv", "mask_downscaling.3", "mask_embed.conv2"),
        ("mask_downscaler/norm2", "norm", "mask_downscaling.4", "mask_embed.layer_norm2"),
        ("mask_downscaler/conv3", "conv", "mask_downscaling.6", "mask_embed.conv3"),
    ),
)
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "out"}


def _attention(ours, theirs):
    return [
        (f"{ours}/{q}_proj", "dense", f"{theirs}.{p}_proj", f"{theirs}.{p}_proj")
        for p, q in _PROJECTIONS.items()
    ]


_LAYERS = "mask_decoder.transformer.layers.{i}."
_MASK_DECODER = (
    *with_prefixes(
        ("mask_decoder/", "mask_decoder.", "mask_decoder."),
        ("iou_token", "embedding", "iou_token", "iou_token"),
        ("mask_tokens", "embedding", "mask_tokens", "mask_tokens"),
        ("output_upscaling/conv1", "conv", "output_upscaling.0", "upscale_conv1"),
        ("output_upscaling/norm1", "norm", "output_upscaling.1", "upscale_layer_norm"),
        ("output_upscaling/conv2", "conv", "output_upscaling.3", "upscale_conv2"),
    ),
    *with_prefixes(
        ("mask_decoder/transformer/", "mask_decoder.transformer.", "mask_decoder.transformer."),
        *_attention("final_attention_token_to_image", "final_attn_token_to_image"),
        ("final_layer_norm", "norm", "norm_final_attn", "layer_norm_final_attn"),
    ),
    *with_prefixes(
        ("mask_decoder/transformer/layer_{i}/", _LAYERS, _LAYERS),
        *_attention("self_attention", "self_attn"),
        *_attention("cross_attention_token_to_image", "cross_attn_token_to_image"),
        *_attention("cross_attention_image_to_token", "cross_attn_image_to_token"),
        *((f"layer_norm{n}", "norm", f"norm{n}", f"layer_norm{n}") for n in (1, 2, 3, 4)),
        ("mlp/dense_0", "dense", "mlp.lin1", "mlp.lin1"),
        ("mlp/dense_1", "dense", "mlp.lin2", "mlp.lin2"),
    ),
)
_TABLE = _ENCODER + _PROMPT_ENCODER + _MASK_DECODER
_HEADS = {
    "mask_decoder/hypernetwork_{k}": "mask_decoder.output_hypernetworks_mlps.{k}",
    "mask_decoder/iou_prediction_head": "mask_decoder.iou_prediction_head",
}

META_ROWS = torch_rows(
    [
        *((ours, kind, meta) for ours, kind, meta, _ in _TABLE),
        *(
            (f"{ours}/dense_{{j}}", "dense", f"{head}.layers.{{j}}")
            for ours, head in _HEADS.items()
        ),
    ]
)
ENCODER_ROWS = torch_rows([(ours, kind, meta) for ours, kind, meta, _ in _ENCODER])


def transformers_rows(iou_head_depth: int = 3) -> tuple[Row, ...]:
    """The rows for an IoU head with this many layers; hypernetworks have three."""
    heads = []
    for (ours, head), depth in zip(_HEADS.items(), (3, iou_head_depth), strict=True):
        # The first and the last layer have names, those between them numbers.
        inner = [f"{head}.layers.{j}" for j in range(depth - 2)]
        layers = [f"{head}.proj_in", *inner, f"{head}.proj_out"]
        heads += [(f"{ours}/dense_{j}", "dense", layer) for j, layer in enumerate(layers)]
    table = [(ours, kind, transformers) for ours, kind, _, transformers in _TABLE]
    return torch_rows([*table, *heads])
