"""The sizes of the models, and Meta's code in each of them with random weights."""

import dataclasses
import functools

from benchmarks.case import need

# Of RGB in 0..255, for those that are given normalised pixels. Our package is not imported for
# it: that would change how torch allocates memory for the others, too.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of an image encoder, as the released models have them, or a small one."""

    width: int
    depth: int
    heads: int
    whole: tuple[int, ...]  # the blocks that attend to the whole image
    window: int = 14
    side: int = 1024
    patch: int = 16


SIZES = {
    "quick": Sizes(48, 2, 3, (1,), window=5, side=112),
    "base": Sizes(768, 12, 12, (2, 5, 8, 11)),
    "large": Sizes(1024, 24, 16, (5, 11, 17, 23)),
    "huge": Sizes(1280, 32, 16, (7, 15, 23, 31)),
}


def meta_code():
    need("torch", "segment_anything")
    from tests.meta_oracle import import_segment_anything

    return import_segment_anything()


def random_meta(size, side=None):
    """Meta's code with its own initial weights, perhaps for another frame."""
    meta_code()
    import torch
    from segment_anything import modeling

    sizes = SIZES[size]
    side = side or sizes.side
    grid = side // sizes.patch
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=side,
            patch_size=sizes.patch,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            out_chans=256,
            use_rel_pos=True,
            global_attn_indexes=sizes.whole,
            window_size=sizes.window,
        ),
        prompt_encoder=modeling.PromptEncoder(256, (grid, grid), (side, side), 16),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=256,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048
            ),
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
