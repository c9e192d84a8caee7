"""The names in SAM-HQ's checkpoints: the released ones, and transformers'.

All of SAM's, and those of the mask decoder's additions.

Source:
    PyPI segment-anything-hq 0.3, modeling/mask_decoder_hq.py;
    https://github.com/huggingface/transformers at v5.23.0, models/sam_hq.
"""

from keras_sam.converters import keras_tables, mobile_sam, sam, torch_tables
from keras_sam.converters.family import (
    Family,
    Format,
    TransformersLayout,
    check_ranks,
    count_layers,
)
from keras_sam.converters.sam_transformers import (
    preprocessor_config,
    transformers_config,
    transformers_hints,
)
from keras_sam.converters.tables import Tensor, to_foreign, torch_rows, with_prefixes

# A name that every such file has, and no SAM's.
_META_SIGNATURE = "hf_token.weight"
_TRANSFORMERS_SIGNATURE = "hq_token.weight"
_OWN_SIGNATURE = "mask_decoder/hq_token"
_SAVED_SIGNATURE = "mask_decoder/vars/2"  # Keras numbers a layer's variables: the token is last

_MLP = "mask_decoder/hq_mlp/dense_{j}"
# Our name, the kind of layer, the released name, transformers' name.
_TABLE = with_prefixes(
    ("mask_decoder/", "mask_decoder.", "mask_decoder."),
    ("hq_token", "embedding", "hf_token", "hq_token"),
    ("early_upscaling/conv1", "conv", "compress_vit_feat.0", "compress_vit_conv1"),
    ("early_upscaling/norm1", "norm", "compress_vit_feat.1", "compress_vit_norm"),
    ("early_upscaling/conv2", "conv", "compress_vit_feat.3", "compress_vit_conv2"),
    ("embedding_upscaling/conv1", "conv", "embedding_encoder.0", "encoder_conv1"),
    ("embedding_upscaling/norm1", "norm", "embedding_encoder.1", "encoder_norm"),
    ("embedding_upscaling/conv2", "conv", "embedding_encoder.3", "encoder_conv2"),
    ("mask_refinement/conv1", "conv", "embedding_maskfeature.0", "mask_conv1"),
    ("mask_refinement/norm1", "norm", "embedding_maskfeature.1", "mask_norm"),
    ("mask_refinement/conv2", "conv", "embedding_maskfeature.3", "mask_conv2"),
)
_META_ADDITIONS = torch_rows(
    [
        *((ours, kind, meta) for ours, kind, meta, _ in _TABLE),
        (_MLP, "dense", "mask_decoder.hf_mlp.layers.{j}"),
    ]
)
_TRANSFORMERS_ADDITIONS = torch_rows(
    [
        *((ours, kind, transformers) for ours, kind, _, transformers in _TABLE),
        (_MLP.format(j=0), "dense", "mask_decoder.hq_mask_mlp.proj_in"),
        (_MLP.format(j=1), "dense", "mask_decoder.hq_mask_mlp.layers.0"),
        (_MLP.format(j=2), "dense", "mask_decoder.hq_mask_mlp.proj_out"),
    ]
)
_OWN_ADDITIONS = keras_tables.keras_rows(
    [
        *((ours, kind, ours) for ours, kind, _, _ in _TABLE[1:]),
        ("mask_decoder/hq_token", "tensor", _SAVED_SIGNATURE),
        (_MLP, "dense", "mask_decoder/hq_mlp/dense_layers/dense{_j}"),
    ]
)
_RELEASED_ROWS = torch_tables.META_ROWS + _META_ADDITIONS
_LIGHT_ROWS = mobile_sam.ROWS + _META_ADDITIONS


def _own_rows(tensors):
    has_tiny_vit = any(name.endswith(mobile_sam.OWN_SIGNATURE) for name in tensors)
    rows = mobile_sam.own_rows(tensors) if has_tiny_vit else keras_tables.OWN_ROWS
    return rows + _OWN_ADDITIONS


