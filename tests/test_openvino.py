"""OpenVINO, the backend that only predicts: beside the backend of this process."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.tiny import photograph, tiny_segmenter

pytest.importorskip("openvino")

from keras_sam.backends import openvino

PHOTO = photograph((53, 80))
BOXES = [[10, 5, 60, 40], [0, 0, 9, 9], [1, 1, 30, 30]]
# Everything that uses the model: predict, encode, decode, the predictor, refinement.
ANSWERS = """
import keras_sam
def answers(segmenter):
    click = {"points": [[30, 20]], "labels": [1]}
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(PHOTO)
    _, scores, logits = predictor.predict(**click)
    refined = predictor.predict(**click, masks=logits[1], multimask_output=False)
    embeddings = segmenter.encode([PHOTO])
    one = segmenter.predict({"images": [PHOTO], "points": [[[30, 20]]], "labels": [[1]]}, verbose=0)
    many = segmenter.decode(embeddings, {"boxes": [BOXES]})
    return {
        "embeddings": embeddings["image_embeddings"],
        "one": one["masks"],
        "many": many["masks"],
        "scores": many["iou_pred"],
        "predictor": logits,
        "refined": refined[2],
    }
"""
SCRIPT = (
    """
import sys
import numpy as np
from tests.test_openvino import BOXES, PHOTO
from tests.tiny import tiny_segmenter
"""
    + ANSWERS
    + """
from keras_sam.backends import openvino
compiled = []
compile_one = openvino._compile
def counted(*arguments):
    compiled.append(1)
    return compile_one(*arguments)
openvino._compile = counted
segmenter = tiny_segmenter()
results = answers(segmenter)
count = len(compiled)
encoded = segmenter.encode([PHOTO])
for n in (1, 2, 3, 4):  # boxes in the buckets of 1, 2 and 4
    segmenter.decode(encoded, {"boxes": [BOXES[:1] * n]})
predictor = keras_sam.SAMPredictor(segmenter)
predictor.set_image(PHOTO)
results["no masks"] = predictor.predict(boxes=np.zeros((0, 4)))[0]
results["no logits"] = segmenter.predict({"images": [PHOTO], "boxes": [[]]}, verbose=0)["masks"]
results["compiled at once"] = count
results["compiled in all"] = len(compiled)
try:
    segmenter.fit({"images": [PHOTO], "boxes": [BOXES]}, {"masks": [np.zeros((3, 53, 80))]})
except Exception as error:
    results["fit"] = str(error)
np.savez(sys.argv[1], **results)
"""
)


@pytest.fixture(scope="module")
def expected():
    names = {"PHOTO": PHOTO, "BOXES": BOXES}
    exec(ANSWERS, names)
    return names["answers"](tiny_segmenter())


FAMILY_SCRIPT = (
    """
import sys
import numpy as np
from tests.models.test_family import MODELS
from tests.test_openvino import BOXES, PHOTO
"""
    + ANSWERS
    + """
for name, make in MODELS.items():
    np.savez(f"{sys.argv[1]}/{name}.npz", **answers(make()))
"""
)


def test_every_model_of_the_family(tmp_path):
    from tests.models.test_family import MODELS

    run(tmp_path, FAMILY_SCRIPT, KERAS_SAM_OPENVINO_PRECISION="float32")
    names = {"PHOTO": PHOTO, "BOXES": BOXES}
    exec(ANSWERS, names)
    for name, make in MODELS.items():
        actual = np.load(tmp_path / f"{name}.npz")
        for key, values in names["answers"](make()).items():
            assert actual[key].shape == values.shape
            error = np.abs(actual[key] - values).max() / np.abs(values).max()
            assert error <= 1e-4, f"{name}, {key}: {error:.1e}"


# Keras's own compiled models, from what it promises alone.
PUBLIC_SCRIPT = (
    """
import sys
import numpy as np
from keras_sam.backends import private
from tests.test_openvino import BOXES, PHOTO
from tests.tiny import tiny_segmenter
look_up = private.look_up
def without_internals(owner, name):
    return None if str(owner).startswith("keras.src") else look_up(owner, name)
private.look_up = without_internals
"""
    + ANSWERS
    + """
