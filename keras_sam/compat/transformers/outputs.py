"""What models and processors return: dicts whose entries are attributes, too."""

from __future__ import annotations

from typing import Any


class ModelOutput(dict):
    """A dict in the order of its fields, without those that are None, that is a tuple as well.

    An entry is reached by its key, as an attribute, or by its place among those that are there;
    a field that is None is an attribute alone.
    """

    fields: tuple[str, ...] = ()

    def __init__(self, **values: Any):
        super().__init__({k: values[k] for k in self.fields if values.get(k) is not None})

    def __getattr__(self, name: str) -> Any:
        if name in self.fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        """The entries that are there, in the order of the fields."""
        return tuple(self.values())


class SamImageSegmentationOutput(ModelOutput):
    """What `SamModel` returns.

    Args:
        iou_scores: float tensor `(B, P, K)`.
        pred_masks: float tensor `(B, P, K, L, L)`, logits.
        vision_hidden_states: tuple of float tensors `(B, Eh, Ew, C)`, the embedded patches and
            every block's output, or None.
        vision_attentions: tuple of float tensors `(windows * D, T, T)`, one per block, or None.
        mask_decoder_attentions: tuple of float tensors `(B * P, 1, Eh * Ew, C)`, what the image
            takes from the tokens in each block, as in transformers, or None.
    """

    fields = (
        "iou_scores",
        "pred_masks",
        "vision_hidden_states",
        "vision_attentions",
        "mask_decoder_attentions",
    )


class SamVisionEncoderOutput(ModelOutput):
    """What the image encoder returns.

    Args:
        last_hidden_state: float tensor `(B, C, Eh, Ew)`, the image embeddings.
        hidden_states: see `SamImageSegmentationOutput.vision_hidden_states`.
        attentions: see `SamImageSegmentationOutput.vision_attentions`.
    """

    fields = ("last_hidden_state", "hidden_states", "attentions")


class BatchFeature(dict):
    """What processors return: a dict whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Moves the tensors of torch to a device or a dtype; everything else stays."""
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "detach") else v for k, v in self.items()}
        return type(self)(moved)
