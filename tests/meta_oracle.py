"""Meta's released code as the oracle of the tests.

`segment-anything-py` asks torchvision for four functions only. Where no torchvision that fits the
installed torch exists, a small module with those four stands in for it.
"""

import functools
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest


def import_segment_anything():
    """Imports `segment_anything`, or skips the test where it or torch is not installed."""
    pytest.importorskip("torch", reason="Meta's code, the oracle, runs on torch")
    if "segment_anything" in sys.modules:
        return sys.modules["segment_anything"]
    if importlib.util.find_spec("segment_anything") is None:
        pytest.skip("segment-anything-py, the oracle, is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("segment_anything")
    names = install_stand_in()
    try:
        return importlib.import_module("segment_anything")
    finally:
        # It has its functions now; other libraries must not believe that torchvision is here.
        for name in names:
            del sys.modules[name]


def meta_like(encoder, prompts, decoder):
    """Meta's `Sam` of the sizes of one of ours, with the random weights that it starts with.

    Args:
        encoder: dict. The arguments of our image encoder; Meta's has the longer side of its frame,
            for Meta knows square frames only.
        prompts: dict. The arguments of our prompt encoder.
        decoder: dict. The arguments of our mask decoder.
    """
    import_segment_anything()
    from segment_anything import modeling

    return sam_of(modeling, vit_of(modeling, encoder), prompts, decoder)


def vit_of(modeling, encoder):
    """The image encoder of Meta's code, or of one that was made from it."""
    import torch

    return modeling.ImageEncoderViT(
        img_size=max(encoder["image_shape"][:2]),
        patch_size=encoder["patch_size"],
        embed_dim=encoder["hidden_size"],
        depth=encoder["num_layers"],
        num_heads=encoder["num_heads"],
        mlp_ratio=encoder["intermediate_dim"] / encoder["hidden_size"],
        out_chans=encoder["num_output_channels"],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=encoder["layer_norm_epsilon"]),
        use_abs_pos=encoder["use_abs_pos"],
        use_rel_pos=encoder["use_rel_pos"],
        window_size=encoder["window_size"],
        global_attn_indexes=encoder["global_attention_layer_indices"],
    )


def sam_of(modeling, image_encoder, prompts, decoder, decoder_class="MaskDecoder", **additions):
    """The `Sam` of such code around an image encoder; `additions` are its mask decoder's own."""
    channels = decoder["hidden_size"]
    return modeling.Sam(
        image_encoder=image_encoder,
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=prompts["hidden_size"],
            image_embedding_size=tuple(prompts["image_embedding_size"]),
            input_image_size=tuple(prompts["input_image_size"]),
            mask_in_chans=prompts["mask_in_channels"],
        ),
        mask_decoder=getattr(modeling, decoder_class)(
            num_multimask_outputs=decoder["num_multimask_outputs"],
            transformer=modeling.TwoWayTransformer(
                depth=decoder["num_layers"],
                embedding_dim=channels,
                mlp_dim=decoder["intermediate_dim"],
                num_heads=decoder["num_heads"],
                attention_downsample_rate=decoder["attention_downsample_rate"],
            ),
            transformer_dim=channels,
            iou_head_depth=decoder["iou_head_depth"],
            iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
            **additions,
        ),
    )


def small_meta():
    """Meta's `Sam` with a small image encoder, and all else as released: a file to recognise."""
    return meta_like(
        {
            "image_shape": (112, 112, 3),
            "patch_size": 16,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 3,
            "intermediate_dim": 192,
            "num_output_channels": 256,
            "layer_norm_epsilon": 1e-6,
            "use_abs_pos": True,
            "use_rel_pos": True,
            "window_size": 5,
            "global_attention_layer_indices": (1,),
        },
        {
            "hidden_size": 256,
            "image_embedding_size": (7, 7),
            "input_image_size": (112, 112),
            "mask_in_channels": 16,
        },
        {
            "hidden_size": 256,
            "num_layers": 2,
            "intermediate_dim": 2048,
            "num_heads": 8,
            "num_multimask_outputs": 3,
            "attention_downsample_rate": 2,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 256,
        },
    )


def install_stand_in():
    """Puts a `torchvision` with the four functions into `sys.modules` and returns its names."""
    contents = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": _resize, "to_pil_image": _to_pil_image},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
    }
    for name, functions in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(functions)
        sys.modules[name] = module
    return list(contents)


def _to_pil_image(array):
    from PIL import Image

    return Image.fromarray(array)


def _resize(image, size):
    """Of a pillow image: bilinear, which in pillow is antialiased."""
    from PIL import Image

    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def box_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes, scores, idxs, iou_threshold):
    """Greedy non-maximum suppression within each group, the best first."""
    import torch

    order = torch.argsort(scores, descending=True, stable=True).tolist()
    b, groups = boxes.double().cpu().numpy(), idxs.cpu().numpy()
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    kept = []
    for i in order:
        if kept:
            k = np.array(kept)
            size = np.minimum(b[k, 2:], b[i, 2:]) - np.maximum(b[k, :2], b[i, :2])
            overlap = np.clip(size, 0, None).prod(axis=1)
            iou = overlap / np.maximum(areas[k] + areas[i] - overlap, 1e-12)
            if ((iou > iou_threshold) & (groups[k] == groups[i])).any():
                continue
        kept.append(i)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)
