"""Folders of results and sources of photographs, without a cluster."""

import contextlib
import dataclasses
import hashlib
import os
import time

import numpy as np
import pytest

import keras_sam
from keras_sam.annotations import read_coco
from keras_sam.masks import encode_rle

pa = pytest.importorskip("pyarrow")
from pyarrow import fs, parquet  # noqa: E402

from keras_sam.ray import cluster, engine, results, run, sources  # noqa: E402
from keras_sam.ray.worker import Worker  # noqa: E402

pytestmark = pytest.mark.once

SETTINGS = {"points_per_side": 3}


def row_of(sha256="a"):
    """What a worker returns of a photograph with one mask."""
    row = {"sha256": sha256, "height": 4, "width": 5, "mask_boxes": [[0, 0, 4, 3]]}
    row |= {"mask_counts": [encode_rle(np.ones((4, 5), bool))["counts"]], "mask_areas": [20]}
    row |= {"mask_scores": [0.5], "mask_stability_scores": [1.0], "mask_points": [[[1.0, 2.0]]]}
    return row | {"mask_crop_boxes": [[0, 0, 5, 4]]}


def photo_of(name, stamp=1):
    return sources.Photo(f"/{name}", name, stamp, stamp)


@contextlib.contextmanager
def started(out, overwrite=False):
    with results.Results(str(out)) as made:
        made.start(SETTINGS, overwrite)
        yield made


def segmented(out, *names):
    """A folder of results, of one run in which each photograph has had its masks."""
    with started(out) as made:
        for name in names:
            made.add(photo_of(name), row_of())
        made.finish()


def names_in(out):
    """The names in all shards and those in `failed.parquet`."""
    done = sorted(out.glob("masks-0*.parquet"))
    failed = [path for path in [out / results.FAILED_FILE] if path.exists()]
    return tuple(
        sorted(name for path in files for name in parquet.read_table(path)["name"].to_pylist())
        for files in (done, failed)
    )


@pytest.fixture
def photos(tmp_path):
    """A folder of two files, of which the sources do not look into the contents."""
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"first")
    (folder / "in" / "c.jpg").write_bytes(b"third")
    return folder


def known_as(photo, data):
    """The photograph, whose masks are there if the file holds these bytes."""
    return dataclasses.replace(photo, known=hashlib.sha256(data).hexdigest())


def found(*places, recursive=True):
    return list(sources.Source([str(place) for place in places], recursive))


def test_what_cannot_be_read_any_more_is_in_failed_alone(tmp_path):
    segmented(tmp_path / "out", "0", "1", "2")
    with started(tmp_path / "out") as made:
        made.fail(photo_of("0", 2), "broken")
        made.add(photo_of("3"), row_of())
        made.flush()
        # Until its reason is on disk, the photograph is in the shard.
        assert names_in(tmp_path / "out") == (["0", "1", "2", "3"], [])
        made.finish(is_complete=False)
        assert made.totals() == (3, 3, 1)
        made.write_coco()
    assert names_in(tmp_path / "out") == (["1", "2", "3"], ["0"])
    images, _ = read_coco(tmp_path / "out" / results.COCO_FILE)
    assert [image.file_name for image in images] == ["1", "2", "3"]
    with started(tmp_path / "out") as made:
        assert made.find(photo_of("0", 2)) is None
        made.add(photo_of("0", 2), row_of())
        made.finish()
    assert names_in(tmp_path / "out") == (["0", "1", "2", "3"], [])


def test_photographs_of_one_name_are_called_by_their_paths(tmp_path):
    with started(tmp_path / "out") as made:
        for path, name in (("/one/a.jpg", "a.jpg"), ("/one/b.jpg", "b.jpg")):
            made.add(sources.Photo(path, name, 1, 1), row_of())
        made.finish()
    with started(tmp_path / "out") as made:  # of another source
        made.add(sources.Photo("/two/a.jpg", "a.jpg", 1, 1), row_of())
        made.finish()
        made.write_coco()
    images, _ = read_coco(tmp_path / "out" / results.COCO_FILE)
    assert [image.file_name for image in images] == ["/one/a.jpg", "b.jpg", "/two/a.jpg"]


