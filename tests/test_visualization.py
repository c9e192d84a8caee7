"""Pictures: what is drawn where, in which colour, and what is refused."""

import io
import itertools
import os
import sys

import numpy as np
import pytest
from PIL import Image

from keras_sam import visualization
from keras_sam.masks import encode_rle
from keras_sam.visualization import mask_colors, overlay

pytestmark = pytest.mark.once

H0, W0 = 90, 130
BLUE = np.array([30, 144, 255])


def photograph(level=120, size=(H0, W0)):
    return np.full((*size, 3), level, "uint8")


def rectangle(y1, x1, y2, x2, size=(H0, W0)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def changed(picture, before):
    return (np.asarray(picture) != before).any(axis=-1)


def luminance(picture):
    return np.asarray(picture) @ np.array([0.299, 0.587, 0.114])


MASK = rectangle(20, 30, 60, 90)


def test_a_mask_tints_its_own_pixels_and_no_other():
    before = photograph()
    picture = overlay(before, MASK, outlines=False, alpha=0.25)
    np.testing.assert_array_equal(changed(picture, before), MASK)
    expected = np.rint(120 + 0.25 * (BLUE - 120))
    np.testing.assert_array_equal(np.unique(picture[MASK], axis=0), [expected])


def test_the_inputs_are_left_as_they_are():
    before, mask = photograph(), MASK.copy()
    picture = overlay(before, mask, points=[[50, 40]], boxes=[[1, 2, 30, 40]], scores=[0.5])
    assert picture.shape == before.shape and picture.dtype == np.uint8
    np.testing.assert_array_equal(before, photograph())
    np.testing.assert_array_equal(mask, MASK)
    assert changed(overlay(before.view(visualization.Picture), mask), before).any()
    np.testing.assert_array_equal(before, photograph())


@pytest.mark.parametrize(
    "level",
    [0, 40, 90, 128, 165, 215, 255],  # from a night scene to snow
)
@pytest.mark.parametrize("color", [(30, 144, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_outlines_stand_out_from_any_background(level, color):
    picture = luminance(overlay(photograph(level), MASK, colors=color, alpha=0, line_width=2))
    across = picture[40, 20:45]  # from outside to inside, over the left edge
    assert across.max() - across.min() > 100
    assert abs(across - level).max() > 100


def test_outlines_run_along_the_edge_only():
    before = photograph()
    line_width = 2
    touched = changed(overlay(before, MASK, alpha=0, line_width=line_width), before)
    near = rectangle(20 - 3, 30 - 3, 60 + 3, 90 + 3) & ~rectangle(20 + 6, 30 + 6, 60 - 6, 90 - 6)
    assert not (touched & ~near).any()
    edge = MASK & ~rectangle(21, 31, 59, 89)
    assert touched[edge].all()


def test_no_outline_along_the_border_of_the_photograph():
    before = photograph()
    mask = rectangle(0, 0, H0, 50)
    touched = changed(overlay(before, mask, alpha=0, line_width=2), before)
    assert touched[:, 48:52].all(axis=0).any()
    assert not touched[:, :40].any()


@pytest.mark.parametrize(
    "mask",
    [
        rectangle(40, 60, 41, 61),  # a single pixel
        rectangle(40, 10, 41, 110),  # one pixel high
        rectangle(10, 60, 80, 62),  # two pixels wide
        rectangle(0, 0, 1, 1),  # a single pixel in the corner
        np.ones((H0, W0), bool),  # the whole photograph has no edge
    ],
)
def test_small_and_thin_and_full_masks_are_visible(mask):
    before = photograph()
    touched = changed(overlay(before, mask), before)
    assert touched[mask].all()
    assert touched.sum() >= min(9 * mask.sum() // 4, mask.size)  # with a rim, where there is room


def test_outlines_leave_the_color_of_small_masks_to_see():
    small = rectangle(40, 60, 49, 69)
    picture = overlay(photograph(), small, alpha=0.5, line_width=4)
    np.testing.assert_array_equal(picture[44, 64], np.rint(120 + 0.5 * (BLUE - 120)))


def test_small_masks_lie_on_top_of_large_ones_in_any_order():
    large, small = rectangle(5, 5, 85, 125), rectangle(30, 40, 60, 80)
    options = {"outlines": False, "alpha": 1.0}
    first = overlay(photograph(), [large, small], **options)
    second = overlay(photograph(), [small, large], **options)
    np.testing.assert_array_equal(np.unique(first[small], axis=0), [mask_colors(2)[1]])
    np.testing.assert_array_equal(np.unique(second[small], axis=0), [mask_colors(2)[0]])


def test_colors_are_stable_and_distinct():
    colors = mask_colors(300)
    np.testing.assert_array_equal(mask_colors(7), colors[:7])
    assert len(np.unique(mask_colors(256), axis=0)) == 256
    few = mask_colors(12).astype(int)
    for a, b in itertools.combinations(few, 2):
        assert np.abs(a - b).sum() >= 60
    assert (luminance(mask_colors(256)) > 90).all()  # not lost in the dark
    assert (luminance(mask_colors(256)) < 220).all()  # nor in snow


def test_a_mask_keeps_its_color_when_others_come_or_go():
    masks = [rectangle(5, 5 + 30 * i, 85, 30 + 30 * i) for i in range(4)]
    options = {"outlines": False, "alpha": 1.0}
    all_four = overlay(photograph(), masks, **options)
    two = overlay(photograph(), masks[:2], **options)
    np.testing.assert_array_equal(two[masks[1]], all_four[masks[1]])
    selected = overlay(photograph(), masks[2:], colors=mask_colors(4)[2:], **options)
    np.testing.assert_array_equal(selected[masks[3]], all_four[masks[3]])


def test_all_forms_of_masks_draw_the_same():
    masks = np.stack([MASK, rectangle(3, 4, 50, 20), rectangle(40, 70, 80, 125)])
    expected = overlay(photograph(), masks)
    forms = {
        "integers": masks.astype("int64"),
        "floats": masks.astype("float32"),
        "0 and 255": masks.astype("uint8") * 255,
        "(P, K, H0, W0)": masks[:, None],
        "list": list(masks),
        "tuple of stacks": (masks[:2], masks[2:]),
        "nested lists": masks.tolist(),
        "records": [{"segmentation": mask, "area": 1} for mask in masks],
        "RLE records": [{"segmentation": encode_rle(mask)} for mask in masks],
        "uncompressed RLE": [encode_rle(mask, compressed=False) for mask in masks],
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(overlay(photograph(), form), expected, err_msg=name)
    one = overlay(photograph(), MASK)
    np.testing.assert_array_equal(overlay(photograph(), MASK.tolist()), one)
    np.testing.assert_array_equal(overlay(photograph(), {"segmentation": MASK}), one)


def test_backend_tensors_are_read():
    torch = pytest.importorskip("torch")
    mask = torch.tensor(MASK.astype("float32"), requires_grad=True)
    expected = overlay(photograph(), MASK, points=[[9, 9]])
    drawn = overlay(torch.tensor(photograph()), mask, points=torch.tensor([[9.0, 9.0]]))
    np.testing.assert_array_equal(drawn, expected)


def test_an_empty_mask_draws_nothing_and_gets_no_score():
    picture = overlay(photograph(), np.zeros((H0, W0), bool), scores=[0.3])
    np.testing.assert_array_equal(picture, photograph())


@pytest.mark.parametrize(
    ("label", "strongest"),
    [(1, 1), (0, 0)],  # green for foreground, red for background
)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_points_are_green_or_red_with_two_edges(label, strongest, level):
    picture = overlay(photograph(level), points=[[60, 40]], labels=[label], line_width=2)
    center = np.asarray(picture)[40, 60].astype(int)
    assert center[strongest] - np.delete(center, strongest).max() > 100
    across = luminance(picture)[40, 30:90]
    assert across.max() > 200 and across.min() < 100


def test_stars_and_discs_differ_in_shape_too():
    star = changed(overlay(photograph(), points=[[60, 40]], labels=[1]), photograph())
    disc = changed(overlay(photograph(), points=[[60, 40]], labels=[0]), photograph())
    assert np.array_equal(disc[30:51], disc[30:51][::-1])  # a disc upside down is a disc
    assert not np.array_equal(star[30:51], star[30:51][::-1])  # a star is not


@pytest.mark.parametrize("label", [-1, -10])
def test_padding_points_are_not_drawn(label):
    picture = overlay(photograph(), points=[[60, 40], [np.nan, 0]], labels=[label, -10])
    np.testing.assert_array_equal(picture, photograph())


@pytest.mark.parametrize(
    "point",
    [(0, 0), (W0 - 1, H0 - 1), (-3, 40), (W0 + 2, 40), (60, -2), (-500, 1e6)],  # on and off the rim
)
@pytest.mark.parametrize("label", [0, 1])
def test_points_at_and_beyond_the_border(point, label):
    before = photograph()
    touched = changed(overlay(before, points=[point], labels=[label], line_width=2), before)
    assert touched.any() == (abs(point[0]) < 500)


def test_boxes_lie_on_their_coordinates():
    before = photograph()
    picture = overlay(before, boxes=[[30, 20, 90, 60]], line_width=2)
    np.testing.assert_array_equal(picture[20, 30:91], [[255, 255, 255]] * 61)
    np.testing.assert_array_equal(picture[20:61, 90], [[255, 255, 255]] * 41)
    assert not changed(picture, before)[26:55, 36:85].any()
    across = luminance(picture)[10:30, 60]
    assert across.max() > 200 and across.min() < 60
    corners = overlay(before, points=[[30, 20], [90, 60]], labels=[2, 3], line_width=2)
    np.testing.assert_array_equal(corners, picture)
    nested = overlay(before, boxes=[[[[30, 20], [90, 60]]]], line_width=2)
    np.testing.assert_array_equal(nested, picture)
    assert changed(overlay(before, boxes=[[50, 50, 50, 50]]), before).any()  # no size, yet visible
    np.testing.assert_array_equal(overlay(before, boxes=[[900, 900, 990, 990]]), before)


def test_a_box_per_mask_takes_the_masks_color():
    masks = [rectangle(30, 20, 50, 40), rectangle(30, 70, 50, 100)]
    boxes = [[10, 20, 50, 60], [60, 20, 110, 60]]
    picture = overlay(photograph(), masks, boxes=boxes)
    for index, (x1, y1, _, _) in enumerate(boxes):
        np.testing.assert_array_equal(picture[y1, x1], mask_colors(2)[index])


def test_scores_stand_above_their_masks_and_never_on_each_other():
    mask = rectangle(50, 30, 85, 90)
    plain = overlay(photograph(), [mask, mask])
    written = changed(overlay(photograph(), [mask, mask], scores=[0.91, 0.87]), plain)
    rows = np.flatnonzero(written.any(axis=1))
    assert rows.min() < 50
    one = changed(overlay(photograph(), [mask], scores=[0.91]), overlay(photograph(), [mask]))
    height = np.ptp(np.flatnonzero(one.any(axis=1))) + 1
    assert np.ptp(rows) + 1 >= 2 * height  # the second plate below the first
    other = overlay(photograph(), [mask], scores=[0.12])
    assert changed(other, overlay(photograph(), [mask], scores=[0.91])).any()


def test_scores_stay_inside_the_photograph():
    corner = rectangle(0, 0, 5, 5)
    written = changed(overlay(photograph(), corner, scores=[0.5], alpha=0), photograph())
    assert written[:20, :30].any()
    overlay(photograph(size=(1, 1)), np.ones((1, 1), bool), scores=[1.0], points=[[0, 0]])


def test_photographs_of_every_kind(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (H0, W0, 3), "uint8")
    grey = color[..., 0]
    Image.fromarray(color).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(overlay(tmp_path / "photo.png"), color)
    np.testing.assert_array_equal(overlay(str(tmp_path / "photo.png")), color)
    np.testing.assert_array_equal(overlay(Image.fromarray(color)), color)
    np.testing.assert_array_equal(overlay(color.astype("float32")), color)
    np.testing.assert_array_equal(overlay(np.dstack([color, grey])), color)
    np.testing.assert_array_equal(overlay(grey), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(overlay(grey[..., None]), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(overlay(color.astype("uint16") * 257), color)
    deep = Image.fromarray(grey.astype("uint16") * 257)
    np.testing.assert_array_equal(overlay(deep), np.stack([grey] * 3, axis=-1))


def test_a_phones_photograph_is_drawn_upright(tmp_path):
    stored = np.zeros((H0, W0, 3), "uint8")
    stored[:, :40] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(stored).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(overlay(tmp_path / "phone.png"), np.rot90(stored, -1))


BAD_INPUTS = [
    ({"masks": np.ones((H0, W0 - 1), bool)}, r"`masks` .*\(\.\.\., 90, 130\).*\(90, 129\)"),
    ({"masks": np.ones((W0, H0), bool)}, r"Received: shape=\(130, 90\)"),  # axes swapped
    ({"masks": [MASK, np.ones((4, 4), bool)]}, r"`masks\[1\]`.*\(4, 4\)"),
    ({"masks": MASK[..., None]}, r"Received: shape=\(90, 130, 1\)"),  # a channel axis
    ({"masks": []}, "`masks` is an empty list"),
    ({"masks": np.zeros((0, H0, W0), bool)}, "at least one mask"),
    ({"masks": np.where(MASK, np.nan, 0)}, "`masks` must be binary.*NaN"),
    ({"masks": np.where(MASK, 7.5, -3)}, "Turn logits into a mask"),
    ({"masks": np.where(MASK, 2, 1)}, "binary"),  # a label map
    ({"masks": [{"area": 3}]}, "`size` and `counts`"),  # a dict that is no record
    ({"points": [[1, 2, 3]]}, r"`points` must have shape \(\.\.\., 2\).*\(1, 3\)"),
    ({"points": [[np.nan, 2]]}, "`points` must hold finite numbers"),
    ({"points": [[1, 2]], "labels": [1, 0]}, "2 labels for 1 points"),
    ({"points": [[1, 2]], "labels": [5]}, r"`labels` must be .*\[5\]"),
    ({"labels": [1]}, "without `points`"),
    ({"boxes": [[1, 2, 3]]}, r"`boxes` must have shape .*\(1, 3\)"),
    ({"boxes": [[9, 2, 3, 8]]}, r"x1 <= x2.*\[9\.0, 2\.0, 3\.0, 8\.0\]"),  # upside down
    ({"boxes": [[1, 2, np.inf, 4]]}, "`boxes` must hold finite numbers"),
    ({"masks": MASK, "scores": [0.1, 0.2]}, "2 scores for 1 masks"),
    ({"masks": MASK, "scores": [np.nan]}, "`scores` must hold finite numbers"),
    ({"masks": [MASK, MASK], "colors": [[1, 2, 3]]}, r"each of the 2 masks.*\(1, 3\)"),
    ({"masks": MASK, "colors": "red"}, "`colors` must be one RGB triple"),
    ({"alpha": 1.5}, "`alpha` must be between 0 and 1. Received: 1.5"),
    ({"line_width": 0}, "`line_width` must be a positive"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS)
def test_bad_inputs(arguments, message):
    with pytest.raises(ValueError, match=message):
        overlay(photograph(), **arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), "uint8"), r"at least one pixel.*\(0, 5, 3\)"),  # an empty image
        (np.zeros((5, 5, 2), "uint8"), r"\(5, 5, 2\)"),  # two channels
        (np.zeros((1, 5, 5, 3), "uint8"), r"\(1, 5, 5, 3\)"),  # a batch
        (np.full((5, 5, 3), np.nan), "must be finite"),
    ],
)
def test_bad_photographs(image, message):
    with pytest.raises(ValueError, match=message):
        overlay(image)


def test_candidates_side_by_side():
    masks = np.stack([MASK, rectangle(3, 4, 50, 20), rectangle(40, 70, 80, 125)])
    scores = [0.9, 0.5, 0.7]
    picture = visualization.candidates(photograph(), masks, scores, points=[[50, 40]], gap=6)
    assert picture.shape == (H0, 3 * W0 + 2 * 6, 3)
    for index in range(3):
        left = index * (W0 + 6)
        expected = overlay(photograph(), masks[index], scores=scores[index], points=[[50, 40]])
        np.testing.assert_array_equal(picture[:, left : left + W0], expected)
        if index:
            assert (picture[:, left - 6 : left] == 255).all()
    with pytest.raises(ValueError, match="at least one mask"):
        visualization.candidates(photograph(), None)


def test_a_picture_shows_itself_in_a_notebook_and_saves_itself(tmp_path):
    picture = overlay(photograph(), MASK)
    (tmp_path / "notebook.png").write_bytes(picture._repr_png_())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "notebook.png")), picture)
    picture.save(tmp_path / "saved.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "saved.png")), picture)
    for part in (picture[0], picture[..., 0], picture / 255, picture[:0]):  # no pictures any more
        assert part._repr_png_() is None


def test_a_picture_is_saved_with_pillows_options_and_whole(tmp_path):
    picture = overlay(photograph(), MASK)
    for quality in (20, 95):
        picture.save(tmp_path / f"{quality}.JPG", quality=quality)
    coarse, fine = ((tmp_path / f"{quality}.JPG").stat().st_size for quality in (20, 95))
    assert coarse < 0.7 * fine
    picture.save(str(tmp_path / "new" / "no ending"), format="png")
    saved = np.asarray(Image.open(tmp_path / "new" / "no ending"))
    np.testing.assert_array_equal(saved, picture)
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    assert buffer.getvalue() == (tmp_path / "new" / "no ending").read_bytes()
    with pytest.raises(ValueError, match=r"must end in a format.*'.*a\.jgp'.*format="):
        picture.save(tmp_path / "a.jgp")
    with pytest.raises(ValueError, match="(?i)quality"):  # pillow's, and the file stays
        picture.save(tmp_path / "95.JPG", quality="much")
    assert (tmp_path / "95.JPG").stat().st_size == fine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20.JPG", "95.JPG", "new"]


@pytest.fixture
def pyplot():
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")

    yield pyplot
    pyplot.close("all")


def test_show(pyplot):
    ax = visualization.show(photograph(), MASK, title="a mask", points=[[50, 40]])
    expected = overlay(photograph(), MASK, points=[[50, 40]])
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    assert ax.get_title() == "a mask"
    figure, (left, _) = pyplot.subplots(1, 2)
    assert visualization.show(photograph(), ax=left) is left
    assert len(figure.axes) == 2 and len(pyplot.get_fignums()) == 2
    figure.canvas.draw()


def test_show_candidates_names_the_best(pyplot):
    axes = visualization.show_candidates(photograph(), [MASK, ~MASK, MASK], [0.2, 0.875, 0.5])
    titles = [ax.get_title() for ax in axes]
    assert titles == ["mask 0: 0.200", "mask 1: 0.875 (best)", "mask 2: 0.500"]
    np.testing.assert_array_equal(
        axes[1].images[0].get_array(), overlay(photograph(), ~MASK, colors=mask_colors(1)[0])
    )
    assert len(visualization.show_candidates(photograph(), MASK)) == 1


def test_show_everything(pyplot):
    records = [{"segmentation": encode_rle(mask)} for mask in (MASK, rectangle(0, 0, 9, 9))]
    before, after = visualization.show_everything(photograph(), records)
    np.testing.assert_array_equal(before.images[0].get_array(), photograph())
    np.testing.assert_array_equal(after.images[0].get_array(), overlay(photograph(), records))
    assert after.get_title() == "2 masks"


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "keras_sam\[plot\]"'):
        visualization.show(photograph(), MASK)
    overlay(photograph(), MASK)


def test_pictures_of_many_masks_are_quick():
    """The time grows with the masks' areas, not with masks x photograph."""
    size = (600, 800)
    masks = [
        rectangle(y, x, y + 12, x + 12, size) for y in range(0, 600, 15) for x in range(0, 800, 15)
    ]
    records = [{"segmentation": encode_rle(mask)} for mask in masks[:400]]
    start = os.times().user
    overlay(photograph(size=size), records)
    assert os.times().user - start < 8
