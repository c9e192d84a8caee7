"""SAM's three parts wired into one functional model, up to the mask decoder's input."""

import functools
import inspect
from typing import Any

import keras

from keras_sam import presets
from keras_sam.encode_decode import EMBEDDINGS, named_features
from keras_sam.layers.arguments import DType, KeptArguments, Tensor, of_one_kind
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.layers.prompt_tensors import canonical_inputs, check_inputs
from keras_sam.models import preset_models
from keras_sam.models.backbone import Backbone
from keras_sam.models.vit_det_backbone import ViTDetBackbone, check_frame


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMBackbone(KeptArguments, Backbone):
    """Image encoder and prompt encoder in one graph; its outputs are the mask decoder's inputs.

    Args:
        image_encoder: a `ViTDetBackbone`, or any functional model from images
            `(B, H, W, channels)` to embeddings `(B, Eh, Ew, C)`, or to a dict of
            `image_embeddings` and other features `(B, ...)` that the decoder takes by their names.
        prompt_encoder: a `SAMPromptEncoder` for that frame.
        mask_decoder: a `SAMMaskDecoder`; it is not part of this graph, but travels with it:
            `backbone.mask_decoder(**backbone(inputs))` gives masks.
        dtype: optional str or `keras.DTypePolicy` of this model; its parts have policies of
            their own.

    Call arguments:
        inputs: dict of `images` `(B, H, W, channels)`, pixel values 0..255, and the
            canonical prompts in the model frame: `points` `(B, P, T, 2)`, `labels`
            `(B, P, T)`, `masks` `(B, P, Lh, Lw, 1)` and `mask_given` `(B, P)`, where the
            last two have `P = 0` when no image has a mask. Any subset of prompts in the forms
            of `SAMPromptEncoder` is accepted too; a not-a-point token is then appended to
            prompts with points and no box.

    Returns:
        Dict of `image_embeddings` `(B, Eh, Ew, C)`, the encoder's other features if it has any,
        and what `SAMPromptEncoder` returns.

    Raises:
        ValueError: if the parts do not fit together.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, figure 4.

    Example:

    ```python
    backbone = keras_sam.SAMBackbone(
        keras_sam.ViTDetBackbone(
            hidden_size=12,
            num_layers=2,
            intermediate_dim=24,
            num_heads=3,
            global_attention_layer_indices=[1],
            image_shape=(64, 96, 3),
            window_size=3,
            num_output_channels=16,
        ),
        keras_sam.SAMPromptEncoder(
            hidden_size=16, image_embedding_size=(4, 6), input_image_size=(64, 96)
        ),
        keras_sam.SAMMaskDecoder(
            hidden_size=16, intermediate_dim=20, num_heads=2, iou_head_hidden_dim=12
        ),
    )
    outputs = backbone(
        {
            "images": np.zeros((1, 64, 96, 3), "float32"),
            "points": np.array([[[20.0, 30.0]]]),
            "labels": np.array([[1]]),
        }
    )
    outputs["image_embeddings"].shape  # (1, 4, 6, 16)
    ```
    """

    def __init__(
        self,
        image_encoder: ViTDetBackbone,
        prompt_encoder: SAMPromptEncoder,
        mask_decoder: SAMMaskDecoder,
        dtype: DType = None,
        **kwargs: Any,
    ):
        _check_kinds(image_encoder, prompt_encoder, mask_decoder)
        features = named_features(image_encoder.output)
        _check_fit(image_encoder, features[EMBEDDINGS], prompt_encoder, mask_decoder)
        _check_features(features, mask_decoder)
        mask_size = prompt_encoder.mask_size
        inputs = {
            "images": image_encoder.input,
            "points": keras.Input((None, None, 2), dtype="float32", name="points"),
            "labels": keras.Input((None, None), dtype="int32", name="labels"),
            "masks": keras.Input((None, *mask_size, 1), dtype="float32", name="masks"),
            "mask_given": keras.Input((None,), dtype="bool", name="mask_given"),
        }
        outputs = {
            **features,
            **prompt_encoder(**{k: v for k, v in inputs.items() if k != "images"}),
        }
        if not mask_decoder.built:
            mask_decoder.build(features[EMBEDDINGS].shape)
        for layer in (prompt_encoder, mask_decoder):
            preset_models.freeze_as_told(layer)
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        self.keep_arguments(locals())

    @property
    def input_spec(self) -> None:
        # The graph's own specs would refuse the other forms before `call` can convert them.
        return None

    @property
    def embedding_size(self) -> tuple[int, int]:
        """Size `(Eh, Ew)` of the image embedding."""
        return self.prompt_encoder.image_embedding_size

    @functools.cached_property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes, without the axis `B`, of what the image encoder gives the mask decoder."""
        features = named_features(self.image_encoder.output)
        return {name: tuple(x.shape[1:]) for name, x in features.items()}

    @property
    def mask_size(self) -> tuple[int, int]:
        """Size `(Lh, Lw)` of mask prompts and mask logits."""
        return self.prompt_encoder.mask_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape `(H, W, channels)` of the model frame."""
        return tuple(self.image_encoder.input.shape[1:])

    def __call__(self, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        check_inputs(inputs)
        return super().__call__(of_one_kind(inputs), *args, **kwargs)

    def call(
        self, inputs: dict[str, Tensor], training: bool | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        check_frame(inputs["images"], self.image_shape)
        inputs, single_object = canonical_inputs(inputs, self.mask_size)
        outputs = super().call(inputs, training=training)
        if single_object:
            for name in ("sparse_embeddings", "sparse_mask", "dense_embeddings"):
                outputs[f"prompt_{name}"] = outputs[f"prompt_{name}"][:, 0]
        return outputs

    def at_image_shape(self, image_shape: tuple[int, ...]) -> "SAMBackbone":
        """A new backbone with the same weights for another input size.

        Position tables are interpolated as by `from_preset(image_shape=...)`, with the same result.
        Nothing is shared with this backbone.

        Args:
            image_shape: tuple `(H, W)` or `(H, W, channels)` of the new model frame.

        Returns:
            A `SAMBackbone`.

        Raises:
            ValueError: if the sides are not multiples of the patch size.
        """
        return self.from_loaded_preset(presets.adapt(preset_models.in_memory(self), image_shape))

    @classmethod
    def from_loaded_preset(
        cls, preset: presets.Preset, dtype: DType = None, **kwargs: Any
    ) -> "SAMBackbone":
        if "prompt_encoder" not in preset.parts:
            encoder = preset.parts["image_encoder"]["registered_name"].rpartition(">")[2]
            raise ValueError(
                f"The preset holds an image encoder alone. Load it with {encoder}.from_preset, "
                'or into a SAM with `segmenter.load_checkpoint(path, part="image_encoder")`.'
            )
        own, preset = preset_models.split_arguments(cls, preset, kwargs)
        own = {**preset.backbone["config"], **own}
        if dtype is not None:
            own["dtype"] = dtype
        with preset_models.skip_init_for(preset):
            parts = {
                name: preset_models.build_from_config(part, dtype)
                for name, part in preset.parts.items()
            }
            model = cls(**parts, **own)
        preset_models.load_into(model, preset)
        return model

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SAMBackbone":
        config = dict(config)
        for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
            config[part] = keras.layers.deserialize(config[part])
        return cls(**config)


def _check_kinds(image_encoder, prompt_encoder, mask_decoder):
    if not isinstance(image_encoder, keras.Model) or not hasattr(image_encoder, "output"):
        functional = (
            "a functional model, such as `keras.Model(sequential.inputs, sequential.outputs[0])`"
        )
        raise _wrong_kind("image_encoder", image_encoder, functional)
    if not hasattr(prompt_encoder, "image_embedding_size"):
        raise _wrong_kind("prompt_encoder", prompt_encoder, "a `SAMPromptEncoder`")
    if not hasattr(mask_decoder, "hidden_size"):
        raise _wrong_kind("mask_decoder", mask_decoder, "a `SAMMaskDecoder`")


def _wrong_kind(name, part, kind):
    return ValueError(f"`{name}` must be {kind}. Received: a {type(part).__name__}.")


def _check_fit(image_encoder, embeddings, prompt_encoder, mask_decoder):
    embedding = tuple(embeddings.shape[1:])
    wanted = (*prompt_encoder.image_embedding_size, prompt_encoder.hidden_size)
    if embedding != wanted:
        raise ValueError(
            "`prompt_encoder` must expect what `image_encoder` gives, (Eh, Ew, C). Received: an "
            f"encoder of {embedding}, image_embedding_size and hidden_size {wanted}."
        )
    frame = tuple(image_encoder.input.shape[1:3])
    if frame != prompt_encoder.input_image_size:
        raise ValueError(
            "`prompt_encoder.input_image_size` must be the image encoder's (H, W). Received: "
            f"input_image_size={prompt_encoder.input_image_size}, an encoder of {frame}."
        )
    if mask_decoder.hidden_size != prompt_encoder.hidden_size:
        raise ValueError(
            "`mask_decoder.hidden_size` must equal `prompt_encoder.hidden_size`. Received: "
            f"{mask_decoder.hidden_size} and {prompt_encoder.hidden_size}."
        )


def _check_features(features, mask_decoder):
    parameters = inspect.signature(mask_decoder.call).parameters.values()
    takes = {p.name for p in parameters}
    unknown = sorted(set(features) - takes)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = " and ".join(f"`{name}`" for name in unknown)
        raise ValueError(
            "`mask_decoder` must take every feature that `image_encoder` gives. Received: an "
            f"encoder of {named}, and a {type(mask_decoder).__name__}, which takes `{EMBEDDINGS}`. "
            "Make the encoder without them, or use the decoder that they are for."
        )
