"""Resize plans and box formats, against pillow and Meta's released code."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_sam import geometry
from keras_sam.geometry import ResizePlan
from tests.meta_oracle import import_segment_anything

pytestmark = pytest.mark.once

SIZES = [
    ((333, 500), (682, 1024)),  # 681.98: floor would be one pixel short
    ((426, 640), (682, 1024)),  # 681.6
    ((428, 640), (685, 1024)),  # 684.8
    ((332, 500), (680, 1024)),  # 679.94
    ((1365, 2048), (683, 1024)),  # 682.5: a half rounds up
    ((1200, 1800), (683, 1024)),  # 682.67
    ((500, 333), (1024, 682)),  # portrait
    ((480, 640), (768, 1024)),  # landscape without any rounding
    ((333, 333), (1024, 1024)),  # square, enlarged
    ((1024, 1024), (1024, 1024)),  # nothing to do
    ((1, 1), (1024, 1024)),  # one pixel
    ((1, 2048), (1, 1024)),  # half a pixel rounds up to one
    ((10000, 400), (1024, 41)),  # panorama, standing
]


def test_the_published_sizes_are_rounded_half_up():
    for original, scaled in SIZES:
        assert ResizePlan(original).scaled_size == scaled, original


def test_pitfall_sizes_tell_rounding_from_floor():
    for original, scaled in SIZES[:6]:
        floored = tuple(int(n * 1024 / max(original)) for n in original)
        assert floored != scaled, original


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([64, 160, 512, 1000, 1024]))
def test_scaled_size_is_metas_for_any_size(height, width, side):
    import_segment_anything()
    from segment_anything.utils.transforms import ResizeLongestSide

    expected = ResizeLongestSide.get_preprocess_shape(height, width, side)
    if 0 in expected:
        with pytest.raises(ValueError, match="too long and thin"):
            ResizePlan((height, width), side)
    else:
        assert ResizePlan((height, width), side).scaled_size == expected


def test_non_square_model_frame_keeps_the_proportions():
    rows = [
        ((480, 640), (512, 1024), (512, 683)),  # the height decides
        ((480, 1280), (512, 1024), (384, 1024)),  # the width decides
        ((512, 1024), (512, 1024), (512, 1024)),  # both
        ((1, 4000), (256, 4096), (1, 4096)),  # what a square frame refuses fits a long one
    ]
    for original, model, scaled in rows:
        assert ResizePlan(original, model).scaled_size == scaled


def test_plan_is_a_frozen_value():
    plan = ResizePlan(np.array([30, 40]), 64)  # numpy's integers and an int for a square
    assert plan == ResizePlan((30, 40), (64, 64))
    assert hash(plan) == hash(ResizePlan((30, 40), (64, 64)))
    assert plan != ResizePlan((30, 40), 64, pad_only=True)
    assert all(type(n) is int for n in plan.original_size + plan.model_size + plan.scaled_size)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.original_size = (1, 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"original_size": (1, 4000)}, r"too long and thin.*original_size=\(1, 4000\)"),
        ({"original_size": (0, 40)}, r"original_size.*must not be empty.*\(0, 40\)"),
        ({"original_size": (30, 40, 3)}, r"original_size.*two positive.*\(30, 40, 3\)"),
        ({"original_size": 30}, "original_size.*Received: 30"),  # not square by default
        ({"original_size": (30.5, 40)}, r"original_size.*\(30.5, 40\)"),  # half a pixel
        ({"original_size": (30, 40), "model_size": 0}, "model_size.*positive.*Received"),
        ({"original_size": (30, 40), "model_size": "big"}, "model_size.*'big'"),
        (
            {"original_size": (30, 40), "model_size": 32, "pad_only": True},
            r"must fit.*\(30, 40\).*\(32, 32\)",
        ),
        ({"original_size": (30, 40), "model_size": 32, "fit_size": 48}, "must fit.*fit_size"),
        (
            {"original_size": (30, 40), "model_size": 32, "stretch": True, "pad_only": True},
            "`stretch` must come without",  # a stretched image has no padding
        ),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResizePlan(**arguments)


# --- images ---


@pytest.mark.parametrize(
    "size",
    [
        (333, 500),  # enlarged, landscape
        (500, 333),  # enlarged, portrait
        (1200, 1800),  # reduced: antialiasing shows
        (1365, 2047),  # odd ratio
        (7, 5),  # few pixels
        (1, 1),  # one pixel
        (300, 10000),  # panorama
    ],
)
def test_uint8_scaling_equals_metas_bit_by_bit(size):
    import_segment_anything()
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype="uint8")
    scaled = ResizePlan(size).scale_image(image)
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, ResizeLongestSide(1024).apply_image(image))


def test_antialiasing_matters_here():
    """The comparison above would pass without it on images that are only enlarged."""
    stripes = np.zeros((64, 64, 3), "uint8")
    stripes[:, ::2] = 255
    scaled = ResizePlan((64, 64), 16).scale_image(stripes)
    assert np.ptp(scaled[:, 1:-1].astype(int)) < 20  # grey, not stripes


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_any_number_of_channels_is_scaled_one_by_one(channels):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, channels), dtype="uint8")
    if channels == 4:
        image[..., 3] = 0  # as alpha it would wipe out the colours
    plan = ResizePlan((37, 53), 29)
    scaled = plan.scale_image(image)
    assert scaled.shape == (*plan.scaled_size, channels)
    size = plan.scaled_size[::-1]
    for c in range(channels):
        expected = Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(scaled[..., c], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint16", "int64", "bool"])
def test_other_types_are_scaled_as_float32(dtype):
    values = np.random.default_rng(2).integers(0, 2, (19, 31, 3)).astype(dtype)
    plan = ResizePlan((19, 31), 64)
    scaled = plan.scale_image(values)
    assert scaled.dtype == np.float32
    plane = Image.fromarray(values[..., 2].astype("float32"))
    expected = plane.resize(plan.scaled_size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(scaled[..., 2], expected)


def test_filters_by_name_and_by_pillows_code():
    image = np.random.default_rng(3).integers(0, 256, (40, 30), dtype="uint8")
    plan = ResizePlan((40, 30), 17)
    for name in ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"):
        code = Image.Resampling[name.upper()]
        expected = Image.fromarray(image).resize(plan.scaled_size[::-1], code)
        np.testing.assert_array_equal(plan.scale_image(image, name), expected)
        np.testing.assert_array_equal(plan.scale_image(image, int(code)), expected)
    for wrong in ("area", 6, -1, None, 8):
        with pytest.raises(ValueError, match="`resample` must be one of"):
            plan.scale_image(image, wrong)


def test_padding_is_at_the_right_and_the_bottom_and_comes_off_again():
    plan = ResizePlan((30, 50), (64, 64))
    scaled = np.random.default_rng(4).random((38, 64, 3), "float32")
    assert plan.scaled_size == (38, 64)
    padded = plan.pad_image(scaled, (1.5, 2.5, 3.5))
    assert padded.shape == (64, 64, 3)
    np.testing.assert_array_equal(padded[:38], scaled)
    np.testing.assert_array_equal(padded[38:], np.tile(np.float32([1.5, 2.5, 3.5]), (26, 64, 1)))
    np.testing.assert_array_equal(plan.unpad_image(padded), scaled)


def test_padding_with_a_fraction_does_not_round_it():
    plan = ResizePlan((2, 4), 4)
    image = np.full((2, 4, 3), 7, "uint8")
    assert plan.pad_image(image, 9).dtype == np.uint8
    padded = plan.pad_image(image, (123.675, 116.28, 103.53))
    assert padded.dtype == np.float32
    np.testing.assert_array_equal(padded[3, 3], np.float32([123.675, 116.28, 103.53]))
    assert plan.pad_image(image, 300)[3, 3, 0] == 300  # does not wrap around in uint8


def test_unscaling_returns_to_the_original_size():
    y, x = np.mgrid[:45, :70]
    smooth = (127 + 60 * np.sin(x / 12) + 60 * np.cos(y / 9)).astype("float32")
    plan = ResizePlan((45, 70), 256)
    back = plan.unscale_image(plan.scale_image(smooth))
    assert back.shape == (45, 70)
    assert np.abs(back - smooth).max() < 3


def test_pad_only_and_fit_size():
    image = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype="uint8")
    pads = ResizePlan((20, 30), (64, 48), pad_only=True)
    assert pads.scaled_size == (20, 30)
    np.testing.assert_array_equal(pads.pad_image(pads.scale_image(image))[:20, :30], image)
    np.testing.assert_array_equal(pads.to_model([[30, 20]]), [[30, 20]])
    fits = ResizePlan((20, 30), 64, fit_size=48)
    assert fits.scaled_size == (32, 48)
    assert fits.pad_image(fits.scale_image(image)).shape == (64, 64, 3)
    np.testing.assert_array_equal(fits.to_model([[30, 20]]), [[48, 32]])


def test_images_of_another_size_are_refused():
    plan = ResizePlan((30, 40), 64)
    for method in (plan.scale_image, plan.pad_image, plan.unpad_image, plan.unscale_image):
        with pytest.raises(ValueError, match=r"`image` must have shape.*\(31, 40, 3\)"):
            method(np.zeros((31, 40, 3)))
    with pytest.raises(ValueError, match="`image` must have shape"):
        plan.scale_image(np.zeros((1, 30, 40, 3)))


# --- points and boxes ---


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 4000), st.integers(2, 4000), st.integers(0, 2**32 - 1))
def test_points_and_boxes_scale_as_metas(height, width, seed):
    import_segment_anything()
    from segment_anything.utils.transforms import ResizeLongestSide

    if max(height, width) / min(height, width) > 1000:
        return
    meta, plan = ResizeLongestSide(1024), ResizePlan((height, width))
    points = np.random.default_rng(seed).uniform(-50, 5000, (3, 4, 2))
    expected = meta.apply_coords(points, (height, width)).astype("float32")
    np.testing.assert_array_equal(plan.to_model(points), expected)
    boxes = points.reshape(-1, 4)
    expected = meta.apply_boxes(boxes, (height, width)).astype("float32")
    np.testing.assert_array_equal(plan.boxes_to_model(boxes), expected)
    np.testing.assert_allclose(plan.to_original(plan.to_model(points)), points, rtol=1e-6)
    np.testing.assert_allclose(plan.boxes_to_original(plan.boxes_to_model(boxes)), boxes, rtol=1e-6)


def test_each_axis_has_its_own_scale():
    plan = ResizePlan((1200, 1800))  # 683 / 1200 is not 1024 / 1800
    np.testing.assert_array_equal(plan.to_model([1800, 1200]), [1024, 683])
    assert plan.to_model([1800, 1200]).dtype == np.float32


def test_points_of_another_shape_are_refused():
    plan = ResizePlan((30, 40))
    for call, name in ((plan.to_model, "points"), (plan.boxes_to_model, "boxes")):
        with pytest.raises(ValueError, match=rf"`{name}` must have shape.*shape=\(5, 3\)"):
            call(np.zeros((5, 3)))
        with pytest.raises(ValueError, match=f"`{name}` must have shape"):
            call(3.0)


# --- masks ---


def _metas_masks(logits, plan, side):
    """`Sam.postprocess_masks`, which needs of the model only its image size."""
    import_segment_anything()
    from types import SimpleNamespace

    import torch
    from segment_anything.modeling import Sam

    stand_in = SimpleNamespace(image_encoder=SimpleNamespace(img_size=side))
    masks = Sam.postprocess_masks(
        stand_in, torch.tensor(logits), plan.scaled_size, plan.original_size
    )
    return masks.numpy()


@pytest.mark.parametrize(
    "size, side",
    [
        ((333, 500), 1024),  # reduced on the way back
        ((500, 333), 1024),  # portrait
        ((1200, 1800), 1024),  # enlarged, one-pixel rounding
        ((97, 31), 160),  # a small model's odd side
        ((1, 160), 160),  # one row
        ((1, 1), 160),  # one pixel
        ((64, 64), 64),  # nothing to crop
    ],
)
def test_masks_come_back_as_metas_do(size, side):
    logits = np.random.default_rng(6).normal(0, 10, (1, 3, side // 4, side // 4)).astype("float32")
    plan = ResizePlan(size, side)
    ours, metas = plan.masks_to_original(logits), _metas_masks(logits, plan, side)
    assert ours.shape == (1, 3, *size)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, metas, atol=1e-6 * np.abs(logits).max())


def test_masks_come_back_with_any_leading_axes():
    plan = ResizePlan((21, 35), (40, 64))
    logits = np.random.default_rng(7).normal(size=(2, 5, 3, 10, 16)).astype("float32")
    masks = plan.masks_to_original(logits)
    assert masks.shape == (2, 5, 3, 21, 35)
    np.testing.assert_allclose(masks[1, 4, 2], plan.masks_to_original(logits[1, 4, 2]), atol=1e-5)
    assert plan.masks_to_original(logits[:, :0]).shape == (2, 0, 3, 21, 35)  # no prompt sets


def test_non_square_masks_are_not_transposed():
    plan = ResizePlan((20, 64), (32, 64))
    logits = np.zeros((8, 16), "float32")
    logits[1, 12] = 100  # row 1 of 8, column 12 of 16
    y, x = np.unravel_index(plan.masks_to_original(logits).argmax(), (20, 64))
    assert abs(x - 49.5) <= 2 and abs(y - 5.5) <= 2


def test_image_masks_land_where_the_way_back_puts_them():
    """A ramp over the image has, at each mask pixel, the coordinate of that pixel's centre."""
    for size in ((1200, 1800), (333, 500), (700, 90)):
        plan = ResizePlan(size)
        x = np.broadcast_to(np.arange(size[1]) + 0.5, size)
        y = np.broadcast_to(np.arange(size[0])[:, None] + 0.5, size)
        mapped = plan.masks_to_model(np.stack([x, y]), 256)
        inside = [int(n / 4) - 2 for n in plan.scaled_size]  # without the border
        centres = 4 * np.arange(256) + 2
        for mask, axis in ((mapped[0], 1), (mapped[1].T, 0)):
            scale = size[axis] / plan.scaled_size[axis]
            line = slice(2, inside[axis])
            expected = (centres * scale)[line]
            np.testing.assert_allclose(mask[5, line], expected, atol=1e-3 * size[axis])


