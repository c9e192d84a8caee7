"""ONNX files in ONNX Runtime: the segmenter's numbers, and Meta's decoder by its own code."""

import copy
import errno
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_sam import ExportedSegmenter, SAMImageSegmenter
from keras_sam.export import checking, export_model, graphs, onnx_graphs, onnx_steps, writing
from keras_sam.exported.manifest import is_export
from keras_sam.framing import ImageFraming
from keras_sam.runtimes import OnnxRuntime, OpenVino
from tests.closeness import assert_same
from tests.meta_oracle import import_segment_anything
from tests.models.test_sam_hq import hq_segmenter
from tests.parity import oracles
from tests.tiny import photograph, tiny_segmenter

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the files are written on torch"
)
SIZES = ((53, 80), (90, 41), (3, 200), (1, 1), (300, 260))
FRAME = (112, 144)


@pytest.fixture(scope="module")
def runs(folder):
    return {name: OnnxRuntime(folder / f"{name}.onnx") for name in FILES}


FILES = ("image_encoder", "prompt_decoder", "mask_decoder")


def first(features):
    return {name: np.transpose(features[name], (0, 3, 1, 2)) for name in ("image_embeddings",)}


def test_the_manifest_describes_the_files(segmenter, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(f"{name}.onnx" for name in FILES)
    assert {p.name for p in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert manifest["model"]["image_shape"] == [*FRAME, 3]
    assert manifest["model"]["features"] == {"image_embeddings": [7, 9, 16]}
    assert manifest["model"]["fingerprint"] == segmenter.image_encoder.fingerprint()
    for name, about in manifest["files"].items():
        assert about["bytes"] == os.path.getsize(folder / name)
        assert max(about["differences"].values()) < 2e-2
        text = (folder / name).read_bytes()
        assert str(folder.parent).encode() not in text
        assert b".py" not in text, "a file speaks of the machine that wrote it"


@pytest.mark.parametrize("size", SIZES)
def test_the_encoder_takes_a_picture_of_any_size(segmenter, runs, size):
    image = photograph(size)
    expected = first(segmenter.encode([image]))
    found = runs["image_encoder"]({"image": image})
    # Pixels are rounded after scaling, and may be one grey level off.
    assert_same(found["image_embeddings"], expected["image_embeddings"], 2e-2)


@pytest.mark.parametrize("count, tokens", [(1, 1), (1, 4), (2, 2), (5, 3), (9, 7)])
def test_the_decoder_takes_any_number_of_prompts_and_points(segmenter, runs, count, tokens):
    rng = np.random.default_rng(count)
    features = segmenter.encode([photograph((60, 90))])
    points = rng.uniform(0, 110, (1, count, tokens, 2)).astype("float32")
    labels = rng.integers(-1, 4, (1, count, tokens)).astype("int32")
    masks = rng.standard_normal((1, count, 28, 36)).astype("float32")
    given = rng.integers(0, 2, (1, count))
    canonical = {
        "points": points,
        "labels": labels,
        "masks": masks[..., None],
        "mask_given": given.astype(bool),
    }
    expected = segmenter.decode(features, canonical)
    prompts = {"points": points, "labels": labels, "mask_prompts": masks}
    found = runs["prompt_decoder"](
        {**first(features), **prompts, "mask_given": given.astype("float32")}
    )
    assert_same(found["masks"], expected["masks"], 1e-4)
    assert_same(found["iou_pred"], expected["iou_pred"], 1e-4)


def test_padding_has_no_effect(segmenter, runs):
    features = first(segmenter.encode([photograph((60, 90))]))
    blank = {"mask_prompts": np.zeros((1, 1, 28, 36), "f4"), "mask_given": np.zeros((1, 1), "f4")}
    points, labels = np.float32([[[[30, 40], [9, 50]]]]), np.int32([[[1, -1]]])
    alone = runs["prompt_decoder"]({**features, "points": points, "labels": labels, **blank})
    points = np.concatenate([points, np.float32([[[[7, 7], [50, 2]]]])], axis=2)
    labels = np.concatenate([labels, np.int32([[[-10, -10]]])], axis=2)
    padded = runs["prompt_decoder"]({**features, "points": points, "labels": labels, **blank})
    assert_same(padded["masks"], alone["masks"], 1e-4)


@pytest.fixture(scope="module")
def metas():
    """Meta's model, ours with its weights, and its traced decoder."""
    metas, ours = oracles.meta_pair()
    return metas, ours, onnx_graphs.trace(graphs.PromptDecoderGraph(ours), 20)


OPTIONS = [
    {},
    {"return_single_mask": True},
    {"return_single_mask": True, "use_stability_score": True},
    {"return_extra_metrics": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_metas_decoder_gives_what_metas_exported_model_gives(metas, tmp_path, options):
    import_segment_anything()
    import onnx
    import torch
    from segment_anything.utils.onnx import SamOnnxModel

    metas, ours, inner = metas
    names = ("return_single_mask", "use_stability_score", "return_extra_metrics")
    settings = {**dict.fromkeys(names, False), **options}
    plan = {"frame": ours.image_shape[:2], "stretch": False}
    made = onnx_steps.as_metas_decoder(
        copy.deepcopy(inner), plan, 20, mask_threshold=0.0, **settings
    )
    onnx.save(made, tmp_path / "decoder.onnx")
    run = OnnxRuntime(tmp_path / "decoder.onnx")
    model = SamOnnxModel(metas, **settings).eval()
    side, (eh, ew) = metas.image_encoder.img_size, ours.embedding_size
    lh, lw = ours.mask_size
    rng = np.random.default_rng(0)
    for points, size, has_mask in ((1, (60, 90), 0), (3, (90, 41), 1), (6, (200, 160), 0)):
        inputs = {
            "image_embeddings": rng.standard_normal((1, ours.prompt_encoder.hidden_size, eh, ew)),
            "point_coords": rng.uniform(0, side, (1, points, 2)),
            "point_labels": rng.integers(-1, 4, (1, points)),
            "mask_input": rng.standard_normal((1, 1, lh, lw)),
            "has_mask_input": np.array([has_mask]),
            "orig_im_size": np.array(size),
        }
        inputs = {name: x.astype("float32") for name, x in inputs.items()}
        with torch.no_grad():
            expected = [x.numpy() for x in model(*map(torch.from_numpy, inputs.values()))]
        found = run(inputs)
        names = ["masks", "iou_predictions", "low_res_masks"]
        if options.get("return_extra_metrics"):
            names[2:2] = ["stability_scores", "areas"]
        assert list(found) == names
        for name, x in zip(names, expected, strict=True):
            # Of whole pixels, one of which may be on the other side of a threshold.
            bound = 2e-3 if name in ("areas", "stability_scores") else 1e-4
            assert_same(found[name], x.astype("float32"), bound)


@pytest.mark.parametrize("precision, bound", [("float16", 5e-3), ("int8", 0.1)])
def test_weights_in_fewer_bits(segmenter, folder, tmp_path, precision, bound, monkeypatch):
    import onnx

    monkeypatch.setattr(onnx_graphs, "_SMALL", 64)  # the weights of a tiny model
    for name in ("image_encoder", "prompt_decoder"):
        model = onnx.load(folder / f"{name}.onnx")
        path = tmp_path / f"{name}.onnx"
        onnx.save(onnx_graphs.with_stored_weights(model, precision), path)
        assert path.stat().st_size < (folder / f"{name}.onnx").stat().st_size
        wanted = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
        assert wanted in {tensor.data_type for tensor in model.graph.initializer}
        run = OnnxRuntime(path)
        if name == "image_encoder":
            differences = checking.check_encoder(run, segmenter, True, precision)
            assert differences["image_embeddings"] < max(bound, 2e-2)
        else:
            graph = graphs.PromptDecoderGraph(segmenter)
            differences = checking.check_decoder(run, graph, segmenter, precision)
            assert differences["masks"] < bound


OPENVINO_ALONE = """
import sys
import numpy as np, openvino
folder, arrays = sys.argv[1:]
given = dict(np.load(arrays))
for name in ("image_encoder", "prompt_decoder"):
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(f"{folder}/{name}.xml", "CPU", hint)
    outputs = model({x.get_any_name(): given[x.get_any_name()] for x in model.inputs})
    given.update({x.get_any_name(): outputs[x] for x in model.outputs})
assert not {"keras", "keras_sam", "torch"} & set(sys.modules)
np.savez(arrays, **given)
"""


def test_openvino_files_need_openvino_alone(segmenter, tmp_path):
    manifest = export_model(segmenter, tmp_path / "out", "openvino", image_input=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*manifest["files"], "manifest.json"}
    image, arrays = photograph((53, 80)), tmp_path / "arrays.npz"
    points, labels = np.float32([[[[30, 40], [0, 0]]]]), np.int32([[[1, -1]]])
    blank = {"mask_prompts": np.zeros((1, 1, 28, 36), "f4"), "mask_given": np.zeros((1, 1), "f4")}
    np.savez(arrays, image=image, points=points, labels=labels, **blank)
    command = [sys.executable, "-c", OPENVINO_ALONE, str(tmp_path / "out"), str(arrays)]
    subprocess.run(command, check=True)
    found = dict(np.load(arrays))
    features = segmenter.encode([image])
    assert_same(found["image_embeddings"], first(features)["image_embeddings"], 2e-2)
    canonical = {"points": points, "labels": labels, "masks": blank["mask_prompts"][..., None]}
    given = {"image_embeddings": found["image_embeddings"].transpose(0, 2, 3, 1)}
    given |= {name: features[name] for name in ("original_sizes", "scaled_sizes")}
    expected = segmenter.decode(given, {**canonical, "mask_given": np.zeros((1, 1), bool)})
    assert_same(found["masks"], expected["masks"], 1e-4)


def test_weights_that_one_file_cannot_hold_lie_beside_it(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "LARGEST_FILE", 10_000)  # bytes, in place of 2 GB
    out, image = tmp_path / "out", photograph((53, 80))
    manifest = export_model(segmenter, out, image_input=True)
    data = out / "image_encoder.onnx.data"
    assert manifest["files"][data.name]["bytes"] > (out / "image_encoder.onnx").stat().st_size
    found = ExportedSegmenter.load(out).encode([image])["image_embeddings"]
    assert_same(found, segmenter.encode([image])["image_embeddings"], 2e-2)
    segmenter.image_encoder.export(tmp_path / "x.onnx", format="onnx")
    assert (tmp_path / "x.onnx.data").exists()
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="onnx.data .* was changed after the export"):
        ExportedSegmenter.load(out)


@pytest.mark.parametrize("stretch", [False, True])
def test_images_are_scaled_alike_in_every_runtime(tmp_path, stretch):
    import onnx

    shape = f"float[1, 3, {FRAME[0]}, {FRAME[1]}]"
    text = f"identity ({shape} pixels) => ({shape} same) {{ same = Identity (pixels) }}"
    encoder = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    framing = ImageFraming(FRAME, stretch=stretch, pad_value=0)
    plan = {"frame": FRAME, "stretch": stretch, "mean": [0.0] * 3, "std": [1.0] * 3}
    path = tmp_path / "scaling.onnx"
    onnx_graphs.save(onnx_steps.with_image_input(encoder, plan, 20), path)
    for run in (OnnxRuntime(path), OpenVino(path)):
        for size in (*SIZES, (700, 900)):
            image = np.random.default_rng(0).integers(0, 256, (*size, 3), "uint8")
            expected = framing.convert([image])[0].transpose(0, 3, 1, 2)
            # Rounded to uint8; what is stretched is not, by us.
            off = np.abs(run({"image": image})["same"] - expected).max()
            assert off <= (0.501 if stretch else 1)


def test_how_images_are_passed_does_not_matter_to_the_files(segmenter, tmp_path):
    preprocessor = SAMImageSegmenter.default_preprocessor(segmenter.backbone)
    converter = preprocessor.image_converter
    converter.channel_order, converter.data_format = "bgr", "channels_first"
    own = SAMImageSegmenter(segmenter.backbone, preprocessor, mask_threshold=np.float32(0.5))
    manifest = export_model(own, tmp_path / "out", image_input=True)
    assert manifest["model"]["mask_threshold"] == 0.5
    converter.resample = "nearest"
    with pytest.raises(ValueError, match=r"other \['resample'\].*without `image_input`"):
        export_model(own, tmp_path / "other", image_input=True)


def test_files_compute_in_float32_whatever_the_model_does(tmp_path):
    segmenter = hq_segmenter(dtype="bfloat16")
    segmenter.hq_token_only, segmenter.generator_settings = True, {"points_per_side": 5}
    made = writing.in_float32(segmenter)
    assert made.image_encoder.compute_dtype == made.mask_decoder.compute_dtype == "float32"
    assert made.hq_token_only and made.generator_settings == {"points_per_side": 5}
    for ours, theirs in zip(made.get_weights(), segmenter.get_weights(), strict=True):
        assert ours.dtype == "float32"
        assert_same(ours, np.asarray(theirs, "float32"))
    assert writing.in_float32(made) is made
    with pytest.raises(ValueError, match="computes in bfloat16.*dtype='float32'"):
        segmenter.image_encoder.export(tmp_path / "x.onnx", format="onnx")


def test_how_far_an_encoder_of_pictures_may_be_off_is_what_a_grey_level_changes():
    segmenter = tiny_segmenter(image_shape=(112, 144, 1))  # which one grey level moves by 2 %

    def off_by(levels):
        def run(inputs):
            frames = segmenter.preprocessor.image_converter.convert([inputs["image"]])[0]
            moved = np.random.default_rng(1).random(frames.shape) < 0.01
            features = segmenter.encode_frames(frames + np.float32(levels * moved))
            return graphs.as_files_have_them(segmenter, features)

        return checking.check_encoder(run, segmenter, True, "float32")

    assert 1e-2 < off_by(1)["image_embeddings"] < 5e-2
    with pytest.raises(RuntimeError, match="`image_embeddings` of the exported file is off"):
        off_by(20)


# --- bad input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "tflite"}, "`format` must be one of"),  # unknown
        ({"precision": "half"}, "`precision` must be one of"),  # unknown
        ({"format": "saved_model", "precision": "float16"}, "`precision` must be one of"),
        ({"format": "litert", "precision": "int8"}, "`precision` must be one of"),
        ({"format": "saved_model", "image_input": True}, "`image_input` is possible with"),
        ({"image_input": "uint16"}, "`image_input` must be True, False, or"),
        ({"multimask_output": "all"}, "`multimask_output` must be True, False, or None"),
        ({"opset": 11}, "`opset` must be at least 18"),  # too old for the encoder
        ({"opset": 99}, "`opset` must be an operator set that .* opset=99"),  # not there yet
    ],
)
def test_settings_that_no_file_can_have_are_refused(segmenter, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_model(segmenter, tmp_path / "out", **arguments)
    assert not any(tmp_path.iterdir())


def test_other_files_are_not_replaced(segmenter, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        export_model(segmenter, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_was_added_to_an_export_is_not_lost(segmenter, tmp_path):
    manifest = {"format": "keras_sam export 2", "files": {"image_encoder.onnx": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("image_encoder.onnx", "thesis.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files, such as 'thesis.txt'"):
        export_model(segmenter, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_manifest_of_a_web_page_makes_no_export(segmenter, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "My page", "format": 3}')
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        export_model(segmenter, tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"
    assert not is_export(tmp_path)


def test_a_full_disk_leaves_nothing(segmenter, tmp_path, monkeypatch):
    import onnx

    save = onnx.save

    def run_full(model, path, **options):
        if "decoder" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        save(model, path, **options)

    monkeypatch.setattr(onnx, "save", run_full)
    with pytest.raises(OSError, match="No space left on device"):
        export_model(segmenter, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(segmenter, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        export_model(segmenter, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_is_off_is_not_left_behind(segmenter, tmp_path, monkeypatch):
    def broken(model, precision):
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 100:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * 1.1, tensor.name))
        return model

    import onnx.numpy_helper

    monkeypatch.setattr(onnx_graphs, "with_stored_weights", broken)
    with pytest.raises(RuntimeError, match="`image_embeddings` of the exported file is off by"):
        export_model(segmenter, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b[: len(b) // 2], "cannot load"),  # cut short
        (lambda b: b"<html>" + b, "cannot load"),  # something else
    ],
)
def test_a_damaged_file_is_named(folder, tmp_path, damage, message):
    path = tmp_path / "broken.onnx"
    path.write_bytes(damage((folder / "image_encoder.onnx").read_bytes()))
    with pytest.raises(ValueError, match=message):
        OnnxRuntime(path)


def test_an_unknown_provider_is_named(folder):
    with pytest.raises(ValueError, match="`providers` must be any of.*QuantumExecutionProvider"):
        OnnxRuntime(folder / "image_encoder.onnx", providers=["QuantumExecutionProvider"])
