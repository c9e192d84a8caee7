"""Arguments of `keras_sam.compat.segment_anything`, and its `utils`, beside Meta's own.

See `test_segment_anything.py`, which has the models.
"""

import importlib
import inspect

import numpy as np
import pytest

from keras_sam.compat import segment_anything as ours
from keras_sam.compat.segment_anything import modeling
from keras_sam.compat.segment_anything.utils import amg, transforms
from tests.meta_oracle import import_segment_anything
from tests.tiny import photograph

pytestmark = pytest.mark.once

BOXES = np.array([[3.0, 4.0, 60.0, 30.0], [1.0, 1.0, 20.0, 21.0], [30.0, 2.0, 65.0, 38.0]])


@pytest.fixture(scope="module")
def metas():
    return import_segment_anything()


# --- names, arguments and defaults ---

SAME_ARGUMENTS = [
    (ours, "build_sam", ""),
    (ours, "build_sam_vit_b", ""),
    (ours, "build_sam_vit_l", ""),
    (ours, "build_sam_vit_h", ""),
    (ours, "SamPredictor", ""),
    (ours, "SamPredictor.set_image", ""),
    (ours, "SamPredictor.set_torch_image", ""),
    (ours, "SamPredictor.predict", ""),
    (ours, "SamPredictor.predict_torch", ""),
    (ours, "SamPredictor.get_image_embedding", ""),
    (ours, "SamPredictor.reset_image", ""),
    (ours, "SamAutomaticMaskGenerator", ""),
    (ours, "SamAutomaticMaskGenerator.generate", ""),
    (modeling, "Sam.forward", ".modeling"),
    (modeling, "Sam.preprocess", ".modeling"),
    (modeling, "Sam.postprocess_masks", ".modeling"),
    (transforms, "ResizeLongestSide", ".utils.transforms"),
    *(
        (transforms, f"ResizeLongestSide.{name}", ".utils.transforms")
        for name in vars(transforms.ResizeLongestSide)
        if name.startswith(("apply", "get"))
    ),
    *((amg, name, ".utils.amg") for name in amg.__all__ if "build_all" not in name),
]


def parameters(thing):
    found = inspect.signature(thing).parameters.values()
    return [(p.name, p.default) for p in found]


@pytest.mark.parametrize(("module", "name", "where"), SAME_ARGUMENTS, ids=lambda x: str(x)[-30:])
def test_arguments_their_order_and_defaults(metas, module, name, where):
    theirs = importlib.import_module(f"segment_anything{where}")
    actual, expected = module, theirs
    for part in name.split("."):
        actual, expected = getattr(actual, part), getattr(expected, part)
    renamed = {
        # Names of ours that are passed by place; and what our functions can do besides.
        "coco_encode_rle": lambda wanted: [("rle", wanted[0][1])],
        "rle_to_mask": lambda wanted: wanted,
        "build_point_grid": lambda wanted: [("points_per_side", wanted[0][1])],
    }
    assert parameters(actual) == renamed.get(name, lambda wanted: wanted)(parameters(expected))


# --- utils ---


@pytest.mark.parametrize("size", [(40, 70), (90, 31), (112, 112)])
def test_resize_longest_side(metas, size):
    import torch
    from segment_anything.utils.transforms import ResizeLongestSide

    pair = transforms.ResizeLongestSide(56), ResizeLongestSide(56)
    assert pair[0].target_length == pair[1].target_length
    image = photograph(size)
    np.testing.assert_array_equal(*(t.apply_image(image) for t in pair))
    points = np.array([[3, 4], [20, 17]])
    for name, given in (("apply_coords", points), ("apply_boxes", BOXES)):
        array = [getattr(t, name)(given, size) for t in pair]
        np.testing.assert_array_equal(*array)
        assert array[0].dtype == array[1].dtype
        tensor = [getattr(t, f"{name}_torch")(torch.from_numpy(given), size) for t in pair]
        assert tensor[0].dtype == tensor[1].dtype == torch.float32
        torch.testing.assert_close(*tensor)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(*(t.apply_image_torch(batch) for t in pair), rtol=0, atol=1e-3)
    shapes = {t.get_preprocess_shape(*size, 56) for t in pair}
    assert len(shapes) == 1


def amg_calls():
    """Name and arguments of each function of `utils.amg` that both have."""
    import torch

    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(0, 2, (3, 30, 41))).float()
    masks = logits > 0.5
    rle = {"size": [3, 4], "counts": [2, 3, 4, 3]}
    boxes = torch.tensor([[0, 0, 30, 29], [5, 6, 9, 10], [0, 0, 0, 0]])
    return {
        "area_from_rle": (rle,),
        "batched_mask_to_box": (torch.cat([masks, masks[:1] & False]),),
        "box_xyxy_to_xywh": (boxes[1],),
        "build_all_layer_point_grids": (4, 1, 2),
        "build_point_grid": (4,),
        "calculate_stability_score": (logits, 0.1, 1.0),
        "coco_encode_rle": (rle,),
        "generate_crop_boxes": ((40, 70), 2, 0.3),
        "is_box_near_crop_edge": (boxes, [10, 0, 41, 30], [0, 0, 70, 40], 3.0),
        "mask_to_rle_pytorch": (masks,),
        "remove_small_regions": (masks[0].numpy(), 3, "islands"),
        "rle_to_mask": (rle,),
        "uncrop_boxes_xyxy": (boxes, [10, 3, 41, 30]),
        "uncrop_masks": (masks, [10, 3, 51, 33], 40, 70),
        "uncrop_points": (boxes[:, :2], [10, 3, 41, 30]),
    }


@pytest.mark.parametrize("name", sorted(set(amg.__all__) - {"batch_iterator"}))
def test_functions_of_amg(metas, name):
    import torch

    theirs = importlib.import_module("segment_anything.utils.amg")
    arguments = amg_calls()[name]
    actual, expected = (getattr(module, name)(*arguments) for module in (amg, theirs))
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, check_dtype=False)
        assert actual.dtype.is_floating_point == expected.dtype.is_floating_point
    elif isinstance(expected, (dict, int)) or isinstance(expected[0], (dict, list)):
        assert actual == expected
    else:
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b)


def test_batches(metas):
    theirs = importlib.import_module("segment_anything.utils.amg")
    x = np.arange(14).reshape(7, 2)
    actual, expected = (list(m.batch_iterator(3, x, x + 1)) for m in (amg, theirs))
    assert len(actual) == 3
    np.testing.assert_array_equal(np.concatenate(actual, axis=1), np.concatenate(expected, axis=1))
    with pytest.raises(ValueError, match="one length"):
        next(amg.batch_iterator(3, x, x[:2]))