def _transformers_rows(tensors):
    inner = count_layers(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")
    return torch_tables.transformers_rows(inner + 2) + _TRANSFORMERS_ADDITIONS


def _has_tiny_vit(arrays):
    return any(name.startswith("patch_embedding_conv1/") for name in arrays)


def meta_rows(arrays) -> tuple:
    """The table of the released names, for either kind of image encoder."""
    return _LIGHT_ROWS if _has_tiny_vit(arrays) else _RELEASED_ROWS


_EARLY_KERNEL = "mask_decoder/early_upscaling/conv1/kernel"


def infer_parts(shapes: dict, hints: dict) -> dict[str, dict]:
    """The parts of the model that variables of these shapes belong to, see `sam.infer_config`."""
    check_ranks(shapes, {_EARLY_KERNEL: 4})
    parts = (mobile_sam if _has_tiny_vit(shapes) else sam).infer_parts(shapes, hints)
    parts["image_encoder"]["config"]["early_features"] = True
    parts["mask_decoder"]["registered_name"] = _CLASSES["mask_decoder"][0]
    parts["mask_decoder"]["config"]["early_dim"] = shapes[_EARLY_KERNEL][-1]
    return parts


def _transformers_hints(config):
    is_whole = config["model_type"] == "sam_hq"
    return transformers_hints({**config, "model_type": "sam"} if is_whole else config)


def _transformers_config(parts):
    if "hidden_sizes" in parts["image_encoder"]:
        raise ValueError(
            "transformers' SamHQModel has no TinyViT, the image encoder of the light SAM-HQ. "
            "Write 'keras_sam' or 'meta'."
        )
    config = transformers_config(parts)
    for name in ("vision", "prompt_encoder", "mask_decoder"):
        inner = config[f"{name}_config"]
        inner["model_type"] = inner["model_type"].replace("sam_", "sam_hq_", 1)
    config["mask_decoder_config"]["vit_dim"] = parts["mask_decoder"]["early_dim"]
    return {**config, "architectures": ["SamHQModel"], "model_type": "sam_hq"}


def _preprocessor_config(parts):
    return {**preprocessor_config(parts), "processor_class": "SamHQProcessor"}


def to_transformers(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names and in the layout of transformers' `SamHQModel`."""
    depth = count_layers(arrays, r".*iou_prediction_head/dense_(\d+)/kernel")
    rows = torch_tables.transformers_rows(depth) + _TRANSFORMERS_ADDITIONS
    tensors = to_foreign(arrays, rows)
    tensors[torch_tables.TIED_POSITIONAL] = tensors[torch_tables.POSITIONAL]
    return tensors


_CLASSES = {
    "image_encoder": (*sam.FAMILY.classes["image_encoder"], mobile_sam.IMAGE_ENCODER_CLASS),
    "prompt_encoder": sam.FAMILY.classes["prompt_encoder"],
    "mask_decoder": ("keras_sam>SAMHQMaskDecoder",),
}

FAMILY = Family(
    name="SAM-HQ",
    task="keras_sam>SAMHQImageSegmenter",
    classes=_CLASSES,
    encoder_paths=f"({sam.FAMILY.encoder_paths}|{mobile_sam.ENCODER_PATHS})",
    formats=(
        Format("SAM-HQ", (f"mask_decoder.{_META_SIGNATURE}",), lambda _: _RELEASED_ROWS),
        Format(
            "light SAM-HQ",
            (f"mask_decoder.{_META_SIGNATURE}",),
            lambda _: _LIGHT_ROWS,
            ignore=mobile_sam.IGNORED,
        ),
        Format(
            "transformers, SAM-HQ",
            (f"mask_decoder.{_TRANSFORMERS_SIGNATURE}",),
            _transformers_rows,
        ),
        Format("keras_sam, SAM-HQ", (_OWN_SIGNATURE,), lambda _: ()),
        Format("keras_sam, SAM-HQ saved by Keras", (_SAVED_SIGNATURE,), _own_rows),
        Format(
            "SAM-HQ, mask decoder alone",
            (_META_SIGNATURE,),
            lambda _: _RELEASED_ROWS,
            add="mask_decoder.",
        ),
        Format(
            "transformers, SAM-HQ's mask decoder alone",
            (_TRANSFORMERS_SIGNATURE,),
            _transformers_rows,
            add="mask_decoder.",
        ),
    ),
    infer_parts=infer_parts,
    meta_rows=meta_rows,
    meta_extras=lambda arrays: mobile_sam.classifier(arrays) if _has_tiny_vit(arrays) else {},
    transformers=TransformersLayout(
        model_types=("sam_hq", "sam_hq_vision_model"),
        hints=_transformers_hints,
        config=_transformers_config,
        preprocessor_config=_preprocessor_config,
        tensors=to_transformers,
    ),
)
