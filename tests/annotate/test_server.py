"""The HTTP API, called by an ordinary client, and who may not call it."""

import errno
import http.client
import io
import json
import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from keras_sam import annotations, masks
from keras_sam.annotate import guard, server
from tests.annotate.serving import SIZES, TOKEN, serving

pytestmark = pytest.mark.once

CLICK = {"photo": "a.png", "points": [[45, 30]], "labels": [1]}


@pytest.fixture(scope="module")
def served(segmenter, tmp_path_factory):
    place = tmp_path_factory.mktemp("server")
    generator = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    with serving(segmenter, place / "photos", place / "out.json", generator=generator) as served:
        yield served


def test_from_click_to_file(served):
    session = served.call("GET", "/api/session")
    assert [photo["name"] for photo in session["photos"]] == [
        "a.png",
        "b.jpg",
        "broken.jpg",
        "c.png",
    ]
    assert [label["name"] for label in session["labels"]] == ["cat", "dog"]
    embedded = served.call("POST", "/api/embed", {"photo": "a.png"})
    assert (embedded["width"], embedded["height"]) == (90, 60)
    answer = served.call("POST", "/api/predict", {**CLICK, "canvas": "x"})
    assert len(answer["candidates"]) == 3
    refine = {"number": answer["number"], "candidate": answer["best"]}
    box = {"box": [10, 10, 80, 50]}
    refined = served.call("POST", "/api/predict", {**CLICK, **box, "refine": refine})
    (candidate,) = refined["candidates"]
    kept = {"photo": "a.png", "segmentation": candidate["segmentation"], "category_id": 2}
    added = served.call("POST", "/api/objects", {**kept, "score": candidate["score"]}, 201)
    assert added["save"]["saved"] and added["object"]["area"] == candidate["area"]
    (image,), names = annotations.read_coco(served.store.path)
    np.testing.assert_array_equal(
        masks.decode_rle(image.records[0]["segmentation"]),
        masks.decode_rle(candidate["segmentation"]),
    )
    assert names == {1: "cat", 2: "dog"}
    number = added["object"]["id"]
    served.call("PUT", f"/api/objects/{number}", {"category_id": 1})
    (shown,) = served.call("GET", "/api/objects?photo=a.png")["objects"]
    assert (shown["id"], shown["category_id"]) == (number, 1)
    label = served.call("POST", "/api/labels", {"name": "<b>bird</b>"}, 201)["label"]
    assert label == {"id": 3, "name": "<b>bird</b>"}
    # An open page learns of it with the next photograph.
    assert served.call("GET", "/api/objects?photo=b.jpg")["labels"][-1] == label
    served.call("DELETE", f"/api/objects/{number}")
    assert served.call("DELETE", f"/api/objects/{number}", status=404)["error"].startswith(
        "There is"
    )
    assert served.call("GET", "/api/objects?photo=a.png")["objects"] == []
    assert served.call("POST", f"/api/objects/{number}/restore")["object"] == shown
    served.call("DELETE", f"/api/objects/{number}")


def test_an_object_of_another_photograph_is_neither_changed_nor_deleted(served):
    mask = masks.encode_rle(np.ones(SIZES["a.png"], bool))
    kept = {"photo": "a.png", "segmentation": mask, "category_id": 1}
    number = served.call("POST", "/api/objects", kept, 201)["object"]["id"]
    path, change = f"/api/objects/{number}", {"category_id": 2}
    requests = (("PUT", path, {**change, "photo": "c.png"}), ("DELETE", f"{path}?photo=c.png"))
    for request in requests:
        error = served.call(*request, status=404)["error"]
        assert error.startswith(f"There is no object {number} of c.png")
    (shown,) = served.call("GET", "/api/objects?photo=a.png")["objects"]
    assert shown["category_id"] == 1
    served.call("PUT", path, {**change, "photo": "a.png"})
    served.call("DELETE", f"{path}?photo=a.png")
    served.call("POST", f"{path}/restore?photo=c.png", status=404)
    restored = served.call("POST", f"{path}/restore?photo=a.png")["object"]
    assert restored == {**shown, "category_id": 2}
    served.call("DELETE", path)


