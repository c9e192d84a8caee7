"""The names in MobileSAM's checkpoints: Meta's, with TinyViT as the image encoder.

Source:
    https://github.com/ChaoningZhang/MobileSAM, `mobile_sam/modeling/tiny_vit_sam.py`. The `vit_t`
    files of micro-sam have the same names.
"""

import itertools
import math

import numpy as np

from keras_sam.converters import keras_tables, sam
from keras_sam.converters.family import Family, Format, check_ranks, count_layers
from keras_sam.converters.tables import Tensor, keras_rows, torch_rows
from keras_sam.converters.torch_tables import META_ROWS

IMAGE_ENCODER_CLASS = "keras_sam>TinyViTBackbone"
# Names that every such file has; anything before them is a wrapper's prefix.
ENCODER_SIGNATURE = "patch_embed.seq.0.c.weight"
SIGNATURE = f"image_encoder.{ENCODER_SIGNATURE}"
PLAIN_SIGNATURE = "patch_embedding_conv1/conv/kernel"
OWN_SIGNATURE = "layers/tiny_vi_t_block/norm/vars/0"
# What the encoder's variables start with.
ENCODER_PATHS = r"(patch_embedding_conv\d|stage_\d+_(block_\d+|merge)|neck_(conv|norm)\d)/"
# Tensors that are no variables: the classifier that TinyViT was trained with, which is never
# called, the count of batch norm's training steps, and what is computed from the settings.
IGNORED = (
    r"(.*\.)?(norm_head|head)\.(weight|bias)",
    r".*\.num_batches_tracked",
    r".*\.attn\.(attention_bias_idxs|ab)",
)
# Classes of that classifier, which MobileSAM's code asks for when it loads a file.
_CLASSES = 1000


def _conv_norm(ours, theirs, kind="conv_no_bias"):
    return [(f"{ours}/conv", kind, f"{theirs}.c"), (f"{ours}/norm", "batch_norm", f"{theirs}.bn")]


def _bottleneck(ours, theirs):
    kinds = ("conv_no_bias", "depthwise", "conv_no_bias")
    parts = [
        _conv_norm(f"{ours}/conv{n}", f"{theirs}.conv{n}", kind)
        for n, kind in enumerate(kinds, start=1)
    ]
    return [row for part in parts for row in part]


_BLOCK, _THEIRS = "stage_{i}_block_{j}", "image_encoder.layers.{i}.blocks.{j}"
_ENCODER = (
    *_conv_norm("patch_embedding_conv1", "image_encoder.patch_embed.seq.0"),
    *_conv_norm("patch_embedding_conv2", "image_encoder.patch_embed.seq.2"),
    *_bottleneck(_BLOCK, _THEIRS),
    *_bottleneck("stage_{i}_merge", "image_encoder.layers.{i}.downsample"),
    (f"{_BLOCK}/attention/offset_bias", "tensor", f"{_THEIRS}.attn.attention_biases"),
    (f"{_BLOCK}/attention/norm", "norm", f"{_THEIRS}.attn.norm"),
    (f"{_BLOCK}/attention/qkv", "dense", f"{_THEIRS}.attn.qkv"),
    (f"{_BLOCK}/attention/projection", "dense", f"{_THEIRS}.attn.proj"),
    *_conv_norm(f"{_BLOCK}/local_conv", f"{_THEIRS}.local_conv", "depthwise"),
    (f"{_BLOCK}/norm", "norm", f"{_THEIRS}.mlp.norm"),
    (f"{_BLOCK}/mlp/dense_0", "dense", f"{_THEIRS}.mlp.fc1"),
    (f"{_BLOCK}/mlp/dense_1", "dense", f"{_THEIRS}.mlp.fc2"),
    ("neck_conv1", "conv_no_bias", "image_encoder.neck.0"),
    ("neck_norm1", "norm", "image_encoder.neck.1"),
    ("neck_conv2", "conv_no_bias", "image_encoder.neck.2"),
    ("neck_norm2", "norm", "image_encoder.neck.3"),
)
ENCODER_ROWS = torch_rows(_ENCODER)
ROWS = ENCODER_ROWS + tuple(r for r in META_ROWS if not r.foreign.startswith("image_encoder."))


