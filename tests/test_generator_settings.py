"""What a model recommends to the mask generator: checked, used unless told otherwise, and kept."""

import inspect

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import presets
from keras_sam.compat.segment_anything import SamAutomaticMaskGenerator
from keras_sam.compat.segment_anything.modeling import Sam
from keras_sam.generator_settings import RECOMMENDABLE, check_generator_settings
from tests.tiny import tiny_backbone, tiny_segmenter

pytestmark = pytest.mark.once

SETTINGS = {"points_per_side": 5, "pred_iou_thresh": 0.7, "crop_n_layers": 1, "use_m2m": True}


@pytest.fixture(scope="module")
def segmenter():
    return keras_sam.SAMImageSegmenter(tiny_backbone(), generator_settings=SETTINGS)


def made(generator):
    limits = generator.thresholds
    return (
        len(generator.point_grids[0]),
        *(limits.pred_iou_thresh, limits.stability_score_thresh),
        *(generator.crop_n_layers, generator.use_m2m),
    )


def test_names_and_kinds_are_those_of_the_generators_parameters():
    parameters = inspect.signature(keras_sam.SAMAutomaticMaskGenerator).parameters
    kinds = {name: type(parameters[name].default) for name in RECOMMENDABLE}
    assert kinds == {**RECOMMENDABLE, "min_mask_region_area": int}  # 0, and any number of pixels
    # The picture's, the machine's and the caller's own.
    others = {"segmenter", "point_grids", "output_mode", "keep_candidates"}
    assert set(parameters) - set(RECOMMENDABLE) == others | {"points_per_batch", "prompt_chunk"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (25, 0.7, 0.95, 1, True)),  # the rest is Meta's
        ({"pred_iou_thresh": 0.88}, (25, 0.88, 0.95, 1, True)),  # Meta's default, said aloud
        ({"use_m2m": False, "crop_n_layers": 0}, (25, 0.7, 0.95, 0, False)),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]] * 2}, (1, 0.7, 0.95, 1, True)),
    ],
)
def test_the_generator_takes_what_is_not_passed_from_the_model(segmenter, given, expected):
    for of in (segmenter, keras_sam.SAMPredictor(segmenter)):
        assert made(keras_sam.SAMAutomaticMaskGenerator(of, **given)) == expected


def test_what_is_passed_by_position_is_passed(segmenter):
    found = made(keras_sam.SAMAutomaticMaskGenerator(segmenter, 2, 64, 0.25))
    assert found == (4, 0.25, 0.95, 1, True)


def test_without_recommendations_the_defaults_are_metas():
    expected = (32 * 32, 0.88, 0.95, 0, False)
    assert made(keras_sam.SAMAutomaticMaskGenerator(tiny_segmenter())) == expected


def test_metas_class_keeps_metas_defaults():
    square = keras_sam.SAMImageSegmenter(tiny_backbone((32, 32, 3)), generator_settings=SETTINGS)
    generator = SamAutomaticMaskGenerator(Sam(square))
    assert made(generator._generator(points_per_side=3))[1:] == (0.88, 0.95, 0, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pred_iou_tresh": 0.7}, "no setting `pred_iou_tresh` .* Did you mean `pred_iou_thresh`"),
        ({"output_mode": "coco_rle"}, "no setting `output_mode` .* There are: points_per_side, "),
        ({"points_per_side": 8.5}, r"\['points_per_side'\]` must be a whole number. Received: 8.5"),
        ({"pred_iou_thresh": "0.7"}, "must be a number. Received: '0.7'"),
        ({"pred_iou_thresh": float("nan")}, "must be a number. Received: nan"),
        ({"crop_n_layers": True}, "must be a whole number. Received: True"),
        ({"use_m2m": 1}, "must be True or False. Received: 1"),
        ([("pred_iou_thresh", 0.7)], "must be a dict of parameters"),
    ],
)
def test_what_cannot_be_recommended_is_named(settings, message):
    with pytest.raises(ValueError, match=f"`generator_settings.*{message}"):
        check_generator_settings(settings)


def test_a_segmenter_checks_them_and_a_misspelt_change_is_found_by_the_generator(segmenter):
    with pytest.raises(ValueError, match="Did you mean `pred_iou_thresh`"):
        keras_sam.SAMImageSegmenter(segmenter.backbone, generator_settings={"iou_thresh": 0.5})
    other = keras_sam.SAMImageSegmenter(segmenter.backbone)
    other.generator_settings["iou_thresh"] = 0.5
    with pytest.raises(ValueError, match="Did you mean `pred_iou_thresh`"):
        keras_sam.SAMAutomaticMaskGenerator(other)


def test_numbers_of_numpy_become_numbers_of_json():
    found = check_generator_settings({"points_per_side": np.int64(3), "box_nms_thresh": 1})
    assert {name: type(value) for name, value in found.items()} == {
        "points_per_side": int,
        "box_nms_thresh": float,
    }


def test_files_presets_and_other_sizes_keep_them(segmenter, tmp_path):
    segmenter.save(tmp_path / "model.keras")
    segmenter.save_to_preset(tmp_path / "preset")
    presets.convert_checkpoint(tmp_path / "preset", tmp_path / "copy")
    presets.convert_checkpoint(tmp_path / "preset", tmp_path / "meta.safetensors", "meta")
    load = keras_sam.SAMImageSegmenter.from_preset
    kept = [
        keras.models.load_model(tmp_path / "model.keras"),
        *map(load, (tmp_path / name for name in ("model.keras", "preset", "copy"))),
        load(tmp_path / "meta.safetensors"),
        segmenter.at_image_shape((112, 112)),
    ]
    assert [dict(found.generator_settings) for found in kept] == [SETTINGS] * len(kept)
    own = load(tmp_path / "preset", generator_settings={"pred_iou_thresh": 0.5})
    assert own.generator_settings == {"pred_iou_thresh": 0.5}
    assert load(tmp_path / "preset", generator_settings=None).generator_settings == {}


@pytest.mark.parametrize("name", ["sam_base_sa1b", "sam_large_sa1b", "sam_huge_sa1b"])
def test_released_models_recommend_nothing(name):
    task = presets.read_preset(name, load_weights=False).task
    assert not task["config"].get("generator_settings")
