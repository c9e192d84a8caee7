"""Exported folders in the place of a segmenter: the same masks, without Keras."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam import ExportedSegmenter, SAMAutomaticMaskGenerator, SAMPredictor
from keras_sam.export.graphs import ImageEncoderGraph, PromptDecoderGraph, pixel_statistics
from keras_sam.export.writing import model_facts
from keras_sam.exported.manifest import MANIFEST, ModelFacts, check_parts
from keras_sam.exported.segmenter import ExportedSegmenter as Exported
from keras_sam.masks import decode_rle
from tests.annotate.serving import started
from tests.closeness import assert_same, assert_same_outputs
from tests.models.test_sam_hq import hq_segmenter
from tests.tiny import photograph, tiny_sam2_segmenter

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="the files are written on torch"),
]
ROOT = Path(__file__).resolve().parents[2]
BOUND = 1e-4
CLICK = {"points": [[40, 30]], "labels": [1]}
BOXES = [[10, 5, 60, 40], [20, 20, 79, 52], [0, 0, 30, 30]]
PROMPTS = [
    CLICK,
    {**CLICK, "multimask_output": False},
    {**CLICK, "multimask_output": "auto"},
    {"points": [[40, 30], [9, 50], [70, 8]], "labels": [1, 0, 1], "boxes": BOXES[0]},
    {"boxes": BOXES, "multimask_output": False},
    {"boxes": BOXES, "multimask_output": "auto", "prompt_chunk": 2},
    {"boxes": np.zeros((0, 4))},  # from a detector that found nothing
    {"masks": "logits", "multimask_output": False},  # no token at all
    {**CLICK, "masks": "logits"},
]


@pytest.fixture(scope="module")
def exported(pixels_folder):
    return ExportedSegmenter.load(pixels_folder)


@pytest.fixture(scope="module")
def predictors(segmenter, exported):
    """Predictors of Keras and of ONNX Runtime on the same picture."""
    both = SAMPredictor(segmenter), SAMPredictor(exported)
    for predictor in both:
        predictor.set_image(photograph((53, 80)))
    return both


@pytest.mark.parametrize("prompts", PROMPTS, ids=str)
def test_the_predictor_gives_the_segmenters_numbers(predictors, prompts):
    expected, found = (predict_all(predictor, dict(prompts)) for predictor in predictors)
    for x, y in zip(found, expected, strict=True):
        assert_same(x, y, BOUND)


def predict_all(predictor, prompts):
    """Masks, their logits at the image's size, scores and low logits."""
    if prompts.get("masks") is not None:
        prompts["masks"] = np.random.default_rng(0).standard_normal((28, 36)).astype("float32") * 9
    masks, scores, low = predictor.predict(**prompts)
    return masks, predictor.predict(**prompts, return_logits=True)[0], scores, low


def test_an_embedding_goes_from_one_to_the_other(predictors, exported, segmenter, tmp_path):
    ours, theirs = predictors
    for source, target in ((ours, SAMPredictor(exported)), (theirs, SAMPredictor(segmenter))):
        source.save_embedding(tmp_path / "embedding")
        target.load_embedding(tmp_path / "embedding")
        assert_same(target.predict(**CLICK)[2], source.predict(**CLICK)[2], BOUND)


def test_a_batch_is_encoded_and_decoded(segmenter, exported, capsys):
    images = [photograph((53, 80)), photograph((90, 41), seed=1)]
    SAMPredictor(exported).set_images(images)
    assert capsys.readouterr().err == "\rimage 1/2\rimage 2/2\n"
    prompts = {"points": [[[40, 30]], [[20, 70], [9, 9]]], "labels": [[1], [1, 0]]}
    expected = segmenter.decode(segmenter.encode(images), prompts)
    found = exported.decode(exported.encode(images), prompts)
    assert_same_outputs(found, expected, BOUND)
    restored = (keras_sam.restore_masks(keras_sam.best_mask(x)) for x in (found, expected))
    for x, y in zip(*restored, strict=True):
        assert_same(x, y)