def test_a_bucket_that_is_not_there_is_said_before_the_work():
    class Store:
        type_name = "s3"

        def get_file_info(self, path):
            assert path == "nobody"
            return fs.FileInfo(path, fs.FileType.NotFound)

    with results.Results("mock://") as made:
        made._filesystem, made._path = Store(), "nobody/masks"
        with pytest.raises(FileNotFoundError, match="there is no bucket nobody"):
            made.start(SETTINGS)


def test_keys_of_an_address_are_not_told():
    address = "s3://key:secret@bucket/photos?endpoint_override=127.0.0.1:5000&scheme=http"
    _, path, origin = sources.open_filesystem(address)
    assert path == "bucket/photos"
    whole = sources.place_of("bucket/photos/a.jpg", origin)
    assert whole == address.replace("photos", "photos/a.jpg")
    told = sources.place_of("bucket/photos/a.jpg", origin, is_told=True)
    assert told == "s3://bucket/photos/a.jpg"


def test_the_folder_of_a_killed_process_goes_with_the_next_start(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "raysamof_others").mkdir()
    with cluster._folder_in(tmp_path) as used:
        killed = tmp_path / "raysamkilled"
        killed.mkdir()
        (killed / cluster._LOCK).touch()
        (killed / "session").mkdir()
        with cluster._folder_in(tmp_path) as second:
            assert used.is_dir() and second.is_dir() and not killed.exists()
            with (used / cluster._LOCK).open() as lock, pytest.raises(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [path.name for path in tmp_path.iterdir()] == ["raysamof_others"]


def test_workers_without_gpus_do_not_see_them(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("KERAS_TORCH_DEVICE", "cpu")
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
    assert cluster.runtime_env(2, "jax", 0)["env_vars"].items() >= hidden.items()
    for gpus in (0.5, None):
        assert not cluster.runtime_env(2, "jax", gpus)["env_vars"].keys() & hidden.keys()


def test_a_run_killed_at_its_end_leaves_nothing_in_both(tmp_path, monkeypatch):
    segmented(tmp_path / "out", "0", "1")
    with started(tmp_path / "out") as made:
        made.fail(photo_of("0", 2), "broken")
        monkeypatch.setattr(made, "_drop_superseded", lambda **how: None)
        made.finish()
    assert names_in(tmp_path / "out") == (["0", "1"], ["0"])
    with started(tmp_path / "out") as made:
        assert made.find(photo_of("0", 2)) == ("a", False)  # it is tried again
        made.finish(is_complete=False)
    assert names_in(tmp_path / "out") == (["0", "1"], [])


def test_files_of_others_beside_the_shards_stay(tmp_path):
    out = tmp_path / "out"
    segmented(out, "0")
    names = ["masks-01.jpg", "masks-notes.txt", "masks-000001-0123abcd.parquet.old"]
    for name in names:
        (out / name).write_text("mine")
    with started(out) as made:
        assert made.totals() == (1, 1, 0)
        assert len(made.shards()) == 1
        made.add(photo_of("1"), row_of())
        made.finish()
    with started(out, overwrite=True) as made:
        made.add(photo_of("2"), row_of())
        made.finish()
    assert names_in(out) == (["2"], [])
    assert all((out / name).read_text() == "mine" for name in names)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path, overwrite):
    (tmp_path / "masks-01.jpg").write_text("mine")
    words = "no keras_sam_ray.json, so there is no run" if overwrite else "of another run"
    with (
        pytest.raises(FileExistsError, match=f"^holds masks-01.jpg.*{words}.*: choose another"),
        started(tmp_path, overwrite),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["masks-01.jpg"]


def test_links_are_the_files_that_they_lead_to(photos, tmp_path):
    real = {str(path.resolve()) for path in photos.rglob("*.jpg")}
    (photos / "loop").symlink_to(photos)
    (photos / "b.jpg").symlink_to("a.jpg")
    (photos / "nothing.jpg").symlink_to("none.jpg")
    (tmp_path / "beside").symlink_to(photos)
    assert sorted(photo.name for photo in found(photos)) == ["a.jpg", "b.jpg", "in/c.jpg"]
    assert [photo.name for photo in found(f"{photos}/**/c.jpg")] == ["in/c.jpg"]
    for places in ([photos], [tmp_path / "beside", photos], [photos / "b.jpg", photos]):
        assert {photo.path for photo in found(*places)} == real
        with started(tmp_path / "out") as made:
            assert sum(map(made.is_new, found(*places))) == 2
    (photo,) = found(tmp_path / "beside" / "b.jpg")
    assert (photo.name, photo.path) == ("b.jpg", str((photos / "a.jpg").resolve()))
    # Another machine may know the file by this path alone.
    assert photo.place == str(tmp_path / "beside" / "b.jpg")
    assert Worker({}, {}).segment(known_as(photo, b"first")) == {"unchanged": True}


def test_names_that_are_not_utf_8(photos, tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    try:
        (photos / name).write_bytes(b"second")
    except OSError:
        pytest.skip("this file system has no such names")
    (photos / os.fsdecode(b"\xfe")).mkdir()
    parquet_file = photos / os.fsdecode(b"\xfe") / os.fsdecode(b"\xff.parquet")
    with open(parquet_file, "wb") as file:
        parquet.write_table(pa.table({"bytes": [b"fourth"]}), file)
    (photo,) = found(photos / name)
    assert (photo.name, photo.path) == (r"\xff.jpg", rf"{photos.resolve()}/\xff.jpg")
    assert Worker({}, {}).segment(known_as(photo, b"second")) == {"unchanged": True}
    every = [*found(photos), *found(parquet_file.parent)]
    assert sorted(p.name for p in every) == [r"\xff.jpg", r"\xff.parquet#0", "a.jpg", "in/c.jpg"]
    out = tmp_path / "out"
    with started(out) as made:
        for photo in every:
            assert made.is_new(photo) and made.find(photo) is None
            made.add(photo, row_of())
        made.fail(photo, "broken")
        made.finish()
    (out / name).write_text("of somebody else")
    with started(out) as made:
        done = every[:-1]
        assert [made.find(photo) for photo in done] == [("a", True)] * 3
        assert [name for name, _ in made.failures()] == []
        made.add(every[-1], row_of())
        made.finish()
    assert names_in(out) == (sorted(p.name for p in every), [])


@pytest.mark.parametrize("values", [[7, None], [0.5, None], [b"\xff", None], ["x", ""]])
@pytest.mark.parametrize("column", sources.PATH_COLUMNS)
def test_names_in_a_table_are_of_any_type(tmp_path, column, values):
    table = pa.table({"bytes": [b"first", b"second"], column: values})
    parquet.write_table(table, tmp_path / "a.parquet")
    photos = found(tmp_path / "a.parquet")
    own = {b"\xff": r"\xff"}.get(values[0], str(values[0]))
    assert [photo.name for photo in photos] == [own, "a.parquet#1"]
    with started(tmp_path / "out") as made:
        for photo in photos:
            made.add(photo, row_of())
        made.finish()
    assert names_in(tmp_path / "out") == (sorted([own, "a.parquet#1"]), [])


class OneWorker:
    """What `Run` needs of Ray, for a cluster that loses its only worker after `lives` calls."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, lives, returned=None):
        self.lives, self.values, self.pending = lives, {}, False
        self.returned = returned or {**row_of(), "error": None}

    def cluster_resources(self):
        return {"CPU": 1.0}

    def remote(self, *anything):
        """Of a class, of an actor, and of its methods."""
        return self

    def options(self, **anything):
        return self

    def __getattr__(self, name):
        if name not in ("version", "load", "segment"):
            raise AttributeError(name)
        return Call(self, name)

    def wait(self, calls, timeout):
        done = [call for call in calls if call in self.values]
        if not done:
            time.sleep(0.01)
        return done[:1], []

    def get(self, call):
        value = self.values[call]
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, actor):
        pass


class Call:
    """A method of the only worker: its calls return, raise when it dies, and never end then."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name

    def remote(self, *arguments):
        cluster, call = self.cluster, object()
        if cluster.lives:
            cluster.lives -= 1
            values = {"version": keras_sam.__version__, "load": None}
            cluster.values[call] = values.get(self.name, cluster.returned)
        elif not cluster.pending:
            cluster.pending = True
            cluster.values[call] = cluster.exceptions.RayError()
        return call


def test_a_cluster_that_loses_its_workers_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "READY_SECONDS", 1.5)
    monkeypatch.setattr(run, "SAID_SECONDS", 0.3)
    monkeypatch.setattr(results, "SHARD_SECONDS", 0.6)
    said, photos = [], [photo_of(str(number)) for number in range(9)]
    with started(tmp_path / "out") as made:
        cluster = OneWorker(lives=4)  # two of them photographs
        job = run.Run(cluster, run.Plan({}, {}), made, said.append)
        with pytest.raises(run.ClusterError, match="and no worker of 1 and 0 has come up"):
            job.segment(photos)
        # What was done has been written while the run waited.
        assert names_in(tmp_path / "out") == (["0", "1"], [])
    (died, waits) = said
    assert "a worker died" in died and "still waiting for a worker: the cluster has 1" in waits


def test_an_interrupt_after_a_shard_does_not_write_it_twice(tmp_path, monkeypatch):
    def interrupted(*anything):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with started(tmp_path / "out") as made:
        made.add(photo_of("0"), row_of())
        monkeypatch.setattr(made, "_note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.flush()
        made.finish(is_complete=False)
    assert names_in(tmp_path / "out") == (["0"], [])


@pytest.mark.parametrize("kind", [Exception, RuntimeError, MemoryError, ValueError])
def test_whatever_a_backend_raises_is_the_photograph_s_error(kind):
    """As TensorFlow's and onnxruntime's classes, which have only `Exception` in common."""

    class OutOfMemoryError(kind):
        pass

    class Engine:
        def masks(self, image, prompts):
            raise OutOfMemoryError("OOM when allocating a tensor")

    row = engine.segment(Engine(), np.zeros((4, 5, 3), "uint8"))
    assert row["error"] == "OOM when allocating a tensor" and len(row["sha256"]) == 64


def test_what_was_only_touched_is_read_once(tmp_path):
    out = tmp_path / "out"
    segmented(out, "0", "1")
    with started(out) as made:
        made.add(photo_of("1", 2), row_of("b"))
        made.restamp(photo_of("0", 2))
        made.finish(is_complete=False)
    with started(out) as made:
        assert made.find(photo_of("0", 2)) == ("a", True)
        assert made.find(photo_of("1", 2)) == ("b", True)
        # The photographs of a run are looked up before any worker is started.
        job = run.Run(OneWorker(lives=0), run.Plan({}, {}), made)
        job.segment([photo_of("0", 2), photo_of("1", 2)])
        assert job.skipped == 2
    with started(out) as made:  # a worker finds a file to be as it was
        unchanged = OneWorker(lives=3, returned={"unchanged": True})
        job = run.Run(unchanged, run.Plan({}, {}), made)
        job.segment([photo_of("0", 3)])
        made.finish()
    with started(out) as made:
        assert made.find(photo_of("0", 3)) == ("a", True)
    assert names_in(out) == (["0", "1"], [])
