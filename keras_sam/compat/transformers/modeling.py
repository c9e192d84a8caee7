"""transformers' `SamModel` and `TFSamModel`, over a segmenter of ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from keras_sam import backends
from keras_sam.compat.tensors import OnDevice, channels_first, channels_last, first_given, like
from keras_sam.compat.transformers.building import build_backbone, config_of
from keras_sam.compat.transformers.configuration import (
    SamConfig,
    SamVisionConfig,
    address_of,
)
from keras_sam.compat.transformers.outputs import (
    SamImageSegmentationOutput,
    SamVisionEncoderOutput,
)
from keras_sam.compat.transformers.prompting import embed_prompts, image_updates, read_prompts
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.notices import notice
from keras_sam.presets.write import convert_checkpoint
from keras_sam.prompts.nested import to_numpy

# What processors return beside a model's inputs, and `model(**inputs)` passes.
_BESIDE_INPUTS = {"original_sizes", "reshaped_input_sizes", "labels"}
# How transformers loads; here files are found and read as by `from_preset`.
_LOADING = {
    *("attn_implementation", "cache_dir", "device_map", "force_download", "from_pt", "from_tf"),
    *("ignore_mismatched_sizes", "local_files_only", "low_cpu_mem_usage", "resume_download"),
    *("token", "trust_remote_code", "use_auth_token", "use_safetensors"),
}


def without_effect(arguments: dict[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Takes out, and names once, what concerns transformers' way of loading and `more`."""
    ignored = sorted(arguments.keys() & {*_LOADING, *more})
    if ignored:
        notice(
            f"{', '.join(ignored)}: transformers' own way of loading, which has no effect here; "
            "see `keras_sam.SAMImageSegmenter.from_preset`.",
            topic="compat: transformers loading",
        )
    return {name: value for name, value in arguments.items() if name not in ignored}