def test_image_masks_survive_the_round_trip():
    rng = np.random.default_rng(8)
    coarse = rng.normal(0, 8, (2, 16, 16)).astype("float32")
    for size in ((600, 900), (900, 600), (123, 200)):
        plan = ResizePlan(size)
        logits = np.stack([geometry.resize_image(m, (256, 256)) for m in coarse])
        back = plan.masks_to_model(plan.masks_to_original(logits), (256, 256))
        rows, columns = (int(n / 4) - 1 for n in plan.scaled_size)
        difference = np.abs(back - logits)[:, :rows, :columns]
        assert difference.max() < 0.05 * np.abs(logits).max()


def test_image_masks_are_averaged_not_sampled():
    noise = np.random.default_rng(9).choice([-10.0, 10.0], (512, 512))
    mapped = ResizePlan((512, 512), 128).masks_to_model(noise, 32)  # 16 x 16 pixels become one
    assert mapped.std() < 1  # interpolating the four nearest would leave 5


def test_padding_of_image_masks_is_outside():
    mapped = ResizePlan((100, 200), 64).masks_to_model(np.full((3, 100, 200), 5.0), 16)
    assert mapped.shape == (3, 16, 16)
    np.testing.assert_allclose(mapped[:, :8], 5, rtol=1e-6)
    np.testing.assert_allclose(mapped[:, 8:], -6.9067548, rtol=1e-6)
    filled = ResizePlan((100, 200), 64).masks_to_model(np.ones((100, 200)), 16, pad_value=-1)
    np.testing.assert_array_equal(filled[8:], -1)


