"""SAM-HQ: Segment Anything with finer outlines."""

from __future__ import annotations

from typing import Any

import keras

from keras_sam.layers.hq_mask_decoder import SAMHQMaskDecoder
from keras_sam.models.fine_tuning import PARTS
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.preprocessing.preprocessor import SAMImageSegmenterPreprocessor

_SAM_DECODER = "sam_decoder"


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMHQImageSegmenter(SAMImageSegmenter):
    """SAM-HQ: `SAMImageSegmenter` with a decoder whose masks have finer outlines.

    All of SAM's weights are in it, as they were, and 0.4 to 1.6 million more in the decoder. Each
    mask is the sum of SAM's and of one more token's, which reads early features of the image, too.
    `encode` returns these as `early_features`.

    Masks of one prompt: without `multimask_output`, as `predict` returns them, there are `K`, SAM's
    each with the token's added. With `multimask_output=True`, the default of `SAMPredictor` and of
    the mask generator, there is one, as in the released code: the candidate with the highest score.

    To train as its authors did, leave all that SAM has as it is, and compare the token's mask alone
    with the targets:

    ```python
    segmenter.freeze("image_encoder", "prompt_encoder", "sam_decoder")
    segmenter.hq_token_only = True
    segmenter.compile(keras.optimizers.AdamW(1e-3))
    segmenter.fit(dataset)
    segmenter.hq_token_only = False
    ```

    Args:
        backbone: a `SAMBackbone` with a `SAMHQMaskDecoder`, and an image encoder that returns
            `early_features`.
        preprocessor: as for `SAMImageSegmenter`.
        mask_threshold: float. Logits above it belong to the mask. Defaults to `0.0`.
        hq_token_only: optional bool. Whether masks are the token's alone, without SAM's. By default
            as the decoder was made, with `False`.

    Call arguments:
        inputs: as in `SAMImageSegmenter`, with `early_features` beside `image_embeddings`.

    Returns:
        As `SAMImageSegmenter`.

    Raises:
        ValueError: as `SAMImageSegmenter`, and if the decoder is another.

    Source:
        Ke et al. 2023, https://arxiv.org/abs/2306.01567.

    Example:

    ```python
    encoder = keras_sam.ViTDetBackbone(
        hidden_size=12,
        num_layers=2,
        intermediate_dim=24,
        num_heads=3,
        global_attention_layer_indices=[1],
        image_shape=(64, 96, 3),
        window_size=3,
        num_output_channels=16,
        early_features=True,
    )
    prompt_encoder = keras_sam.SAMPromptEncoder(
        hidden_size=16, image_embedding_size=(4, 6), input_image_size=(64, 96)
    )
    decoder = keras_sam.SAMHQMaskDecoder(
        early_dim=12, hidden_size=16, intermediate_dim=20, num_heads=2, iou_head_hidden_dim=12
    )
    segmenter = keras_sam.SAMHQImageSegmenter(
        keras_sam.SAMBackbone(encoder, prompt_encoder, decoder)
    )
    prompts = {"points": [[[20, 30]]], "labels": [[1]]}
    segmenter.predict({"images": np.zeros((1, 64, 96, 3)), **prompts}, verbose=0)["masks"].shape
    # (1, 4, 16, 24)
    ```
    """

    parts = (*PARTS, _SAM_DECODER)

    def __init__(
        self,
        backbone: SAMBackbone,
        preprocessor: SAMImageSegmenterPreprocessor | None = None,
        mask_threshold: float = 0.0,
        hq_token_only: bool | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        decoder = getattr(backbone, "mask_decoder", None)
        if decoder is not None and not isinstance(decoder, SAMHQMaskDecoder):
            raise ValueError(
                "`backbone.mask_decoder` must be a `SAMHQMaskDecoder`. Received: a "
                f"{type(decoder).__name__}. A SAM with that is a `SAMImageSegmenter`."
            )
        super().__init__(backbone, preprocessor, mask_threshold, dtype, **kwargs)
        if hq_token_only is not None:
            self.hq_token_only = hq_token_only

    @property
    def hq_token_only(self) -> bool:
        """Whether masks are the additional token's alone; may be set at any time."""
        return self.mask_decoder.hq_token_only

    @hq_token_only.setter
    def hq_token_only(self, value: bool) -> None:
        self.mask_decoder.hq_token_only = bool(value)
        # What Keras has compiled for `fit` and `evaluate` computes what was set before.
        self.train_function = self.test_function = None

    def _set_trainable(self, part, value):
        """`"sam_decoder"` is the part of the mask decoder that SAM has, too."""
        if part != _SAM_DECODER:
            super()._set_trainable(part, value)
            return
        for variable in self._sam_decoder_weights():
            variable.trainable = value

    def _sam_decoder_weights(self):
        added = {id(variable) for variable in self.mask_decoder.hq_weights()}
        return [v for v in self.mask_decoder.weights if id(v) not in added]

    def get_config(self) -> dict[str, Any]:
        is_trained = any(variable.trainable for variable in self._sam_decoder_weights())
        own = {"hq_token_only": self.hq_token_only, f"{_SAM_DECODER}_trainable": is_trained}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SAMHQImageSegmenter:
        config = dict(config)
        is_trained = config.pop(f"{_SAM_DECODER}_trainable", True)
        segmenter = super().from_config(config)
        if not is_trained:
            segmenter.freeze(_SAM_DECODER)
        return segmenter
