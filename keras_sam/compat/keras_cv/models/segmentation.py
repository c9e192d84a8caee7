"""`keras_cv.models.segmentation`: the model, a constructor of ours, and its parts."""

from collections.abc import Sequence
from typing import Any

from keras_sam.compat.constructors import ClassProperty, ConstructsOurs
from keras_sam.compat.keras_cv.models.backbones import ViTDetBackbone
from keras_sam.compat.keras_cv.models.parts import (
    SAMMaskDecoder,
    SAMPromptEncoder,
    TwoWayTransformer,
)
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter

__all__ = ["SAMMaskDecoder", "SAMPromptEncoder", "SegmentAnythingModel", "TwoWayTransformer"]


class SegmentAnythingModel(SAMImageSegmenter, metaclass=ConstructsOurs):
    """Makes a `keras_sam.SAMImageSegmenter` from KerasCV's three parts.

    `presets`, `presets_with_weights` and `presets_without_weights` are those of whole models and
    of `backbone_presets`, which are `ViTDetBackbone.presets`.

    Args:
        backbone: a `ViTDetBackbone`.
        prompt_encoder: a `SAMPromptEncoder`, ours or the one here.
        mask_decoder: a `SAMMaskDecoder`, ours or the one here.
        **kwargs: other arguments of `keras_sam.SAMImageSegmenter`.

    Example:

    ```python
    model = keras_sam.compat.keras_cv.SegmentAnythingModel(
        backbone=tiny_backbone.image_encoder,
        prompt_encoder=tiny_backbone.prompt_encoder,
        mask_decoder=tiny_backbone.mask_decoder,
    )
    images = np.zeros((1, *tiny_backbone.image_shape))
    outputs = model.predict({"images": images, "boxes": [[[[20, 30], [60, 80]]]]}, verbose=0)
    outputs["masks"].shape  # (1, 4, 28, 36)
    ```
    """

    makes = SAMImageSegmenter
    backbone_presets = ClassProperty(lambda cls: ViTDetBackbone.presets)
    presets_with_weights = ClassProperty(
        lambda cls: ViTDetBackbone.presets_with_weights | SAMImageSegmenter.presets
    )
    presets_without_weights = ClassProperty(lambda cls: ViTDetBackbone.presets_without_weights)
    presets = ClassProperty(lambda cls: cls.presets_without_weights | cls.presets_with_weights)

    def __new__(cls, *, backbone, prompt_encoder, mask_decoder, **kwargs: Any):
        return SAMImageSegmenter(SAMBackbone(backbone, prompt_encoder, mask_decoder), **kwargs)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        load_weights: bool | None = None,
        input_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        """`keras_sam.SAMImageSegmenter.from_preset`, whose presets have KerasCV's names.

        Args:
            preset: str. As there, or one of `backbone_presets`, which needs `prompt_encoder` and
                `mask_decoder`, too.
            load_weights: bool or None. None loads weights if there are any.
            input_shape: optional tuple, our `image_shape`.
            **kwargs: passed on to the class.
        """
        shape = {} if input_shape is None else {"image_shape": input_shape}
        if preset in cls.backbone_presets:
            backbone = ViTDetBackbone.from_preset(preset, load_weights, **shape)
            return cls(backbone=backbone, **kwargs)
        return SAMImageSegmenter.from_preset(preset, load_weights, **shape, **kwargs)
