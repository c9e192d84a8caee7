"""SavedModels: TensorFlow alone loads them, and they give the segmenter's numbers.

One is written from JAX, which starts a process with TensorFlow: that is written on TensorFlow, too.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_sam import runtimes
from keras_sam.export import export_model
from tests.closeness import assert_same
from tests.tiny import photograph

ON_JAX, ON_TENSORFLOW = (
    pytest.mark.skipif(keras.backend.backend() != name, reason="once is enough")
    for name in ("jax", "tensorflow")
)
ALONE = """
import sys
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
given = dict(np.load(sys.argv[2]))
for name in ("encode", "decode", "segment"):
    signature = loaded.signatures[name]
    wanted = signature.structured_input_signature[1]
    outputs = signature(**{k: tf.constant(given[k]) for k in wanted})
    given.update({f"{name}/{k}": x.numpy() for k, x in outputs.items()})
    if name == "encode":
        given["image_embeddings"] = outputs["image_embeddings"].numpy()
assert not any(m.startswith("keras_sam") for m in sys.modules)
np.savez(sys.argv[2], **given)
"""


@ON_JAX
def test_tensorflow_alone_runs_every_signature_of_a_model_on_jax(segmenter, tmp_path):
    pytest.importorskip("tensorflow")
    export_model(segmenter, tmp_path / "out", "saved_model")
    frame = segmenter.preprocessor.image_converter.convert([photograph((53, 80))])[0]
    encoder = segmenter.image_encoder
    pixels = (frame - np.float32(encoder.pixel_mean)) / np.float32(encoder.pixel_std)
    points = np.float32([[[[30, 40], [90, 50]], [[20, 20], [70, 60]], [[50, 50], [0, 0]]]])
    labels = np.int32([[[1, 0], [2, 3], [1, -1]]])
    masks, given = np.zeros((1, 3, 28, 36), "float32"), np.zeros((1, 3), "float32")
    arrays = tmp_path / "arrays.npz"
    np.savez(
        arrays,
        pixels=pixels.transpose(0, 3, 1, 2),
        points=points,
        labels=labels,
        mask_prompts=masks,
        mask_given=given,
    )
    command = [sys.executable, "-c", ALONE, str(tmp_path / "out" / "saved_model"), str(arrays)]
    subprocess.run(command, check=True)
    found = dict(np.load(arrays))
    features = segmenter.encode_frames(frame)
    canonical = {
        "points": points,
        "labels": labels,
        "masks": masks[..., None],
        "mask_given": given.astype(bool),
    }
    expected = segmenter.decode(features, canonical)
    wanted = features["image_embeddings"].transpose(0, 3, 1, 2)
    assert_same(found["encode/image_embeddings"], wanted, 1e-4)
    for signature in ("decode", "segment"):
        for name in ("masks", "iou_pred"):
            assert_same(found[f"{signature}/{name}"], expected[name], 1e-4)


@ON_TENSORFLOW
def test_onnx_is_written_by_torch_in_a_process_of_its_own(segmenter, tmp_path):
    encoder = segmenter.image_encoder
    encoder.export(tmp_path / "encoder.onnx", format="onnx", verbose=False)
    images = np.random.default_rng(0).uniform(0, 255, (1, 112, 144, 3)).astype("float32")
    found = runtimes.OnnxRuntime(tmp_path / "encoder.onnx")({"images": images})
    assert_same(found["image_embeddings"], encoder(images).numpy(), 1e-4)


@ON_TENSORFLOW
def test_the_error_of_the_other_process_is_the_same(segmenter, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        export_model(segmenter, tmp_path, "onnx")