@pytest.mark.parametrize("settings", [{"crop_n_layers": 1}, {"use_m2m": True}], ids=str)
def test_the_generator_gives_the_same_records(segmenter, exported, settings):
    names = "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"
    everything = dict(zip(names, (0, 0, 1, 1), strict=True))
    settings = {"points_per_side": 3, "output_mode": "coco_rle", **everything, **settings}
    image = photograph((53, 80))
    expected, found = (
        sorted(SAMAutomaticMaskGenerator(x, **settings).generate(image), key=place_of)
        for x in (segmenter, exported)
    )
    assert len(expected) > 20
    scores = [[record.pop("predicted_iou") for record in records] for records in (expected, found)]
    assert_same(np.float32(scores[1]), np.float32(scores[0]), BOUND)
    assert found == expected


def place_of(record):
    """Scores may be so close that rounding decides which record comes first."""
    return record["point_coords"], record["crop_box"], record["segmentation"]["counts"]


def test_what_a_model_recommends_is_in_the_manifest(tmp_path):
    segmenter = tiny_sam2_segmenter()
    segmenter.generator_settings = {"points_per_side": 5, "use_m2m": True}
    segmenter.mask_threshold = 0.25
    exported = in_keras(segmenter)
    assert exported.mask_threshold == 0.25
    generator = SAMAutomaticMaskGenerator(exported)
    assert generator.clicks_per_image == 25 and generator.use_m2m


# --- the family ---


class KerasRun:
    """A graph that was not exported, in the place of a file: what differs is the same, faster."""

    fixed_shapes = False

    def __init__(self, graph):
        self.graph = graph
        self.inputs = {a.name: a.shape for a in graph.arguments}
        self.outputs = list(graph.outputs)

    def __call__(self, inputs, zeros=()):
        tensors = [keras.ops.convert_to_tensor(inputs[a.name]) for a in self.graph.arguments]
        return {k: keras.ops.convert_to_numpy(x) for k, x in self.graph(*tensors).items()}


def in_keras(segmenter):
    """An `ExportedSegmenter` of what the manifest says of a model, and of its graphs."""
    mean, std = pixel_statistics(segmenter)
    described = {
        "model": model_facts(segmenter),
        "preprocessing": {"pixel_mean": mean.tolist(), "pixel_std": std.tolist()},
        "settings": {"image_input": False, "precision": "float32"},
    }
    model = ModelFacts.read(json.loads(json.dumps(described)))
    parts = KerasRun(ImageEncoderGraph(segmenter)), KerasRun(PromptDecoderGraph(segmenter))
    check_parts((Path("encoder"), Path("decoder")), *parts, model)
    return Exported(model, segmenter.preprocessor.image_converter, *parts)