def own_rows(tensors: dict) -> tuple:
    """The rows for a file that Keras saved, where blocks are numbered without their stages.

    Stages are told apart by their widths, heads and windows.
    """
    pattern = "layers/tiny_vi_t_block{}/"
    blocks = []
    while (block := pattern.format(f"_{len(blocks)}" if blocks else "")) + "norm/vars/0" in tensors:
        shapes = (tensors.get(block + name) for name in ("norm/vars/0", "attention/vars/0"))
        blocks.append((block, [getattr(tensor, "shape", None) for tensor in shapes]))
    stages = [[b for b, _ in same] for _, same in itertools.groupby(blocks, key=lambda b: b[1])]
    last = count_layers(
        (name.replace("bottleneck/", "bottleneck_0/") for name in tensors),
        r"layers/inverted_bottleneck_(\d+)/conv1/conv/vars/0",
    )
    bottlenecks = [f"stage_0_block_{j}" for j in range(last - len(stages))]
    bottlenecks += [f"stage_{i}_merge" for i in range(len(stages))]
    table = [
        *_own_conv_norm("patch_embedding_conv1", "layers/conv_norm"),
        *_own_conv_norm("patch_embedding_conv2", "layers/conv_norm_1"),
        ("neck_conv1", "conv_no_bias", "layers/conv2d"),
        ("neck_norm1", "norm", "layers/layer_normalization"),
        ("neck_conv2", "conv_no_bias", "layers/conv2d_1"),
        ("neck_norm2", "norm", "layers/layer_normalization_1"),
    ]
    for n, ours in enumerate(bottlenecks):
        theirs = f"layers/inverted_bottleneck{f'_{n}' if n else ''}"
        for part in ("conv1", "conv2", "conv3"):
            table += _own_conv_norm(f"{ours}/{part}", f"{theirs}/{part}")
    for i, stage in enumerate(stages, start=1):
        for j, block in enumerate(stage):
            ours = f"stage_{i}_block_{j}/"
            table += [
                *_own_conv_norm(f"{ours}local_conv", f"{block}local_conv"),
                (f"{ours}attention/offset_bias", "embedding", f"{block}attention"),
                (f"{ours}attention/norm", "norm", f"{block}attention/norm"),
                (f"{ours}attention/qkv", "dense", f"{block}attention/qkv"),
                (f"{ours}attention/projection", "dense", f"{block}attention/projection"),
                (f"{ours}norm", "norm", f"{block}norm"),
                (f"{ours}mlp/dense_0", "dense", f"{block}mlp/dense_layers/dense"),
                (f"{ours}mlp/dense_1", "dense", f"{block}mlp/dense_layers/dense_1"),
            ]
    others = ("prompt_encoder/", "mask_decoder/")
    return keras_rows(table) + tuple(
        row for row in keras_tables.OWN_ROWS if row.ours.startswith(others)
    )


def _own_conv_norm(ours, theirs):
    return [
        (f"{ours}/conv", "conv_no_bias", f"{theirs}/conv"),
        (f"{ours}/norm", "batch_norm", f"{theirs}/norm"),
    ]


# The tensors that the encoder's sizes are inferred from, and their ranks.
ENCODER_NEEDS = {
    "patch_embedding_conv1/conv/kernel": 4,
    "patch_embedding_conv2/conv/kernel": 4,
    "stage_0_block_0/conv1/conv/kernel": 4,
    "stage_0_merge/conv1/conv/kernel": 4,
    "stage_1_block_0/attention/offset_bias": 2,
    "stage_1_block_0/mlp/dense_0/kernel": 2,
    "stage_1_block_0/local_conv/conv/kernel": 4,
    "neck_conv1/kernel": 4,
}


def infer_parts(shapes: dict, hints: dict) -> dict[str, dict]:
    """The parts of the model that variables of these shapes belong to, see `sam.infer_config`."""
    check_ranks(shapes, ENCODER_NEEDS)
    encoder = image_encoder_config(shapes, hints.get("image_encoder", {}))
    stride = 4 * math.prod(encoder["merge_strides"])
    parts = {"image_encoder": {"registered_name": IMAGE_ENCODER_CLASS, "config": encoder}}
    return parts | sam.infer_others(shapes, encoder["image_shape"][:2], stride, hints)


