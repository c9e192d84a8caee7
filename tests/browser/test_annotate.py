"""The page of `keras-sam annotate` in Chromium: what people do there, and what is then kept."""

import base64
import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from keras_sam import annotations, masks

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.annotate.serving import serving

EVERYTHING = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
READY = "#accept:not([disabled])"
TRICK = "<img src=x onerror='document.title=1'>&amp;"
# Reads masks, writes them again, and paints a disc on an empty one.
ROUND_TRIP = """async ([rles, size]) => {
    const { Mask } = await import("/static/canvas.js");
    const written = rles.map((rle) => Mask.fromRle(rle).toRle());
    const painted = new Mask(...size);
    painted.stroke({x: 10, y: 8}, {x: 10, y: 8}, 5, 1);
    painted.stroke({x: 12, y: 8}, {x: 20, y: 8}, 2, 0);
    return [written, painted.toRle()];
}"""

# Shows objects on a white photograph, as a whole and zoomed in; gives the bytes of the canvas.
DRAWN = """async ([segmentations, zooms]) => {
    const { SegmentCanvas } = await import("/static/canvas.js");
    const [height, width] = segmentations[0].size;
    const white = new OffscreenCanvas(width, height);
    const context = white.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    const room = document.createElement("div");
    room.style = "position: fixed; width: 339px; height: 339px";
    document.body.append(room);
    const shown = new SegmentCanvas(room, {
        picture: () => white.convertToBlob(), embed: async () => ({}),
    });
    await shown.open("white");
    shown.setObjects(segmentations.map(
        (segmentation, id) => ({ id, segmentation, colour: "#3b82f6", hidden: false })
    ));
    const pictures = [];
    for (const zoom of zooms) {
        shown.zoom(zoom);
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
        const { data } = shown.canvas.getContext("2d").getImageData(0, 0, 339, 339);
        pictures.push(btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join("")));
    }
    shown.destroy();
    room.remove();
    return pictures;
}"""


@pytest.fixture(scope="module")
def open_page(segmenter, tmp_path_factory):
    """A function that serves a folder of its own and gives the server; all end with the module."""
    with contextlib.ExitStack() as servers:

        def start():
            place = tmp_path_factory.mktemp("annotate")
            out = place / "out.json"
            return servers.enter_context(
                serving(segmenter, place / "photos", out, generator=EVERYTHING)
            )

        yield start


@pytest.fixture
def served(open_page):
    return open_page()


@pytest.fixture
def page(served, new_page):
    page = new_page(served.page, viewport={"width": 900, "height": 600})
    is_encoded(page)
    yield page
    assert page.faults == []


def is_encoded(page):
    page.locator("#photo option").first.wait_for(state="attached")
    page.locator("#progress").wait_for(state="hidden")


def choose_photo(page, name):
    names = page.locator("#photo option").all_inner_texts()
    page.select_option("#photo", index=[text.split("  ")[0] for text in names].index(name))
    page.locator("#progress").wait_for(state="hidden")


def at(page, x, y, size):
    """Where a pixel of a photograph of (height, width) is on the screen, as `fit` shows it."""
    box = page.locator(".segment-canvas").bounding_box()
    scale = min((box["width"] - 24) / size[1], (box["height"] - 24) / size[0], 8)
    left = box["x"] + (box["width"] - size[1] * scale) / 2
    top = box["y"] + (box["height"] - size[0] * scale) / 2
    return left + x * scale, top + y * scale


def kept(served):
    """The records in the file, by photograph."""
    if not served.store.path.exists():
        return {}
    images, _ = annotations.read_coco(served.store.path)
    return {image.file_name: image.records for image in images}


def accept(page, count):
    """Accepts the mask that is shown, and waits until so many are in the list."""
    page.locator(READY).wait_for()
    page.keyboard.press("Enter")
    page.locator(f"#objects li:nth-child({count})").wait_for()


def test_run_lengths_of_the_page_are_ours(page):
    rng = np.random.default_rng(0)
    shapes = [rng.random((17, 23)) > share for share in (0.1, 0.5, 0.9, 0.99)]
    blocks = np.zeros((5, 17, 23), bool)
    blocks[0], blocks[1, :, 4:9], blocks[2, 5:9], blocks[3, 16:, 22:] = True, True, True, True
    rles = masks.encode_rle(np.stack([*shapes, *blocks]))
    written, painted = page.evaluate(ROUND_TRIP, [rles, [17, 23]])
    assert written == rles
    y, x = np.mgrid[:17, :23] + 0.5
    disc = (x - 10) ** 2 + (y - 8) ** 2 <= 25
    rubbed = (np.clip(x, 12, 20) - x) ** 2 + (y - 8) ** 2 <= 4
    differ = masks.decode_rle(painted) != (disc & ~rubbed)
    assert differ.sum() <= 2  # strokes are discs, one beside the other


