"""What works with SAM works with each model of the family, a small one of each."""

import functools
import itertools
import json

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import backends, converters, presets
from tests.closeness import assert_same, relative_difference
from tests.datasets import write_data_set
from tests.models.test_sam_hq import hq_segmenter
from tests.models.test_tiny_vit import tiny_mobile
from tests.tiny import photograph, tiny_sam2_segmenter, tiny_segmenter

MODELS = {
    "MobileSAM": tiny_mobile,
    "SAM-HQ": hq_segmenter,
    "light SAM-HQ": functools.partial(hq_segmenter, light=True),
    "SAM 2": tiny_sam2_segmenter,
}
PHOTO = photograph((53, 81), 1)
BOXES = {"images": [PHOTO], "boxes": [[[5, 6, 60, 40], [20, 3, 70, 50]]]}
# In which transformers has it, and what it says of the others.
NOT_IN_TRANSFORMERS = {"MobileSAM": "no MobileSAM", "light SAM-HQ": "no TinyViT"}
TRAINS = pytest.mark.skipif(not backends.CAN_TRAIN, reason="this backend only predicts")


@functools.cache
def model(name):
    """One for all tests that do not change it."""
    return MODELS[name]()


@functools.cache
def outputs_of(name):
    return model(name).predict(BOXES, verbose=0)


def masks_of(name):
    return outputs_of(name)["masks"]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


HALVES = ("mixed_bfloat16", "bfloat16", *(("float16",) if backends.NAME == "torch" else ()))


# Each model, in one policy of the two; one backend has all of both.
ON_EVERY_BACKEND = {
    ("MobileSAM", "mixed_bfloat16"),
    ("SAM-HQ", "bfloat16"),
    ("light SAM-HQ", "bfloat16"),
    ("SAM 2", "mixed_bfloat16"),
}


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(*pair, marks=[pytest.mark.once] * (pair not in ON_EVERY_BACKEND))
        for pair in itertools.product(MODELS, HALVES)
    ],
)
def test_half_precision_is_close(name, dtype):
    outputs = MODELS[name](dtype=dtype).predict(BOXES, verbose=0)
    assert outputs["masks"].dtype == "float32"
    for key in ("masks", "iou_pred"):
        assert relative_difference(outputs[key], outputs_of(name)[key]) < 0.1
    if "object_score" in outputs:  # a logit near 0 here, of which the probability counts
        scores = (outputs["object_score"], outputs_of(name)["object_score"])
        half, whole = (1 / (1 + np.exp(-x)) for x in scores)
        assert np.abs(half - whole).max() < 0.02


@pytest.mark.once
def test_another_frame_and_other_channels(name, tmp_path):
    segmenter = model(name)
    segmenter.save_to_preset(tmp_path)
    frame = (96, 128)
    loaded = keras_sam.ImageSegmenter.from_preset(tmp_path, image_shape=frame)
    moved = segmenter.at_image_shape(frame)
    for other in (loaded, moved):
        assert type(other) is type(segmenter)
        assert other.image_shape == (*frame, 3)
    expected = loaded.predict(BOXES, verbose=0)["masks"]
    assert expected.shape[-2:] == (24, 32)
    assert_same(moved.predict(BOXES, verbose=0)["masks"], expected)
    four = keras_sam.ImageSegmenter.from_preset(tmp_path, num_channels=4)
    pictures = [np.dstack([PHOTO, PHOTO[..., :1]])]  # the fourth channel starts without effect
    assert_same(four.predict({**BOXES, "images": pictures}, verbose=0)["masks"], masks_of(name))


@pytest.mark.once
def test_converted_files_give_the_same_masks(name, tmp_path):
    segmenter = model(name)
    segmenter.save_to_preset(tmp_path / "preset")
    presets.convert_checkpoint(tmp_path / "preset", tmp_path / "meta.safetensors", "meta")
    presets.convert_checkpoint(tmp_path / "meta.safetensors", tmp_path / "again", "keras_sam")
    loaded = keras_sam.ImageSegmenter.from_preset(tmp_path / "again")
    assert type(loaded) is type(segmenter)
    assert_same(loaded.predict(BOXES, verbose=0)["masks"], masks_of(name))
    saved, again = (
        json.loads((tmp_path / folder / "config.json").read_text())["config"]
        for folder in ("preset", "again")
    )
    for part in converters.PARTS:  # Keras finds the classes of both in the same places
        assert again[part]["module"] == saved[part]["module"]
    said = NOT_IN_TRANSFORMERS.get(name, "works on square frames only. Received: 64 x 96")
    with pytest.raises(ValueError, match=said):
        presets.convert_checkpoint(tmp_path / "preset", tmp_path / "folder", "transformers")
    assert not (tmp_path / "folder").exists()


@pytest.mark.once
@TRAINS
def test_frozen_parts_and_recomputed_blocks(name, tmp_path):
    segmenter = MODELS[name]()
    segmenter.freeze("image_encoder")
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    paths = [v.path for v in segmenter.trainable_variables]
    assert paths and [v.path for v in loaded.trainable_variables] == paths
    if isinstance(segmenter.image_encoder, keras_sam.TinyViTBackbone):
        with pytest.raises(ValueError, match="Received: a TinyViTBackbone"):
            segmenter.checkpoint_gradients()
    else:
        segmenter.checkpoint_gradients()


@pytest.mark.once
def test_every_command(name, tmp_path, cli):
    data = write_data_set(tmp_path / "data", count=1)
    MODELS[name]().save_to_preset(tmp_path / "preset")
    masks = " ".join(map(str, data.options("masks")))
    photo, run = data.folder / "photos/p0.png", f"--model {tmp_path}/run/best --quiet"
    for command in (
        f"train --model {tmp_path}/preset --quiet {masks} --epochs 1 --num-clicks 0 "
        f"--cache {tmp_path}/cache --out {tmp_path}/run",
        f"evaluate {run} {masks} --clicks 1 --max-clicks 1",
        f"segment {photo} {run} --point 30,20 --out {tmp_path}/one",
        f"everything {photo} {run} --points-per-side 2 --format coco --out {tmp_path}/all",
        f"convert {tmp_path}/run/best {tmp_path}/best --to keras_sam --quiet",
    ):
        code, _, said = cli(*command.split())
        assert code == 0, said


@pytest.mark.once
def test_files_of_one_model_are_no_files_of_another(name, tmp_path):
    model(name).save_to_preset(tmp_path)
    kind = type(model(name))
    others = {keras_sam.SAMHQImageSegmenter, keras_sam.SAM2ImageSegmenter} - {kind}
    for other in others:
        with pytest.raises(ValueError, match=f"which `{kind.__name__}.from_preset` loads"):
            other.from_preset(tmp_path)
    sam = tiny_segmenter()
    before = sam.get_weights()
    with pytest.raises(ValueError, match=f"look like {name.removeprefix('light ')}") as caught:
        sam.load_checkpoint(tmp_path / "model.weights.h5")
    for said in (
        "Missing, not in the file (",
        "Unexpected, not in the model (",
        "Of another shape",
    ):
        assert said in str(caught.value)
    for values, expected in zip(sam.get_weights(), before, strict=True):
        np.testing.assert_array_equal(values, expected)
