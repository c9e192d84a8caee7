"""SAM-HQ's records are those of the generator in its released code.

The model is the demo preset, with SAM-HQ's layers of random weights, at a size at which they change
its masks and leave them masks.
"""

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam import converters
from tests import generator_oracle as oracle
from tests.hq_oracle import hq_like, import_segment_anything_hq
from tests.tiny import randomize, without_random_values

# A picture and thresholds near which no candidate lies, and of the parameters those that matter.
SEED, SETTINGS = 0, {"points_per_side": 12, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6}


def hq_segmenter():
    sam = keras_sam.SAMImageSegmenter.from_preset(oracle.PRESET, image_shape=oracle.IMAGE_SHAPE)
    config = sam.image_encoder.get_config()
    encoder = keras_sam.ViTDetBackbone.from_config({**config, "early_features": True})
    with without_random_values():
        decoder = keras_sam.SAMHQMaskDecoder.from_config(
            {**sam.mask_decoder.get_config(), "early_dim": config["hidden_size"]}
        )
        backbone = keras_sam.SAMBackbone(encoder, sam.prompt_encoder, decoder)
    randomize(decoder, 2)
    known = {variable.path: variable for variable in sam.weights}
    for variable in backbone.weights:
        if variable.path in known:
            variable.assign(known[variable.path])
    last = decoder.hq_mlp.dense_layers[-1]
    for variable in last.weights:
        variable.assign(0.02 * keras.ops.convert_to_numpy(variable))
    return keras_sam.SAMHQImageSegmenter(backbone)


def released_model(segmenter):
    parts = (segmenter.image_encoder, segmenter.prompt_encoder, segmenter.mask_decoder)
    model = hq_like(*(part.get_config() for part in parts))
    import torch

    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in segmenter.backbone.weights}
    family = next(family for family in converters.FAMILIES if family.name == "SAM-HQ")
    tensors = converters.to_meta(arrays, family)
    model.load_state_dict({name: torch.tensor(np.asarray(x)) for name, x in tensors.items()})
    return model.eval()


def records_of_both(seed=SEED, settings=SETTINGS):
    """The released generator's records, how it came to them, and ours."""
    segmenter = hq_segmenter()
    theirs = import_segment_anything_hq().SamAutomaticMaskGenerator(
        released_model(segmenter), **settings
    )
    image = oracle.picture("photograph", seed)
    with oracle.Watch({"box_nms_thresh": 0.7, **settings}).on(theirs) as watch:
        expected = theirs.generate(image)
    ours = keras_sam.SAMAutomaticMaskGenerator(segmenter, **settings)
    return expected, watch, ours.generate(image)


@pytest.fixture(scope="module")
def records():
    return records_of_both()


def test_records_are_the_released_code_s(records):
    expected, watch, actual = records
    assert watch.margin > oracle.MARGIN, (
        "a candidate lies so near a threshold that rounding decides"
    )
    assert watch.order_margin > oracle.ORDER_MARGIN, "rounding decides the order of two scores"
    assert len(expected) >= 20, "too few records to tell anything"
    assert sum(watch.suppressed) > 0
    oracle.assert_same_records(actual, expected)


def test_sam_s_records_are_others(records):
    """Or the test above could not see whether SAM-HQ's layers do anything."""
    _, _, actual = records
    sam = keras_sam.SAMImageSegmenter.from_preset(oracle.PRESET, image_shape=oracle.IMAGE_SHAPE)
    others = keras_sam.SAMAutomaticMaskGenerator(sam, **SETTINGS).generate(
        oracle.picture("photograph", SEED)
    )
    assert [r["bbox"] for r in others] != [r["bbox"] for r in actual]