def test_a_ragged_outline_is_drawn_as_its_parts_are(page):
    """A mask of more lines than are stroked looks as two do that have half of them each."""
    specks = np.zeros((105, 105), bool)
    specks[1::3, 1::3] = True
    left = specks & (np.arange(105) < 52)
    zooms = [1, 1.13, 4]
    whole, parts = (
        [
            np.frombuffer(base64.b64decode(picture), np.uint8).reshape(339, 339, 4).astype(int)
            for picture in page.evaluate(DRAWN, [masks.encode_rle(np.stack(shown)), zooms])
        ]
        for shown in ([specks], [left, specks & ~left])
    )
    assert (abs(whole[0] - [59, 130, 246, 255]).max(-1) < 8).mean() > 0.1  # of lines
    for zoom, one, other in zip(zooms, whole, parts, strict=True):
        assert (abs(one - other).max(-1) > 100).mean() < 0.01, zoom  # strokes have soft edges
    assert abs(whole[2] - parts[2]).max() <= 1  # with few lines in view both are stroked


def test_click_choose_accept_undo_and_reload(page, served):
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    page.locator(READY).wait_for()
    candidates = page.locator("#candidates button")
    assert candidates.count() == 3
    page.keyboard.press("3")
    assert candidates.nth(2).get_attribute("aria-checked") == "true"
    page.mouse.wheel(0, 100)  # on to the first
    page.locator("#candidates button:nth-child(1)[aria-checked=true]").wait_for()
    accept(page, 1)
    alone = served.call(
        "POST", "/api/predict", {"photo": "a.png", "points": [[45, 30]], "labels": [1]}
    )
    (record,) = kept(served)["a.png"]
    shown = masks.decode_rle(record["segmentation"])
    first = masks.decode_rle(alone["candidates"][0]["segmentation"])
    assert masks.mask_iou(shown[None], first[None]).item() > 0.9  # the click is a pixel or so off
    assert page.locator("#saved").inner_text() == "Saved"
    page.keyboard.press("Control+z")
    page.locator("#no-objects").wait_for()
    assert kept(served) == {}
    page.keyboard.press("Control+Shift+z")
    page.locator("#objects li").wait_for()
    assert len(kept(served)["a.png"]) == 1
    page.locator("#labels button").nth(1).click()
    page.get_by_label("Hide cat, object 1").click()
    page.locator("#objects li.off").wait_for()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Show cat, object 1"  # where it was
    page.reload()
    is_encoded(page)
    page.locator("#objects li").wait_for()
    page.get_by_label("Delete cat, object 1").click()
    page.locator("#no-objects").wait_for()
    assert kept(served) == {}


def test_box_background_and_brush(page, served, new_page):
    asked = []
    page.on("request", lambda r: asked.append(r.post_data_json) if "predict" in r.url else None)
    page.mouse.move(*at(page, 20, 10, (60, 90)))
    page.mouse.down()
    page.mouse.move(*at(page, 50, 30, (60, 90)))
    page.mouse.move(*at(page, 70, 50, (60, 90)))
    page.mouse.up()
    page.locator(READY).wait_for()
    np.testing.assert_allclose(asked[-1]["box"], [20, 10, 70, 50], atol=0.5)
    page.mouse.click(*at(page, 5, 5, (60, 90)), button="right")
    page.locator(READY).wait_for()
    assert asked[-1]["labels"] == [0] and asked[-1]["refine"]["candidate"] == 0
    page.keyboard.down("Alt")
    page.mouse.click(*at(page, 80, 55, (60, 90)))
    page.keyboard.up("Alt")
    page.locator(READY).wait_for()
    assert asked[-1]["labels"] == [0, 0]
    page.keyboard.press("Control+z")  # the last point
    page.keyboard.press("b")
    page.mouse.click(*at(page, 85, 5, (60, 90)))
    page.keyboard.press("Shift+Digit2")
    accept(page, 1)
    (record,) = kept(served)["a.png"]
    assert record["category_id"] == 2 and "score" not in record  # it was painted
    assert masks.decode_rle(record["segmentation"])[5, 85]


