"""LiteRT files: its interpreter alone runs them, and they give the segmenter's numbers."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_sam.export import export_model
from keras_sam.export.checking import check_decoder, check_encoder
from keras_sam.export.graphs import ImageEncoderGraph, PromptDecoderGraph
from keras_sam.export.tensorflow_graphs import as_litert
from keras_sam.runtimes import LiteRT
from tests.closeness import assert_same
from tests.models.test_sam_hq import hq_segmenter
from tests.tiny import photograph, tiny_sam2_segmenter

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="LiteRT files are written on TensorFlow"
)
ALONE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
folder, arrays = sys.argv[1:]
given = dict(np.load(arrays))
def run(name):
    runner = Interpreter(f"{folder}/{name}.tflite").get_signature_runner()
    return runner(**{k: given[k] for k in runner.get_input_details()})
given.update(run("image_encoder"))
given.update(run("prompt_decoder"))
assert not {"keras", "keras_sam", "tensorflow"} & set(sys.modules)
np.savez(arrays, **given)
"""


def test_litert_alone_runs_both_files(tmp_path):
    """Of SAM-HQ, whose encoder and decoder have all that SAM's have."""
    segmenter = hq_segmenter()
    export_model(segmenter, tmp_path / "out", "litert")
    frame = segmenter.preprocessor.image_converter.convert([photograph((53, 80))])[0]
    encoder = segmenter.image_encoder
    pixels = (frame - np.float32(encoder.pixel_mean)) / np.float32(encoder.pixel_std)
    given = {
        "points": np.float32([[[[30, 40], [90, 50], [0, 0]], [[20, 20], [70, 60], [0, 0]]]]),
        "labels": np.int32([[[1, 0, -1], [2, 3, -10]]]),
        "mask_prompts": np.random.default_rng(0).standard_normal((1, 2, 16, 24)).astype("float32"),
        "mask_given": np.float32([[0, 1]]),
    }
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, pixels=pixels.transpose(0, 3, 1, 2), **given)
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "out"), str(arrays)], check=True)
    found = dict(np.load(arrays))
    canonical = {
        "points": given["points"],
        "labels": given["labels"],
        "masks": given["mask_prompts"][..., None],
        "mask_given": given["mask_given"].astype(bool),
    }
    features = segmenter.encode_frames(frame)
    wanted = features["image_embeddings"].transpose(0, 3, 1, 2)
    assert_same(found["image_embeddings"], wanted, 1e-4)
    expected = segmenter.decode(features, canonical)
    for name in ("masks", "iou_pred"):
        assert_same(found[name], expected[name], 1e-4)


def test_hiera_runs_in_litert(tmp_path):
    segmenter = tiny_sam2_segmenter()
    path = tmp_path / "image_encoder.tflite"
    path.write_bytes(as_litert(ImageEncoderGraph(segmenter), "float32"))
    differences = check_encoder(LiteRT(path), segmenter, False, "float32")
    assert set(differences) == {*segmenter.feature_shapes}
    assert max(differences.values()) < 1e-4


@pytest.mark.parametrize("make, choice", [(hq_segmenter, True), (tiny_sam2_segmenter, False)])
def test_decoders_that_choose_among_masks_run_in_litert(make, choice, tmp_path):
    segmenter, path = make(), tmp_path / "prompt_decoder.tflite"
    graph = PromptDecoderGraph(segmenter, choice)
    path.write_bytes(as_litert(graph, "float32"))
    differences = check_decoder(LiteRT(path), graph, segmenter, "float32")
    assert set(differences) == {*graph.outputs} and max(differences.values()) < 1e-4


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"<html>" * 100)
    with pytest.raises(ValueError, match="LiteRT cannot load .*broken.tflite"):
        LiteRT(tmp_path / "broken.tflite")
