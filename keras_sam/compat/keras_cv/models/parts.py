"""The prompt encoder, the mask decoder and its transformer under KerasCV's names."""

from typing import Any

from keras_sam.compat.keras_cv.names import KerasCVNames, register
from keras_sam.layers import mask_decoder as decoding
from keras_sam.layers import prompt_encoder as prompting
from keras_sam.layers import two_way_transformer as two_way


@register
class TwoWayTransformer(KerasCVNames, two_way.TwoWayTransformer):
    """`keras_sam.TwoWayTransformer` under KerasCV's names.

    Args:
        depth: int, our `num_layers`. Defaults to `2`.
        embed_dim: int, our `hidden_size`. Defaults to `256`.
        num_heads: int. Defaults to `8`.
        mlp_dim: int, our `intermediate_dim`. Defaults to `2048`.
        activation: str or callable. Defaults to `"relu"`.
        attention_downsample_rate: int. Defaults to `2`.
        **kwargs: our other arguments.

    Call arguments:
        image_embedding: float tensor `(B, Eh, Ew, C)`.
        image_pe: float tensor `(B, Eh, Ew, C)`, our `image_positional_embeddings`.
        point_embedding: float tensor `(B, T, C)`.
    """

    order = "depth embed_dim num_heads mlp_dim activation attention_downsample_rate"
    names = {"depth": "num_layers", "embed_dim": "hidden_size", "mlp_dim": "intermediate_dim"}
    call_names = {"image_pe": "image_positional_embeddings"}

    def __init__(self, *args: Any, name: str = "transformer", **kwargs: Any):
        # The name it has inside a mask decoder of ours, so that variables' paths are the same.
        super().__init__(*args, name=name, **kwargs)


@register
class SAMPromptEncoder(KerasCVNames, prompting.SAMPromptEncoder):
    """`keras_sam.SAMPromptEncoder` under KerasCV's names.

    Args:
        embed_dim: int, our `hidden_size`. Defaults to `256`.
        image_embedding_size: tuple `(Eh, Ew)`. Defaults to `(64, 64)`.
        input_image_size: tuple `(H, W)`. Defaults to `(1024, 1024)`.
        mask_in_chans: int, our `mask_in_channels`. Defaults to `16`.
        activation: str or callable. Defaults to `"gelu"`.
        **kwargs: our other arguments.

    Call arguments:
        inputs: dict of `points`, `labels`, `boxes`, `masks`, any of them.

    Returns:
        Dict of `sparse_embeddings` `(B, T, C)`, `dense_embeddings` `(B, Eh, Ew, C)` and
        `dense_positional_embeddings` `(1, Eh, Ew, C)`. Called with keyword arguments
        instead of a dict: what ours returns.
    """

    order = "embed_dim image_embedding_size input_image_size mask_in_chans activation"
    names = {"embed_dim": "hidden_size", "mask_in_chans": "mask_in_channels"}

    def __call__(self, *args: Any, **kwargs: Any):
        if not args or not isinstance(args[0], dict):
            return super().__call__(*args, **kwargs)
        outputs = super().__call__(**args[0], **kwargs)
        names = ("sparse_embeddings", "dense_embeddings", "dense_positional_embeddings")
        return {name: outputs[f"prompt_{name}"] for name in names}


@register
class SAMMaskDecoder(KerasCVNames, decoding.SAMMaskDecoder):
    """`keras_sam.SAMMaskDecoder` under KerasCV's names.

    Args:
        transformer_dim: int, our `hidden_size`. Defaults to `256`.
        transformer: optional `TwoWayTransformer`, or another layer as ours takes it. By default
            one of the decoder's own, of the released models' depth.
        num_multimask_outputs: int. Defaults to `3`.
        iou_head_depth: int. Defaults to `3`.
        iou_head_hidden_dim: int. Defaults to `256`.
        activation: str or callable. Defaults to `"gelu"`.
        **kwargs: our other arguments.

    Call arguments:
        inputs: dict of `image_embeddings` `(B, Eh, Ew, C)`, `image_pe`
            `(1, Eh, Ew, C)`, `sparse_prompt_embeddings` `(B, T, C)` and
            `dense_prompt_embeddings` `(B, Eh, Ew, C)`.

    Returns:
        Dict of `masks` `(B, K, 4 Eh, 4 Ew)` and `iou_pred` `(B, K)`.
    """

    order = (
        "transformer_dim transformer num_multimask_outputs iou_head_depth "
        "iou_head_hidden_dim activation"
    )
    names = {"transformer_dim": "hidden_size"}
    call_names = {
        "image_pe": "prompt_dense_positional_embeddings",
        "sparse_prompt_embeddings": "prompt_sparse_embeddings",
        "dense_prompt_embeddings": "prompt_dense_embeddings",
    }

    def __call__(self, *args: Any, **kwargs: Any):
        if args and isinstance(args[0], dict):
            return super().__call__(*args[1:], **args[0], **kwargs)
        return super().__call__(*args, **kwargs)
