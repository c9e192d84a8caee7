"""Code for Meta's `segment_anything` runs on `keras_sam.compat.segment_anything` unchanged.

Both load one checkpoint in Meta's format; what they compute is the same.
"""

import textwrap

import numpy as np
import pytest

import keras_sam
from keras_sam.compat import segment_anything as ours
from keras_sam.compat.segment_anything import modeling
from tests import checkpoints
from tests.checkpoints import SIDE
from tests.meta_oracle import import_segment_anything
from tests.test_imports import run_python
from tests.tiny import photograph, tiny_segmenter

pytestmark = pytest.mark.once

OURS = "keras_sam.compat.segment_anything"
IMAGE = photograph((40, 70), seed=3)
BOXES = np.array([[3.0, 4.0, 60.0, 30.0], [1.0, 1.0, 20.0, 21.0], [30.0, 2.0, 65.0, 38.0]])
BOUND = 2e-5  # of the largest value
SEED = 20  # of a model whose masks are neither empty nor full


@pytest.fixture(scope="module")
def metas():
    return import_segment_anything()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of a small model, in Meta's format."""
    model = checkpoints.meta_model(SEED)
    import torch

    path = tmp_path_factory.mktemp("meta") / "sam_vit_b_tiny.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def sams(checkpoint):
    return ours.sam_model_registry["vit_b"](checkpoint=str(checkpoint)), checkpoints.meta_model(
        SEED
    )


@pytest.fixture(scope="module")
def predictors(sams, metas):
    pair = ours.SamPredictor(sams[0]), metas.SamPredictor(sams[1])
    for predictor in pair:
        predictor.set_image(IMAGE)
    return pair


def values(x):
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, "float64")


