"""Code for transformers' Segment Anything runs on `keras_sam.compat.transformers` unchanged.

Both load one folder that transformers wrote; what they compute is the same. The arguments are those
of transformers 4.34, the last with a page on the class for TensorFlow.
"""

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.compat import transformers as ours
from keras_sam.compat.transformers import configuration
from tests.checkpoints import SIDE
from tests.compat import sam_vit
from tests.compat.sam_vit import IMAGE, assert_same, our_image_processor
from tests.test_imports import run_python

pytestmark = pytest.mark.once

theirs, folder, models = sam_vit.theirs, sam_vit.folder, sam_vit.models
pixel_values = sam_vit.pixel_values

# --- names, arguments and defaults ---

UNSET = inspect.Parameter.empty
STEPS = {"data_format": None, "input_data_format": None}
PROMPTS = {
    "input_points": None,
    "input_labels": None,
    "input_boxes": None,
    "input_masks": None,
}
OUTPUTS = {"output_attentions": None, "output_hidden_states": None, "return_dict": None}
PROCESSOR = {
    "do_resize": True,
    "size": None,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": None,
    "image_std": None,
    "do_pad": True,
    "pad_size": None,
    "do_convert_rgb": True,
}
ARGUMENTS = {
    "SamImageProcessor": PROCESSOR,
    "SamImageProcessor.preprocess": {
        "images": UNSET,
        **dict.fromkeys(PROCESSOR),
        "return_tensors": None,
        "data_format": "channels_first",
        "input_data_format": None,
    },
    "SamImageProcessor.resize": {"image": UNSET, "size": UNSET, "resample": 3, **STEPS},
    "SamImageProcessor.pad_image": {"image": UNSET, "pad_size": UNSET, **STEPS},
    "SamImageProcessor.post_process_masks": {
        "masks": UNSET,
        "original_sizes": UNSET,
        "reshaped_input_sizes": UNSET,
        "mask_threshold": 0.0,
        "binarize": True,
        "pad_size": None,
        "return_tensors": "pt",
    },
    "SamImageProcessor.generate_crop_boxes": {
        "image": UNSET,
        "target_size": UNSET,
        "crop_n_layers": 0,
        "overlap_ratio": 512 / 1500,
        "points_per_crop": 32,
        "crop_n_points_downscale_factor": 1,
        "device": None,
        "input_data_format": None,
        "return_tensors": "pt",
    },
    "SamImageProcessor.filter_masks": {
        "masks": UNSET,
        "iou_scores": UNSET,
        "original_size": UNSET,
        "cropped_box_image": UNSET,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "mask_threshold": 0,
        "stability_score_offset": 1,
        "return_tensors": "pt",
    },
    "SamImageProcessor.post_process_for_mask_generation": {
        "all_masks": UNSET,
        "all_scores": UNSET,
        "all_boxes": UNSET,
        "crops_nms_thresh": UNSET,
        "return_tensors": "pt",
    },
    "SamProcessor": {"image_processor": UNSET},
    "SamProcessor.__call__": {
        "images": None,
        "input_points": None,
        "input_labels": None,
        "input_boxes": None,
        "return_tensors": None,
    },
    "SamModel": {"config": UNSET},
    "SamModel.forward": {
        "pixel_values": None,
        **PROMPTS,
        "image_embeddings": None,
        "multimask_output": True,
        "attention_similarity": None,
        "target_embedding": None,
        **OUTPUTS,
    },
    "SamModel.get_image_embeddings": {"pixel_values": UNSET, **OUTPUTS},
    "SamModel.get_prompt_embeddings": PROMPTS,
    "TFSamModel": {"config": UNSET},
    "TFSamModel.call": {
        "pixel_values": None,
        **PROMPTS,
        "image_embeddings": None,
        "multimask_output": True,
        **OUTPUTS,
        "training": False,
    },
    "SamVisionModel.forward": {"pixel_values": None, **OUTPUTS},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_their_order_and_defaults(name):
    thing = ours
    for part in name.split("."):
        thing = getattr(thing, part)
    found = inspect.signature(thing).parameters.values()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [(p.name, p.default) for p in found if p.kind in places and p.name != "self"]
    assert given == list(ARGUMENTS[name].items())


def test_nothing_but_the_running_backend_is_imported():
    code = (
        "import numpy as np\n"
        "from keras_sam.compat import transformers\n"
        "processor = transformers.SamProcessor(transformers.SamImageProcessor())\n"
        "inputs = processor(np.zeros((40, 70, 3), 'uint8'), return_tensors='jax')\n"
        "print(type(inputs.pixel_values).__name__, inputs.pixel_values.shape)"
    )
    printed = run_python(code, ["torch", "tensorflow", "transformers"], backend="jax")
    assert printed == "ArrayImpl (1, 3, 1024, 1024)\n"


# --- configs ---

CONFIGS = ["SamVisionConfig", "SamPromptEncoderConfig", "SamMaskDecoderConfig", "SamConfig"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_have_transformers_entries_and_defaults(theirs, name):
    expected = getattr(theirs, name)().to_dict()
    actual = getattr(ours, name)().to_dict()
    assert actual["model_type"] == expected["model_type"]
    for key, value in actual.items():
        wanted = expected.get(key, value)  # `return_dict` and the like may be nobody's
        if isinstance(value, dict):
            assert {k: plain(v) for k, v in value.items()} == {k: plain(wanted[k]) for k in value}
        else:
            assert plain(value) == plain(wanted)


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_making_configs(folder, tmp_path):
    vision = ours.SamVisionConfig(32, num_hidden_layers=2, mlp_ratio=2.0)
    assert (vision.hidden_size, vision.mlp_dim) == (32, 64)
    whole = ours.SamConfig(vision, ours.SamPromptEncoderConfig(16), ours.SamMaskDecoderConfig(16))
    assert whole.vision_config is vision
    assert ours.SamConfig(vision_config={"hidden_size": 24}).vision_config.mlp_dim == 96
    assert ours.SamPromptEncoderConfig(image_size=96).image_embedding_size == 6
    whole.save_pretrained(tmp_path)
    assert ours.SamConfig.from_pretrained(tmp_path) == whole
    assert ours.SamVisionConfig.from_pretrained(tmp_path) == vision
    assert json.loads(whole.to_json_string())["vision_config"]["mlp_dim"] == 64
    assert ours.SamMaskDecoderConfig.from_pretrained(folder).mlp_dim == 20
    assert ours.SamConfig.from_pretrained(folder, return_dict=False).use_return_dict is False
    with pytest.raises(ValueError, match="`num_point_embeddings` must be 4"):
        ours.SamPromptEncoderConfig(num_point_embeddings=5)


def test_a_model_from_a_config(folder):
    config = ours.SamConfig.from_pretrained(folder)
    model = ours.SamModel(config)
    assert model.config is config
    assert model.num_parameters() == ours.SamModel.from_pretrained(folder).num_parameters()
    encoder = ours.SamVisionModel(config.vision_config)
    assert encoder.config == config.vision_config
    assert encoder(np.zeros((1, 3, SIDE, SIDE)))[0].shape == (1, 16, 7, 7)


# --- the model ---

POINTS = [[[[20.0, 30.0], [3.0, 3.0]], [[4.0, 5.0], [40.0, 41.0]]]] * 2
LABELS = [[[1, 0], [1, 1]]] * 2
BOXES = [[[3.0, 4.0, 40.0, 50.0], [10.0, 10.0, 20.0, 30.0]]] * 2
CALLS = {
    "points": {"input_points": POINTS},
    "labels": {"input_points": POINTS, "input_labels": LABELS},
    "not a point": {"input_points": POINTS, "input_labels": [[[1, -1], [0, -1]]] * 2},
    "boxes": {"input_boxes": BOXES},
    "one mask": {"input_boxes": BOXES, "multimask_output": False},
    "all": {"input_points": POINTS, "input_labels": LABELS, "input_boxes": BOXES, "masks": True},
    "mask": {"masks": True},
    "nothing": {},
    "PerSAM": {"input_points": POINTS, "hooks": True},
}


def tensors(name):
    """The arguments of a call in tensors of torch."""
    import torch

    rng = np.random.default_rng(6)
    given = dict(CALLS[name])
    if given.pop("masks", False):
        given["input_masks"] = 4 * rng.standard_normal((2, 1, 28, 28))
    if given.pop("hooks", False):
        given["attention_similarity"] = rng.standard_normal((4, 4, 8, 49))
        given["target_embedding"] = rng.standard_normal((1, 1, 8, 16))
    kinds = {"input_labels": torch.int64}
    return {
        k: v if k == "multimask_output" else torch.tensor(v, dtype=kinds.get(k, torch.float32))
        for k, v in given.items()
    }


@pytest.mark.every_backend
@pytest.mark.parametrize("name", CALLS)
def test_forward_equals_transformers(models, pixel_values, name):
    import torch

    given = tensors(name)
    model, oracle = models
    with torch.no_grad():
        expected = oracle(pixel_values=pixel_values, **given)
    actual = model(pixel_values=pixel_values, **given)
    assert isinstance(actual.pred_masks, torch.Tensor)
    assert actual.pred_masks.dtype == expected.pred_masks.dtype
    assert list(actual) == list(expected) == ["iou_scores", "pred_masks"]
    assert_same(actual.to_tuple(), expected.to_tuple())
    assert actual.vision_attentions is None and actual[1] is actual["pred_masks"]
    embeddings = model.get_image_embeddings(pixel_values)
    again = model(image_embeddings=embeddings, return_dict=False, **given)
    assert isinstance(again, tuple)
    assert_same(again, expected.to_tuple())


def test_hidden_states_and_attentions(models, pixel_values):
    import torch

    given = {"pixel_values": pixel_values, **tensors("all")}
    model, oracle = models
    with torch.no_grad():
        expected = oracle(**given, output_hidden_states=True, output_attentions=True)
    actual = model(**given, output_hidden_states=True, output_attentions=True)
    assert list(actual) == list(expected)
    for name in expected:
        assert_same(actual[name], expected[name])
    assert len(actual.to_tuple()) == 5
    hooked = {"pixel_values": pixel_values, **tensors("PerSAM"), "output_attentions": True}
    with torch.no_grad():
        expected = oracle(**hooked).mask_decoder_attentions
    assert_same(model(**hooked).mask_decoder_attentions, expected)
    with torch.no_grad():
        expected = oracle.vision_encoder(pixel_values, output_hidden_states=True)
    actual = model.vision_encoder(pixel_values, output_hidden_states=True)
    assert_same(actual.last_hidden_state, expected.last_hidden_state)
    assert_same(actual.hidden_states, expected.hidden_states)
    assert actual.attentions is None


def test_embeddings(models, pixel_values):
    import torch

    model, oracle = models
    given = tensors("all")
    assert_same(model.get_image_embeddings(pixel_values), oracle.get_image_embeddings(pixel_values))
    assert_same(model.get_prompt_embeddings(**given), oracle.get_prompt_embeddings(**given))
    sparse, dense = model.get_prompt_embeddings(input_masks=given["input_masks"])
    expected = oracle.get_prompt_embeddings(input_masks=given["input_masks"])
    assert sparse is expected[0] is None
    assert_same(dense, expected[1])
    positions = model.get_image_wide_positional_embeddings()
    with torch.no_grad():
        assert_same(positions, oracle.get_image_wide_positional_embeddings())


@pytest.mark.every_backend
@pytest.mark.parametrize("library", ["np", "keras", "tf", "jax"])
def test_tensors_of_every_library(models, folder, library):
    if library in ("tf", "jax"):
        pytest.importorskip({"tf": "tensorflow"}.get(library, library))
    processor = ours.SamProcessor(our_image_processor())
    model = ours.TFSamModel.from_pretrained(folder) if library == "tf" else models[0]
    prompts = {"input_points": [[[[35, 20]], [[9, 9]]]], "input_labels": [[[1], [0]]]}
    inputs = processor(IMAGE, **prompts, return_tensors=library)
    outputs = model(**inputs)
    wanted = model(**processor(IMAGE, **prompts, return_tensors="np"))
    assert type(wanted.pred_masks) is np.ndarray
    masks = processor.post_process_masks(
        outputs.pred_masks,
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        return_tensors=library,
    )
    found = type(masks[0]).__module__.partition(".")[0]
    known = {"np": "numpy", "tf": "tensorflow", "jax": "jaxlib"}
    if library != "keras":
        assert found == type(outputs.pred_masks).__module__.partition(".")[0] == known[library]
    assert tuple(masks[0].shape) == (1, 2, 3, 40, 70)[1:]
    assert_same(np.asarray(outputs.pred_masks), wanted.pred_masks, 1e-6)
    if library == "tf":  # which takes one dict, too
        assert_same(np.asarray(model(inputs).iou_scores), wanted.iou_scores, 1e-6)
        assert isinstance(model(inputs, return_dict=False), tuple)


def test_what_the_model_refuses(models, pixel_values):
    model = models[0]
    for given, received in (({}, "neither"), ({"pixel_values": 1, "image_embeddings": 1}, "both")):
        with pytest.raises(ValueError, match=f"Exactly one .* Received: {received}"):
            model(**given)
    with pytest.raises(ValueError, match="`input_points` must have shape"):
        model(pixel_values, input_points=np.zeros((2, 2)))
    frame = rf"`pixel_values` must have shape \(B, 3, {SIDE}, {SIDE}\).*Received: shape="
    for wrong in (IMAGE, np.zeros((1, 3, 30, 30))):  # a picture; and a frame of another model
        with pytest.raises(ValueError, match=frame):
            model(wrong)
    with pytest.raises(ValueError, match=r"`input_masks` must have shape \(2, 1, 28, 28\)"):
        model(pixel_values, input_masks=np.zeros((2, 1, 40, 70)))
    for name in ("train", "mask_decoder", "parameters"):  # what a training script calls
        with pytest.raises(AttributeError, match=f"`{name}` here.*`segmenter`.*`fit`"):
            getattr(model, name)
    with pytest.raises(TypeError, match="no argument points"):
        model(pixel_values, points=np.zeros((2, 1, 1, 2)))
    with pytest.raises(ValueError, match="same number of objects"):
        model(pixel_values, np.zeros((2, 1, 1, 2)), input_boxes=np.array(BOXES))


# --- files ---


@pytest.mark.every_backend
def test_loading(folder, tmp_path, theirs, pixel_values, models):
    import torch

    model = ours.AutoModel.from_pretrained(folder, torch_dtype=torch.float32, return_dict=False)
    assert isinstance(model(pixel_values), tuple) and model.dtype == "float32"
    assert model.to("cpu") is model.eval() is model and str(model.device) == "cpu"
    with pytest.warns(UserWarning, match="cache_dir: transformers' own way of loading"):
        ours.SamModel.from_pretrained(folder, cache_dir=tmp_path)
    with pytest.raises(TypeError, match="no argument image_shape"):
        ours.SamModel.from_pretrained(folder, image_shape=(64, 64))
    # What it writes, transformers reads, and so does this package.
    model.config.return_dict = True
    model.save_pretrained(tmp_path / "again")
    back = theirs.SamModel.from_pretrained(tmp_path / "again").eval()
    given = tensors("labels")
    with torch.no_grad():
        expected = models[1](pixel_values=pixel_values, **given)
        assert_same(back(pixel_values=pixel_values, **given).pred_masks, expected.pred_masks)
    assert isinstance(
        keras_sam.ImageSegmenter.from_preset(tmp_path / "again"), keras_sam.SAMImageSegmenter
    )
    # A file of Meta's or of ours has no config: it gets one.
    preset = tmp_path / "ours"
    model.segmenter.save_to_preset(preset)
    config = ours.SamModel.from_pretrained(preset).config
    assert config.mask_decoder_config.layer_norm_eps == 1e-5  # Meta's
    assert config.vision_config == dataclasses.replace(
        model.config.vision_config, initializer_range=config.vision_config.initializer_range
    )


def test_names_of_the_hub(folder):
    addresses = {
        "facebook/sam-vit-base": "hf://facebook/sam-vit-base",
        "sam_base_sa1b": "sam_base_sa1b",
        "hf://facebook/sam-vit-base": "hf://facebook/sam-vit-base",
        str(folder): str(folder),
    }
    assert {name: configuration.address_of(name) for name in addresses} == addresses
    assert configuration.address_of("owner/name", "v2") == "hf://owner/name@v2"


def test_a_preset_of_ours_has_a_processor(tmp_path):
    model = keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo", load_weights=False)
    model.save_to_preset(tmp_path)
    wanted = keras.ops.convert_to_numpy(model.preprocessor.image_converter(IMAGE))
    encoder = model.image_encoder
    for name in ("sam_tiny_demo", tmp_path):
        inputs = ours.SamProcessor.from_pretrained(name)(IMAGE, return_tensors="np")
        height, width = inputs["reshaped_input_sizes"][0]
        assert inputs["pixel_values"].shape == (1, 3, *wanted.shape[:2])
        pixels = np.moveaxis(inputs["pixel_values"][0], 0, -1)
        pixels = pixels * encoder.pixel_std + encoder.pixel_mean
        np.testing.assert_allclose(pixels[:height, :width], wanted[:height, :width], atol=1e-3)


def test_the_processors_files(folder, tmp_path):
    processor = ours.AutoProcessor.from_pretrained(folder)
    assert processor.image_processor.size == {"longest_edge": SIDE}
    assert processor.target_size == SIDE and processor.point_pad_value == -10
    assert processor.model_input_names == ["pixel_values"]
    processor.save_pretrained(tmp_path)
    again = ours.AutoImageProcessor.from_pretrained(tmp_path, do_pad=False)
    kept = {**processor.image_processor.to_dict(), "do_pad": False}
    assert again.to_dict() == kept
