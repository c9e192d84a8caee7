"""`export`, Keras's own call, of image encoders and segmenters."""

import json

import keras
import numpy as np
import pytest

from keras_sam import runtimes
from tests.closeness import assert_same

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the files are written on torch"
)
TWO = [keras.InputSpec(shape=(2, 112, 144, 3), dtype="float32", name="images")]


@pytest.mark.parametrize(
    "format, name, runtime",
    [("onnx", "encoder.onnx", "OnnxRuntime"), ("openvino", "encoder.xml", "OpenVino")],
)
def test_an_encoder_becomes_one_file(segmenter, tmp_path, format, name, runtime, capsys):
    encoder = segmenter.image_encoder
    encoder.export(tmp_path / name, format=format, input_signature=TWO)
    assert capsys.readouterr().out == f"Saved artifact at '{tmp_path / name}'.\n"
    assert {p.name for p in tmp_path.iterdir()} <= {name, "encoder.bin"}
    images = np.random.default_rng(0).uniform(0, 255, (2, 112, 144, 3)).astype("float32")
    found = getattr(runtimes, runtime)(tmp_path / name)({"images": images})
    expected = keras.ops.convert_to_numpy(encoder(images))
    assert_same(found["image_embeddings"], expected, 1e-4)


def test_a_segmenter_becomes_a_folder(segmenter, tmp_path, capsys):
    folder = tmp_path / "out"
    segmenter.export(folder, format="onnx", verbose=False, opset_version=20, image_input=True)
    assert capsys.readouterr().out == ""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) < {p.name for p in folder.iterdir()}
    assert manifest["settings"]["image_input"] is True


@pytest.mark.parametrize(
    "part, filepath, arguments, error, message",
    [
        # A segmenter's files are several.
        ("segmenter", "sam.onnx", {"format": "onnx"}, ValueError, "`filepath` must be a folder"),
        (
            "segmenter",
            "sam",
            {"format": "onnx", "input_signature": TWO},
            ValueError,
            "`input_signature` is for the image encoder",
        ),
        ("backbone", "x.onnx", {"format": "onnx"}, ValueError, "A SAMBackbone has no masks"),
        ("image_encoder", "x.ov", {"format": "openvino"}, ValueError, "`filepath` must end in"),
        (
            "image_encoder",
            "x.onnx",
            {"format": "onnx", "input_signature": [keras.InputSpec(shape=(1, 64, 64, 3))]},
            ValueError,
            r"`input_signature` must be one spec of shape \(B, 112, 144, 3\)",
        ),
        (
            "image_encoder",
            "x.onnx",
            {"format": "onnx", "opset_version": 11},
            ValueError,
            "`opset` must be at least 18",
        ),
        ("image_encoder", "x", {"format": "caffe"}, ValueError, "Unrecognized format=caffe"),
        ("segmenter", "x", {"format": "onnx", "colour": 1}, TypeError, "colour"),
    ],
)
def test_bad_calls_say_what_to_do(segmenter, tmp_path, part, filepath, arguments, error, message):
    model = segmenter if part == "segmenter" else getattr(segmenter, part)
    with pytest.raises(error, match=message):
        model.export(tmp_path / filepath, **arguments)
    assert not any(tmp_path.iterdir())