def test_tiles_of_an_export_with_another_decoder_are_another_models(pixels_folder, tmp_path):
    import onnx

    other = tmp_path / "tuned"
    shutil.copytree(pixels_folder, other)
    decoder, manifest = other / "prompt_decoder.onnx", json.loads((other / MANIFEST).read_text())
    model = onnx.load(decoder)
    model.doc_string = "fine-tuned"
    onnx.save(model, decoder)
    content = decoder.read_bytes()
    manifest["files"][decoder.name] |= {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (other / MANIFEST).write_text(json.dumps(manifest))
    picture = keras_sam.tiles.open_picture(np.zeros((53, 80), "uint8"))
    first, same, tuned = (
        keras_sam.tiles.TiledMaskGenerator(ExportedSegmenter.load(path), 32, 8).settings(picture)
        for path in (pixels_folder, pixels_folder, other)
    )
    assert first == same and first["precision"] == "float32"
    assert {name for name in first if first[name] != tuned[name]} == {"model"}


def one_mask_segmenter():
    segmenter = tiny_sam2_segmenter()
    segmenter.mask_decoder.dynamic_multimask_stability_thresh = 2.0  # never stable
    return segmenter


@pytest.mark.parametrize(
    "make", [hq_segmenter, tiny_sam2_segmenter, one_mask_segmenter], ids=lambda f: f.__name__
)
def test_every_family_chooses_its_masks_as_its_decoder_does(make):
    segmenter = make()
    exported = in_keras(segmenter)
    image = photograph((53, 80))
    features = segmenter.encode([image])
    given = exported.encode([image])
    both = given.keys() & features.keys()
    assert_same_outputs({k: given[k] for k in both}, {k: features[k] for k in both}, BOUND)
    points = np.random.default_rng(0).uniform(0, 53, (1, 4, 2, 2))
    prompts = {"points": points, "labels": np.tile([1, 0], (1, 4, 1))}
    for choice in (None, True, False):
        expected = segmenter.decode(features, prompts, multimask_output=choice)
        found = exported.decode(given, prompts, multimask_output=choice)
        assert_same_outputs(found, expected, BOUND)
    logits = 50 * np.ones((1, 2, 2), "float32")
    assert_same(exported.logits_as_prompt(logits), segmenter.logits_as_prompt(logits))


def test_what_sam_hq_makes_of_an_image_alone_is_made_by_the_encoder(tmp_path):
    segmenter = hq_segmenter()
    exported = in_keras(segmenter)
    assert exported.feature_shapes == {"image_embeddings": (4, 6, 16), "hq_features": (16, 24, 2)}
    for source, target in ((segmenter, exported), (exported, segmenter)):
        predictor = SAMPredictor(source)
        predictor.set_image(photograph((53, 80)))
        predictor.save_embedding(tmp_path / "embedding")
        with pytest.raises(ValueError, match="was made by another model"):
            SAMPredictor(target).load_embedding(tmp_path / "embedding")


def test_a_family_chooses_otherwise():
    """The test above compares something: an unstable mask 0 is replaced, and one candidate kept."""
    prompts = {"points": [[[20, 20]]], "labels": [[1]]}
    for make, kept in ((one_mask_segmenter, 0), (hq_segmenter, 1)):
        exported = in_keras(make())
        features = exported.encode([photograph((53, 80))])
        everything = exported.decode(features, prompts)["iou_pred"][0]
        choice = exported.decode(features, prompts, multimask_output=bool(kept))["iou_pred"][0]
        assert choice.tolist() == [everything[1:].max()]


# --- other runtimes, and no Keras ---


def test_openvino_runs_the_same_files(predictors, pixels_folder):
    pytest.importorskip("openvino")
    exported = ExportedSegmenter.load(pixels_folder, runtime="openvino", threads=1)
    predictor = SAMPredictor(exported)
    predictor.set_image(photograph((53, 80)))
    for prompts in PROMPTS:
        expected, found = (predict_all(p, dict(prompts)) for p in (predictors[0], predictor))
        for x, y in zip(found, expected, strict=True):
            assert_same(x, y, BOUND)
    # A program for one prompt, with and without masks, for one with five tokens, for two and for
    # three prompts.
    assert len(exported._programs._decoder._requests) == 5


def test_an_encoder_of_pictures_gives_the_same(predictors, folder):
    exported = ExportedSegmenter.load(folder)
    predictor = SAMPredictor(exported)
    for image in (photograph((53, 80)), photograph((90, 41))):  # padded below, and at the right
        predictor.set_image(image)
        expected = predictors[0].segmenter.encode([image])["image_embeddings"]
        assert_same(predictor.image_embeddings, expected, BOUND)
    frame = np.random.default_rng(0).integers(0, 256, (1, 112, 144, 3)).astype("float32")
    expected = predictors[0].segmenter.encode_frames(frame)["image_embeddings"]
    assert_same(exported.encode_frames(frame)["image_embeddings"], expected, BOUND)


ALONE = """
import sys
blocked = ["keras", "torch", "jax", "tensorflow", "openvino", "h5py"]
sys.modules.update(dict.fromkeys(blocked))
import keras_sam
from keras_sam.cli import main

folder, photo, out = sys.argv[1:]
model = ["--model", folder, "--quiet", "--out"]
assert main(["segment", photo, "--point", "40,30", *model, out + "/one"]) == 0
grid = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--format", "coco"]
assert main(["everything", photo, *grid, *model, out + "/all"]) == 0
generator = keras_sam.SAMAutomaticMaskGenerator(keras_sam.ExportedSegmenter.load(folder))
assert generator.predictor.segmenter.mask_size == (28, 36)
assert not any(sys.modules.get(name) for name in blocked)
"""


def test_the_commands_run_without_keras_and_any_backend(predictors, pixels_folder, tmp_path):
    image = photograph((53, 80))
    Image.fromarray(image).save(tmp_path / "photo.png")
    words = [pixels_folder, tmp_path / "photo.png", tmp_path]
    call = [sys.executable, "-c", ALONE, *map(str, words)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    masks, scores, _ = predictors[0].predict(**CLICK)
    about = json.loads((tmp_path / "one" / "photo.json").read_text())
    assert (about["backend"], about["dtype"]) == ("onnxruntime", "float32")
    for i, row in enumerate(about["objects"][0]["masks"]):
        with Image.open(tmp_path / "one" / row["file"]) as picture:
            assert_same(np.array(picture) > 0, masks[i])
        assert abs(row["score"] - scores[i]) < BOUND
    assert json.loads((tmp_path / "all" / "annotations.json").read_text())["images"]


def test_the_page_runs_without_keras_and_any_backend(predictors, pixels_folder, tmp_path):
    pytest.importorskip("fastapi")
    image = photograph((53, 80))
    Image.fromarray(image).save(tmp_path / "photo.png")
    code = ALONE.split("folder, photo")[0] + "main(sys.argv[1:])"
    words = ["annotate", tmp_path, "--model", pixels_folder, "--port", "0"]
    call = [sys.executable, "-c", code, *map(str, words), "--cache", str(tmp_path / "cache")]
    with started(call, ROOT) as (_, post):
        click = {"photo": "photo.png", "points": [[40, 30]], "labels": [1]}
        answer = post("/api/predict", click)
    masks, *_ = predictors[0].predict(**CLICK)
    rles = [candidate["segmentation"] for candidate in answer["candidates"]]
    assert_same(decode_rle(rles), masks)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_from_preset_says_what_loads_an_export(pixels_folder):
    with pytest.raises(ValueError, match="`keras_sam.ExportedSegmenter.load` loads"):
        keras_sam.SAMImageSegmenter.from_preset(pixels_folder)


# --- bad input ---


def rewrite(folder, change):
    """Changes the manifest of a folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def as_exported(folder, name):
    """Lets the manifest say of a file what it is now."""
    content = (folder / name).read_bytes()
    about = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(folder, lambda manifest: manifest["files"][name].update(about))


def cut_short(folder):
    path = folder / "prompt_decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def change_a_byte(folder):
    path = folder / "image_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def break_the_file(folder):
    cut_short(folder)
    as_exported(folder, "prompt_decoder.onnx")


def change_the_decoder(change):
    """Saves the decoder as `change` makes it of the ONNX model, with a manifest that says so."""

    def damage(folder):
        import onnx

        path = folder / "prompt_decoder.onnx"
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())
        as_exported(folder, path.name)

    return damage


def use_an_unknown_operator(model):
    model.graph.node[0].op_type = "Teleport"


def use_a_later_opset(model):
    model.opset_import[0].version = 999


def give_it_another_decoder(folder):
    shutil.copy(folder / "mask_decoder.onnx", folder / "prompt_decoder.onnx")
    as_exported(folder, "prompt_decoder.onnx")


def give_it_the_manifest_of_another_model(folder):
    features = {"image_embeddings": [7, 9, 24]}
    rewrite(folder, lambda manifest: manifest["model"].update(features=features))


OTHER_SIZE = {"size": [64, 64], "pad_size": [64, 64]}
DAMAGES = [
    (shutil.rmtree, "there is no such folder"),  # gone
    (lambda f: (f / "manifest.json").unlink(), "with a manifest.json.*has none"),
    (lambda f: (f / "prompt_decoder.onnx").unlink(), "prompt_decoder.onnx is missing"),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json in .* is damaged"),
    (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json in .* is damaged"),
    (lambda f: (f / "manifest.json").write_bytes(b"\xff\x00"), "manifest.json in .* is damaged"),
    (lambda f: (f / "manifest.json").write_text("[" * 10**5), "manifest.json in .* is damaged"),
    (
        lambda f: rewrite(f, lambda m: m.update(format="keras_sam export 1")),
        "another version, 'keras_sam export 1'",
    ),
    (
        lambda f: rewrite(f, lambda m: m.update(runtime="saved_model")),
        "must hold ONNX or OpenVINO files",
    ),
    (
        lambda f: rewrite(f, lambda m: m["settings"].update(multimask_output=True)),
        "must hold a decoder that makes all masks",
    ),
    (lambda f: rewrite(f, lambda m: m["model"].pop("stability")), "no entry 'stability'"),
    (
        lambda f: rewrite(f, lambda m: m["model"].update(num_masks="four")),
        "a whole number must be in place of 'four'",
    ),
    (
        lambda f: rewrite(f, lambda m: m["model"].update(mask_threshold=float("nan"))),
        "a number must be in place of nan",
    ),
    (
        lambda f: rewrite(f, lambda m: m["model"].update(stability=[0.05])),
        "manifest.json in .* is damaged.*not enough values",
    ),
    (
        lambda f: rewrite(f, lambda m: m["model"].update(best_of_candidates="false")),
        "true or false must be in place of 'false'",
    ),
    (
        lambda f: rewrite(f, lambda m: m["preprocessing"].update(pixel_mean=[float("nan")] * 3)),
        "need one number per channel",
    ),
    (
        lambda f: rewrite(f, lambda m: m["preprocessing"]["image_converter"].update(OTHER_SIZE)),
        "another size than the model takes",
    ),
    (
        lambda f: rewrite(f, lambda m: m["model"].update(generator_settings={"os.system": "rm"})),
        "`generator_settings` has no setting `os.system`",
    ),
    (cut_short, "prompt_decoder.onnx .* was changed or cut short"),
    (change_a_byte, "image_encoder.onnx .* was changed after the export"),
    (break_the_file, "cannot load .*prompt_decoder.onnx"),
    (change_the_decoder(use_an_unknown_operator), "cannot load .*prompt_decoder.onnx.*Teleport"),
    (change_the_decoder(use_a_later_opset), "cannot load .*prompt_decoder.onnx"),
    (
        give_it_another_decoder,
        "prompt_decoder.onnx .* of another model .* differ in iou_pred, labels",
    ),
    (
        give_it_the_manifest_of_another_model,
        "prompt_decoder.onnx .* of another model .* differ in image_embeddings",
    ),
]


@pytest.mark.parametrize("damage, message", DAMAGES, ids=[m for _, m in DAMAGES])
def test_a_damaged_folder_is_refused_in_one_sentence(pixels_folder, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(pixels_folder, folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        ExportedSegmenter.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"runtime": "tensorrt"}, "`runtime` must be one of"),  # unknown
        ({"precision": "bfloat16"}, "`precision` must be 'float32'"),  # ONNX Runtime lacks it
        ({"providers": ["TimeMachine"]}, "`providers` must be any of"),  # not installed
        ({"runtime": "openvino", "providers": []}, "`providers` are ONNX Runtime's"),
    ],
)
def test_what_no_runtime_can_do_is_refused(pixels_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ExportedSegmenter.load(pixels_folder, **arguments)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--backend", "jax"], "--backend cannot be combined with the exported folder"),
        (["--image-shape", "64"], "--image-shape cannot be combined"),
        (["--provider", "TimeMachine"], "`providers` must be any of"),
    ],
)
def test_the_command_refuses_what_files_cannot_do(cli, pixels_folder, tmp_path, words, message):
    Image.fromarray(photograph((53, 80))).save(tmp_path / "photo.png")
    call = ("segment", tmp_path / "photo.png", "--point", "40,30", "--out", tmp_path / "out")
    code, _, err = cli(*call, "--model", pixels_folder, *words)
    assert code == 2 and message in err and err.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_of_keras_has_no_providers(cli, tmp_path):
    Image.fromarray(photograph((53, 80))).save(tmp_path / "photo.png")
    call = ("segment", tmp_path / "photo.png", "--point", "40,30", "--out", tmp_path / "out")
    code, _, err = cli(*call, "--model", "sam_tiny_demo", "--provider", "CPUExecutionProvider")
    assert code == 2 and "--provider is for a folder that `keras-sam export` wrote" in err


def test_the_notes_of_an_encoder_need_keras(exported):
    with pytest.raises(ValueError, match="need the model in Keras"):
        exported.encode([photograph((53, 80))], return_hidden_states=True)
    features = exported.encode([photograph((53, 80))])
    with pytest.raises(ValueError, match="need the model in Keras"):
        exported.decode(features, {"boxes": [[BOXES[0]]]}, return_attentions=True)
