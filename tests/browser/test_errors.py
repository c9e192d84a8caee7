"""The errors page's box: a pasted error leads to its message."""

import html
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_sam

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "book"))
import messages  # noqa: E402

del sys.path[0]

PICTURE = np.zeros((30, 40, 3), "uint8")


def predict(**prompts):
    predictor = keras_sam.SAMPredictor("sam_tiny_demo")
    predictor.set_image(PICTURE)
    predictor.predict(**prompts)


@pytest.fixture
def find(new_page, tmp_path):
    """Pastes a text into the box of a page that has the messages; gives what it shows first."""
    headings = "".join(
        f'<h3 class="message" id="m{i}">{html.escape(m.text)}<a>¶</a></h3><p>advice {i}</p>'
        for i, m in enumerate(messages.collect())
    )
    script = (ROOT / "docs" / "site" / "errors.js").as_uri()
    file = tmp_path / "errors.html"
    file.write_text(f"<meta charset=utf-8><h1>Errors</h1>{headings}<script src={script}></script>")
    page = new_page(file.as_uri())

    def paste(text):
        page.fill("textarea", text)
        return page.locator(".error-box div").inner_text()

    return paste


CALLS = {
    "No image is set": lambda: keras_sam.SAMPredictor("sam_tiny_demo").predict(points=[[1, 2]]),
    "`boxes` must have x1 <= x2": lambda: predict(boxes=[[30, 5, 9, 20]]),
    "`labels` must have shape": lambda: predict(points=[[1, 2], [3, 4]], labels=[1]),
    "There is no image file at": lambda: keras_sam.SAMImageConverter()("phto.jpg"),
    "Received: None, which is what `cv2.imread`": lambda: keras_sam.SAMImageConverter()([None]),
    "A preset must be a built-in name": lambda: keras_sam.SAMPredictor("sam_vit_b.pth"),
    "There is no folder": lambda: keras_sam.training.MaskFolder("no/such", "no"),
}


def test_pasted_errors_lead_to_their_messages(find):
    for words, call in CALLS.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call()
        shown = find(f"{type(caught.value).__name__}: {caught.value}").splitlines()
        assert words in shown[0], (str(caught.value), shown[:5])
        assert shown[2].startswith("advice ") or shown[1].startswith("advice ")


def test_short_messages_and_parts_of_long_ones_are_found(find):
    shown = find("keras-sam segment: error: --device: torch has no gpu here")
    assert shown.startswith("--device: … has no … here")
    assert find("boxes must have x1 <= x2 and y1").startswith("`boxes` must have x1 <= x2")


def test_what_is_no_message_of_ours_is_called_so(find):
    assert find("RuntimeError: CUDA error: out of memory").startswith("No message of this package")
    assert find("") == ""
