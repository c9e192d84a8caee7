"""The steps of programs that run SAM from files: Meta's notebook, and samexporter's runner.

Label Studio's backend feeds the decoder as the notebook does.
"""

import dataclasses

import cv2
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from keras_sam import SAMPredictor
from keras_sam.compat.segment_anything import SamPredictor
from keras_sam.compat.segment_anything.modeling import Sam
from keras_sam.export import graphs, onnx_graphs, onnx_steps
from tests.closeness import assert_same
from tests.parity import oracles
from tests.tiny import photograph

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the files are written on torch"
)
CLICKS = np.array([[30.0, 25.0], [70.0, 40.0]])
BOX = np.array([12.0, 8.0, 75.0, 50.0])
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
PLAN = {"stretch": False, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def ours():
    return oracles.meta_pair()[1]


@pytest.fixture(scope="module")
def decoder(ours):
    """Meta's decoder with the option of its notebook."""
    made = onnx_steps.as_metas_decoder(
        onnx_graphs.trace(graphs.PromptDecoderGraph(ours), 20),
        {**PLAN, "frame": ours.image_shape[:2]},
        20,
        mask_threshold=0.0,
        return_single_mask=True,
    )
    return onnxruntime.InferenceSession(made.SerializeToString())


@dataclasses.dataclass
class Notebook:
    """Meta's onnx_model_example: Meta's predictor encodes, the file decodes."""

    predictor: SamPredictor
    session: onnxruntime.InferenceSession

    def __call__(self, image, points, labels, mask=None):
        size = image.shape[:2]
        coords = self.predictor.transform.apply_coords(np.asarray(points)[None], size)
        low, side = mask, self.predictor.model.image_encoder.img_size // 4
        return self.session.run(
            None,
            {
                "image_embeddings": np.asarray(self.predictor.get_image_embedding()),
                "point_coords": coords.astype(np.float32),
                "point_labels": np.asarray(labels)[None].astype(np.float32),
                "mask_input": np.zeros((1, 1, side, side), np.float32) if low is None else low,
                "has_mask_input": np.full(1, low is not None, np.float32),
                "orig_im_size": np.array(size, dtype=np.float32),
            },
        )


def test_the_steps_of_metas_notebook(ours, decoder):
    image = photograph((60, 90))
    predictor = SamPredictor(Sam(ours))
    predictor.set_image(image)
    run = Notebook(predictor, decoder)

    def expected(multimask_output, **prompt):
        masks, scores, low = predictor.predict(
            multimask_output=multimask_output, return_logits=True, **prompt
        )
        best = scores.argmax()
        return masks[None, [best]], scores[None, [best]], low[None, [best]]

    nothing = np.zeros((1, 2))  # closes clicks without a box
    one = run(image, np.concatenate([CLICKS[:1], nothing]), [1, -1])
    wanted = expected(True, point_coords=CLICKS[:1], point_labels=np.array([1]))
    for found, x in zip(one, wanted, strict=True):
        assert_same(found, x, 1e-4)
    refined = run(image, np.concatenate([CLICKS, nothing]), [1, 0, -1], mask=one[2])
    prompt = {"point_coords": CLICKS, "point_labels": np.array([1, 0]), "mask_input": one[2][0]}
    for found, x in zip(refined, expected(False, **prompt), strict=True):
        assert_same(found, x, 1e-4)
    boxed = run(image, np.concatenate([CLICKS[1:], BOX.reshape(2, 2)]), [0, 2, 3])
    prompt = {"point_coords": CLICKS[1:], "point_labels": np.array([0]), "box": BOX}
    for found, x in zip(boxed, expected(False, **prompt), strict=True):
        assert_same(found, x, 1e-4)


class Samexporter:
    """Its runner: it scales pictures and masks itself, and looks at the ranks and names of files.

    The frame is 1024 x 1024 there.
    """

    def __init__(self, encoder, decoder, frame):
        self.encoder, self.decoder, self.frame = encoder, decoder, frame
        (given,) = encoder.get_inputs()
        self.name, self.rank = given.name, len(given.shape)

    def encode(self, image):
        height, width = image.shape[:2]
        scale = max(self.frame) / max(height, width)
        self.original, self.scaled = (
            (height, width),
            (int(height * scale + 0.5), int(width * scale + 0.5)),
        )
        picture = Image.fromarray(image).resize(self.scaled[::-1], Image.Resampling.BILINEAR)
        if self.rank == 3:  # it normalises and pads by itself, as AnyLabeling's encoders do
            return self.encoder.run(None, {self.name: np.asarray(picture, np.float32)})[0]
        pixels = (np.asarray(picture, np.float32) - MEAN) / STD
        missing = [(0, whole - n) for whole, n in zip(self.frame, self.scaled, strict=True)]
        pixels = np.pad(pixels.transpose(2, 0, 1), ((0, 0), *missing))[None]
        return self.encoder.run(None, {self.name: pixels})[0]

    def decode(self, embedding, points, labels):
        scale = np.array(self.scaled[::-1]) / self.original[::-1]
        points = np.concatenate([points, np.zeros((1, 2))])[None] * scale
        low = [n // 4 for n in self.frame]
        given = {
            "image_embeddings": embedding,
            "point_coords": points.astype(np.float32),
            "point_labels": np.append(labels, -1)[None].astype(np.float32),
            "mask_input": np.zeros((1, 1, *low), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(self.original, np.float32),
        }
        outputs = self.decoder.run(None, given)
        names = [x.name for x in self.decoder.get_outputs()]
        masks = []
        for mask in outputs[names.index("low_res_masks")][0]:
            mask = cv2.resize(mask, self.frame[::-1], interpolation=cv2.INTER_LINEAR)
            mask = mask[: self.scaled[0], : self.scaled[1]]
            masks.append(cv2.resize(mask, self.original[::-1], interpolation=cv2.INTER_LINEAR))
        return np.array(masks), outputs[0][0]


@pytest.mark.parametrize("image_input", [False, True])
@pytest.mark.parametrize("size", [(60, 90), (200, 280)])  # enlarged, and reduced
def test_the_steps_of_samexporters_runner(segmenter, pixels_folder, size, image_input):
    image = photograph(size)
    encoder = onnx.load(pixels_folder / "image_encoder.onnx")
    frame = segmenter.image_shape[:2]
    if image_input:
        encoder = onnx_steps.with_image_input(encoder, {**PLAN, "frame": frame}, 20, "float32")
    sessions = (encoder, onnx.load(pixels_folder / "mask_decoder.onnx"))
    sessions = (onnxruntime.InferenceSession(x.SerializeToString()) for x in sessions)
    runner = Samexporter(*sessions, frame)
    own, files = runner.decode(runner.encode(image), CLICKS, [1, 0])
    predictor = SAMPredictor(segmenter)
    predictor.set_image(image)
    expected, _, _ = predictor.predict(
        points=CLICKS, labels=[1, 0], multimask_output=None, return_logits=True
    )
    assert_same(files, expected, 1e-3)
    assert_same(own, expected, 1e-3)
