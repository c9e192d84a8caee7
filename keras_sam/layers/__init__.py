"""The layers that models are made of, and the converter of images, under KerasHub's names."""

from keras_sam.namespaces import lazy_names

HOMES = {
    "MLP": "keras_sam.layers.mlp",
    "MultiHeadAttentionWithDownsampling": "keras_sam.layers.multi_head_attention",
    "RandomFrequencyPositionalEmbeddings": "keras_sam.layers.positional_embedding",
    "SAM2MaskDecoder": "keras_sam.layers.sam2_mask_decoder",
    "SAMImageConverter": "keras_sam.preprocessing",
    "SAMMaskDecoder": "keras_sam.layers.mask_decoder",
    "SAMPromptEncoder": "keras_sam.layers.prompt_encoder",
    "TwoWayMultiHeadAttention": "keras_sam.layers.two_way_transformer",
    "TwoWayTransformer": "keras_sam.layers.two_way_transformer",
    "WindowAttention": "keras_sam.layers.window_attention",
    "WindowedTransformerEncoder": "keras_sam.layers.window_attention",
}
__all__, __getattr__, __dir__ = lazy_names(globals(), HOMES)