def test_thinnest_image_still_has_a_mask_row():
    mapped = ResizePlan((1, 1024)).masks_to_model(np.full((1, 1024), 3.0), 256)
    np.testing.assert_allclose(mapped[0], 3, rtol=1e-6)
    assert (mapped[1:] < -6).all()


def test_masks_of_another_shape_are_refused():
    plan = ResizePlan((30, 40), 64)
    with pytest.raises(ValueError, match=r"`masks` must have shape.*30, 40.*\(40, 30\)"):
        plan.masks_to_model(np.zeros((40, 30)), 16)
    for wrong in (np.zeros(5), np.zeros((0, 16))):
        with pytest.raises(ValueError, match="`masks` must have shape"):
            plan.masks_to_original(wrong)


def test_nothing_is_written_into_the_arguments():
    plan = ResizePlan((4, 6), 8)
    arrays = [
        (plan.scale_image, np.ones((4, 6, 3), "uint8")),
        (plan.to_model, np.ones((3, 2))),
        (plan.boxes_to_model, np.ones((3, 4))),
        (plan.masks_to_original, np.ones((2, 2), "float32")),
        (lambda m: plan.masks_to_model(m, 2), np.ones((4, 6), "float32")),
    ]
    for method, array in arrays:
        array.setflags(write=False)
        before = array.copy()
        result = method(array)
        result[...] = 7
        np.testing.assert_array_equal(array, before)
        np.testing.assert_array_equal(method(array), method(array.copy()))


