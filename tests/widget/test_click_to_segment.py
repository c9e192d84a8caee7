"""The widget without a notebook: its questions get the predictor's answers, and its traits tell."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam import annotations, masks
from keras_sam.annotate import given_images
from tests.tiny import photograph

pytest.importorskip("anywidget")
pytestmark = pytest.mark.once

POINT = {"points": [[45, 30]], "labels": [1]}
EVERYTHING = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
SECONDS = 60
IMAGE = photograph((60, 90), 0)


class Asked:
    """A widget as its JavaScript sees it."""

    def __init__(self, *arguments, **settings):
        self.widget = keras_sam.widget.ClickToSegment(*arguments, **settings)
        self.answers, self._came = {}, threading.Condition()
        self.widget.send = self._take  # where a notebook's messages leave

    def _take(self, content, buffers=None):
        with self._came:
            self.answers[content["number"]] = content, buffers or [], threading.current_thread()
            self._came.notify()

    def send(self, question, **content):
        number = str(len(self.answers))
        message = {"number": number, "question": question, "content": content}
        self.widget._handle_custom_msg(message, [])
        return number

    def ask(self, question, **content):
        number = self.send(question, **content)
        with self._came:
            assert self._came.wait_for(lambda: number in self.answers, SECONDS)
        told = self.answers[number][0]
        return told.get("answer", (told.get("status"), told.get("error")))


@pytest.fixture
def asked(segmenter):
    made = []

    def ask(image, **settings):
        made.append(Asked(segmenter, image, generator=EVERYTHING, **settings))
        return made[-1]

    yield ask
    for one in made:
        one.widget.close()


def best_of(answer):
    candidate = answer["candidates"][answer["best"]]
    return {"segmentation": candidate["segmentation"], "score": candidate["score"]}


def test_a_click_becomes_an_object_and_a_mask(asked, segmenter):
    one = asked(IMAGE, labels=["cat", "dog"])
    told = []
    one.widget.observe(
        lambda change: told.append((change["name"], len(change["new"]))), ["objects", "masks"]
    )
    session = one.ask("session")
    assert session["photos"] == [{"name": "image 1", "objects": 0}] and session["file"] is None
    assert one.ask("embed", photo="image 1", canvas="x")["height"] == 60
    answer = one.ask("predict", photo="image 1", canvas="x", box=None, **POINT)
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(IMAGE)
    expected, scores, _ = predictor.predict(**POINT)
    kept = one.ask("keep", photo="image 1", category_id=2, **best_of(answer))["object"]
    np.testing.assert_array_equal(one.widget.masks, expected[scores.argmax()][None])
    (record,) = one.widget.objects
    assert record == {**kept, "label": "dog"} and told == [("objects", 1), ("masks", 1)]
    one.ask("change", number=kept["id"], category_id=1)
    assert one.widget.objects[0]["label"] == "cat"
    one.ask("remove", number=kept["id"])
    assert one.widget.objects == [] and one.widget.masks.shape == (0, 60, 90)
    one.ask("restore", number=kept["id"])
    assert one.widget.to_coco()["annotations"] == [{**kept, "category_id": 1}]
    assert one.ask("everything", photo="image 1")["proposals"]
    with pytest.raises(Exception, match="cannot be set"):
        one.widget.masks = expected


def test_several_images_of_any_kind_and_a_file(asked, tmp_path):
    Image.fromarray(photograph((80, 50), 1)).save(tmp_path / "b.jpg")
    images = [IMAGE, tmp_path / "b.jpg", Image.fromarray(IMAGE), str(tmp_path / "b.jpg")]
    one = asked(images, out=tmp_path / "out.json")
    names = [photo["name"] for photo in one.ask("session")["photos"]]
    assert names == ["image 1", "b.jpg", "image 3", "b.jpg (2)"]
    for name, size in (("b.jpg", (50, 80)), ("image 3", (90, 60))):
        number = one.send("picture", photo=name)
        about, (picture,), _ = one.answers[number]
        with Image.open(io.BytesIO(picture)) as shown:
            assert shown.size == size and about["answer"]["type"] == shown.get_format_mimetype()
    answer = one.ask("predict", photo="b.jpg", points=[[25, 40]], labels=[1])
    one.ask("keep", photo="b.jpg", category_id=1, **best_of(answer))
    assert [len(objects) for objects in one.widget.objects] == [0, 1, 0, 0]
    assert [len(of_image) for of_image in one.widget.masks] == [0, 1, 0, 0]
    (image,), labels = annotations.read_coco(tmp_path / "out.json")
    assert image.file_name == "b.jpg" and labels == {1: "object"}
    assert one.widget.to_coco() == json.loads((tmp_path / "out.json").read_text())
    again = asked(images, out=tmp_path / "out.json")
    np.testing.assert_array_equal(again.widget.masks[1], one.widget.masks[1])


def test_masks_come_back_on_their_own_image_alone(asked, segmenter, tmp_path):
    for seed, name in enumerate(("x", "y", "z")):
        (tmp_path / name).mkdir()
        Image.fromarray(photograph((60, 90), seed)).save(tmp_path / name / "a.png")
    mask = masks.encode_rle(np.ones((60, 90), bool))
    paths = [tmp_path / name / "a.png" for name in ("x", "y", "z")]
    first = asked(paths[:2], out=tmp_path / "files.json")
    assert first.ask("session")["photos"][0]["name"] == "x/a.png"
    first.ask("keep", photo="x/a.png", segmentation=mask, category_id=1)
    again = asked([str(paths[1]), paths[2], paths[0]], out=tmp_path / "files.json")
    assert [len(objects) for objects in again.widget.objects] == [0, 0, 1]

    out = tmp_path / "arrays.json"
    asked(IMAGE, out=out).ask("keep", photo="image 1", segmentation=mask, category_id=1)
    before = out.read_bytes()
    for image in (IMAGE[::-1], [Image.fromarray(IMAGE)]):
        with pytest.raises(ValueError, match=r"`out` has masks of 'image 1'.*a dict"):
            keras_sam.widget.ClickToSegment(segmenter, image, out=out)
    named = asked({"other": IMAGE[::-1], "image 1": IMAGE}, out=out)
    assert [len(objects) for objects in named.widget.objects] == [0, 1]
    assert [of_image.shape[0] for of_image in named.widget.masks] == [0, 1]
    with pytest.raises(ValueError, match="must be text. Received: 1"):
        keras_sam.widget.ClickToSegment(segmenter, {1: IMAGE})
    assert out.read_bytes() == before


def test_only_the_image_that_changed_is_read_again(asked, tmp_path, monkeypatch):
    for seed, name in enumerate("abc"):
        Image.fromarray(photograph((60, 90), seed)).save(tmp_path / f"{name}.png")
    with monkeypatch.context() as patch:
        patch.setattr(given_images, "load_image", None)  # sizes are in the heads of files
        one = asked([tmp_path / f"{name}.png" for name in "abc"])
    before = one.widget.masks
    read, objects = [], one.widget._store.objects
    monkeypatch.setattr(
        one.widget._store, "objects", lambda name, size: read.append(name) or objects(name, size)
    )
    mask = masks.encode_rle(np.ones((60, 90), bool))
    kept = one.ask("keep", photo="b.png", segmentation=mask, category_id=1)["object"]
    assert read == ["b.png"] and [len(of_image) for of_image in one.widget.objects] == [0, 1, 0]
    after = one.widget.masks
    assert after[0] is before[0] and after[2] is before[2] and after[1].all()
    one.ask("label", name="dog")
    one.ask("change", number=kept["id"], category_id=2, photo="b.png")
    one.ask("remove", number=kept["id"], photo="b.png")
    assert read == ["b.png"] * 3 and one.widget.masks[1].shape == (0, 60, 90)
    one.ask("restore", number=kept["id"])  # by a program that does not say of which
    assert read[3:] == ["a.png", "b.png", "c.png"]
    assert one.widget.objects[1][0]["label"] == "dog"


def test_images_without_objects_are_listed_where_the_file_had_them(asked, tmp_path):
    listed = {"id": 4, "file_name": "image 2", "width": 90, "height": 60}
    content = {"info": {"year": 2020}, "images": [listed], "annotations": []}
    (tmp_path / "out.json").write_text(json.dumps(content))
    one = asked([IMAGE, IMAGE], out=tmp_path / "out.json")
    coco = one.widget.to_coco()
    assert (coco["images"], coco["info"]) == ([listed], {"year": 2020})


@pytest.mark.parametrize(
    ("question", "content", "status", "said"),
    [
        ("close", {}, 422, "no question"),  # a method of the widget, but none that can be asked
        ("__init__", {}, 422, "no question"),
        ("remove", {"number": 7}, 404, "no object 7"),
        ("predict", {"photo": "other", **POINT}, 404, "other"),
        ("predict", {"photo": "image 1", "points": [[1, 1]], "labels": [7]}, 422, "label"),
        ("picture", {}, 404, "photo"),
        ("keep", {"colour": "red"}, 500, "colour"),
    ],
)
def test_what_cannot_be_answered_is_said(asked, question, content, status, said):
    got, error = asked(IMAGE).ask(question, **content)
    assert got == status and said in error


def test_answers_leave_in_the_thread_of_the_notebook(asked):
    one = asked(IMAGE)

    async def click():
        number = one.send("predict", photo="image 1", **POINT)
        while number not in one.answers:
            await asyncio.sleep(0.01)
        return one.answers[number][2]

    assert asyncio.run(asyncio.wait_for(click(), SECONDS)) is threading.current_thread()


def test_the_page_hears_at_once_that_python_is_there(asked):
    one = asked(IMAGE)
    number = one.send("here")
    assert one.answers[number][0] == {"number": number, "answer": {}}


def test_images_that_cannot_be_read_are_refused_at_once(segmenter, tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 no picture")
    for image, said in (([], "empty list"), (tmp_path / "b.jpg", "b.jpg"), ("no.png", "no.png")):
        with pytest.raises(ValueError, match=said):
            keras_sam.widget.ClickToSegment(segmenter, image)


def test_the_module_needs_no_other_file():
    from keras_sam.widget.module import read_module

    text = read_module()
    assert "\nimport " not in text and text.count("export default") == 1
    assert "class SegmentCanvas" in text and "function openEditor" in text