class SamModel(OnDevice):
    """transformers' `SamModel`: a `keras_sam.SAMImageSegmenter` that is called as theirs is.

    Inputs are tensors of any library, or numpy arrays; outputs are of the library of
    `pixel_values` or `image_embeddings`, without gradients: `model.segmenter.fit` trains.

    Args:
        config: a `SamConfig`. The weights are random; see `from_pretrained` for others.

    Call arguments:
        pixel_values: float `(B, 3, S, S)`, as a `SamProcessor` makes them.
        input_points: optional `(B, P, N, 2)`, x y in pixels of the model's frame.
        input_labels: optional int `(B, P, N)`: 1 foreground, 0 background, -1 not-a-point, -10
            padding. Defaults to 1.
        input_boxes: optional `(B, P, 4)`, x1 y1 x2 y2 in pixels of the model's frame.
        input_masks: optional float `(B, 1, L, L)` or `(B, L, L)`, logits; all P prompts of an
            image share them.
        image_embeddings: float `(B, C, Eh, Ew)`, instead of `pixel_values`.
        multimask_output: bool. Masks 1 to 3, or mask 0 alone.
        attention_similarity: optional float, PerSAM's, see `keras_sam.SAMMaskDecoder`.
        target_embedding: optional float, likewise.
        output_attentions: optional bool. Defaults to the config's.
        output_hidden_states: optional bool, likewise.
        return_dict: optional bool, likewise. False: a tuple.

    Returns:
        A `SamImageSegmentationOutput`: `iou_scores` `(B, P, K)`, `pred_masks` `(B, P, K, L, L)`
        and, on request, hidden states and attentions.

    Raises:
        ValueError: if not exactly one of `pixel_values` and `image_embeddings` is given, or a
            prompt is malformed.

    Example:

    ```python
    from keras_sam.compat.transformers import SamModel, SamProcessor

    model = SamModel.from_pretrained("facebook/sam-vit-base")
    processor = SamProcessor.from_pretrained("facebook/sam-vit-base")
    inputs = processor(image, input_points=[[[250, 200]]], return_tensors="np")
    outputs = model(**inputs)
    masks = processor.post_process_masks(
        outputs.pred_masks,
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        return_tensors="np",
    )
    masks[0].shape  # (1, 3, 400, 600)
    ```
    """

    def __init__(self, config: SamConfig):
        self._wrap(SAMImageSegmenter(build_backbone(config)), config)

    def _wrap(self, segmenter, config):
        self.segmenter, self.config = segmenter, config
        # transformers has an epsilon of its own in the blocks, and Meta's in the norm after them.
        for block in segmenter.mask_decoder.transformer.blocks:
            for i in range(1, 5):
                norm = getattr(block, f"layer_norm{i}")
                norm.epsilon = config.mask_decoder_config.layer_norm_eps

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: SamConfig | None = None,
        revision: str | None = None,
        torch_dtype: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a model.

        Args:
            pretrained_model_name_or_path: a repository of the Hugging Face Hub such as
                `facebook/sam-vit-base`, a folder that `save_pretrained` wrote, or whatever else
                `keras_sam.SAMImageSegmenter.from_preset` takes.
            config: optional `SamConfig`, whose `output_...` and `return_dict` then count; sizes
                are those of the file.
            revision: optional str, branch, tag or commit of the repository.
            torch_dtype: optional, `torch.bfloat16` or a name such as `"bfloat16"`.
            dtype: likewise.
            **kwargs: `output_attentions`, `output_hidden_states` and `return_dict`, as in
                `SamConfig`. What concerns transformers' way of loading has no effect.

        Raises:
            TypeError: for an unknown argument.
            ValueError: if there is no such model.
            ConnectionError: if it has to be downloaded and cannot be.
        """
        switches = ("output_attentions", "output_hidden_states", "return_dict")
        chosen = {name: kwargs.pop(name) for name in switches if name in kwargs}
        unknown = sorted(without_effect(kwargs))
        if unknown:
            raise TypeError(f"`from_pretrained` takes no argument {', '.join(unknown)}.")
        address = address_of(pretrained_model_name_or_path, revision)
        given = dtype if dtype is not None else torch_dtype
        policy = None if given in (None, "auto") else str(given).removeprefix("torch.")
        segmenter = SAMImageSegmenter.from_preset(address, dtype=policy)
        model = cls.__new__(cls)
        config = config or config_of(address, segmenter)
        vars(config).update(chosen)
        model._wrap(segmenter, config)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `model.safetensors` and `config.json`, which transformers reads, too."""
        with tempfile.TemporaryDirectory() as folder:
            self.segmenter.save_to_preset(folder)
            convert_checkpoint(folder, save_directory, "transformers")
        self.config.save_pretrained(save_directory)

    @property
    def vision_encoder(self) -> SamVisionModel:
        """The image encoder, called with `pixel_values`."""
        return SamVisionModel.of(self)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self.segmenter.compute_dtype

    def num_parameters(self) -> int:
        """The number of weights."""
        return self.segmenter.count_params()

    def forward(
        self,
        pixel_values: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        image_embeddings: Any = None,
        multimask_output: bool = True,
        attention_similarity: Any = None,
        target_embedding: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SamImageSegmentationOutput | tuple:
        unknown = sorted(set(kwargs) - _BESIDE_INPUTS)
        if unknown:
            raise TypeError(f"The model takes no argument {', '.join(unknown)}.")
        if (pixel_values is None) == (image_embeddings is None):
            raise ValueError(
                "Exactly one of `pixel_values` and `image_embeddings` must be given. Received: "
                f"{'neither' if pixel_values is None else 'both'}."
            )
        attentions = self._chosen(output_attentions, "output_attentions")
        vision = SamVisionEncoderOutput()
        if pixel_values is not None:
            vision = self._encode(pixel_values, attentions, output_hidden_states)
            embeddings = vision.last_hidden_state
        else:
            embeddings = to_numpy(image_embeddings).astype("float32")
        embeddings = channels_last(embeddings)
        prompts = read_prompts(
            self.segmenter, len(embeddings), input_points, input_labels, input_boxes, input_masks
        )
        hooks = {}
        if target_embedding is not None:
            hooks["target_embedding"] = to_numpy(target_embedding)
        if attention_similarity is not None:  # theirs has the axes B and P in one
            similarity = to_numpy(attention_similarity)
            lead = (1, 1) if len(similarity) == 1 else (-1, prompts.num_sets)
            hooks["attention_similarity"] = similarity.reshape(*lead, *similarity.shape[1:])
        outputs = self.segmenter.decode_prompts(
            self.segmenter.checked_features(embeddings),
            prompts,
            backends.PROMPT_CHUNK,
            bool(multimask_output),
            **hooks,
        )
        made = SamImageSegmentationOutput(
            iou_scores=outputs["iou_pred"],
            pred_masks=outputs["masks"],
            vision_hidden_states=vision.hidden_states,
            vision_attentions=vision.attentions,
            mask_decoder_attentions=image_updates(self.segmenter, embeddings, prompts, hooks)
            if attentions
            else None,
        )
        return self._finished(made, first_given(pixel_values, image_embeddings), return_dict)

    __call__ = forward

    def get_image_embeddings(
        self,
        pixel_values: Any,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The embeddings `(B, C, Eh, Ew)` of images, for `image_embeddings`.

        Args:
            pixel_values: float `(B, 3, S, S)`.
            output_attentions: ignored, as in transformers.
            output_hidden_states: likewise.
            return_dict: likewise.
        """
        return like(pixel_values, self._encode(pixel_values, False, False).last_hidden_state)

    def get_prompt_embeddings(
        self,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Embeds prompts.

        Args:
            input_points: see `SamModel`.
            input_labels: see `SamModel`.
            input_boxes: see `SamModel`.
            input_masks: see `SamModel`.

        Returns:
            Tuple of sparse embeddings `(B, P, T, C)`, None without points and boxes, and dense
            ones `(B, C, Eh, Ew)`.
        """
        reference = first_given(input_points, input_boxes, input_masks)
        prompts = read_prompts(
            self.segmenter,
            1 if reference is None else len(reference),
            *(input_points, input_labels, input_boxes, input_masks),
        )
        made = embed_prompts(self.segmenter, prompts)
        dense = backends.to_numpy(made["prompt_dense_embeddings"])[:, 0]
        sparse = backends.to_numpy(made["prompt_sparse_embeddings"])
        absent = input_points is None and input_boxes is None
        return None if absent else like(reference, sparse), like(reference, channels_first(dense))

    def get_image_wide_positional_embeddings(self) -> np.ndarray:
        """The positions of the embedding's cells, float32 array `(1, C, Eh, Ew)`."""
        positions = self.segmenter.prompt_encoder.positional_embedding
        encoded = backends.to_numpy(positions.encode_image(self.segmenter.embedding_size))
        return channels_first(encoded[None])

    # --- inside ---

    def _chosen(self, value, name):
        return getattr(self.config, name) if value is None else value

    def _finished(self, output, reference, return_dict):
        """Every array in the library of `reference`, as a tuple if that is wanted."""
        made = type(output)(
            **{
                name: tuple(like(reference, x) for x in value)
                if isinstance(value, (list, tuple))
                else like(reference, value)
                for name, value in output.items()
            }
        )
        return made if self._chosen(return_dict, "return_dict") else made.to_tuple()

    def _encode(self, pixel_values, attentions, hidden_states):
        """`SamVisionEncoderOutput` of numpy arrays."""
        hidden_states = self._chosen(hidden_states, "output_hidden_states")
        attentions = self._chosen(attentions, "output_attentions")
        encoder = self.segmenter.image_encoder
        # Theirs takes normalised pixels, ours normalises inside.
        pixels = to_numpy(pixel_values)
        h, w, channels = self.segmenter.image_shape
        if pixels.ndim != 4 or pixels.shape[1:] != (channels, h, w):
            raise ValueError(
                f"`pixel_values` must have shape (B, {channels}, {h}, {w}), as a `SamProcessor` of "
                f"this model makes them. Received: shape={pixels.shape}."
            )
        pixels = channels_last(pixels.astype("float32"))
        frames = pixels * np.float32(encoder.pixel_std) + np.float32(encoder.pixel_mean)
        made = self.segmenter.encode_frames(
            frames, return_hidden_states=hidden_states, return_attentions=attentions
        )
        maps = made.get("attentions")
        return SamVisionEncoderOutput(
            last_hidden_state=channels_first(made["image_embeddings"]),
            hidden_states=made.get("hidden_states"),
            attentions=maps and [x.reshape(-1, *x.shape[-2:]) for x in maps],
        )


class TFSamModel(SamModel):
    """transformers' `TFSamModel`, which it dropped in 5.0; see `SamModel`.

    It takes a processor's inputs as one dict, too. There are no tensors of TensorFlow in it: it
    runs on every Keras backend, and answers in TensorFlow's tensors when it gets them.
    """

    def call(
        self,
        pixel_values: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        image_embeddings: Any = None,
        multimask_output: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
        **kwargs: Any,
    ) -> SamImageSegmentationOutput | tuple:
        given = {
            "input_points": input_points,
            "input_labels": input_labels,
            "input_boxes": input_boxes,
            "input_masks": input_masks,
            "image_embeddings": image_embeddings,
        }
        if isinstance(pixel_values, dict):
            kwargs = {**pixel_values, **kwargs}
            given = {k: v for k, v in given.items() if v is not None}
        else:
            given["pixel_values"] = pixel_values
        return self.forward(
            **{**kwargs, **given},
            multimask_output=multimask_output,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    __call__ = call


class SamVisionModel(OnDevice):
    """transformers' `SamVisionModel`: the image encoder alone.

    Args:
        config: a `SamVisionConfig`. The weights are random; see `from_pretrained` for others.

    Call arguments:
        pixel_values: float `(B, 3, S, S)`.
        output_attentions: see `SamModel`.
        output_hidden_states: see `SamModel`.
        return_dict: see `SamModel`.

    Returns:
        A `SamVisionEncoderOutput`.
    """

    def __init__(self, config: SamVisionConfig):
        channels = config.output_channels
        sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
        self._model = SamModel(
            SamConfig(
                config,
                {"hidden_size": channels, **sizes},
                # Not used; as small as it can be.
                {"hidden_size": channels, "num_attention_heads": 1, "mlp_dim": 1},
                initializer_range=config.initializer_range,
            )
        )

    @classmethod
    def of(cls, model: SamModel) -> Self:
        """The image encoder of a whole model."""
        made = cls.__new__(cls)
        made._model = model
        return made

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Takes the image encoder out of a whole model, see `SamModel.from_pretrained`."""
        return cls.of(SamModel.from_pretrained(pretrained_model_name_or_path, **kwargs))

    @property
    def config(self) -> SamVisionConfig:
        """The encoder's config."""
        return self._model.config.vision_config

    def forward(
        self,
        pixel_values: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SamVisionEncoderOutput | tuple:
        if pixel_values is None:
            raise ValueError("`pixel_values` must be given. Received: None.")
        made = self._model._encode(pixel_values, output_attentions, output_hidden_states)
        return self._model._finished(made, pixel_values, return_dict)

    __call__ = forward
