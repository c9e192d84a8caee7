"""examples/browser/ in Chromium: the segmenter's masks, and sentences where something is amiss."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.cli import main
from tools.browser import EXAMPLE, NODE_MODULES

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="ONNX files come from torch"),
    pytest.mark.skipif(
        not NODE_MODULES.is_dir(),
        reason="onnxruntime-web is not installed: python3 tools/browser.py installs it",
    ),
]
READ_MASK = """() => {
    const canvas = document.getElementById("mask");
    const {width, height} = canvas;
    const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
    const inside = Array.from({length: width * height}, (_, i) => data[4 * i + 3] > 0 ? 1 : 0);
    return {width, height, inside};
}"""
DROP = """([name, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(bytes)], name));
    for (const type of ["dragover", "drop"]) {
        const event = new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    }
}"""
COIN, GROUND = (334, 43), (300, 70)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The example as a user has it: with its packages, and a model that the command exported."""
    folder = tmp_path_factory.mktemp("site") / "browser"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "model"))
    (folder / "node_modules").symlink_to(NODE_MODULES)
    words = ["--model", "sam_tiny_demo", "--format", "onnx", "--image-input"]
    assert main(["export", *words, "--out", str(folder / "model")]) == 0
    return folder


@pytest.fixture(scope="module")
def address(site, serve):
    return serve(site)


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    """scikit-image's photograph of old coins: its file, and its pixels."""
    pixels = np.stack([pytest.importorskip("skimage").data.coins()] * 3, axis=-1)
    path = tmp_path_factory.mktemp("photo") / "coins.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def said(page, pattern):
    """Waits until the page says this."""
    from playwright.sync_api import expect

    expect(page.get_by_role("status")).to_have_text(re.compile(pattern), timeout=120_000)
    return page.get_by_role("status").inner_text()


def click(page, point, button="left"):
    box = page.locator("#photo").bounding_box()
    width, height = page.evaluate("() => [photo.width, photo.height]")
    position = {"x": point[0] * box["width"] / width, "y": point[1] * box["height"] / height}
    page.locator("#stage").click(position=position, button=button)


def mask(page):
    found = page.evaluate(READ_MASK)
    return np.array(found["inside"], bool).reshape(found["height"], found["width"])


def assert_alike(found, expected):
    """The encoder may round a pixel to the next grey level: some at the rim may differ."""
    assert found.shape == expected.shape and expected.any()
    assert (found & expected).sum() / (found | expected).sum() > 0.99


def test_clicks_give_the_segmenters_masks(new_page, address, coins, photograph_of):
    path, pixels = coins
    predictor = keras_sam.SAMPredictor(keras_sam.SAMImageSegmenter.from_preset("sam_tiny_demo"))
    predictor.set_image(pixels)
    page = new_page(address, viewport={"width": 1000, "height": 800})
    said(page, r"^Model loaded in [\d.]+ m?s\. Choose")
    page.get_by_label("Choose a photograph").set_input_files(path)
    said(page, r"^Photograph encoded in [\d.]+ m?s\. Click")

    click(page, COIN)
    words = said(page, r"^Mask in [\d.]+ m?s: [\d.]+ % of the picture, score [\d.]+\.$")
    masks, scores, logits = predictor.predict(points=[COIN], labels=[1])
    best = scores.argmax()
    first = mask(page)
    assert_alike(first, masks[best])
    assert f"{100 * first.mean():.1f} %" in words and f"score {scores[best]:.2f}" in words
    photograph_of(page, "example_light")

    click(page, GROUND, button="right")
    said(page, "^Mask in")
    again = {"masks": logits[best], "multimask_output": False}
    masks, _, _ = predictor.predict(points=[COIN, GROUND], labels=[1, 0], **again)
    assert_alike(mask(page), masks[0])
    assert page.locator(".dot").all_inner_texts() == ["+", "−"]

    page.get_by_role("button", name="Undo").click()
    said(page, "^Back to 1 click")
    assert np.array_equal(mask(page), first)
    page.get_by_role("button", name="Clear").click()
    said(page, "^Click on something")
    assert not mask(page).any() and page.faults == []


def test_a_dropped_photograph_in_the_dark_on_a_phone_by_keyboard(
    new_page, address, coins, photograph_of
):
    path, _ = coins
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    page = new_page(address, **phone)
    said(page, "^Model loaded")
    photograph_of(page, "example_empty_dark_360")
    page.evaluate(DROP, ["coins.png", list(path.read_bytes())])
    said(page, "^Photograph encoded")
    page.get_by_role("application").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    said(page, "^Mask in")
    assert mask(page).any()
    page.get_by_text("Remove", exact=True).click()
    click(page, COIN)
    said(page, "^Mask in")
    assert page.locator(".dot").all_inner_texts() == ["+", "−"]
    photograph_of(page, "example_dark_360")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    page.get_by_role("application").focus()
    page.keyboard.press("Backspace")
    said(page, "^Back to 1 click")
    assert page.faults == []


def test_faults_are_sentences(new_page, address, site, serve, tmp_path):
    page = new_page(address)
    said(page, "^Model loaded")
    page.evaluate(DROP, ["notes.txt", list(b"milk, bread")])
    said(page, r"^notes\.txt is not a picture that this browser can read\.$")

    for name in ("index.html", "sam.js"):
        shutil.copy(site / name, tmp_path)
    elsewhere = serve(tmp_path)
    said(new_page(elsewhere), "^onnxruntime-web is missing: run npm install")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    said(new_page(elsewhere), r"^model/manifest\.json is missing: run keras-sam export")
    (tmp_path / "model").mkdir()
    manifest = json.loads((site / "model" / "manifest.json").read_text())
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "model" / "image_encoder.onnx").write_bytes(b"cut short")
    page = new_page(elsewhere)
    said(page, r"^onnxruntime-web cannot load image_encoder\.onnx: ")
    page.evaluate(DROP, ["coins.png", [1, 2, 3]])
    said(page, "^Without a model there is no mask")
    manifest["settings"]["image_input"] = False
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    said(new_page(elsewhere), "^The model's encoder does not take photographs")
