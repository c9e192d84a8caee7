# Written by tools/stubs.py.
from keras_sam.layers.conv_norm import ConvNorm as ConvNorm
from keras_sam.layers.tiny_vit import InvertedBottleneck as InvertedBottleneck
from keras_sam.layers.mlp import MLP as MLP
from keras_sam.layers.multi_head_attention import MultiHeadAttentionWithDownsampling as MultiHeadAttentionWithDownsampling
from keras_sam.layers.tiny_vit import OffsetBiasAttention as OffsetBiasAttention
from keras_sam.layers.positional_embedding import RandomFrequencyPositionalEmbeddings as RandomFrequencyPositionalEmbeddings
from keras_sam.layers.sam2_mask_decoder import SAM2MaskDecoder as SAM2MaskDecoder
from keras_sam.layers.hq_mask_decoder import SAMHQMaskDecoder as SAMHQMaskDecoder
from keras_sam.preprocessing.converter import SAMImageConverter as SAMImageConverter
from keras_sam.layers.mask_decoder import SAMMaskDecoder as SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder as SAMPromptEncoder
from keras_sam.layers.tiny_vit import TinyViTBlock as TinyViTBlock
from keras_sam.layers.two_way_transformer import TwoWayMultiHeadAttention as TwoWayMultiHeadAttention
from keras_sam.layers.two_way_transformer import TwoWayTransformer as TwoWayTransformer
from keras_sam.layers.window_attention import WindowAttention as WindowAttention
from keras_sam.layers.window_attention import WindowedTransformerEncoder as WindowedTransformerEncoder

HOMES: dict[str, str]
__all__: list[str]
