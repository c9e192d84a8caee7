"""Prompts: from what people pass to the canonical arrays that the model takes.

`read` is the one grammar, `Prompts` what it makes; both are numpy alone.
"""

from keras_sam.masks.reading import VOID
from keras_sam.prompts.canonical import CANONICAL_KEYS, Prompts
from keras_sam.prompts.labels import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    LABELS,
    NOT_A_POINT,
    PADDING,
    TOP_LEFT,
)
from keras_sam.prompts.mask_logits import mask_to_logits
from keras_sam.prompts.nested import KEYS, PromptDict, PromptLike
from keras_sam.prompts.reading import read, read_canonical

__all__ = [
    "BACKGROUND",
    "BOTTOM_RIGHT",
    "CANONICAL_KEYS",
    "FOREGROUND",
    "KEYS",
    "LABELS",
    "NOT_A_POINT",
    "PADDING",
    "TOP_LEFT",
    "VOID",
    "PromptDict",
    "PromptLike",
    "Prompts",
    "mask_to_logits",
    "read",
    "read_canonical",
]
