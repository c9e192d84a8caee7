"""Warnings: at whose line they are shown, and how often."""

import linecache
import threading
import warnings

import numpy as np
import pytest

import keras_sam
from keras_sam.notices import notice, warn
from tests.tiny import photograph

pytestmark = pytest.mark.once

DARK = np.full((53, 80, 3), 4000, "uint16")
WHITE = np.full((1, 53, 80), 255, "uint8")
WHITE[:, :20] = 0
EVERYTHING = {"points_per_side": 1, "pred_iou_thresh": 2.0}


def fit(segmenter):
    segmenter = keras_sam.SAMImageSegmenter(segmenter.backbone, segmenter.preprocessor)
    segmenter.compile("sgd")
    segmenter.evaluate(
        {"images": [photograph((53, 80))], "points": [[[30, 20]]]}, {"masks": WHITE}, verbose=0
    )


def generate(segmenter):
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **EVERYTHING)
    generator.generate(photograph((53, 80)))


def skip(segmenter):
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, **EVERYTHING)
    list(generator.stream(["no_such_file.jpg"], unusable="skip"))


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda s: s.encode([DARK]), "s.encode([DARK])"),  # two calls deep
        (lambda s: keras_sam.SAMPredictor(s).set_image(DARK), "set_image(DARK)"),  # four
        (fit, "segmenter.evaluate("),  # Keras lies between our function and ours
        (generate, "generator.generate("),  # a generator inside
        (skip, "generator.stream("),  # the user runs the generator
    ],
)
@pytest.mark.usefixtures("without_training_on_openvino")
def test_the_line_of_the_user_is_shown(segmenter, call, line):
    with pytest.warns(UserWarning) as told:
        call(segmenter)
    told = [warning for warning in told if warning.category is UserWarning]
    assert [warning.filename for warning in told] == [__file__]
    assert line in linecache.getline(__file__, told[0].lineno)


@pytest.fixture
def without_training_on_openvino(request):
    from keras_sam import backends

    if not backends.CAN_TRAIN and request.node.callspec.params["call"] is fit:
        pytest.skip("OpenVINO only predicts")


def test_no_line_is_shown_in_a_thread_that_runs_our_code_alone():
    converter = keras_sam.SAMImageConverter(size=64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        thread = threading.Thread(target=converter, args=(DARK,))
        thread.start()
        thread.join()
    (warning,) = told
    text = warnings.formatwarning(
        warning.message, warning.category, warning.filename, warning.lineno
    )
    assert text.startswith("keras_sam:0: UserWarning: A uint16 image has values up to 4000")
    assert text.count("\n") == 1  # the text, and no line of code below it


def test_a_notice_comes_once_and_a_warning_each_time():
    with pytest.warns(UserWarning) as told:
        for number in range(3):
            notice(f"Image {number} is odd.", "odd")
            notice(f"Image {number} is even.")
            warn("Image is left out.")
    texts = [str(warning.message) for warning in told]
    assert texts.count("Image is left out.") == 3
    assert [text for text in texts if "odd" in text] == ["Image 0 is odd."]
    assert len(texts) == 3 + 1 + 3
