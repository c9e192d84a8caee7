"""Images, prompts and masks as transformers' processors make them, and the page's examples.

See `test_transformers.py`, which has the models.
"""

import warnings

import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.compat import transformers as ours
from keras_sam.compat.transformers import mask_generation
from keras_sam.images import load_image
from tests.checkpoints import SIDE
from tests.compat import sam_vit
from tests.compat.sam_vit import (
    IMAGE,
    assert_same,
    our_image_processor,
    their_image_processor,
)
from tests.tiny import photograph

pytestmark = pytest.mark.once

theirs, folder, models = sam_vit.theirs, sam_vit.folder, sam_vit.models

# --- the image processor ---

SETTINGS = {
    "defaults": {},
    "size": {"size": {"longest_edge": 40}},
    "no resizing": {"do_resize": False, "pad_size": {"height": 80, "width": 90}},
    "no padding": {"do_pad": False},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False, "do_normalize": False},
    "another scale": {"rescale_factor": 1 / 127, "image_mean": [0.5] * 3, "image_std": [0.2] * 3},
    "bicubic": {"resample": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_preprocess_equals_transformers(theirs, name):
    expected = their_image_processor()(IMAGE, return_tensors="np", **SETTINGS[name])
    actual = our_image_processor().preprocess(IMAGE, return_tensors="np", **SETTINGS[name])
    assert sorted(actual) == sorted(expected)
    assert_same(actual["pixel_values"], expected["pixel_values"], 1e-6)
    for key in ("original_sizes", "reshaped_input_sizes"):
        np.testing.assert_array_equal(actual[key], expected[key])


def test_processors_take_a_picture_as_it_is_stored(theirs, tmp_path):
    turned = Image.fromarray(IMAGE)
    turned.getexif()[274] = 6  # EXIF's orientation: a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    picture = Image.open(tmp_path / "turned.jpg")
    sizes = [
        processor(picture, return_tensors="np")["original_sizes"].tolist()
        for processor in (our_image_processor(), their_image_processor())
    ]
    assert sizes == [[list(IMAGE.shape[:2])]] * 2
    assert load_image(picture).shape[:2] == IMAGE.shape[1::-1]  # elsewhere it is turned


def test_images_of_every_kind(theirs, tmp_path):
    processor = our_image_processor()
    wanted = their_image_processor()(Image.fromarray(IMAGE), return_tensors="np")["pixel_values"]
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    import torch

    same = {
        "array": IMAGE,
        "channels first": np.moveaxis(IMAGE, -1, 0),
        "tensor": torch.from_numpy(IMAGE).permute(2, 0, 1),
        "pillow": Image.fromarray(IMAGE),
        "alpha": Image.fromarray(IMAGE).convert("RGBA"),
        "path": tmp_path / "image.png",
        "batch": IMAGE[None],
        "list": [IMAGE],
    }
    for kind, image in same.items():
        made = processor(image, return_tensors="np")
        np.testing.assert_array_equal(made.pixel_values, wanted, err_msg=kind)
        np.testing.assert_array_equal(made.original_sizes, [[40, 70]], err_msg=kind)
    plain_lists = processor([IMAGE, IMAGE[:30]])
    assert [x.shape for x in plain_lists["pixel_values"]] == [(3, SIDE, SIDE)] * 2
    assert plain_lists["original_sizes"] == [(40, 70), (30, 70)]
    last = processor(IMAGE, return_tensors="np", data_format="channels_last")
    np.testing.assert_array_equal(last.pixel_values, np.moveaxis(wanted, 1, -1))
    narrow = photograph((40, 3), seed=2)  # which might be either
    for layout, picture in (
        ("channels_last", narrow),
        ("channels_first", np.moveaxis(narrow, -1, 0)),
    ):
        made = processor(picture, input_data_format=layout, return_tensors="np")
        np.testing.assert_array_equal(made.original_sizes, [[40, 3]])
    kept = processor(np.moveaxis(IMAGE, -1, 0), data_format=None, return_tensors="np")
    assert kept.pixel_values.shape == (1, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="`input_data_format`"):
        processor(np.zeros((5, 40, 70)))
    with pytest.raises(ValueError, match="`return_tensors` must be one of"):
        processor(IMAGE, return_tensors="torch")
    moved = processor(IMAGE, return_tensors="pt").to("cpu", torch.float16)
    assert moved.pixel_values.dtype == torch.float16


def test_resize_and_pad_image(theirs):
    from transformers.image_utils import SizeDict

    processor, oracle = our_image_processor(), their_image_processor()
    first = np.moveaxis(IMAGE, -1, 0)
    expected = oracle.resize(first, SizeDict(longest_edge=48), resample=3)
    resized = processor.resize(first, {"longest_edge": 48})
    np.testing.assert_array_equal(resized, expected)
    last = processor.resize(IMAGE, {"longest_edge": 48}, data_format="channels_first")
    np.testing.assert_array_equal(last, expected)
    padded = processor.pad_image(IMAGE, {"height": 50, "width": 80})
    assert padded.shape == (50, 80, 3) and not padded[40:].any() and not padded[:, 70:].any()
    np.testing.assert_array_equal(padded[:40, :70], IMAGE)
    with pytest.raises(ValueError, match="`size` must be"):
        processor.resize(IMAGE, {"height": 48, "width": 48})


def test_segmentation_maps(theirs):
    labels = (photograph((40, 70), seed=9)[..., 0] > 127).astype("uint8")
    expected = their_image_processor()(IMAGE, segmentation_maps=labels, return_tensors="np")
    for given in (labels, Image.fromarray(labels), [labels]):
        actual = our_image_processor()(IMAGE, segmentation_maps=given, return_tensors="np")
        np.testing.assert_array_equal(actual.labels, expected["labels"])
    assert actual.labels.dtype == np.int64 and actual.labels.any()


@pytest.mark.parametrize("sizes", ["lists", "arrays", "tensors"])
def test_post_process_masks_equals_transformers(theirs, sizes):
    import torch

    masks = torch.from_numpy(np.random.default_rng(3).normal(0, 4, (2, 2, 3, 28, 28))).float()
    original, reshaped = [[40, 70], [64, 50]], [[32, 56], [56, 44]]
    make = {"lists": list, "arrays": np.array, "tensors": torch.tensor}[sizes]
    given = (masks, make(original), make(reshaped))
    processor = ours.SamProcessor(our_image_processor())
    for options in ({}, {"binarize": False}, {"mask_threshold": 1.5}):
        expected = their_image_processor().post_process_masks(*given, **options)
        actual = processor.post_process_masks(*given, **options)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if b.dtype == torch.bool:
                assert (a != b).float().mean() <= 1e-3
            else:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    as_list = processor.post_process_masks(
        [x.numpy() for x in masks], *given[1:], 0.0, True, {"height": 56, "width": 56}, "np"
    )
    np.testing.assert_array_equal(as_list[0], processor.post_process_masks(*given)[0].numpy())


def test_generate_crop_boxes_equals_transformers(theirs):
    import torch

    for layers in (0, 1):
        expected = their_image_processor().generate_crop_boxes(IMAGE, SIDE, layers, 0.3, 4)
        actual = our_image_processor().generate_crop_boxes(IMAGE, SIDE, layers, 0.3, 4)
        for i in (0, 1, 3):
            torch.testing.assert_close(actual[i], expected[i], check_dtype=False)
        assert actual[3].dtype == torch.int64
        for a, b in zip(actual[2], expected[2], strict=True):
            np.testing.assert_array_equal(np.moveaxis(a, -1, 0), b)
    crops = our_image_processor().generate_crop_boxes(np.moveaxis(IMAGE, -1, 0), SIDE)[2]
    assert crops[0].shape == (3, 40, 70)
    with pytest.raises(ValueError, match="must be one image"):
        our_image_processor().generate_crop_boxes([IMAGE], SIDE)
    with pytest.raises(ValueError, match="`crop_n_points_downscale_factor` must be 1"):
        our_image_processor().generate_crop_boxes(IMAGE, SIDE, 1, 0.3, 4, 2)


def test_filter_masks_equals_transformers(theirs):
    import torch

    masks = torch.from_numpy(8 * blobs((4, 3, 30, 31)) - 4).float()
    scores = torch.linspace(0.6, 1.0, 12).reshape(4, 3)
    for crop in ([0, 0, 70, 40], [10, 5, 41, 35]):
        given = (masks if crop[0] else blob_of_image(masks), scores, (40, 70), crop, 0.7, 0.3)
        expected = their_image_processor().filter_masks(*given)
        actual = our_image_processor().filter_masks(*given)
        assert actual[0] == expected[0] and (crop[0] or actual[0])
        for a, b in zip(actual[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, b, check_dtype=False)
    with pytest.raises(ValueError, match="same axes"):
        our_image_processor().filter_masks(masks, scores[:1], (40, 70), crop)


def blobs(shape):
    """Smooth bumps within 0..1, somewhere else in each mask."""
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    places = np.random.default_rng(2).uniform(8, 22, (*shape[:-2], 2, 1, 1))
    return np.exp(-((y - places[..., 0, :, :]) ** 2 + (x - places[..., 1, :, :]) ** 2) / 60)


def blob_of_image(masks):
    import torch

    return torch.nn.functional.pad(masks, (10, 29, 5, 5), value=-4)


def test_post_process_for_mask_generation():
    import torch

    boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 3, 29, 12]])
    rles = [{"size": [40, 70], "counts": [i, 7, 40 * 70 - 7 - i]} for i in range(3)]
    scores = torch.tensor([0.8, 0.9, 0.7])
    masks, kept, kept_rles, kept_boxes = our_image_processor().post_process_for_mask_generation(
        rles, scores, boxes, 0.7
    )
    assert kept.tolist() == pytest.approx([0.9, 0.7]) and kept_rles == [rles[1], rles[2]]
    assert kept_boxes.tolist() == boxes[[1, 2]].tolist()
    assert masks[0].dtype == torch.bool and masks[0].shape == (40, 70)
    assert masks[0].sum() == 7 and bool(masks[0][1, 0])