def image_encoder_config(shapes: dict, hints: dict) -> dict:
    """The arguments of the `TinyViTBackbone` that variables of these shapes belong to.

    No shape tells the size of the frame, which is 1024 unless a hint says otherwise, nor the
    strides: as published, the last merging of patches keeps the size of the map.

    Args:
        shapes: dict from our variable paths to shapes, `ENCODER_NEEDS` and their ranks checked.
        hints: dict of arguments from a config file, used where shapes do not decide.

    Returns:
        Dict of arguments.

    Raises:
        ValueError: if a stage lacks its first block, or has a window that is not square.
    """
    first = shapes["patch_embedding_conv2/conv/kernel"][-1]
    hidden_sizes = [first, *_stage_sizes(shapes)]
    heads, windows = [], []
    for i in range(1, len(hidden_sizes)):
        name = f"stage_{i}_block_0/attention/offset_bias"
        shape = tuple(shapes.get(name, ()))
        side = math.isqrt(shape[1]) if len(shape) == 2 else 0
        if side == 0 or side**2 != shape[1]:
            raise ValueError(
                f"`{name}` must have two axes, the heads and the cells of a square window. "
                f"Received: shape={shape or 'missing'}."
            )
        heads.append(shape[0])
        windows.append(side)
    # The first stage has no attention: as many channels per head as the second.
    first_heads = max(1, heads[0] * first // hidden_sizes[1])
    return {
        **hints,
        "hidden_sizes": hidden_sizes,
        "depths": [
            count_layers(shapes, rf"stage_{i}_block_(\d+)/.*") for i in range(len(hidden_sizes))
        ],
        "num_heads": [first_heads, *heads],
        "window_sizes": [windows[0], *windows],
        "merge_strides": list(hints.get("merge_strides", [2] * (len(heads) - 1) + [1])),
        "image_shape": [
            *hints.get("image_shape", (1024, 1024))[:2],
            shapes["patch_embedding_conv1/conv/kernel"][2],
        ],
        "num_output_channels": shapes["neck_conv1/kernel"][-1],
        "mlp_ratio": _ratio(shapes["stage_1_block_0/mlp/dense_0/kernel"][1], hidden_sizes[1]),
        "expansion_ratio": _ratio(shapes["stage_0_block_0/conv1/conv/kernel"][-1], first),
        "local_conv_size": shapes["stage_1_block_0/local_conv/conv/kernel"][0],
    }


def _stage_sizes(shapes):
    """Channels of all stages but the first."""
    i = 0
    while f"stage_{i}_merge/conv1/conv/kernel" in shapes:
        yield shapes[f"stage_{i}_merge/conv1/conv/kernel"][-1]
        i += 1


def _ratio(hidden, width):
    return hidden // width if hidden % width == 0 else hidden / width


def classifier(arrays: dict) -> dict[str, Tensor]:
    """The tensors that MobileSAM's code asks for beside our variables, and never uses."""
    width = Tensor.of(arrays["neck_conv1/kernel"]).shape[2]
    tensors = {
        "norm_head.weight": np.ones(width, "float32"),
        "norm_head.bias": np.zeros(width, "float32"),
        "head.weight": np.zeros((_CLASSES, width), "float32"),
        "head.bias": np.zeros(_CLASSES, "float32"),
    }
    return {f"image_encoder.{name}": Tensor.of(values) for name, values in tensors.items()}


FAMILY = Family(
    name="MobileSAM",
    task=None,
    classes={
        "image_encoder": (IMAGE_ENCODER_CLASS,),
        "prompt_encoder": ("keras_sam>SAMPromptEncoder",),
        "mask_decoder": ("keras_sam>SAMMaskDecoder",),
    },
    encoder_paths=ENCODER_PATHS,
    formats=(
        Format("MobileSAM", (SIGNATURE,), lambda _: ROWS, ignore=IGNORED),
        Format("keras_sam's MobileSAM", (PLAIN_SIGNATURE,), lambda _: ()),
        Format("keras_sam's MobileSAM, saved by Keras", (OWN_SIGNATURE,), own_rows),
        Format(
            "MobileSAM, image encoder alone",
            (ENCODER_SIGNATURE,),
            lambda _: ENCODER_ROWS,
            add="image_encoder.",
            ignore=IGNORED,
        ),
    ),
    infer_parts=infer_parts,
    meta_rows=lambda _: ROWS,
    meta_extras=classifier,
)
