"""The small preset whose weights come with the package."""

import os
import time

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.evaluation import center_click, mask_iou
from keras_sam.presets import list_presets, locate
from tests.coins_truth import coins
from tools import train_demo_preset

NAME = "sam_tiny_demo"


@pytest.fixture(scope="module")
def segmenter():
    return keras_sam.SAMImageSegmenter.from_preset(NAME)


@pytest.fixture(scope="module")
def predictor(segmenter):
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(coins()[0])
    return predictor


def test_it_is_small_and_there_without_a_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    began = time.process_time()
    segmenter = keras_sam.SAMImageSegmenter.from_preset(NAME, load_weights=True)
    assert time.process_time() - began < 5  # seconds; less than 1 on an idle core
    path = list_presets()[NAME]["cached"]
    assert path == os.path.join(locate.folder_of(NAME), "model.weights.h5")
    assert os.path.getsize(path) < 12e6
    assert segmenter.dtype_policy.name == keras.config.dtype_policy().name


def test_what_the_metadata_says(segmenter):
    metadata = locate.metadata(NAME)
    assert metadata["parameters"] == segmenter.count_params()
    assert metadata["image_encoder_parameters"] == segmenter.image_encoder.count_params()
    assert metadata["tensors"] == len(segmenter.backbone.weights)
    assert metadata["limits"] == train_demo_preset.LIMITS and "sam_base_sa1b" in metadata["limits"]
    assert metadata["license"] == "Apache-2.0" and metadata["sources"] == []
    training = metadata["training"]
    assert {"minutes", "hardware", "seed", "recipe", "results"} <= training.keys()
    assert min(map(len, training["results"].values())) > 5


def test_with_the_settings_that_it_recommends_everything_finds_the_coins(predictor):
    recommended = predictor.segmenter.generator_settings
    assert recommended["pred_iou_thresh"] < 0.88 and recommended["stability_score_thresh"] < 0.95
    generator = keras_sam.SAMAutomaticMaskGenerator(predictor, points_per_side=12)
    found = [record["segmentation"] for record in generator.generate(verbose=0)]
    ious = [max(mask_iou(mask, coin) for mask in found) for coin in coins()[1]]
    assert np.count_nonzero(np.array(ious) >= 0.7) >= 20


def test_boxes_around_coins_give_coins(predictor):
    _, masks = coins()
    found, _, _ = predictor.predict(boxes=[box_of(m) for m in masks], multimask_output=False)
    ious = [mask_iou(a[0], b) for a, b in zip(found, masks, strict=True)]
    said = locate.metadata(NAME)["training"]["results"]["coins"]["box_miou"]
    assert np.mean(ious) == pytest.approx(said, abs=0.01)
    assert np.mean(ious) > 0.8


def test_clicks_on_coins_give_coins(predictor):
    _, masks = coins()
    points = [[center_click(mask > 0)] for mask in masks]
    found, scores, _ = predictor.predict(points=points, labels=[[1]] * len(masks))
    ious = np.array(
        [[mask_iou(a, b) for a in of_click] for of_click, b in zip(found, masks, strict=True)]
    )
    said = locate.metadata(NAME)["training"]["results"]["coins"]["oracle_miou@1"]
    assert ious.max(axis=1).mean() == pytest.approx(said, abs=0.01)
    chosen = ious[np.arange(len(masks)), scores.argmax(axis=1)]
    assert chosen.mean() > 0.7
    assert np.corrcoef(scores.max(axis=1), chosen)[0, 1] > 0 or chosen.min() > 0.7


def box_of(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]
