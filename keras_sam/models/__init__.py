"""The models and the preprocessor of the task, under KerasHub's names."""

from keras_sam.namespaces import lazy_names

HOMES = {
    "Backbone": "keras_sam.models.backbone",
    "HieraBackbone": "keras_sam.models.hiera_backbone",
    "ImageSegmenter": "keras_sam.models.image_segmenter",
    "SAM2ImageSegmenter": "keras_sam.models.sam2_image_segmenter",
    "SAM2ImageSegmenterPreprocessor": "keras_sam.preprocessing",
    "SAMBackbone": "keras_sam.models.sam_backbone",
    "SAMHQImageSegmenter": "keras_sam.models.sam_hq_image_segmenter",
    "SAMImageSegmenter": "keras_sam.models.sam_image_segmenter",
    "SAMImageSegmenterPreprocessor": "keras_sam.preprocessing",
    "TinyViTBackbone": "keras_sam.models.tiny_vit_backbone",
    "ViTDetBackbone": "keras_sam.models.vit_det_backbone",
}
__all__, __getattr__, __dir__ = lazy_names(globals(), HOMES)
