"""Files and folders appear whole or not at all."""

import contextlib
import errno
import os

import pytest

from keras_sam.files import whole_file, whole_folder

pytestmark = pytest.mark.once


@contextlib.contextmanager
def full_disk(limit=4096):
    """Files cannot grow over `limit` bytes here, as on a full disk: a real failure of `write`."""
    resource = pytest.importorskip("resource", reason="limits of this kind are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_file_appears_at_the_end_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder" / "result.bin"
    for data in (b"first", b"second"):
        with whole_file(path) as file:
            file.write(data)
            assert not path.exists() or path.read_bytes() != data
        assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["result.bin"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    with whole_file(tmp_path / "ours") as file:
        file.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf_8_with_bare_line_feeds(tmp_path):
    with whole_file(tmp_path / "a.txt", text=True) as file:
        file.write("grün\n")
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])  # an error, and Ctrl-C
def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path, error):
    (tmp_path / "old.txt").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mark").write_bytes(b"old")
    before = contents(tmp_path)
    for name in ("old.txt", "new.txt"):
        with pytest.raises(error), whole_file(tmp_path / name) as file:
            file.write(b"half")
            raise error("in the middle")
    for name in ("folder", "other"):
        with pytest.raises(error), whole_folder(tmp_path / name, "mark") as place:
            (place / "mark").write_bytes(b"half")
            raise error("in the middle")
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_no_partial_file_and_says_which(tmp_path):
    (tmp_path / "old.txt").write_bytes(b"old")
    before = contents(tmp_path)
    for name in ("old.txt", "new.txt"):
        with (
            full_disk(),
            pytest.raises(OSError, match="could not be written") as caught,
            whole_file(tmp_path / name) as file,
        ):
            file.write(bytes(100_000))
        assert caught.value.errno == errno.EFBIG
        assert name in str(caught.value)
    with (
        full_disk(),
        pytest.raises(OSError, match="could not be written"),
        whole_folder(tmp_path / "masks", "mark") as place,
    ):
        (place / "mark").write_bytes(b"small enough")
        (place / "large").write_bytes(bytes(100_000))
    assert contents(tmp_path) == before


def test_no_space_when_the_last_bytes_are_flushed_is_no_success(tmp_path):
    # Small writes wait in Python's buffer: the disk is full only when the block has ended.
    with (
        full_disk(limit=10),
        pytest.raises(OSError, match="could not be written"),
        whole_file(tmp_path / "a.txt") as file,
    ):
        file.write(bytes(1000))
    assert contents(tmp_path) == {}


def test_errors_about_other_files_keep_their_own_words(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "out.txt"):
        (tmp_path / "input.txt").read_bytes()
    assert "could not be written" not in str(caught.value)
    assert contents(tmp_path) == {}


def test_a_file_where_a_folder_should_be_is_said_and_kept(tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    with (
        pytest.raises(OSError, match="out.*could not be written"),
        whole_file(tmp_path / "out" / "a.txt"),
    ):
        pass
    with (
        pytest.raises(FileExistsError, match="a file of that name"),
        whole_folder(tmp_path / "out", "mark"),
    ):
        pass
    assert contents(tmp_path) == {"out": b"mine"}


def test_a_folder_where_the_file_should_be_is_said_and_kept(tmp_path):
    (tmp_path / "out" / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match="could not be written"), whole_file(tmp_path / "out") as file:
        file.write(b"x")
    assert list(contents(tmp_path)) == ["out", "out/mine"]


def test_a_folder_replaces_an_earlier_result_only(tmp_path):
    for number in (1, 2):
        with whole_folder(tmp_path / "a" / "masks", "mark") as place:
            (place / "mark").write_text(str(number))
            (place / f"only {number}").write_text("")
    assert {p.name for p in (tmp_path / "a" / "masks").iterdir()} == {"mark", "only 2"}
    (tmp_path / "photos").mkdir()
    with whole_folder(tmp_path / "photos", "mark") as place:  # empty: nothing to lose
        (place / "mark").write_text("")
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "photo.jpg").write_bytes(b"dear")
    with (
        pytest.raises(FileExistsError, match="holds other files"),
        whole_folder(tmp_path / "family", "mark"),
    ):
        pass
    assert (tmp_path / "family" / "photo.jpg").read_bytes() == b"dear"
    assert not list(tmp_path.rglob("*.part"))


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "masks", "mark") as place:
        (place / "mark").write_text("old")
    rename = os.rename

    def second_fails(source, target):
        if target == tmp_path / "masks" and not any(
            "old" in p.read_text() for p in source.iterdir()
        ):
            raise OSError(errno.ENOSPC, "No space left on device", source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with (
        pytest.raises(OSError, match="No space left"),
        whole_folder(tmp_path / "masks", "mark") as place,
    ):
        (place / "mark").write_text("new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"masks": None, "masks/mark": b"old"}