def test_the_keyboard_alone(page, served):
    asked = []
    page.on("request", lambda r: asked.append(r.post_data_json) if "predict" in r.url else None)
    page.keyboard.press("c")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")
    page.locator(READY).wait_for()
    (x, y) = asked[-1]["points"][0]
    assert x > 46 and abs(y - 30) < 1 and asked[-1]["labels"] == [1]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("r")
    page.locator(READY).wait_for()
    assert asked[-1]["labels"] == [1, 0]
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Space")  # paints at the cross
    page.locator(READY).wait_for()
    page.keyboard.press("e")
    page.keyboard.press("Space")  # and rubs it out
    page.keyboard.press("Enter")
    page.get_by_text("The mask is empty.").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.keyboard.press("x")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("x")
    page.keyboard.press("Shift+Digit2")
    accept(page, 1)
    assert asked[-1]["box"] and kept(served)["a.png"][0]["category_id"] == 2
    page.keyboard.press("PageDown")
    page.wait_for_url("**")
    assert page.locator("#count").inner_text() == "2 of 4, 1 labelled"
    focused = set()  # everything else is reached with Tab, and has a name
    for _ in range(40):
        page.keyboard.press("Tab")
        focused.add(
            page.evaluate("document.activeElement.id || document.activeElement.classList[0]")
        )
    assert {"photo", "next", "segment-canvas", "label-name", "export", "help"} <= focused
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, input, canvas')].filter("
        "(e) => !(e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert unnamed == []


def test_proposals_are_accepted_or_dropped(page, served):
    held = []
    page.route("**/api/everything", lambda route: held.append(route))
    page.keyboard.press("a")
    page.keyboard.press("b")
    page.mouse.click(*at(page, 45, 30, (60, 90)))  # begun meanwhile
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    page.get_by_text("The proposals are shown once this mask").wait_for()
    assert page.locator(READY).count() == 1
    page.keyboard.press("Escape")
    page.locator("#proposals li").first.wait_for()
    count = page.locator("#proposals li").count()
    page.keyboard.press("Enter")
    page.locator("#objects li").wait_for()
    assert page.locator("#proposals li").count() == count - 1
    if count > 1:
        page.locator("#drop-all").click()
    page.locator("#proposals-card").wait_for(state="hidden")
    assert len(kept(served)["a.png"]) == 1


def test_markup_in_a_label_is_text(page, served):
    page.fill("#label-name", TRICK)
    page.keyboard.press("Enter")
    chip = page.locator(".chip[aria-checked=true]")
    chip.get_by_text(TRICK, exact=True).wait_for()
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept(page, 1)
    assert page.locator("#objects .name").inner_text() == TRICK
    assert page.locator("#labels img, #objects img").count() == 0
    assert page.title() != "1"
    names = json.loads(served.store.path.read_text())["categories"]
    assert names[-1] == {"id": 3, "name": TRICK}


def test_two_tabs_get_what_each_gets_alone(page, served, new_page):
    other = new_page(served.page, viewport={"width": 900, "height": 600})
    is_encoded(other)
    choose_photo(other, "b.jpg")
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    other.mouse.click(*at(other, 25, 40, (80, 50)))
    accept(page, 1)
    accept(other, 1)
    for name, point in (("a.png", [45, 30]), ("b.jpg", [25, 40])):
        answer = served.call(
            "POST", "/api/predict", {"photo": name, "points": [point], "labels": [1]}
        )
        best = answer["candidates"][answer["best"]]["segmentation"]
        (record,) = kept(served)[name]
        pair = [masks.decode_rle(rle)[None] for rle in (best, record["segmentation"])]
        assert masks.mask_iou(*pair).item() > 0.9
    # What one tab deletes is gone in the other one as well, which says so.
    choose_photo(other, "a.png")
    other.locator("#objects li").wait_for()
    page.get_by_label("Delete cat, object 1").click()
    page.locator("#no-objects").wait_for()
    other.get_by_label("Delete cat, object 1").click()
    other.locator("#no-objects").wait_for()
    assert "There is no object" in other.locator("#toast").inner_text()


