"""The model and its config: ours, on normalised images and with tfimm's three outputs."""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_sam import converters
from keras_sam.compat.tfimm.models import register_model
from keras_sam.layers.arguments import Tensor, of_one_kind
from keras_sam.layers.initialization import skip_init
from keras_sam.layers.mask_decoder import SAMMaskDecoder
from keras_sam.layers.prompt_encoder import SAMPromptEncoder
from keras_sam.layers.prompt_tensors import canonical_inputs
from keras_sam.models import preset_models
from keras_sam.models.sam_backbone import SAMBackbone
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.vit_det_backbone import ViTDetBackbone
from keras_sam.presets import adapt, read_preset
from keras_sam.prompts import CANONICAL_KEYS

_PACKAGE = "keras_sam.compat.tfimm"
_LAYER_NORM_EPSILONS = {"layer_norm": 1e-5, "layer_norm_eps_1e-6": 1e-6}


@dataclasses.dataclass
class SegmentAnythingModelConfig:
    """What a model is made of.

    Args:
        name: str. The model's name.
        url: str. The preset that holds its weights, empty if there is none.
        in_channels: int. Channels of the images.
        input_size: tuple `(H, W)` of the model's frame.
        fixed_input_size: bool. Off: images of other sizes are taken, too, and the position tables
            interpolated for them.
        embed_dim: int. Channels of the image's and the prompts' embeddings.
        nb_multimask_outputs: int. Masks for an ambiguous prompt.
        mask_threshold: float. Logits above it belong to the mask.
        encoder_patch_size: int. Side of a patch in pixels.
        encoder_embed_dim: int. Channels of the encoder's blocks.
        encoder_nb_blocks: int.
        encoder_nb_heads: int.
        encoder_mlp_ratio: float. Hidden channels of the blocks' MLPs, by the blocks' channels.
        encoder_drop_rate: float. Dropout in the blocks.
        encoder_attn_drop_rate: float. Dropout of the attention maps.
        encoder_drop_path_rate: float. Chance that the last block's branches are dropped; it grows
            linearly from 0 at the first block, where tfimm's is the same for all.
        encoder_norm_layer: `"layer_norm"` or `"layer_norm_eps_1e-6"`.
        encoder_act_layer: str. Activation of the blocks' MLPs.
        encoder_qkv_bias: bool.
        encoder_global_attn_indices: tuple of ints. Blocks that attend over the whole image.
        encoder_window_size: int. Side of the other blocks' windows, in patches.
        prompt_mask_hidden_dim: int. Channels inside the mask prompts' convolutions.
        decoder_nb_blocks: int.
        decoder_nb_heads: int.
        decoder_mlp_channels: int. Hidden channels of the decoder's MLPs.
        decoder_iou_head_depth: int. Layers of the head that predicts the masks' quality.
        decoder_iou_hidden_dim: int. Its hidden channels.
        mean: tuple of floats. What `create_preprocessing` subtracts from images 0..1.
        std: tuple of floats. What it divides by.
        first_conv: str. Kept, and not used.
    """

    name: str = ""
    url: str = ""
    in_channels: int = 3
    input_size: tuple[int, int] = (1024, 1024)
    fixed_input_size: bool = True
    embed_dim: int = 256
    nb_multimask_outputs: int = 3
    mask_threshold: float = 0.0
    encoder_patch_size: int = 16
    encoder_embed_dim: int = 768
    encoder_nb_blocks: int = 12
    encoder_nb_heads: int = 12
    encoder_mlp_ratio: float = 4.0
    encoder_drop_rate: float = 0.0
    encoder_attn_drop_rate: float = 0.0
    encoder_drop_path_rate: float = 0.0
    encoder_norm_layer: str = "layer_norm_eps_1e-6"
    encoder_act_layer: str = "gelu"
    encoder_qkv_bias: bool = True
    encoder_global_attn_indices: tuple[int, ...] = (2, 5, 8, 11)
    encoder_window_size: int = 14
    prompt_mask_hidden_dim: int = 16
    decoder_nb_blocks: int = 2
    decoder_nb_heads: int = 8
    decoder_mlp_channels: int = 2048
    decoder_iou_head_depth: int = 3
    decoder_iou_hidden_dim: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    first_conv: str = "image_encoder/patch_embed/proj"

    def __post_init__(self) -> None:
        if not isinstance(self.input_size, (tuple, list)) or len(self.input_size) != 2:
            raise ValueError(
                "`input_size` must be a pair of ints, (H, W). "
                f"Received: input_size={self.input_size!r}."
            )
        for name in ("input_size", "encoder_global_attn_indices", "mean", "std"):
            setattr(self, name, tuple(getattr(self, name)))  # JSON has lists
        if self.encoder_norm_layer not in _LAYER_NORM_EPSILONS:
            raise ValueError(
                f"`encoder_norm_layer` must be one of {list(_LAYER_NORM_EPSILONS)}. "
                f"Received: encoder_norm_layer={self.encoder_norm_layer!r}."
            )


