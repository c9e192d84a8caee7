# Written by tools/stubs.py.
from keras_sam.models.backbone import Backbone as Backbone
from keras_sam.models.hiera_backbone import HieraBackbone as HieraBackbone
from keras_sam.models.image_segmenter import ImageSegmenter as ImageSegmenter
from keras_sam.models.sam2_image_segmenter import SAM2ImageSegmenter as SAM2ImageSegmenter
from keras_sam.preprocessing.preprocessor import SAM2ImageSegmenterPreprocessor as SAM2ImageSegmenterPreprocessor
from keras_sam.models.sam_backbone import SAMBackbone as SAMBackbone
from keras_sam.models.sam_hq_image_segmenter import SAMHQImageSegmenter as SAMHQImageSegmenter
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter as SAMImageSegmenter
from keras_sam.preprocessing.preprocessor import SAMImageSegmenterPreprocessor as SAMImageSegmenterPreprocessor
from keras_sam.models.tiny_vit_backbone import TinyViTBackbone as TinyViTBackbone
from keras_sam.models.vit_det_backbone import ViTDetBackbone as ViTDetBackbone

HOMES: dict[str, str]
__all__: list[str]
