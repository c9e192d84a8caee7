"""A local web server that speaks as Kaggle, as Hugging Face, and plainly, and misbehaves."""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KAGGLE_PORT = 7777  # kagglehub's test environment has no other
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves `files`, names to bytes, under every protocol.

    Attributes:
        requests: list of (method, path, Range header) that came in.
        status: an HTTP status to answer instead, or a dict of them by file name.
        dies_after: how many bytes of a body to send before hanging up; None sends all.
        deaths: how many times to do so.
        pause: seconds to wait before a body.
        wrong_hash: whether to announce another MD5 than the file's.
        ranges: whether parts of files can be asked for.
    """

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, files, port=0):
        self.allow_reuse_address = True
        super().__init__(("127.0.0.1", port), Handler)
        self.files = {name: _bytes(content) for name, content in files.items()}
        self.requests = []
        self.status = None
        self.dies_after = None
        self.deaths = 0
        self.pause = 0.0
        self.wrong_hash = False
        self.ranges = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked_for(self, name):
        """How many times a file's content was asked for."""
        return sum(method == "GET" and path.endswith(name) for method, path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):  # noqa: N802
        """Kaggle: where a file lies, or the number of the newest version."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(("POST", self.path, None))
        if self.path.endswith("/GetModelInstance"):
            return self._send_json({"versionNumber": 5, "id": 1})
        name = body.get("path", "")
        if self._refuses(name):
            return None
        self.send_response(302)
        self.send_header("Location", f"{self.server.url}/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def do_HEAD(self):  # noqa: N802
        """Hugging Face: what a file is."""
        name = self._name()
        self.server.requests.append(("HEAD", self.path, None))
        if not self._refuses(name):
            content = self.server.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self._describe(content)
            self.end_headers()

    def do_GET(self):  # noqa: N802
        """A file, or a part of it."""
        name = self._name()
        self.server.requests.append(("GET", self.path, self.headers.get("Range")))
        if self._refuses(name):
            return
        content = self.server.files[name]
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.server.ranges:
            start = int(wanted.group(1))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self._describe(content)
        self.end_headers()
        time.sleep(self.server.pause)
        self._send(content[start:])

    def _name(self):
        return re.sub(r"^/([^/]+/[^/]+/resolve/[^/]+/)?", "", self.path.split("?")[0])

    def _describe(self, content):
        hashed = b"" if self.server.wrong_hash else content
        md5 = hashlib.md5(hashed).digest()
        self.send_header("x-goog-hash", f"md5={base64.b64encode(md5).decode()}")
        # Hugging Face's tag of a large file is its SHA-256, of a small one git's hash.
        kind = hashlib.sha1 if self.path.split("?")[0].endswith(".json") else hashlib.sha256
        self.send_header("ETag", f'"{kind(hashed).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))

    def _send(self, content):
        limit = self.server.dies_after
        if limit is None or not self.server.deaths or len(content) <= limit:
            self.wfile.write(content)
            return
        self.server.deaths -= 1
        self.wfile.write(content[:limit])
        self.wfile.flush()
        self.close_connection = True

    def _refuses(self, name):
        status = self.server.status
        if isinstance(status, dict):
            status = status.get(name)
        if status is None and name not in self.server.files:
            status = 404
        if status is None:
            return False
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _send_json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _bytes(content):
    return content.read_bytes() if isinstance(content, Path) else content


@contextlib.contextmanager
def serving(files, port=0):
    """A running `Server`; on Kaggle's fixed port, one test process at a time."""
    with _port_lock(port):
        server = Server(files, port)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@contextlib.contextmanager
def _port_lock(port):
    if not port:
        yield
        return
    import fcntl

    with open(os.path.join(tempfile.gettempdir(), "keras_sam_kaggle_test_port"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment(home, **variables):
    """Variables of a process whose caches all lie in `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KAGGLE", "KERAS"))}
    return {
        **{k: v for k, v in kept.items() if "proxy" not in k.lower()},
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "KAGGLE_API_ENVIRONMENT": "TEST",
        "KAGGLEHUB_CACHE": str(home / "kaggle"),
        "HF_HOME": str(home / "hugging_face"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "KERAS_HOME": str(home / "keras"),
        **{k: str(v) for k, v in variables.items()},
    }


class Process:
    """A Python process that imports `presets` and runs `code`, and never waits before a retry."""

    def __init__(self, code, home, **variables):
        prelude = "import time; time.sleep = lambda seconds: None\nfrom keras_sam import presets\n"
        # Files, because kagglehub's test environment prints more than a pipe holds: downloads too,
        # which a full disk may cut within a character.
        self._out = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - see `finish`
        self._error = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            env=environment(home, **variables),
            stdout=self._out,
            stderr=self._error,
        )

    def finish(self):
        """The last line it printed; and what it said of an error, nothing when there was none."""
        try:
            self._process.wait(timeout=120)
        finally:
            self._process.kill()
        texts = []
        for file in (self._out, self._error):
            with file:
                file.seek(0)
                texts.append(file.read().strip())
        return texts[0].rpartition("\n")[2], texts[1] if self._process.returncode else ""


def run(code, home, **variables):
    """What a `Process` printed last, and its error."""
    return Process(code, home, **variables).finish()
