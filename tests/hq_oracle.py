"""SAM-HQ's released code, PyPI's `segment-anything-hq`, as the oracle of the tests.

Besides Meta's four functions of torchvision it asks timm for four names: small modules with these
stand in for both.
"""

from tests.meta_oracle import sam_of, vit_of
from tests.mobile_sam_oracle import import_with_timm


def import_segment_anything_hq():
    """Imports `segment_anything_hq`, or skips the test where it or torch is not installed."""
    return import_with_timm("segment_anything_hq", "segment-anything-hq")


def hq_like(encoder, prompts, decoder):
    """SAM-HQ's `Sam` of the sizes of one of ours, with the random weights that it starts with.

    Args:
        encoder: dict. The arguments of our image encoder; theirs has the longer side of its frame,
            for the code knows square frames only.
        prompts: dict. The arguments of our prompt encoder.
        decoder: dict. The arguments of our mask decoder.
    """
    import_segment_anything_hq()
    from segment_anything_hq import modeling

    encoder = vit_of(modeling, encoder)
    own = {"decoder_class": "MaskDecoderHQ", "vit_dim": decoder["early_dim"]}
    return sam_of(modeling, encoder, prompts, decoder, **own)