# --- box formats ---


def test_box_formats_by_example():
    xyxy, xywh = [10, 20, 50, 40], [10, 20, 40, 20]
    np.testing.assert_array_equal(geometry.xyxy_to_xywh(xyxy), xywh)
    np.testing.assert_array_equal(geometry.xywh_to_xyxy(xywh), xyxy)


def test_box_formats_keep_leading_axes_and_do_not_wrap():
    boxes = np.array([[[200, 100, 250, 255]], [[0, 0, 0, 0]]], "uint8")
    there = geometry.xyxy_to_xywh(boxes)
    assert there.shape == (2, 1, 4)
    np.testing.assert_array_equal(geometry.xywh_to_xyxy(there), boxes)
    np.testing.assert_array_equal(
        geometry.xywh_to_xyxy(np.uint8([200, 0, 100, 1])), [200, 0, 300, 1]
    )
    assert geometry.xyxy_to_xywh(np.zeros((0, 4))).shape == (0, 4)
    with pytest.raises(ValueError, match=r"`boxes` must have shape.*\(3,\)"):
        geometry.xyxy_to_xywh([1, 2, 3])


@pytest.mark.parametrize(
    "size",
    [
        (97, 151),  # smaller than the frame, which stands
        (411, 60),  # larger one way, smaller the other
        (64, 64),  # square, larger
        (32, 24),  # the frame itself
    ],
)
def test_stretched_images_have_no_padding(size):
    plan = ResizePlan(size, (32, 24), stretch=True)
    h, w = size
    assert plan.scaled_size == (32, 24)
    np.testing.assert_allclose(plan.to_model([[w, h]]), [[24, 32]], rtol=1e-6)
    np.testing.assert_allclose(plan.boxes_to_original([[0, 0, 24, 32]]), [[0, 0, w, h]], rtol=1e-6)
    image = np.zeros((*size, 3), "uint8")
    assert plan.scale_image(image).shape == (32, 24, 3)


