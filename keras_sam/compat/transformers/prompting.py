"""Prompts as transformers takes them, to those of a segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_sam import backends
from keras_sam.compat.tensors import no_prompts
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.prompts import CANONICAL_KEYS, Prompts, read
from keras_sam.prompts.nested import to_numpy


def read_prompts(
    segmenter: SAMImageSegmenter, batch: int, points: Any, labels: Any, boxes: Any, masks: Any
) -> Prompts:
    """Prompts in the model's frame, with transformers' rule for the not-a-point token.

    Prompts that a processor made as numpy arrays may lack the axis P, for one object per image.
    """
    given = {}
    if points is not None:
        points = _of_rank(points, "input_points", "(B, P, N, 2)", 4)
        labels = np.ones(points.shape[:3]) if labels is None else to_numpy(labels)
        labels = labels.reshape(points.shape[:3]) if labels.ndim == 2 else labels
        if boxes is None:
            points = np.pad(points, [(0, 0), (0, 0), (0, 1), (0, 0)])
            labels = np.pad(labels, [(0, 0), (0, 0), (0, 1)], constant_values=-1)
        given = {"points": points, "labels": labels.astype("int32")}
    if boxes is not None:
        given["boxes"] = _of_rank(boxes, "input_boxes", "(B, P, 4)", 3)
    sets = next((len(x[0]) for x in given.values()), 1)
    if masks is not None:
        masks = to_numpy(masks).astype("float32")
        if masks.size != batch * np.prod(segmenter.mask_size) or (
            masks.shape[-2:] != segmenter.mask_size
        ):
            shape = (batch, 1, *segmenter.mask_size)
            raise ValueError(
                f"`input_masks` must have shape {shape}, one for each image: logits, such as those "
                f"of an earlier call. Received: shape={masks.shape}. "
                "`keras_sam.mask_to_logits(mask, model.segmenter)[None, None, ..., 0]` makes them "
                "of a mask of the image's size."
            )
        masks = masks.reshape(batch, 1, *segmenter.mask_size)
        given["masks"] = np.repeat(masks, sets, axis=1)  # (B, P, L, L)
    if not given:
        return no_prompts(segmenter, batch)
    plans = segmenter.plans(None, None, batch)
    return read(given, batch).to_model(plans, segmenter.mask_size)


def embed_prompts(segmenter: SAMImageSegmenter, prompts: Prompts) -> dict[str, Any]:
    """What the prompt encoder makes of them, in tensors of the running backend."""
    names = CANONICAL_KEYS if prompts.mask_given.shape[1] else CANONICAL_KEYS[:2]
    arrays = {name: ops.convert_to_tensor(getattr(prompts, name)) for name in names}
    return segmenter.prompt_encoder(**arrays)


def image_updates(
    segmenter: SAMImageSegmenter, embeddings: np.ndarray, prompts: Prompts, hooks: dict[str, Any]
) -> list[np.ndarray]:
    """What transformers calls the decoder's attentions: what the image takes from the tokens.

    A block returns its tokens as they were when the image attended to them, so that this
    attention can be repeated outside.
    """
    decoder, embedded = segmenter.mask_decoder, embed_prompts(segmenter, prompts)
    batch, sets, _, channels = embedded["prompt_sparse_embeddings"].shape
    own = ops.concatenate([decoder.iou_token, decoder.mask_tokens], axis=0)
    own = ops.broadcast_to(own, (batch, sets, *own.shape))
    real = ops.ones(own.shape[:3], dtype="bool")
    mask = ops.concatenate([real, embedded["prompt_sparse_mask"]], axis=2)
    tokens = ops.concatenate([own, embedded["prompt_sparse_embeddings"]], axis=2)
    keys = ops.convert_to_tensor(embeddings)[:, None] + embedded["prompt_dense_embeddings"]
    keys = ops.broadcast_to(keys, (batch, sets, *keys.shape[2:]))
    keys = ops.reshape(keys, (batch, sets, -1, channels))
    places = ops.reshape(embedded["prompt_dense_positional_embeddings"], (1, 1, -1, channels))
    hooks = {name: ops.convert_to_tensor(x) for name, x in hooks.items()}
    target = hooks.get("target_embedding", 0.0)
    tokens = tokens + target
    queries, updates = tokens, []
    for i, block in enumerate(decoder.transformer.blocks):
        queries, new_keys = block(
            queries + target if i else queries,
            keys,
            tokens,
            places,
            query_mask=mask,
            attention_similarity=hooks.get("attention_similarity"),
        )
        update = block.cross_attention_image_to_token(
            keys + places, queries, queries + tokens, key_mask=mask
        )
        updates.append(backends.to_numpy(update).reshape(-1, 1, *update.shape[2:]))
        keys = new_keys
    return updates


def _of_rank(value, name, shape, rank):
    array = to_numpy(value).astype("float32")
    array = array[:, None] if array.ndim == rank - 1 else array
    if array.ndim != rank:
        raise ValueError(f"`{name}` must have shape {shape}. Received: shape={array.shape}.")
    return array
