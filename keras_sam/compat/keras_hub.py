"""KerasHub's two namespaces with our classes in them, whose names are KerasHub's already."""

from types import SimpleNamespace

from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.models.backbone import Backbone
from keras_sam.models.image_segmenter import ImageSegmenter
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.vit_det_backbone import ViTDetBackbone
from keras_sam.preprocessing import SAMImageConverter, SAMImageSegmenterPreprocessor

models = SimpleNamespace(
    Backbone=Backbone,
    ImageSegmenter=ImageSegmenter,
    SAMBackbone=SAMBackbone,
    SAMImageSegmenter=SAMImageSegmenter,
    SAMImageSegmenterPreprocessor=SAMImageSegmenterPreprocessor,
    ViTDetBackbone=ViTDetBackbone,
)
layers = SimpleNamespace(
    SAMImageConverter=SAMImageConverter,
    SAMMaskDecoder=SAMMaskDecoder,
    SAMPromptEncoder=SAMPromptEncoder,
)
