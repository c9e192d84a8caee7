"""A server of the page in a thread, on a folder of drawn photographs, and a plain client of it."""

import contextlib
import http.client
import json
import re
import subprocess
import threading
import time
import urllib.request

from PIL import Image

from keras_sam.annotate.engine import Engine
from keras_sam.annotate.photo_folder import PhotoFolder
from keras_sam.annotate.server import create_app, make_server
from keras_sam.annotate.store import AnnotationStore
from keras_sam.cli.annotate import _listen
from tests.tiny import photograph

TOKEN = "a-token-of-tests"
SIZES = {"a.png": (60, 90), "b.jpg": (80, 50), "c.png": (40, 40)}


def draw_photographs(folder):
    """The photographs of `SIZES`, and one that is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(photograph(size, seed)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return {name: folder / name for name in sorted([*SIZES, "broken.jpg"])}


class Served:
    """A server that runs, its parts and its address."""

    def __init__(self, engine, store, port):
        self.engine, self.store, self.port = engine, store, port
        self.page = f"http://127.0.0.1:{port}/#token={TOKEN}"

    def send(self, method, path, body=None, headers=None, token=TOKEN):
        """Status, headers and content of the answer to one request, sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"Authorization": f"Bearer {token}"} if token else {}
        if isinstance(body, dict):
            body, given["Content-Type"] = json.dumps(body), "application/json"
        try:
            connection.request(method, path, body, {**given, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def call(self, method, path, body=None, status=200):
        """The JSON of an answer that must have this status."""
        got, _, content = self.send(method, path, body)
        assert got == status, content
        return json.loads(content)


@contextlib.contextmanager
def serving(segmenter, folder, out, labels=("cat", "dog"), cache=None, generator=None):
    """Serves the photographs of `folder`, which are drawn there if it is missing."""
    if folder.is_dir():
        photos = {path.name: path for path in sorted(folder.iterdir())}
    else:
        photos = draw_photographs(folder)
    store = AnnotationStore(out, list(photos), labels)
    engine = Engine(segmenter, PhotoFolder(folder, photos), cache, generator)
    server = make_server(create_app(engine, store, TOKEN, {"model": "tiny"}))
    listening = _listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(engine, store, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        engine.close()


@contextlib.contextmanager
def started(command, folder):
    """Starts a `keras-sam annotate` and gives its process and a function that posts; then ends it.

    Args:
        command: list of words.
        folder: path where it is started.
    """
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert "photographs" in process.stdout.readline()
        address, token = re.fullmatch(r"(.*)/#token=(.*)\n", process.stdout.readline()).groups()

        def post(path, body):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)

        yield process, post
    finally:
        process.terminate()
        process.wait(60)
