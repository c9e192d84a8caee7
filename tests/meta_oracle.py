"""Meta's released code as the oracle of the tests.

`segment-anything-py` asks torchvision for four functions only. Where no torchvision that fits the
installed torch exists, a small module with those four stands in for it.
"""

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
    names = _install_stand_in()
    try:
        return importlib.import_module("segment_anything")
    finally:
        # It has its functions now; other libraries must not believe that torchvision is here.
        for name in names:
            del sys.modules[name]


def _install_stand_in():
    """Puts a `torchvision` with the four functions into `sys.modules` and returns its names."""
    contents = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": _resize, "to_pil_image": _to_pil_image},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": _batched_nms, "box_area": _box_area},
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


def _box_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _batched_nms(boxes, scores, idxs, iou_threshold):
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
