"""Meta's constructors of the released models."""

from __future__ import annotations

import os

from keras_sam.compat.segment_anything.modeling import Sam
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter


def build_sam_vit_h(checkpoint: str | os.PathLike | None = None) -> Sam:
    """Makes a `Sam` of the size of ViT-H.

    Args:
        checkpoint: optional path of a file of weights, Meta's `.pth` or whatever
            `keras_sam.SAMImageSegmenter.from_preset` reads. The model then has the size of the
            file, whichever constructor is called. By default the weights are random.

    Returns:
        A `Sam`.

    Raises:
        ValueError: if the file is missing, damaged, or no SAM's.
    """
    return _build("sam_huge_sa1b", checkpoint)


def build_sam_vit_l(checkpoint: str | os.PathLike | None = None) -> Sam:
    """Makes a `Sam` of the size of ViT-L, see `build_sam_vit_h`."""
    return _build("sam_large_sa1b", checkpoint)


def build_sam_vit_b(checkpoint: str | os.PathLike | None = None) -> Sam:
    """Makes a `Sam` of the size of ViT-B, see `build_sam_vit_h`."""
    return _build("sam_base_sa1b", checkpoint)


build_sam = build_sam_vit_h

sam_model_registry = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
}


def _build(name, checkpoint):
    if checkpoint is None:
        return Sam(SAMImageSegmenter.from_preset(name, load_weights=False))
    return Sam(SAMImageSegmenter.from_preset(os.fspath(checkpoint)))