@pytest.mark.parametrize("size", [(97, 151), (411, 60), (8, 6), (5, 3)])
def test_masks_of_stretched_images_come_back_in_one_step(size):
    torch = pytest.importorskip("torch", reason="its resizing is the oracle")
    logits = np.random.default_rng(0).normal(size=(2, 8, 6)).astype("float32")
    plan = ResizePlan(size, (32, 24), stretch=True)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(plan.masks_to_original(logits), expected, atol=1e-5)
    in_two_steps = ResizePlan(size, (32, 24)).masks_to_original(logits)
    assert size == (8, 6) or np.abs(in_two_steps - expected).max() > 0.01


def test_masks_of_stretched_images_are_averaged_under_each_pixel():
    torch = pytest.importorskip("torch", reason="its resizing is the oracle")
    masks = np.random.default_rng(1).normal(size=(2, 97, 151)).astype("float32")
    mapped = ResizePlan((97, 151), (32, 24), stretch=True).masks_to_model(masks, (8, 6))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(masks)[None], (8, 6), mode="bilinear", antialias=True
    )[0].numpy()
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


def test_a_stretched_plan_is_known_by_its_sizes():
    plan = ResizePlan((97, 151), (32, 24), stretch=True)
    again = geometry.plan_of_sizes((97, 151), plan.scaled_size, (32, 24), stretch=True)
    assert again == plan
    kept = ResizePlan((97, 151), (32, 24)).scaled_size
    again = geometry.plan_of_sizes((97, 151), kept, (32, 24), stretch=True)
    assert (again.scaled_size, again.stretch) == (kept, False)