def test_answers_do_not_wait_for_receipts(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    took = []
    for _ in range(20):
        began = time.monotonic()
        connection.request("GET", "/api/health")
        connection.getresponse().read()
        took.append(time.monotonic() - began)
    connection.close()
    assert min(took[1:]) < 0.03  # the system's receipts alone take 0.04 s


def test_proposals_and_pictures(served):
    proposals = served.call("POST", "/api/everything", {"photo": "b.jpg"})["proposals"]
    assert proposals and all(p["segmentation"]["size"] == list(SIZES["b.jpg"]) for p in proposals)
    assert served.call("POST", "/api/embed", {"photo": "c.png", "ahead": True}) == {"queued": True}
    status, headers, content = served.send("GET", "/api/picture?photo=b.jpg")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(content)).size == SIZES["b.jpg"][::-1]


def test_exports_are_those_of_the_writers(served):
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True
    rle = masks.encode_rle(mask)
    assert "no masks" in served.call("GET", "/api/export?format=yolo", status=422)["error"]
    new = {"photo": "a.png", "segmentation": rle, "category_id": 2}
    number = served.call("POST", "/api/objects", new, 201)["object"]["id"]
    names = {}
    for form in ("coco", "yolo", "label-map", "sa1b"):
        status, headers, content = served.send("GET", f"/api/export?format={form}")
        assert (status, headers["content-type"]) == (200, "application/zip")
        names[form] = zipfile.ZipFile(io.BytesIO(content))
    assert names["coco"].namelist() == ["annotations.json"]
    assert names["yolo"].namelist() == ["classes.txt", "labels/a.txt"]
    assert names["yolo"].read("labels/a.txt").startswith(b"1 ")
    with names["label-map"].open("a.png") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), mask)
    assert json.loads(names["sa1b"].read("a.json"))["annotations"][0]["area"] == 600
    served.call("DELETE", f"/api/objects/{number}")


def test_an_export_without_room_is_said_and_stops_nothing(served, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    mask = masks.encode_rle(np.ones(SIZES["a.png"], bool))
    kept = {"photo": "a.png", "segmentation": mask, "category_id": 1}
    numbers = [served.call("POST", "/api/objects", kept, 201)["object"]["id"]]
    with monkeypatch.context() as patch:
        patch.setattr(annotations.coco, "annotation_entry", full)  # in the midst of the masks
        error = served.call("GET", "/api/export?format=coco", status=422)["error"]
    assert error == "The masks could not be packed: No space left on device."
    numbers.append(served.call("POST", "/api/objects", kept, 201)["object"]["id"])
    for number in numbers:
        served.call("DELETE", f"/api/objects/{number}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/api/predict", {"points": []}, 422, "`photo`"),  # a field is missing
        ("POST", "/api/predict", {**CLICK, "points": [["x", 1]]}, 422, "points"),  # no number
        ("POST", "/api/predict", {**CLICK, "labels": [1, 1]}, 422, "labels"),  # not as many
        ("POST", "/api/embed", {"photo": "broken.jpg"}, 422, "broken.jpg"),  # no picture
        ("GET", "/api/picture?photo=broken.jpg", None, 422, "broken.jpg"),
        ("GET", "/api/objects?photo=broken.jpg", None, 422, "broken.jpg"),
        ("GET", "/api/picture?photo=../out.json", None, 404, "no photograph"),  # outside
        ("GET", "/api/picture?photo=%2e%2e%2fout.json", None, 404, "no photograph"),
        ("GET", "/api/picture?photo=%252e%252e%252fout.json", None, 404, "no photograph"),
        ("GET", "/api/picture?photo=/etc/passwd", None, 404, "no photograph"),
        ("GET", "/static/../server.py", None, 404, "no such address"),
        ("GET", "/static/%2e%2e/server.py", None, 404, "no such address"),
        ("GET", "/api/predict", None, 405, "method"),
        ("POST", "/api/predict", b"{", 422, "JSON"),  # cut off
        ("POST", "/api/predict", b"\xff", 422, "JSON"),  # no text
        ("POST", "/api/predict", b"[]", 422, "body"),
        ("PUT", "/api/objects/99", {"category_id": 1}, 404, "99"),  # no such object
        ("PUT", "/api/objects/99", {}, 422, "neither"),  # nothing to change
        ("POST", "/api/save", {"how": "somehow"}, 422, "how"),  # unknown
        ("GET", "/api/export?format=xml", None, 422, "format"),
    ],
)
def test_unusable_requests_get_one_sentence(served, method, path, body, status, said):
    kind = {"Content-Type": "application/json"}
    got, _, content = served.send(method, path, body, kind)
    assert got == status
    error = json.loads(content)["error"]
    assert said in error and error.endswith(".")


