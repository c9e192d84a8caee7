"""The names in MobileSAM's checkpoints: Meta's, with TinyViT as the image encoder.

Source:
    https://github.com/ChaoningZhang/MobileSAM, `mobile_sam/modeling/tiny_vit_sam.py`. The `vit_t`
    files of micro-sam have the same names.
"""

import math
import re

import numpy as np

from keras_sam.converters.tables import Tensor, to_foreign, torch_rows
from keras_sam.converters.torch_tables import META_ROWS

IMAGE_ENCODER_CLASS = "keras_sam>TinyViTBackbone"
# Names that every such file has; anything before them is a wrapper's prefix.
ENCODER_SIGNATURE = "patch_embed.seq.0.c.weight"
SIGNATURE = f"image_encoder.{ENCODER_SIGNATURE}"
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


def infer_encoder(shapes: dict, hints: dict | None = None) -> dict:
    """The arguments of the `TinyViTBackbone` that variables of these shapes belong to.

    No shape tells the size of the frame, which is 1024 unless a hint says otherwise, nor the
    strides: as published, the last merging of patches keeps the size of the map.

    Args:
        shapes: dict from our variable paths to shapes, `ENCODER_NEEDS` and their ranks checked.
        hints: optional dict of arguments from a config file, used where shapes do not decide.

    Returns:
        Dict of arguments.

    Raises:
        ValueError: if a stage lacks its first block, or has a window that is not square.
    """
    first = shapes["patch_embedding_conv2/conv/kernel"][-1]
    hidden_sizes = [first, *_stage_sizes(shapes)]
    depths, heads, windows = [], [], []
    for i in range(len(hidden_sizes)):
        blocks = (re.fullmatch(rf"stage_{i}_block_(\d+)/.*", name) for name in shapes)
        # Limited, lest a damaged name ask for millions. Missing names are reported later.
        numbers = [int(block[1]) for block in blocks if block]
        depths.append(min(max(numbers, default=-1) + 1, len(shapes)))
        if i:
            name = f"stage_{i}_block_0/attention/offset_bias"
            shape = tuple(shapes.get(name, ()))
            side = math.isqrt(shape[1]) if len(shape) == 2 else 0
            if len(shape) != 2 or side**2 != shape[1]:
                raise ValueError(
                    f"`{name}` must have two axes, the heads and the cells of a square window. "
                    f"Received: shape={shape or 'missing'}."
                )
            heads.append(shape[0])
            windows.append(side)
    hints = hints or {}
    size = list(hints.get("image_shape", (1024, 1024))[:2])
    return {
        # The first stage has no attention: as many channels per head as the second.
        **hints,
        "hidden_sizes": hidden_sizes,
        "depths": depths,
        "num_heads": [max(1, heads[0] * hidden_sizes[0] // hidden_sizes[1]), *heads],
        "window_sizes": [windows[0], *windows],
        "merge_strides": list(hints.get("merge_strides", [2] * (len(heads) - 1) + [1])),
        "image_shape": [*size, shapes["patch_embedding_conv1/conv/kernel"][2]],
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


def to_meta(arrays: dict) -> dict[str, Tensor]:
    """Our variables under the names of MobileSAM's code, which loads them strictly.

    That code also asks for the classifier that it never calls: it gets zeros.
    """
    tensors = to_foreign(arrays, ROWS)
    width = Tensor.of(arrays["neck_conv1/kernel"]).shape[2]
    classifier = {
        "norm_head.weight": np.ones(width, "float32"),
        "norm_head.bias": np.zeros(width, "float32"),
        "head.weight": np.zeros((_CLASSES, width), "float32"),
        "head.bias": np.zeros(_CLASSES, "float32"),
    }
    return tensors | {f"image_encoder.{k}": Tensor.of(v) for k, v in classifier.items()}