def test_a_tab_with_an_old_list_deletes_no_object_of_another_photograph(page, served):
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept(page, 1)
    images = [{"id": 1, "file_name": "b.jpg", "height": 80, "width": 50}]
    mask = masks.encode_rle(np.ones((80, 50), bool))
    theirs = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask}
    names = [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": [theirs], "categories": names}
    served.store.path.write_text(json.dumps(content))
    served.call("POST", "/api/save", {"how": "load"})  # as another tab does
    page.keyboard.press("Control+z")  # of what was kept as object 1
    page.get_by_text("There is no object 1 of a.png").wait_for()
    page.locator("#no-objects").wait_for()
    assert [record["id"] for record in kept(served)["b.jpg"]] == [1]


def test_what_is_not_saved_is_said(page, served):
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept(page, 1)
    served.store.path.write_text(served.store.path.read_text() + " ")
    page.mouse.click(*at(page, 20, 20, (60, 90)))
    accept(page, 2)
    assert "changed by another program" in page.locator("#alert").inner_text()
    assert page.locator("#saved").inner_text() == "Not saved"
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"] and not page.is_closed()
    page.get_by_role("button", name="Replace it").click()
    page.locator("#alert").wait_for(state="hidden")
    assert len(kept(served)["a.png"]) == 2


def test_undo_reaches_what_was_deleted_and_made_again(page, served):
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept(page, 1)
    page.get_by_label("Delete cat, object 1").click()
    page.locator("#no-objects").wait_for()
    for keys, count in (("z", 1), ("z", 0), ("Shift+z", 1), ("Shift+z", 0), ("z", 1)):
        page.keyboard.press(f"Control+{keys}")
        page.locator("#objects li" if count else "#no-objects").wait_for()
        assert [record["id"] for record in kept(served).get("a.png", [])] == [1] * count
    page.get_by_label("Correct cat, object 1").click()
    page.keyboard.press("b")
    page.mouse.click(*at(page, 85, 5, (60, 90)))
    page.get_by_label("Correct cat, object 1").click()  # which would drop what was painted
    page.get_by_text("Accept this mask first").wait_for()


def test_a_corrected_mask_has_no_score_until_that_is_undone(page, served):
    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept(page, 1)
    (before,) = kept(served)["a.png"]
    page.get_by_label("Correct cat, object 1").click()
    page.keyboard.press("b")
    page.mouse.click(*at(page, 85, 5, (60, 90)))
    page.locator(READY).wait_for()
    with page.expect_response("**/api/objects/1"):
        page.keyboard.press("Enter")
    (corrected,) = kept(served)["a.png"]
    assert corrected["area"] > before["area"] and "score" not in corrected
    with page.expect_response("**/api/objects/1"):
        page.keyboard.press("Control+z")
    assert before["score"] and kept(served)["a.png"] == [before]


def test_an_undo_that_failed_is_tried_again(page, served):
    for count, place in enumerate(((20, 20), (70, 40)), start=1):
        page.mouse.click(*at(page, *place, (60, 90)))
        accept(page, count)
    answers = []  # whether the server is there, at each attempt
    page.route(
        "**/api/objects/**", lambda route: route.continue_() if answers.pop(0) else route.abort()
    )
    for keys, left in (("z", [1]), ("Shift+z", [1, 2])):
        answers += [False, True]
        page.keyboard.press(f"Control+{keys}")
        page.get_by_text("The server does not answer").wait_for()
        page.evaluate("document.getElementById('toast').hidden = true")
        page.keyboard.press(f"Control+{keys}")
        page.locator("#objects-title", has_text=f"Objects · {len(left)}").wait_for()
        assert [record["id"] for record in kept(served)["a.png"]] == left


def test_an_object_kept_before_the_list_has_come_stays(page, served):
    held = []
    page.route("**/api/objects?photo=c.png", lambda route: held.append(route))
    choose_photo(page, "c.png")
    page.mouse.click(*at(page, 20, 20, (40, 40)))
    page.locator(READY).wait_for()
    answer = held[0].fetch()  # what the server said before the mask was kept
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    held[0].fulfill(response=answer)
    page.locator("#objects li").wait_for()
    page.wait_for_timeout(300)
    assert page.locator("#objects li").count() == 1 and len(kept(served)["c.png"]) == 1


def test_the_page_turns_when_what_was_done_is_kept(page, served):
    held = []
    page.route("**/api/objects", lambda route: held.append(route))

    def accept_and_turn(*keys):
        page.locator(READY).wait_for()
        for key in ("Enter", *keys):
            page.keyboard.press(key)
        while not held:
            page.wait_for_timeout(10)
        return held.pop()

    page.mouse.click(*at(page, 45, 30, (60, 90)))
    accept_and_turn("PageDown", "Control+z").abort()
    page.get_by_text("The server does not answer").wait_for()
    page.locator(READY).wait_for()  # the mask is back
    assert kept(served) == {} and page.locator("#count").inner_text() == "1 of 4, 0 labelled"
    accept_and_turn("PageDown").continue_()
    page.unroute("**/api/objects")
    page.get_by_text("2 of 4, 1 labelled").wait_for()
    is_encoded(page)
    page.keyboard.press("Control+z")  # nothing was done on this one
    assert page.locator("#objects li").count() == 0 and len(kept(served)["a.png"]) == 1


def test_masks_that_are_refused_come_back_one_after_the_other(page, served):
    held, places = [], ((20, 20), (45, 30), (70, 40), (85, 55))
    page.route("**/api/objects", lambda route: held.append(route))
    page.keyboard.press("b")
    for place in places[:3]:  # accepted while the first one is being saved
        page.mouse.click(*at(page, *place, (60, 90)))
        page.locator(READY).wait_for()
        page.keyboard.press("Enter")
    page.mouse.click(*at(page, *places[3], (60, 90)))  # and one that is begun meanwhile
    for _ in range(3):
        while not held:
            page.wait_for_timeout(10)
        held.pop().fulfill(status=422, json={"error": "There is no room for this mask."})
    page.get_by_text("comes back once this one").wait_for()
    page.unroute("**/api/objects")
    page.wait_for_timeout(300)  # all three are refused
    page.keyboard.press("PageDown")
    page.get_by_text("Accept this mask first").wait_for()
    page.keyboard.press("Escape")  # the one that was begun, and no other
    for count in (1, 2, 3):
        accept(page, count)
    shown = [masks.decode_rle(record["segmentation"]) for record in kept(served)["a.png"]]
    assert [[bool(mask[y, x]) for x, y in places] for mask in shown] == [
        [place == one for place in places] for one in places[:3]
    ]
    assert page.locator("#clear").is_disabled()


def test_a_broken_photograph_is_shown_as_such(page, served):
    choose_photo(page, "broken.jpg")
    page.locator("#broken").wait_for()
    assert "broken.jpg cannot be read" in page.locator("#broken-text").inner_text()
    page.get_by_role("button", name="Next photograph", exact=True).last.click()
    is_encoded(page)
    assert page.locator("#photo option:checked").inner_text() == "c.png"
    page.keyboard.press("g")
    assert page.locator("#photo option:checked").inner_text() == "a.png"


def test_a_phone(served, new_page, photograph_of):
    screen = {"width": 360, "height": 720}
    page = new_page(served.page, viewport=screen, has_touch=True, is_mobile=True)
    is_encoded(page)
    page.touchscreen.tap(*at(page, 45, 30, (60, 90)))
    page.locator(READY).wait_for()
    photograph_of(page, "annotate_phone")
    page.get_by_label("Clicks are on the background").tap()
    page.touchscreen.tap(*at(page, 5, 5, (60, 90)))
    page.locator(READY).wait_for()
    page.locator("#accept").tap()
    page.locator("#objects li").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert len(kept(served)["a.png"]) == 1 and page.faults == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pictures_of_the_page(scheme, loaded, new_page, photograph_of, tmp_path):
    """The small model on coins, for people to look at, and measured."""
    import keras_sam

    coins = pytest.importorskip("skimage").data.coins()
    (tmp_path / "photos").mkdir()
    Image.fromarray(coins).save(tmp_path / "photos" / "coins.png")
    if "demo" not in loaded:
        loaded["demo"] = keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo")
    with serving(loaded["demo"], tmp_path / "photos", tmp_path / "out.json", ["coin"]) as served:
        page = new_page(served.page, viewport={"width": 1200, "height": 760}, color_scheme=scheme)
        is_encoded(page)
        for number, (x, y) in enumerate([(52, 57), (155, 53), (215, 52), (333, 43)], start=1):
            page.mouse.click(*at(page, x, y, coins.shape))
            accept(page, number)
        page.mouse.click(*at(page, 344, 196, coins.shape))
        page.locator(READY).wait_for()
        photograph_of(page, f"annotate_{scheme}")
        areas = [record["area"] for record in kept(served)["coins.png"]]
        assert all(300 < area < 5000 for area in areas), areas
        assert page.faults == []