def _backbone(cfg):
    image_encoder = ViTDetBackbone(
        hidden_size=cfg.encoder_embed_dim,
        num_layers=cfg.encoder_nb_blocks,
        intermediate_dim=int(cfg.encoder_embed_dim * cfg.encoder_mlp_ratio),
        num_heads=cfg.encoder_nb_heads,
        global_attention_layer_indices=cfg.encoder_global_attn_indices,
        image_shape=(*cfg.input_size, cfg.in_channels),
        patch_size=cfg.encoder_patch_size,
        num_output_channels=cfg.embed_dim,
        use_bias=cfg.encoder_qkv_bias,
        window_size=cfg.encoder_window_size,
        layer_norm_epsilon=_LAYER_NORM_EPSILONS[cfg.encoder_norm_layer],
        activation=cfg.encoder_act_layer,
        dropout_rate=cfg.encoder_drop_rate,
        attention_dropout_rate=cfg.encoder_attn_drop_rate,
        drop_path_rate=cfg.encoder_drop_path_rate,
        **_statistics(cfg),
    )
    prompt_encoder = SAMPromptEncoder(
        hidden_size=cfg.embed_dim,
        image_embedding_size=image_encoder.embedding_size,
        input_image_size=cfg.input_size,
        mask_in_channels=cfg.prompt_mask_hidden_dim,
    )
    mask_decoder = SAMMaskDecoder(
        hidden_size=cfg.embed_dim,
        num_layers=cfg.decoder_nb_blocks,
        num_heads=cfg.decoder_nb_heads,
        intermediate_dim=cfg.decoder_mlp_channels,
        num_multimask_outputs=cfg.nb_multimask_outputs,
        iou_head_depth=cfg.decoder_iou_head_depth,
        iou_head_hidden_dim=cfg.decoder_iou_hidden_dim,
    )
    return SAMBackbone(image_encoder, prompt_encoder, mask_decoder)


