"""SAM 2's released code as the oracle of the tests, without hydra, which only reads its yaml files.

Its wheel asks for hydra, iopath and torchvision as it is imported; small modules stand in for what
is missing.
"""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from tests.meta_oracle import batched_nms, box_area

# Names of video parts of the files, which belong to no variable of ours.
VIDEO = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "obj_ptr_",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_",
)


def import_sam2():
    """Imports `sam2`, or skips the test where it or torch is not installed."""
    pytest.importorskip("torch", reason="SAM 2's code, the oracle, runs on torch")
    if "sam2.modeling.sam2_base" in sys.modules:
        return sys.modules["sam2"]
    if importlib.util.find_spec("sam2") is None:
        pytest.skip("sam2, the oracle, is not installed")
    names = _install_stand_ins()
    try:
        for name in ("backbones.hieradet", "backbones.image_encoder", "sam2_base"):
            importlib.import_module(f"sam2.modeling.{name}")
        for name in ("memory_attention", "memory_encoder", "position_encoding"):
            importlib.import_module(f"sam2.modeling.{name}")
        for name in ("sam2_image_predictor", "automatic_mask_generator"):
            importlib.import_module(f"sam2.{name}")
        return sys.modules["sam2"]
    finally:
        # It has what it needs now; other libraries must not believe that these are here.
        for name in names:
            del sys.modules[name]


def sam2_like(encoder, version="2.1", **decoder):
    """SAM 2's model for images and videos, of the sizes of one of ours, with its first weights.

    Args:
        encoder: dict. The arguments of our `HieraBackbone`; the frame is the longer side's square,
            of which the image encoder alone knows nothing.
        version: `"2"` or `"2.1"`, which has more weights for videos.
        **decoder: arguments of its mask decoder, `dynamic_multimask_via_stability` and the like.
    """
    import_sam2()
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam2_base import SAM2Base

    channels, width = encoder["num_output_channels"], encoder["hidden_size"]
    newer = version == "2.1"
    return SAM2Base(
        image_encoder=ImageEncoder(
            scalp=1,
            trunk=Hiera(
                embed_dim=width,
                num_heads=encoder["num_heads"],
                stages=encoder["num_blocks"],
                global_att_blocks=encoder["global_attention_layer_indices"],
                window_pos_embed_bkg_spatial_size=encoder["position_background_size"],
                window_spec=encoder["window_sizes"],
            ),
            neck=FpnNeck(
                position_encoding=PositionEmbeddingSine(channels),
                d_model=channels,
                backbone_channel_list=[width * n for n in (8, 4, 2, 1)],
                fpn_top_down_levels=[2, 3],
                fpn_interp_model="nearest",
            ),
        ),
        memory_attention=_memory_attention(channels),
        memory_encoder=_memory_encoder(channels),
        image_size=max(encoder["image_shape"][:2]),
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=newer,
        proj_tpos_enc_in_obj_ptrs=newer,
        no_obj_embed_spatial=newer,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        multimask_output_in_sam=True,
        use_multimask_token_for_obj_ptr=True,
        sam_mask_decoder_extra_args=decoder or None,
    ).eval()


def _memory_attention(channels):
    """One layer of what looks back at earlier frames; no image uses it."""
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.sam.transformer import RoPEAttention

    sizes = {"embedding_dim": channels, "num_heads": 1, "downsample_rate": 1, "feat_sizes": [4, 4]}
    layer = MemoryAttentionLayer(
        activation="relu",
        d_model=channels,
        dim_feedforward=24,
        dropout=0.0,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**sizes),
        cross_attention=RoPEAttention(**sizes, rope_k_repeat=True, kv_in_dim=16),
    )
    return MemoryAttention(d_model=channels, pos_enc_at_input=True, layer=layer, num_layers=1)


def _memory_encoder(channels):
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    return MemoryEncoder(
        out_dim=16,
        in_dim=channels,
        mask_downsampler=MaskDownSampler(channels, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=channels, kernel_size=3, padding=1), num_layers=1),
        position_encoding=PositionEmbeddingSine(16),
    )


def _install_stand_ins():
    """Puts modules for what is missing into `sys.modules`, and returns their names."""
    import torch

    class GlobalHydra:
        @staticmethod
        def instance():
            return GlobalHydra

        @staticmethod
        def is_initialized():
            return True

    class Resize(torch.nn.Module):
        """Bilinear and antialiased, as torchvision's is of a tensor."""

        def __init__(self, size: tuple[int, int]):
            super().__init__()
            self.size = list(size)

        def forward(self, x):
            return torch.nn.functional.interpolate(
                x[None], self.size, mode="bilinear", align_corners=False, antialias=True
            )[0]

    class Normalize(torch.nn.Module):
        def __init__(self, mean: list[float], std: list[float]):
            super().__init__()
            self.mean, self.std = mean, std

        def forward(self, x):
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            return (x - mean[:, None, None]) / std[:, None, None]

    contents = {
        "torchvision": {},
        "torchvision.transforms": {
            "Normalize": Normalize,
            "Resize": Resize,
            "ToTensor": lambda: _to_tensor,
        },
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "hydra": {"initialize_config_module": None},
        "hydra.core": {},
        "hydra.core.global_hydra": {"GlobalHydra": GlobalHydra},
        "iopath": {},
        "iopath.common": {},
        "iopath.common.file_io": {"g_pathmgr": None},
    }
    tops = {name.partition(".")[0] for name in contents}
    missing = {top for top in tops if importlib.util.find_spec(top) is None}
    names = [name for name in contents if name.split(".")[0] in missing]
    for name in names:
        module = types.ModuleType(name)
        module.__dict__.update(contents[name])
        sys.modules[name] = module
    return names


def _to_tensor(image):
    """A uint8 image `(H0, W0, 3)` as a float tensor `(3, H0, W0)` in 0..1."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
