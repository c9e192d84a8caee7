"""The layers that models are made of, and the converter of images, under KerasHub's names."""

from keras_sam.namespaces import lazy_names

HOMES = {
    "ConvNorm": "keras_sam.layers.conv_norm",
    "InvertedBottleneck": "keras_sam.layers.tiny_vit",
    "MLP": "keras_sam.layers.mlp",
    "MultiHeadAttentionWithDownsampling": "keras_sam.layers.multi_head_attention",
    "OffsetBiasAttention": "keras_sam.layers.tiny_vit",
    "RandomFrequencyPositionalEmbeddings": "keras_sam.layers.positional_embedding",
    "SAM2MaskDecoder": "keras_sam.layers.sam2_mask_decoder",
    "SAMHQMaskDecoder": "keras_sam.layers.hq_mask_decoder",
    "SAMImageConverter": "keras_sam.preprocessing",
    "SAMMaskDecoder": "keras_sam.layers.mask_decoder",
    "SAMPromptEncoder": "keras_sam.layers.prompt_encoder",
    "TinyViTBlock": "keras_sam.layers.tiny_vit",
    "TwoWayMultiHeadAttention": "keras_sam.layers.two_way_transformer",
    "TwoWayTransformer": "keras_sam.layers.two_way_transformer",
    "WindowAttention": "keras_sam.layers.window_attention",
    "WindowedTransformerEncoder": "keras_sam.layers.window_attention",
}
__all__, __getattr__, __dir__ = lazy_names(globals(), HOMES)