def _statistics(cfg):
    """No normalisation in the graph: images come normalised."""
    return {"pixel_mean": [0.0] * cfg.in_channels, "pixel_std": [1.0] * cfg.in_channels}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SegmentAnythingModel(keras.Model):
    """Segment Anything on normalised images of the model's frame, with prompts in its pixels.

    `image_encoder`, `prompt_encoder` and `mask_decoder` are ours, and so is `segmenter`, which
    has them all. A `SAMPredictor` is the way for photographs.

    Args:
        cfg: a `SegmentAnythingModelConfig`, or a dict of its fields.
        **kwargs: other arguments of `keras.Model`.

    Call arguments:
        inputs: dict of `images` `(N, H, W, C)` and any of `points` `(N, M1, 2)` with `labels`
            `(N, M1)`, 1 foreground and 0 background; `boxes` `(N, M2, 4)`, x1, y1, x2, y2; and
            `masks` `(N, M3, H', W')` of logits, all of them of one object per image, in pixels of
            the frame.
        training: bool.
        multimask_output: bool. The masks of an ambiguous prompt, instead of the one mask.
        return_logits: bool. Logits of the frame's size instead of masks.

    Returns:
        Tuple of masks, bool `(N, K, H, W)`, or float with `return_logits=True`; scores `(N, K)`;
        and logits `(N, K, H', W')`, to be passed as `masks` again.

    Raises:
        ValueError: if there is no prompt, or images have another size and `fixed_input_size` is
            on.

    Example:

    ```python
    model = SegmentAnythingModel(
        SegmentAnythingModelConfig(
            input_size=(64, 96),
            embed_dim=16,
            encoder_embed_dim=12,
            encoder_nb_blocks=2,
            encoder_nb_heads=3,
            encoder_global_attn_indices=(1,),
            decoder_nb_heads=2,
            decoder_mlp_channels=20,
        )
    )
    masks, scores, logits = model(model.dummy_inputs, multimask_output=True)
    masks.shape, logits.shape  # ((1, 3, 64, 96), (1, 3, 16, 24))
    ```
    """

    cfg_class = SegmentAnythingModelConfig

    def __init__(self, cfg: SegmentAnythingModelConfig | dict, **kwargs: Any):
        cfg = self.cfg_class(**cfg) if isinstance(cfg, dict) else cfg
        super().__init__(**{"name": cfg.name or None, **kwargs})
        self.cfg = cfg
        self.segmenter = SAMImageSegmenter(_backbone(cfg), mask_threshold=cfg.mask_threshold)
        self.built = True  # its parts are

    @classmethod
    def with_weights(cls, cfg: SegmentAnythingModelConfig, source: str) -> "SegmentAnythingModel":
        """A model with the weights of a preset, or of a file that `model.save` wrote.

        Args:
            cfg: the config, by whose frame and channels the weights are adapted.
            source: what `keras_sam.SAMImageSegmenter.from_preset` takes, or a `.keras` file.
        """
        frame = {"image_shape": (*cfg.input_size, cfg.in_channels), **_statistics(cfg)}
        saved = converters.read_keras_config(source) if source.endswith(".keras") else None
        if saved and saved["registered_name"] == f"{_PACKAGE}>{cls.__name__}":
            loaded = keras.saving.load_model(source, compile=False)
            preset = adapt(preset_models.in_memory(loaded.segmenter.backbone), **frame)
        else:
            preset = read_preset(source, load_weights=True, **frame)
        return cls._loaded(cfg, preset)

    @classmethod
    def _loaded(cls, cfg, preset):
        with skip_init():
            model = cls(cfg)
        preset_models.load_into(model.segmenter.backbone, preset)
        return model

    @property
    def image_encoder(self) -> keras.Model:
        """The image encoder, from normalised images to embeddings."""
        return self.segmenter.image_encoder

    @property
    def prompt_encoder(self) -> keras.layers.Layer:
        """The prompt encoder, called as ours."""
        return self.segmenter.prompt_encoder

    @property
    def mask_decoder(self) -> keras.layers.Layer:
        """The mask decoder, called as ours."""
        return self.segmenter.mask_decoder

    @property
    def mask_threshold(self) -> float:
        """Logits above it belong to the mask."""
        return self.cfg.mask_threshold

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Zeros of the right shapes: one image, one point, one box and one mask."""
        return {
            "images": ops.zeros((1, *self.cfg.input_size, self.cfg.in_channels)),
            "points": ops.zeros((1, 1, 2)),
            "labels": ops.zeros((1, 1)),
            "boxes": ops.zeros((1, 1, 4)),
            "masks": ops.zeros((1, 1, *self.mask_size())),
        }

    def grid_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Size `(H'', W'')` of the image embedding, of the config's or another `input_size`."""
        height, width = input_size or self.cfg.input_size
        return height // self.cfg.encoder_patch_size, width // self.cfg.encoder_patch_size

    def mask_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Size `(H', W')` of mask prompts and logits, of the config's or another `input_size`."""
        height, width = self.grid_size(input_size)
        return 4 * height, 4 * width

    def get_image_pe(self, image_embeddings: Tensor) -> Tensor:
        """Positional encodings `(N, H'', W'', D)` of the cells of image embeddings."""
        encoding = self.prompt_encoder.positional_embedding.encode_image(
            image_embeddings.shape[1:3]
        )
        return ops.broadcast_to(encoding, image_embeddings.shape)

    def at_input_size(self, input_size: tuple[int, int]) -> "SegmentAnythingModel":
        """The model for images of a size: itself, or a copy for another frame.

        Args:
            input_size: pair of ints `(H, W)`.

        Raises:
            ValueError: if the model takes images of its own size alone.
        """
        input_size = tuple(input_size)
        if input_size == self.cfg.input_size:
            return self
        if self.cfg.fixed_input_size:
            raise ValueError(
                f"`images` must have the model's size, {self.cfg.input_size}. Received: "
                f"{input_size}. Make the model with `input_size=` or `fixed_input_size=False`, or "
                "use `SAMPredictor`, which resizes."
            )
        preset = adapt(preset_models.in_memory(self.segmenter.backbone), input_size)
        return self._loaded(dataclasses.replace(self.cfg, input_size=input_size), preset)

    def __call__(self, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if not isinstance(inputs, dict) or "images" not in inputs:
            raise ValueError(
                "`inputs` must be a dict of `images` and of the prompts, see `dummy_inputs`. "
                f"Received: {type(inputs).__name__}"
                f"{f' of {sorted(inputs)}' if isinstance(inputs, dict) else ''}."
            )
        inputs = of_one_kind(inputs)
        model = self.at_input_size(inputs["images"].shape[1:3])  # its own graph, not inside of ours
        return super(SegmentAnythingModel, model).__call__(inputs, *args, **kwargs)

    def call(
        self,
        inputs: dict[str, Tensor],
        training: bool = False,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        embeddings = self.image_encoder(inputs["images"], training=training)
        logits, scores = decode(self.segmenter, embeddings, inputs, multimask_output, training)
        masks = self.postprocess_logits(logits, self.cfg.input_size, return_logits)
        return masks, scores, logits

    def postprocess_logits(
        self, logits: Tensor, input_size: tuple[int, int], return_logits: bool
    ) -> Tensor:
        """Logits `(N, K, H', W')` enlarged to the frame, `(N, K, H, W)`, and their threshold.

        Args:
            logits: float tensor.
            input_size: pair of ints `(H, W)`.
            return_logits: bool. Without the threshold.
        """
        masks = ops.image.resize(
            ops.transpose(logits, (0, 2, 3, 1)), input_size, data_format="channels_last"
        )
        masks = ops.transpose(masks, (0, 3, 1, 2))
        return masks if return_logits else masks > self.mask_threshold

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cfg": dataclasses.asdict(self.cfg)}


def decode(
    segmenter: SAMImageSegmenter,
    image_embeddings: Tensor,
    inputs: dict[str, Tensor],
    multimask_output: bool,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits `(N, K, H', W')` and scores `(N, K)` of prompts as `SegmentAnythingModel` takes them.

    An object may have several masks here, whose embeddings are added up.
    """
    given = {k: x for k, x in inputs.items() if k in ("points", "labels", "boxes") and x.shape[1]}
    masks = inputs.get("masks")
    with_masks = masks is not None and masks.shape[1] > 0
    prompts = {}
    if given or not with_masks:
        prompts = _embed(segmenter, {k: ops.expand_dims(x, 1) for k, x in given.items()})
    if with_masks:
        of_masks = _embed(segmenter, {"masks": ops.expand_dims(masks, -1)})
        names = ("prompt_sparse_embeddings", "prompt_sparse_mask")  # of no token
        prompts = {**of_masks, **{name: of_masks[name][:, :1] for name in names}, **prompts}
        dense = of_masks["prompt_dense_embeddings"]  # (N, M3, H'', W'', D)
        prompts["prompt_dense_embeddings"] = ops.sum(dense, axis=1, keepdims=True)
    outputs = segmenter.mask_decoder(
        image_embeddings=image_embeddings,
        **prompts,
        multimask_output=bool(multimask_output),
        training=training,
    )
    return outputs["masks"][:, 0], outputs["iou_pred"][:, 0]


def _embed(segmenter, prompts):
    """The prompt encoder's embeddings of prompts that have the axis P."""
    canonical, _ = canonical_inputs({"images": None, **prompts}, segmenter.mask_size)
    return segmenter.prompt_encoder(**{name: canonical[name] for name in CANONICAL_KEYS})


def _released(name, preset, **settings):
    return SegmentAnythingModel, SegmentAnythingModelConfig(name=name, url=preset, **settings)


@register_model
def sam_vit_b():
    """ViT-B, the released model with 94 million weights."""
    return _released("sam_vit_b", "sam_base_sa1b")


@register_model
def sam_vit_l():
    """ViT-L, the released model with 312 million weights."""
    return _released(
        "sam_vit_l",
        "sam_large_sa1b",
        encoder_embed_dim=1024,
        encoder_nb_blocks=24,
        encoder_nb_heads=16,
        encoder_global_attn_indices=(5, 11, 17, 23),
    )


@register_model
def sam_vit_h():
    """ViT-H, the released model with 641 million weights."""
    return _released(
        "sam_vit_h",
        "sam_huge_sa1b",
        encoder_embed_dim=1280,
        encoder_nb_blocks=32,
        encoder_nb_heads=16,
        encoder_global_attn_indices=(7, 15, 23, 31),
    )
