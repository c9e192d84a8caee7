"""`keras-sam annotate`: what it refuses, and a server that starts, answers and ends."""

import errno
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from keras_sam.annotate import store
from keras_sam.cli import annotate
from keras_sam.cli.errors import CommandError
from keras_sam.cli.progress import Progress
from tests.annotate.serving import draw_photographs, started

pytestmark = pytest.mark.once
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    draw_photographs(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token"),  # other machines, and no secret
        (["--host", "0.0.0.0", "--token", "short"], "at least 8"),
        (["--labels", ", ,"], "cat,dog"),
        (["--port", "65536"], "65535"),
        (["--out", "{folder}"], "is a folder"),
        (["--out", "{folder}/broken.jpg"], "JSON"),
        (["--model", "nothing"], "no such preset"),
    ],
)
def test_calls_that_are_refused(cli, folder, options, said):
    options = [option.format(folder=folder) for option in options]
    if "--model" not in options:
        options += ["--model", "sam_tiny_demo"]
    code, _, error = cli("annotate", folder, *options)
    assert code == 2 and said in error and error.count("\n") <= 2
    assert not (folder / "annotations.json").exists()


def test_missing_folders_and_taken_ports_are_named(cli, folder):
    assert "no such folder" in cli("annotate", folder / "no", "--model", "sam_tiny_demo")[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        code, _, error = cli("annotate", folder, "--model", "sam_tiny_demo", "--port", number)
        assert code == 1 and f"--port {number}" in error


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_photographs_whose_names_are_not_utf8_are_left_out_and_said(folder, capsys):
    (folder / "b.jpg").rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    photos = annotate._named_photos(folder, False, Progress())
    assert list(photos) == ["a.png", "broken.jpg", "c.png"]
    assert capsys.readouterr().err.endswith("names are not UTF-8: 1\n")


def test_without_a_port_the_next_free_one_is_taken():
    with annotate._listen("127.0.0.1", None) as one, annotate._listen("127.0.0.1", None) as other:
        assert one.getsockname()[1] != other.getsockname()[1]


def test_what_was_not_saved_is_saved_at_the_end(folder, monkeypatch):
    out, aside = folder / "out.json", folder / "out.unsaved-2.json"
    masks = store.AnnotationStore(out, ["a.png"])
    mask = {"segmentation": {"size": [60, 90], "counts": [7, 3, 5390]}, "category_id": 1}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    masks.add("a.png", (60, 90), mask)
    with monkeypatch.context() as patch:
        patch.setattr(store, "whole_file", full)
        masks.add("a.png", (60, 90), mask)
        with pytest.raises(CommandError, match="lost: No space left"):
            annotate._save_at_last(masks)
    annotate._save_at_last(masks)  # by now there is room
    assert len(json.loads(out.read_text())["annotations"]) == 2
    (folder / "out.unsaved.json").write_text("of an earlier time")
    out.write_text("{}")
    masks.add("a.png", (60, 90), mask)
    with pytest.raises(CommandError, match=re.escape(f"are in {aside}")) as error:
        annotate._save_at_last(masks)
    assert error.value.code == 1 and out.read_text() == "{}"
    assert len(json.loads(aside.read_text())["annotations"]) == 3
    assert (folder / "out.unsaved.json").read_text() == "of an earlier time"


def test_the_server_starts_keeps_a_mask_and_saves_at_sigterm(folder, tmp_path):
    words = ["annotate", folder, "--model", "sam_tiny_demo", "--labels", "cat,dog", "--port", "0"]
    words += ["--cache", tmp_path / "cache", "--backend", "torch"]
    command = [sys.executable, "-m", "keras_sam", *map(str, words)]
    with started(command, ROOT) as (process, post):
        click = {"photo": "a.png", "points": [[45, 30]], "labels": [1]}
        answer = post("/api/predict", click)
        mask = max(answer["candidates"], key=lambda candidate: candidate["area"])["segmentation"]
        kept = {"photo": "a.png", "segmentation": mask, "category_id": 2}
        assert post("/api/objects", kept)["save"]["saved"]
        assert list((tmp_path / "cache").iterdir())
        (entry,) = json.loads((folder / "annotations.json").read_text())["annotations"]
        assert (entry["category_id"], entry["segmentation"]) == (2, mask)
        (folder / "annotations.json").write_text("{}")
        assert post("/api/objects", kept)["save"]["problem"] == "changed"
    assert process.returncode == 1  # as all masks are beside the file
    aside = json.loads((folder / "annotations.unsaved.json").read_text())
    assert len(aside["annotations"]) == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_end_it_alike(name):
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt), annotate._ends_as_by_ctrl_c():
            signal.raise_signal(getattr(signal, name))
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, interrupt)