def assert_same(actual, expected):
    """Equal up to rounding; of bool masks, all pixels but one in a thousand."""
    for a, b in zip(actual, expected, strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        if "bool" in str(b.dtype):
            assert "bool" in str(a.dtype)
            assert np.mean(values(a) != values(b)) <= 1e-3
            assert 0 < np.mean(values(b)) < 1, "the oracle tells nothing"
        else:
            assert np.abs(values(a) - values(b)).max() <= BOUND * np.abs(values(b)).max()


# --- the registry ---


def test_the_registry(metas, monkeypatch):
    assert sorted(ours.sam_model_registry) == sorted(metas.sam_model_registry)
    assert ours.build_sam is ours.build_sam_vit_h is ours.sam_model_registry["default"]
    made = []

    def from_preset(name, **kwargs):
        made.append((name, kwargs))
        return tiny_segmenter(image_shape=(112, 112, 3))

    monkeypatch.setattr(modeling.SAMImageSegmenter, "from_preset", from_preset)
    for size in ("vit_b", "vit_l", "vit_h"):
        assert isinstance(ours.sam_model_registry[size](), modeling.Sam)
    assert made == [
        (f"sam_{size}_sa1b", {"load_weights": False}) for size in ("base", "large", "huge")
    ]


def test_nothing_of_torch_is_imported_without_a_tensor():
    code = """
        import numpy as np
        from keras_sam.compat import segment_anything
        from tests.tiny import tiny_segmenter
        sam = segment_anything.modeling.Sam(tiny_segmenter(image_shape=(112, 112, 3)))
        predictor = segment_anything.SamPredictor(sam)
        predictor.set_image(np.zeros((40, 70, 3), "uint8"))
        masks, _, _ = predictor.predict(box=np.array([3, 4, 60, 30]))
        print(masks.shape, type(predictor.get_image_embedding()).__name__)
    """
    blocked = ["torch", "tensorflow", "transformers"]
    printed = run_python(textwrap.dedent(code), blocked, backend="jax")
    assert printed == "(3, 40, 70) ndarray\n"


# --- Meta's two notebooks, in other words ---

PREDICTOR_NOTEBOOK = """
import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry

sam = {sam}
sam.to(device="cpu")
predictor = SamPredictor(sam)
predictor.set_image(image)

# One click: three candidates, and the better of them refined by a second click.
click, label = np.array([[30, 20]]), np.array([1])
masks, scores, logits = predictor.predict(
    point_coords=click, point_labels=label, multimask_output=True
)
best = logits[np.argmax(scores), :, :]
clicks, labels = np.array([[30, 20], [55, 31]]), np.array([1, 0])
refined, refined_scores, _ = predictor.predict(
    point_coords=clicks,
    point_labels=labels,
    mask_input=best[None, :, :],
    multimask_output=False,
)

# A box, and a box with a click that is not on the object.
box = np.array([12, 5, 61, 33])
boxed, _, _ = predictor.predict(
    point_coords=None, point_labels=None, box=box[None, :], multimask_output=False
)
corrected, _, _ = predictor.predict(
    point_coords=np.array([[40, 20]]), point_labels=np.array([0]), box=box, multimask_output=False
)

# Several boxes at once.
boxes = torch.tensor([[3, 4, 60, 30], [1, 1, 20, 21]], device=predictor.device)
small = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
of_boxes, box_scores, _ = predictor.predict_torch(
    point_coords=None, point_labels=None, boxes=small, multimask_output=False
)
first = of_boxes[0].cpu().numpy()

# Two images in one call.
from segment_anything.utils.transforms import ResizeLongestSide

resize = ResizeLongestSide(sam.image_encoder.img_size)

def prepare(picture):
    small = resize.apply_image(picture)
    return torch.as_tensor(small, device=sam.device).permute(2, 0, 1).contiguous()

batched_input = [
    {{
        "image": prepare(image),
        "boxes": resize.apply_boxes_torch(boxes, image.shape[:2]),
        "original_size": image.shape[:2],
    }},
    {{
        "image": prepare(other),
        "point_coords": resize.apply_coords_torch(torch.tensor([[[9, 30]]]), other.shape[:2]),
        "point_labels": torch.ones((1, 1)),
        "original_size": other.shape[:2],
    }},
]
batched_output = sam(batched_input, multimask_output=False)
batched = [x[name] for x in batched_output for name in sorted(x)]
results = [masks, scores, logits, refined, refined_scores, boxed, corrected]
results += [of_boxes, box_scores, first, predictor.get_image_embedding().cpu().numpy()]
results += batched
"""

EVERYTHING_NOTEBOOK = """
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

sam = {sam}
sam.to(device="cpu")
found = SamAutomaticMaskGenerator(sam, **looser).generate(image)
keys = sorted(found[0])
finer = SamAutomaticMaskGenerator(
    model=sam,
    points_per_side=4,
    pred_iou_thresh=looser["pred_iou_thresh"],
    stability_score_thresh=looser["stability_score_thresh"],
    box_nms_thresh=looser["box_nms_thresh"],
    crop_nms_thresh=1.0,
    crop_n_layers=1,
    crop_n_points_downscale_factor=2,
    min_mask_region_area=9,
).generate(image)
largest_first = sorted(found, key=lambda record: record["area"], reverse=True)
"""


def run_notebook(text, package, checkpoint, sam, **names):
    """Runs a notebook for Meta's package, or with only the import changed."""
    if package != "segment_anything":
        sam = f'sam_model_registry["vit_b"](checkpoint="{checkpoint}")'
    else:  # whose registry knows the released sizes alone
        names["meta"], sam = sam, "meta"
    code = text.format(sam=sam).replace("from segment_anything", f"from {package}")
    exec(compile(code, "notebook", "exec"), names)
    return names


@pytest.mark.every_backend
def test_the_predictor_notebook(sams, checkpoint):
    names = {"image": IMAGE, "other": photograph((64, 50), seed=5)}
    actual, expected = (
        run_notebook(PREDICTOR_NOTEBOOK, package, checkpoint, sams[1], **names)["results"]
        for package in (OURS, "segment_anything")
    )
    assert [type(x) for x in actual] == [type(x) for x in expected]
    assert_same(actual, expected)


def test_the_notebook_of_the_mask_generator(sams, checkpoint):
    # Such a model finds the same for every click: nothing is to be dropped.
    looser = {
        "points_per_side": 4,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    actual, expected = (
        run_notebook(EVERYTHING_NOTEBOOK, package, checkpoint, sams[1], image=IMAGE, looser=looser)
        for package in (OURS, "segment_anything")
    )
    assert actual["keys"] == expected["keys"]
    for name in ("found", "finer", "largest_first"):
        assert len(actual[name]) == len(expected[name]) > 3

    def in_order(records):
        return sorted(records, key=lambda r: (r["point_coords"], round(r["predicted_iou"], 3)))

    for a, b in zip(in_order(actual["found"]), in_order(expected["found"]), strict=True):
        assert np.mean(a["segmentation"] != b["segmentation"]) <= 1e-3
        assert a["segmentation"].dtype == bool
        assert a["bbox"] == b["bbox"] and a["crop_box"] == b["crop_box"]
        assert a["point_coords"] == b["point_coords"]
        assert abs(a["predicted_iou"] - b["predicted_iou"]) < 1e-4


# --- the predictor ---

PROMPTS = {
    "click": {"point_coords": np.array([[10, 20]]), "point_labels": np.array([1])},
    "clicks": {"point_coords": np.array([[10, 20], [50.5, 30]]), "point_labels": np.array([1, 0])},
    "box": {"box": BOXES[0]},
    "box, one mask": {"box": BOXES[:1], "multimask_output": False},
    "click and box": {
        "point_coords": np.array([[10, 20]]),
        "point_labels": np.array([0]),
        "box": BOXES[0],
    },
    "mask": {"mask_input": np.random.default_rng(3).normal(0, 4, (1, 28, 28)).astype("float32")},
}


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize("name", PROMPTS)
def test_predict(predictors, name, return_logits):
    actual, expected = (p.predict(**PROMPTS[name], return_logits=return_logits) for p in predictors)
    assert all(type(x) is np.ndarray for x in actual)
    assert_same(actual, expected)


def test_predict_by_places(predictors):
    arguments = (*PROMPTS["clicks"].values(), BOXES[0], PROMPTS["mask"]["mask_input"], False, True)
    assert_same(*(p.predict(*arguments) for p in predictors))


@pytest.mark.every_backend
def test_predict_torch_of_batches(predictors):
    import torch

    size = IMAGE.shape[:2]
    points = torch.tensor([[[10.0, 20]], [[50, 30]], [[33, 3]]])
    labels = torch.tensor([[1], [0], [1]])
    masks = torch.from_numpy(np.random.default_rng(4).normal(0, 4, (3, 1, 28, 28))).float()
    answers = [
        p.predict_torch(
            p.transform.apply_coords_torch(points, size),
            labels,
            p.transform.apply_boxes_torch(torch.from_numpy(BOXES), size),
            mask_input=masks,
            multimask_output=True,
        )
        for p in predictors
    ]
    assert all(isinstance(x, torch.Tensor) for x in answers[0])
    assert answers[0][0].shape == (3, 3, *size)
    assert_same(*answers)
    predictor = predictors[0]
    boxes = predictor.transform.apply_boxes(BOXES, size)
    as_arrays = predictor.predict_torch(None, None, boxes)
    assert all(type(x) is np.ndarray for x in as_arrays)
    none = predictor.predict_torch(None, None, torch.zeros((0, 4)))
    assert [tuple(x.shape) for x in none] == [(0, 3, *size), (0, 3), (0, 3, 28, 28)]


def test_setting_images(sams, metas):
    import torch

    pair = ours.SamPredictor(sams[0]), metas.SamPredictor(sams[1])
    for predictor in pair:
        assert not predictor.is_image_set and predictor.features is None
        predictor.set_image(IMAGE[..., ::-1], image_format="BGR")
    state = [(p.is_image_set, p.original_size, tuple(p.input_size), p.model) for p in pair]
    assert state[0][:3] == state[1][:3] == (True, (40, 70), (32, 56))
    assert state[0][3] is sams[0]
    assert_same([pair[0].features], [pair[1].features])
    resized = torch.from_numpy(photograph((56, 50), seed=8)).permute(2, 0, 1)[None]
    for predictor in pair:
        predictor.set_torch_image(resized.float(), (90, 77))
    assert isinstance(pair[0].get_image_embedding(), torch.Tensor)
    assert_same(*([p.get_image_embedding()] for p in pair))
    assert_same(*(p.predict(**PROMPTS["click"]) for p in pair))
    # An embedding that was kept by hand, as scripts do.
    kept = {n: getattr(pair[0], n) for n in ("features", "original_size", "input_size")}
    pair[0].reset_image()
    assert not pair[0].is_image_set and pair[0].features is None
    vars(pair[0]).update(kept, is_image_set=True)
    assert_same(*(p.predict(**PROMPTS["click"]) for p in pair))


def test_what_the_predictor_refuses(sams):
    predictor = ours.SamPredictor(sams[0])
    for call in (
        lambda: predictor.predict(**PROMPTS["click"]),
        lambda: predictor.predict_torch(None, None, BOXES),
        predictor.get_image_embedding,
    ):
        with pytest.raises(RuntimeError, match="`set_image`"):
            call()
    with pytest.raises(ValueError, match="`image_format` must be 'RGB' or 'BGR'"):
        predictor.set_image(IMAGE, image_format="rgb")
    with pytest.raises(ValueError, match=rf"longer side of {SIDE}"):
        predictor.set_torch_image(np.zeros((1, 3, 30, 40)), (30, 40))
    predictor.set_image(IMAGE)
    with pytest.raises(ValueError, match="`point_labels` must be given"):
        predictor.predict(point_coords=np.array([[1, 2]]))
    with pytest.raises(ValueError, match="Received: 3 boxes"):
        predictor.predict(box=BOXES)
    click = PROMPTS["click"]
    for wrong, message in (
        ({"point_coords": np.array([1, 2])}, r"`point_coords` must have shape \(N, 2\)"),
        ({**click, "point_labels": np.array([1, 1])}, r"`point_labels` must have shape \(N,\)"),
        ({"point_labels": np.array([1])}, "`point_labels` must .* with 0 points"),
        ({**click, "mask_input": np.zeros((28, 28))}, r"`mask_input` .* \(1, 28, 28\), logits"),
        ({"mask_input": np.zeros((1, *IMAGE.shape[:2]))}, "mask_to_logits.*`predict`"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(**wrong)
    logits = keras_sam.mask_to_logits(IMAGE[..., 0] > 99, sams[0].segmenter)[None, ..., 0]
    predictor.predict(mask_input=logits)  # as that message says
    with pytest.raises(ValueError, match=r"`mask_input` must have shape \(P, 1, 28, 28\)"):
        predictor.predict_torch(None, None, mask_input=np.zeros((2, 28, 28)))


@pytest.mark.parametrize("make", ["SamPredictor", "SamAutomaticMaskGenerator"])
def test_what_is_no_sam(make, sams):
    for wrong in (sams[0].segmenter, "sam_vit_b_01ec64.pth"):
        with pytest.raises(ValueError, match=r"must be a `Sam`.*modeling.Sam\(segmenter\)"):
            getattr(ours, make)(wrong)
    assert ours.SamPredictor(modeling.Sam(sams[0].segmenter)).transform.target_length == SIDE


# --- the model ---


def test_the_parts_of_the_model(sams):
    import torch

    x = torch.from_numpy(photograph((32, 56), seed=2)).permute(2, 0, 1).float()
    mask = torch.from_numpy(np.random.default_rng(4).normal(0, 4, (2, 1, 28, 28))).float()
    points = (torch.tensor([[[10.0, 20], [3, 3]], [[50, 30], [9, 9]]]), torch.tensor([[1, 0]] * 2))
    prompts = [
        {"points": points, "boxes": None, "masks": None},
        {"points": None, "boxes": torch.from_numpy(BOXES[:2]).float(), "masks": None},
        {"points": points, "boxes": torch.from_numpy(BOXES[:2]).float(), "masks": mask},
    ]
    results = []
    for sam in sams:
        frame = sam.preprocess(x)
        embedding = sam.image_encoder(frame[None])
        made = [frame, embedding]
        for given in prompts:
            with torch.no_grad():
                sparse, dense = sam.prompt_encoder(**given)
                low, iou = sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=True,
                )
            made += [sparse, dense, low, iou, sam.postprocess_masks(low, (32, 56), (40, 70))]
        results.append([x.detach() for x in made])
    assert_same(*results)
    # As scripts do that train without prompts.
    results = []
    for sam in sams:
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
            embedding, positions = torch.ones_like(dense), sam.prompt_encoder.get_dense_pe()
            low, iou = sam.mask_decoder(embedding, positions, sparse, dense, multimask_output=True)
        assert tuple(sparse.shape) == (1, 0, dense.shape[1])
        results.append([dense, positions, low, iou])
    assert_same(*results)
    for name in ("embed_dim", "input_image_size", "image_embedding_size", "mask_input_size"):
        assert getattr(sams[0].prompt_encoder, name) == getattr(sams[1].prompt_encoder, name)


def test_attributes_and_moving(sams, predictors):
    import torch

    sam, meta = sams
    assert sam.image_encoder.img_size == meta.image_encoder.img_size == SIDE
    assert (sam.mask_threshold, sam.image_format) == (0.0, "RGB")
    np.testing.assert_allclose(sam.pixel_mean, meta.pixel_mean)
    np.testing.assert_allclose(sam.pixel_std, meta.pixel_std)
    assert sam.to(device="cpu") is sam and sam.cpu() is sam and sam.eval() is sam
    assert torch.zeros(1, device=predictors[0].device).device.type == "cpu"
    for part in (sam, sam.image_encoder, sam.mask_decoder):
        assert part.eval() is part
        for name in ("train", "parameters"):
            with pytest.raises(AttributeError, match=f"`{name}` here.*`segmenter`.*`fit`"):
                getattr(part, name)
    with pytest.raises(TypeError, match="`dtype="):
        sam.to(torch.float16)
    masks, _, logits = predictors[0].predict(**PROMPTS["click"], return_logits=True)
    sam.mask_threshold = float(np.median(masks))
    try:
        again, _, _ = predictors[0].predict(**PROMPTS["click"])
    finally:
        sam.mask_threshold = 0.0
    np.testing.assert_array_equal(again, masks > np.median(masks))


def test_state_dicts(sams, checkpoint, tmp_path):
    import torch

    sam, meta = sams
    saved = sam.state_dict()
    assert saved.keys() == meta.state_dict().keys()
    for name, value in meta.state_dict().items():
        np.testing.assert_array_equal(saved[name], value.numpy())
    torch.save(saved, tmp_path / "again.pth")  # and Meta's code reads it
    meta.load_state_dict(torch.load(tmp_path / "again.pth", weights_only=True))
    sam.load_state_dict(torch.load(checkpoint))
    kept = sam.state_dict()["mask_decoder.iou_token.weight"] + 1
    keys = sam.load_state_dict({"mask_decoder.iou_token.weight": kept, "head": kept}, strict=False)
    assert len(keys.missing_keys) == len(saved) - 1 and keys.unexpected_keys == ["head"]
    assert torch.equal(sam.state_dict()["mask_decoder.iou_token.weight"], kept)
    with pytest.raises(ValueError, match="such as 'image_encoder.*Received: .'head'"):
        sam.load_state_dict({"head": kept}, strict=False)
    sam.load_state_dict(saved)
    with pytest.raises(ValueError, match="It is not|misses|missing|not in"):
        sam.load_state_dict({k: v for k, v in saved.items() if "iou_token" not in k})


def test_a_segmenter_that_is_no_model_of_metas():
    with pytest.raises(ValueError, match="square RGB images"):
        modeling.Sam(tiny_segmenter())