OWN = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("headers", "token", "status"),
    [
        ({}, TOKEN, 200),
        ({}, None, 401),  # no token
        ({}, TOKEN + "x", 401),  # another one
        ({"Host": "evil.example"}, TOKEN, 403),  # a name that was rebound to this machine
        ({"Host": "127.0.0.1.evil.example:80"}, TOKEN, 403),
        ({"Host": "10.0.0.1"}, TOKEN, 403),  # an address that was not listened on
        ({"Host": ""}, TOKEN, 403),
        ({"Host": "localhost:1"}, TOKEN, 200),  # a tunnel's port
        ({"Host": "[::1]:8765"}, TOKEN, 200),
        ({"Origin": "http://evil.example"}, TOKEN, 403),
        ({"Origin": "null"}, TOKEN, 403),  # a frame without a site
        ({"Origin": "http://127.0.0.1:1"}, TOKEN, 403),  # another server of this machine
        ({"Sec-Fetch-Site": "cross-site"}, TOKEN, 403),
        ({"Sec-Fetch-Site": "same-origin"}, TOKEN, 200),
        ({"Cookie": "token=" + TOKEN}, None, 401),  # cookies are no token
    ],
)
def test_who_may_call(served, headers, token, status):
    got, answered, _ = served.send("GET", "/api/session", headers=headers, token=token)
    assert got == status
    assert "access-control-allow-origin" not in answered and "set-cookie" not in answered


def test_other_sites_get_no_permission_from_a_preflight(served):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = served.send("OPTIONS", "/api/predict", headers=asked, token=None)
    assert status == 403 and "access-control-allow-origin" not in headers


def test_addresses_in_numbers_are_accepted_where_any_is_listened_on():
    any_address = guard.Guard(None, "t", ["box"], any_address=True)
    hosts = ["192.168.0.7:8765", "[fe80::1]:8765", "box:1", "evil.example", "1.2.3.4.evil.example"]
    assert [any_address._is_ours(host) for host in hosts] == [True, True, True, False, False]


def test_large_bodies_are_refused(served, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    body = json.dumps({**CLICK, "canvas": "x" * 2000})
    kind = {"Content-Type": "application/json"}
    assert served.send("POST", "/api/predict", body, kind)[0] == 413
    # Without a length that is said beforehand, too.
    assert served.send("POST", "/api/predict", iter([body.encode()]), kind)[0] == 413


def test_the_page_loads_nothing_from_elsewhere(served):
    status, headers, content = served.send("GET", "/", token=None)
    assert status == 200 and b"<!doctype html>" in content
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for path in server._STATIC.iterdir():
        kept = re.findall(r"https?://[^\s\"')]+", path.read_text())
        assert set(kept) <= {"http://www.w3.org/2000/svg"}, path
        if path.suffix != ".html":
            assert served.send("GET", f"/static/{path.name}", token=None)[0] == 200


def test_every_route_is_described(served):
    described = json.loads(served.send("GET", "/openapi.json", token=None)[2])
    routes = {
        (method, path): route
        for path, methods in described["paths"].items()
        for method, route in methods.items()
    }
    assert {path for _, path in routes} >= {
        *("/api/health", "/api/embed", "/api/predict", "/api/everything", "/api/objects"),
    }
    assert all(route.get("description") for route in routes.values())
    assert "points" in described["components"]["schemas"]["PredictRequest"]["properties"]
    assert served.send("GET", "/docs", token=None)[0] == 200
    assert json.loads(served.send("GET", "/api/health", token=None)[2])["status"] == "ok"
