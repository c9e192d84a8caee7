"""The task of SAM 2, for images."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam.layers.sam2_mask_decoder import SAM2MaskDecoder
from keras_sam.losses import SAM2Loss
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.preprocessing.preprocessor import SAM2ImageSegmenterPreprocessor

# Where the generator of SAM 2's authors differs from that of SAM's.
_GENERATOR_SETTINGS = {"pred_iou_thresh": 0.8}

# Logits of a mask prompt in SAM 2's training and in its released predictor.
_LARGEST_LOGIT = 32.0


@keras.saving.register_keras_serializable(package="keras_sam")
class SAM2ImageSegmenter(SAMImageSegmenter):
    """SAM 2 for images: `SAMImageSegmenter`, which also says whether there is an object at all.

    It is called, prompted and trained as `SAMImageSegmenter` is. Images are stretched to the
    model's frame, outputs have `object_score`, and a target without a pixel trains that score.

    Args:
        backbone: a `SAMBackbone` with a `SAM2MaskDecoder`.
        preprocessor: optional `SAM2ImageSegmenterPreprocessor`, see `SAMImageSegmenter`.
        generator_settings: optional dict, see `SAMImageSegmenter`. Defaults to what SAM 2's own
            generator has, `pred_iou_thresh=0.8`.
        **kwargs: the other arguments of `SAMImageSegmenter`.

    Call arguments:
        inputs: as for `SAMImageSegmenter`.

    Returns:
        Dict as `SAMImageSegmenter` returns it, and `object_score` `(B, P)`, the logit of there
        being an object.

    Raises:
        ValueError: if the backbone has another mask decoder, and see `SAMImageSegmenter`.

    Source:
        Ravi et al. 2024, https://arxiv.org/abs/2408.00714.

    Example:

    ```python
    encoder = keras_sam.HieraBackbone(
        hidden_size=8,
        num_blocks=[1, 1, 2, 1],
        global_attention_layer_indices=[3],
        image_shape=(64, 96, 3),
        num_output_channels=16,
    )
    prompt_encoder = keras_sam.SAMPromptEncoder(
        hidden_size=16,
        image_embedding_size=(4, 6),
        input_image_size=(64, 96),
        not_a_point_after_boxes=True,
    )
    decoder = keras_sam.SAM2MaskDecoder(
        hidden_size=16, intermediate_dim=20, num_heads=2, iou_head_hidden_dim=12
    )
    segmenter = keras_sam.SAM2ImageSegmenter(
        keras_sam.SAMBackbone(encoder, prompt_encoder, decoder)
    )
    prompts = {"points": [[[20, 30]]], "labels": [[1]]}
    outputs = segmenter.predict({"images": np.zeros((1, 64, 96, 3)), **prompts}, verbose=0)
    outputs["object_score"].shape  # (1,)
    ```
    """

    largest_prompt_logit = _LARGEST_LOGIT
    preprocessor_cls = SAM2ImageSegmenterPreprocessor
    loss_cls = SAM2Loss

    def __init__(
        self,
        backbone: SAMBackbone,
        *args: Any,
        generator_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        decoder = getattr(backbone, "mask_decoder", None)
        if decoder is not None and not isinstance(decoder, SAM2MaskDecoder):
            raise ValueError(
                "`backbone.mask_decoder` must be a `SAM2MaskDecoder`. Received: a "
                f"{type(decoder).__name__}. Use `{SAMImageSegmenter.__name__}` for SAM's."
            )
        if generator_settings is None:
            generator_settings = _GENERATOR_SETTINGS
        super().__init__(backbone, *args, generator_settings=generator_settings, **kwargs)

    def logits_as_prompt(self, logits: Any) -> Any:
        """Mask logits, an array or a tensor, as a later prompt takes them: within -32 and 32."""
        clip = np.clip if isinstance(logits, np.ndarray) else ops.clip
        return clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