# --- the processor ---

OF_IMAGES = {
    "points": {"input_points": [[[30, 20]], [[9, 40]]]},
    "objects": {
        "input_points": [[[[30, 20], [9, 4]], [[1, 2], [5, 5]]]] * 2,
        "input_labels": [[[1, 0], [1, 1]]] * 2,
    },
    "boxes": {"input_boxes": [[[3, 4, 30, 35]], [[10.5, 1, 44, 60]]]},
    "ragged": {
        "input_points": [[[30, 20], [9, 4]], [[9, 40]]],
        "input_labels": [[1, 0], [1]],
    },
    "prompts of one image": {"input_points": [[[30, 20]], [[9, 30]], [[1, 1]]]},
}


@pytest.mark.every_backend
@pytest.mark.parametrize("library", ["pt", "np"])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_processor_equals_transformers(theirs, name, library):
    images = [IMAGE] if "one image" in name else [IMAGE, photograph((64, 50), seed=5)]
    expected = theirs.SamProcessor(their_image_processor())(
        images, **OF_IMAGES[name], return_tensors=library, point_pad_value=-10
    )
    actual = ours.SamProcessor(our_image_processor())(
        images, **OF_IMAGES[name], return_tensors=library
    )
    assert sorted(actual) == sorted(expected)
    for key in expected:
        assert type(actual[key]) is type(expected[key])
        assert actual[key].dtype == expected[key].dtype
        assert actual[key].shape == expected[key].shape
        np.testing.assert_allclose(actual[key], expected[key], rtol=1e-5, atol=1e-5)


