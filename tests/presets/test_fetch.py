"""One file from a plain web server: resumed, checked, and never half there."""

import hashlib
import os

import numpy as np
import pytest

from keras_sam.presets import fetch as module
from keras_sam.presets.clients import UrlSource
from keras_sam.presets.fetch import fetch, file_lock, hash_of
from tests.presets.servers import Process, run, serving

pytestmark = pytest.mark.once

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serving({"sam.pth": CONTENT}) as server:
        yield server


def fetching(server, path):
    """Code that downloads the file and prints its hash."""
    return f"""
from keras_sam.presets.fetch import fetch, hash_of
print(hash_of(fetch({f"{server.url}/sam.pth"!r}, {str(path)!r}, {SHA256!r})))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


def test_a_download_and_none_the_second_time(server, tmp_path):
    path = tmp_path / "cache" / "sam.pth"
    for _ in range(2):
        assert fetch(f"{server.url}/sam.pth", str(path), SHA256) == str(path)
    assert path.read_bytes() == CONTENT
    assert server.asked_for("sam.pth") == 1
    assert {p.name for p in path.parent.iterdir()} == {"sam.pth", "sam.pth.lock"}


def test_a_server_that_dies_halfway_is_asked_for_the_rest(server, tmp_path):
    server.dies_after, server.deaths = 1_200_000, 2
    path = fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    assert hash_of(path) == SHA256
    starts = [request[2] for request in server.requests]
    assert starts == [None, "bytes=1200000-", "bytes=2400000-"]


def test_a_server_that_dies_at_once_is_given_up_and_the_part_kept(server, tmp_path):
    path = tmp_path / "sam.pth"
    server.dies_after, server.deaths = 1_000_000, 1
    server.ranges = True
    real = module._transfer
    calls = []

    def once(url, part):
        calls.append(part)
        if len(calls) > 1:
            raise ConnectionResetError("gone")
        return real(url, part)

    module._transfer = once
    try:
        with pytest.raises(ConnectionError, match="broke off after 1000000 bytes"):
            fetch(f"{server.url}/sam.pth", str(path), SHA256)
    finally:
        module._transfer = real
    assert not path.exists()
    assert (tmp_path / "sam.pth.part").stat().st_size == 1_000_000
    fetch(f"{server.url}/sam.pth", str(path), SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1][2] == "bytes=1000000-"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    server.dies_after, server.deaths = 1_000_000, 1
    fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (CONTENT, "whole already, only not renamed"),
        (CONTENT + b"more", "longer than the file"),
        (b"", "empty"),
    ],
)
def test_parts_that_were_left_behind(part, reason, server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(part)
    fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    server.files["sam.pth"] = CONTENT[:-1] + b"x"
    with pytest.raises(ValueError, match=f"damaged and was deleted.*must be {SHA256}"):
        fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    assert {p.name for p in tmp_path.iterdir()} == {"sam.pth.lock"}
    server.files["sam.pth"] = CONTENT
    fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


def test_a_part_of_another_file_is_found_out_by_the_hash(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(bytes(1_000_000))
    with pytest.raises(ValueError, match="damaged and was deleted"):
        fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)
    fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"), SHA256)


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (404, FileNotFoundError, 1),
        (403, PermissionError, 1),
        (401, PermissionError, 1),
        (400, ConnectionError, 1),
        (500, ConnectionError, 4),
        (503, ConnectionError, 4),
    ],
)
def test_what_the_server_refuses(status, error, attempts, server, tmp_path):
    server.status = status
    with pytest.raises(error, match=f"answers {status}") as caught:
        fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"))
    assert server.url in str(caught.value)
    assert len(server.requests) == attempts
    assert {p.name for p in tmp_path.iterdir()} == {"sam.pth.lock"}


def test_a_server_that_is_not_there(tmp_path):
    with serving({}) as server:
        url = f"{server.url}/sam.pth"
    with pytest.raises(ConnectionError, match="Cannot reach"):
        fetch(url, str(tmp_path / "sam.pth"))


def test_a_slow_server_is_not_waited_for_for_ever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    server.pause = 1.0
    with pytest.raises(ConnectionError, match="broke off after 0 bytes"):
        fetch(f"{server.url}/sam.pth", str(tmp_path / "sam.pth"))
    assert not (tmp_path / "sam.pth").exists()


def test_a_full_disk_leaves_nothing_behind(server, tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    folder = tmp_path / "cache"
    _, error = run(code + fetching(server, folder / "sam.pth"), tmp_path)
    assert "OSError" in error
    assert "cannot be stored" in error
    assert {p.name for p in folder.iterdir()} == {"sam.pth.lock"}


def test_a_file_in_place_of_the_folder(server, tmp_path):
    (tmp_path / "cache").write_text("I am a file")
    with pytest.raises(NotADirectoryError, match="a file is in its place.*KERAS_HOME"):
        fetch(f"{server.url}/sam.pth", str(tmp_path / "cache" / "models" / "sam.pth"))
    assert (tmp_path / "cache").read_text() == "I am a file"


def test_of_several_processes_one_downloads(server, tmp_path):
    server.pause = 0.5
    code = fetching(server, tmp_path / "sam.pth")
    processes = [Process(code, tmp_path) for _ in range(3)]
    assert [process.finish() for process in processes] == [(SHA256, "")] * 3
    assert server.asked_for("sam.pth") == 1


def test_a_process_that_was_killed_holds_no_lock(tmp_path):
    code = f"""
import os
from keras_sam.presets.fetch import file_lock
with file_lock({str(tmp_path / "x")!r}):
    print("locked", flush=True)
    os.kill(os.getpid(), 9)
"""
    assert run(code, tmp_path)[0] == "locked"
    with file_lock(str(tmp_path / "x")):
        pass


def test_the_cache_is_that_of_keras_get_file(server, tmp_path, monkeypatch):
    import keras

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    source = UrlSource(f"{server.url}/sam.pth", SHA256)
    ours = source.fetch("sam.pth")
    arguments = {"origin": source.url, "cache_subdir": "models", "file_hash": SHA256}
    theirs = keras.utils.get_file("sam.pth", cache_dir=str(tmp_path), **arguments)
    assert theirs == ours
    assert server.asked_for("sam.pth") == 1, "get_file takes ours"
    os.remove(ours)
    assert keras.utils.get_file("sam.pth", cache_dir=str(tmp_path), **arguments) == ours
    assert source.fetch("sam.pth") == ours
    assert server.asked_for("sam.pth") == 2, "and we take get_file's"