np.savez(sys.argv[1], **answers(tiny_segmenter()))
"""
)


def run(path, script=SCRIPT, **variables):
    environment = {**os.environ, "KERAS_BACKEND": "openvino", **variables}
    command = [sys.executable, "-W", "ignore", "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "structure of `inputs`" not in done.stderr  # no warning of Keras's at each call
    return np.load(path) if os.path.isfile(path) else None


def test_float32_is_exact_and_nothing_is_compiled_twice(expected, tmp_path):
    actual = run(tmp_path / "answers.npz", KERAS_SAM_OPENVINO_PRECISION="float32")
    for name, values in expected.items():
        assert actual[name].shape == values.shape
        error = np.abs(actual[name] - values).max() / np.abs(values).max()
        assert error <= 1e-4, f"{name}: {error:.1e}"
    # The encoder; all masks for a click; what 3 boxes share, and their masks; the predictor's three
    # for a click, its one for a click and a mask; then 2 boxes. One box has two tokens, as a click
    # with its not-a-point.
    assert actual["compiled at once"] == 6
    assert actual["compiled in all"] == 7
    assert actual["no masks"].shape == (0, 3, *PHOTO.shape[:2])
    assert actual["no logits"].shape == (1, 0, 4, 28, 36)
    assert "fit" in str(actual["fit"]) and "openvino" in str(actual["fit"])


def test_the_default_precision_stays_near(expected, tmp_path):
    """bfloat16 where the processor has it: 16 roundings to its 8 bits, as in test_precision."""
    cache = tmp_path / "cache"
    actual = run(tmp_path / "answers.npz", KERAS_SAM_OPENVINO_CACHE=str(cache))
    assert len(list(cache.glob("*.blob"))) == actual["compiled in all"]  # kept for the next process
    for name, values in expected.items():
        difference = np.sqrt(np.mean((actual[name] - values) ** 2) / np.mean(values**2))
        assert difference <= 16 * 2**-8, f"{name}: {difference:.3f}"


def test_without_keras_internals(expected, tmp_path):
    actual = run(tmp_path / "answers.npz", PUBLIC_SCRIPT)
    for name, values in expected.items():
        difference = np.sqrt(np.mean((actual[name] - values) ** 2) / np.mean(values**2))
        assert difference <= 16 * 2**-8, f"{name}: {difference:.3f}"


# In a process of its own, as the backend of this one is another.
NEW_WEIGHTS = """
import sys
import numpy as np
from tests.test_openvino import BOXES, PHOTO
from tests.tiny import tiny_segmenter
old, new = tiny_segmenter(seed=1), tiny_segmenter(seed=2)
x = {"images": [PHOTO], "boxes": [BOXES]}
wanted = new.predict(x)["masks"]
results = {"wanted": wanted, "old": old.predict(x)["masks"]}
old.set_weights(new.get_weights())
results["set_weights"] = old.predict(x)["masks"]
for variable in old.weights:
    variable.assign(np.zeros(variable.shape))
results["zeros"] = old.predict(x)["masks"]
new.save_weights(sys.argv[1] + ".weights.h5")
old.load_weights(sys.argv[1] + ".weights.h5")
results["load_weights"] = old.predict(x)["masks"]
np.savez(sys.argv[1], **results)
"""


def test_new_weights_give_their_own_masks_after_the_first_predict(tmp_path):
    actual = run(tmp_path / "x.npz", NEW_WEIGHTS, KERAS_SAM_OPENVINO_PRECISION="float32")
    assert np.abs(actual["old"] - actual["wanted"]).max() > 0.1
    np.testing.assert_array_equal(actual["zeros"], 0.0)
    for name in ("set_weights", "load_weights"):
        np.testing.assert_allclose(actual[name], actual["wanted"], atol=1e-5)


def test_precisions_that_do_not_exist(monkeypatch):
    monkeypatch.setenv("KERAS_SAM_OPENVINO_PRECISION", "half")
    with pytest.raises(ValueError, match="KERAS_SAM_OPENVINO_PRECISION must be one of.*'half'"):
        openvino.precision()
    monkeypatch.delenv("KERAS_SAM_OPENVINO_PRECISION")
    assert openvino.precision() is None