def test_what_transformers_cannot_batch(models):
    processor = ours.SamProcessor(our_image_processor())
    ragged = {"input_points": [[[[30, 20]], [[9, 4], [60, 30]]]]}
    inputs = processor(IMAGE, **ragged, return_tensors="np")
    assert inputs.input_labels.tolist() == [[[1, -10], [1, 1]]]
    # Padding changes nothing: each object's masks are those that it has alone.
    outputs = models[0](**inputs)
    for i, points in enumerate(ragged["input_points"][0]):
        alone = models[0](**processor(IMAGE, [[points]], return_tensors="np"))
        assert_same(outputs.pred_masks[:, i], alone.pred_masks[:, 0])
    for wrong, message in (
        ({"input_points": [[30, 20]]}, "`input_points` must be nested"),
        ({"input_points": [[[30, 20]]], "input_labels": [[1, 0]]}, "one label per point"),
        ({"input_points": [[[30, 20]]], "input_labels": [1]}, "nested as `input_points` without"),
        ({"input_labels": [[1]]}, "must come with `input_points`"),
        ({"input_boxes": [[1, 2, 3, 4]]}, "`input_boxes` must be nested"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(IMAGE, **wrong)
    with pytest.raises(ValueError, match="one entry per image. Received: 1 for 2 images"):
        processor([IMAGE, IMAGE], input_boxes=[[[1, 2, 3, 4]]])
    with pytest.raises(ValueError, match="`images` must be given"):
        processor()


# --- the page's examples, in other words ---


def test_segmenting_what_a_point_indicates(folder):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ours.SamModel.from_pretrained(folder).to(device)
    processor = ours.SamProcessor.from_pretrained(folder)
    picture = Image.fromarray(IMAGE).convert("RGB")
    labels = Image.fromarray(IMAGE[..., 0] > 99).convert("1")
    points = [[[35, 20]]]
    inputs = processor(
        picture, input_points=points, segmentation_maps=labels, return_tensors="pt"
    ).to(device)
    with torch.no_grad():
        outputs = model(**inputs)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks.cpu(),
        inputs["original_sizes"].cpu(),
        inputs["reshaped_input_sizes"].cpu(),
    )
    best = masks[0][0][outputs.iou_scores[0].argmax().item()].cpu().numpy()
    assert best.shape == (40, 70) and best.dtype == bool


def test_the_pipeline(folder, models):
    generator = ours.pipeline("mask-generation", model=str(folder), points_per_crop=3)
    options = {"pred_iou_thresh": 0, "stability_score_thresh": 0.2, "crops_nms_thresh": 0.9}
    options["stability_score_offset"] = 0.02
    outputs = generator(IMAGE, points_per_batch=4, **options, output_rle_mask=True)
    own = keras_sam.SAMAutomaticMaskGenerator(
        generator.model.segmenter,
        points_per_side=3,
        pred_iou_thresh=0,
        stability_score_thresh=0.2,
        stability_score_offset=0.02,
        box_nms_thresh=0.9,
    ).generate(IMAGE)
    assert len(outputs["masks"]) == len(own) > 0
    np.testing.assert_allclose(outputs["scores"], [r["predicted_iou"] for r in own], atol=1e-5)
    for mask, record in zip(outputs["masks"], own, strict=True):
        assert np.mean(mask != record["segmentation"]) <= 1e-3
    assert outputs["rle_mask"][0]["size"] == [40, 70]
    picture = Image.fromarray(IMAGE)
    picture.getexif()[274] = 6
    turned = generator(picture, **options, output_rle_mask=True)
    assert turned["rle_mask"][0]["size"] == [70, 40]  # by EXIF, as transformers' pipeline does
    several = generator([IMAGE], **options, output_bboxes_mask=True, crops_n_layers=1)
    assert len(several) == 1 and several[0]["bounding_boxes"].shape[1] == 4
    plain_model = ours.pipeline("mask-generation", model=models[0], device="cpu")
    assert plain_model.image_processor.size == {"longest_edge": SIDE}
    assert isinstance(plain_model, mask_generation.MaskGenerationPipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # -1 is the CPU, no device that is missing
        earlier = ours.pipeline(
            model=models[0], feature_extractor=plain_model.image_processor, device=-1
        )
    assert earlier.image_processor is plain_model.image_processor
    with pytest.raises(TypeError, match="no argument points_per_side; .* points_per_crop"):
        ours.pipeline("mask-generation", model=models[0], points_per_side=3)
    with pytest.raises(ValueError, match="`task` must be 'mask-generation'"):
        ours.pipeline("text-generation", model=models[0])
