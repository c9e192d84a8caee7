"""Files that are read without the framework that wrote them, and files that must be refused."""

import argparse
import collections
import datetime
import decimal
import fractions
import io
import json
import os
import pathlib
import pickle
import struct
import types
import uuid
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_sam.converters import read_checkpoint
from keras_sam.converters.pickles import load_pickle
from keras_sam.converters.torch_files import _dicts_of_tensors
from keras_sam.presets import read_preset

pytestmark = pytest.mark.once

VALUES = np.arange(12, dtype="float32").reshape(3, 4)
DATA = VALUES.tobytes()


# --- a torch file by hand, so that it can lie -------------------------------------------------


class Named:
    """Pickled as a name that is called: `module.name(*arguments)`."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    """Pickled as a reference to a storage, as torch does."""

    def __init__(self, kind="FloatStorage", key="0", size=12):
        self.kind, self.key, self.size = kind, key, size


def assemble(value):
    """Opcodes of protocol 2 for dicts, tuples, ints, strings, `Named` and `Storage`."""
    if isinstance(value, dict):
        items = b"".join(assemble(k) + assemble(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(assemble, value)) + b"t"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int) and abs(value) < 2**31:
        return b"J" + struct.pack("<i", value)
    if isinstance(value, int):
        return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, Named):
        name = f"c{value.module}\n{value.name}\n".encode()
        return name + assemble(value.arguments) + b"R"
    kind = f"ctorch\n{value.kind}\n".encode()
    return (
        b"("
        + assemble("storage")
        + kind
        + b"".join(map(assemble, (value.key, "cpu")))
        + (assemble(value.size) + b"tQ")
    )


def tensor(storage=None, offset=0, shape=(3, 4), strides=(4, 1)):
    hooks = Named("collections", "OrderedDict")
    arguments = (storage or Storage(), offset, shape, strides, False, hooks)
    return Named("torch._utils", "_rebuild_tensor_v2", *arguments)


def torch_file(path, content, data=DATA, compression=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + assemble(content) + b".")
        archive.writestr("archive/data/0", data)
        for name, extra in more.items():
            archive.writestr(f"archive/{name}", extra)
    return path


def test_the_file_by_hand_is_one_that_torch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    path = torch_file(tmp_path / "a.pth", {"w": tensor()}, version="3\n", byteorder="little")
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["w"].numpy(), VALUES)
    np.testing.assert_array_equal(np.asarray(read_checkpoint(path)["w"]), VALUES)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "wanted"),
    [
        (0, (4, 3), (1, 4), VALUES.T),  # transposed: strides, no copy
        (4, (4,), (1,), VALUES[1]),  # starts inside its storage
        (0, (3, 2), (4, 2), VALUES[:, ::2]),  # every other column
        (0, (), (), VALUES[0, 0]),  # a scalar
        (12, (0, 4), (4, 1), VALUES[3:]),  # empty, at the very end
    ],
)
def test_views_of_a_storage(offset, shape, strides, wanted, tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": tensor(None, offset, shape, strides)})
    np.testing.assert_array_equal(np.asarray(read_checkpoint(path)["w"]), wanted)


def test_every_kind_of_number(tmp_path):
    torch = pytest.importorskip("torch")
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
    kinds += ("uint8", "bool")
    saved = {kind: torch.arange(-3, 4).to(getattr(torch, kind)) for kind in kinds}
    for new in (True, False):
        torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        found = read_checkpoint(tmp_path / "a.pth")
        for kind in kinds:
            wanted = saved[kind].float() if kind == "bfloat16" else saved[kind]
            np.testing.assert_array_equal(np.asarray(found[kind]), wanted.numpy())
            assert found[kind].dtype == np.asarray(found[kind]).dtype


def test_what_training_scripts_leave_beside_the_weights_is_read_over(tmp_path):
    torch = pytest.importorskip("torch")
    content = {
        "model": collections.OrderedDict(w=torch.tensor(VALUES)),
        "args": argparse.Namespace(lr=1e-4, where=pathlib.Path("x"), size=torch.Size([2])),
        "best": np.float64(0.5),
        "seen": {1, 2},
        "when": datetime.datetime(2024, 1, 1),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "history": np.arange(3),
        "counts": collections.defaultdict(None, a=1),
        "lists": collections.defaultdict(list, a=[1]),
        "day": datetime.date(2024, 1, 1),
        "took": datetime.timedelta(seconds=3),
        "zone": datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC),
        "types": [list, set, dict, tuple, float, int, str, bool],
        "frozen": frozenset([1]),
        "queue": collections.deque([1, 2], maxlen=3),
        "simple": types.SimpleNamespace(a=1),
        "id": uuid.UUID(int=3),
        "price": decimal.Decimal("0.1"),
        "ratio": fractions.Fraction(1, 3),
        "version": torch.__version__,
        "names": np.array(["a", "b"]),
        "objects": np.array([None, {}], dtype=object),
        "record": np.zeros(2, dtype=[("a", "f4")]),
        "complex": 1 + 2j,
        "pure": pathlib.PurePosixPath("x"),
    }
    for protocol in (2, 4, 5):
        torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol)
        np.testing.assert_array_equal(np.asarray(read_checkpoint(tmp_path / "a.pth")["w"]), VALUES)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_numpy_of_every_kind(protocol, tmp_path):
    kinds = ("float64", "float32", "float16", ">f4", "int64", "uint16", "int8", "bool")
    saved = {kind: np.arange(-3, 9).reshape(3, 4).astype(kind) for kind in kinds}
    saved |= {"F": np.asfortranarray(VALUES), "empty": VALUES[:0], "0": np.array(2.5)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(saved, protocol))
    found = read_checkpoint(tmp_path / "a.pkl")
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(np.asarray(found[name]), value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (3, 4), "f4", False, DATA[:-4]), "of shape .* has 44 bytes"),
        ((1, (3, -4), "f4", False, DATA), "impossible sizes"),
        ((1, (2**40, 2**40), "f4", False, DATA), "has 48 bytes"),
        ((1, (1,) * 9, "f4", False, DATA[:4]), "impossible sizes"),
        ((1, 12, "f4", False, DATA), "impossible sizes"),
        ((1, (3, 4), "f4", False, "text"), "no values"),
        ((1, (3, 4), "O", False, DATA), "no tensors by name"),
        ((1, (3, 4), "f3", False, DATA), "no tensors by name"),
        ((1, (3, 4)), "not enough values"),
    ],
)
def test_arrays_that_lie(state, message, tmp_path):
    def opcodes(value):
        if isinstance(value, bytes):
            return b"C" + bytes([len(value)]) + value
        if isinstance(value, tuple):
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        return assemble(value)

    named = state[:2] + tuple(
        Named("numpy", "dtype", x, False, True) if i == 0 else x for i, x in enumerate(state[2:])
    )
    array = assemble(Named("numpy.core.multiarray", "_reconstruct", 0)) + opcodes(named) + b"b"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x03}" + assemble("w") + array + b"s.")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "a.pkl")


def test_a_dict_that_holds_itself_and_one_that_is_deep():
    """In memory, opcodes: `{"a": <itself>}` and 50,000 dicts in each other."""
    itself = load_pickle(b"\x80\x02}q\x00" + assemble("a") + b"h\x00s.")
    deep = load_pickle(b"\x80\x02" + (b"}" + assemble("a")) * 50_000 + b"N" + b"s" * 50_000 + b".")
    for content in (itself, deep):
        assert list(_dicts_of_tensors(content)) == []


ATTACKS = [
    (("os", "system"), "a shell command"),
    (("posix", "system"), "the same under its real name"),
    (("builtins", "eval"), "evaluation"),
    (("builtins", "getattr"), "a chain of attributes starts here"),
    (("builtins", "__import__"), "an import"),
    (("subprocess", "Popen"), "a process"),
    (("torch", "load"), "another pickle"),
    (("torch._utils", "_rebuild_tensor_v2.__globals__"), "a dotted name"),
    (("collections", "OrderedDict.__init__"), "a dotted name of a class that is known"),
    (("keras_sam.converters", "read_checkpoint"), "our own code"),
]


@pytest.mark.parametrize(("name", "reason"), ATTACKS, ids=[".".join(name) for name, _ in ATTACKS])
def test_a_pickle_that_names_code_is_refused_unread(name, reason, tmp_path):
    witness = tmp_path / "witness"
    evil = Named(*name, f"touch {witness}")
    path = torch_file(tmp_path / "a.pth", {"w": tensor(), "x": evil})
    with pytest.raises(ValueError, match=f"import `{name[0]}.{name[1]}`"):
        read_checkpoint(path)
    assert not witness.exists()


class Runs:
    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("protocol", range(6))
def test_python_s_own_pickles_of_code_are_refused_in_every_protocol(protocol, tmp_path):
    evil = Runs()
    evil.place = str(tmp_path / "witness")
    data = pickle.dumps({"x": evil}, protocol)
    with pytest.raises(ValueError, match="import|uses"):
        load_pickle(data)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "the plain attack"),
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "INST: a call in one opcode"),
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", "OBJ: likewise"),
        (b"\x80\x02\x82\x01.", "EXT1: a name from the extension registry"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "a call of something that is not a name"),
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "state for a class"),
        (b"\x80\x02K\x01Q.", "a reference to nothing"),
        (b"\x80\x02h\x05.", "a memo that was never written"),
        (b"\x80\x02t.", "a tuple without a start"),
        (b"\x80\x02a.", "an append to nothing"),
        (b"\x80\x02.", "an end without a value"),
        (b"\x80\x02}", "no end"),
        (b"", "nothing"),
        (b"\x80\x02]K\x01K\x02s.", "an item of a list"),
        (b"\x80\x02}]K\x01s.", "a key that cannot be one"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "a string of 2 GB in two bytes"),
    ],
)
def test_broken_pickles_are_errors(data, reason):
    with pytest.raises(ValueError):
        load_pickle(data)


def test_shared_lists_do_not_explode():
    # Each list holds the one before ten times: 10 ** 40 leaves, were they ever visited.
    levels = b"]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e" for i in range(1, 41)
    )
    assert isinstance(load_pickle(b"\x80\x02" + levels + b"."), list)


LIES = [
    (tensor(Storage(size=10**12)), "storage of 1000000000000 numbers"),
    (tensor(Storage(size=13)), "storage of 13 numbers"),
    (tensor(shape=(4, 4)), "ends outside"),
    (tensor(strides=(5, 1)), "ends outside"),
    (tensor(offset=1), "ends outside"),
    (tensor(shape=(10**9, 10**9), strides=(0, 0)), "ends outside"),
    (tensor(strides=(-1, 1)), "impossible sizes"),
    (tensor(offset=-4), "impossible sizes"),
    (tensor(shape=(3, "4")), "impossible sizes"),
    (tensor(shape=(3,)), "impossible sizes"),
    (tensor(shape=(1,) * 40, strides=(1,) * 40), "impossible sizes"),
    (tensor(shape=(2**62, 4)), "impossible sizes"),
    (tensor(shape=12), "impossible sizes"),
    (tensor(Storage(size=True)), "impossible sizes"),
    (tensor(Storage(key="../../etc/passwd")), "missing"),
    (tensor(Storage(kind="QInt8Storage")), "import"),
    (tensor("no storage"), "no storage"),
]


@pytest.mark.parametrize(("lie", "message"), LIES, ids=range(len(LIES)))
def test_tensors_that_lie_about_their_storage(lie, message, tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": lie})
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_zip_bomb_is_refused_without_unpacking_it(tmp_path):
    zeros = bytes(50 * 2**20)
    content = {"w": tensor(Storage(size=len(zeros) // 4), shape=(len(zeros) // 4,), strides=(1,))}
    path = torch_file(tmp_path / "a.pth", content, zeros, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("constants.pkl", "TorchScript"), ("data/0", "truncated|damaged")],
)
def test_other_archives(name, message, tmp_path):
    path = tmp_path / "a.pth"
    if name == "constants.pkl":
        torch_file(path, {"w": tensor()}, **{name: b""})
    else:  # the directory says more than the archive holds
        torch_file(path, {"w": tensor()})
        data = bytearray(path.read_bytes())
        place = data.rindex(b"archive/data/0") - 46 + 20
        data[place : place + 8] = struct.pack("<II", 2**31, 2**31)
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_an_archive_without_its_parts(part, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr(f"archive/{part}", b"\x80\x02" + assemble({"w": tensor()}) + b".")
    with pytest.raises(ValueError, match="missing|not one that"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [({"epoch": 3}, "no tensors by name.*epoch"), ((1, 2), "no dict of tensors")],
)
def test_torch_files_without_weights(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(torch_file(tmp_path / "a.pth", content))


def safetensors_file(path, header, data=DATA, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(3, 4), offsets=(0, 48)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_safetensors_equal_the_library_s(tmp_path):
    arrays = {kind: np.arange(-3, 4).astype(kind) for kind in ("f8", "f4", "f2", "i8", "u1", "?")}
    save_file(arrays, tmp_path / "a.safetensors", {"format": "np"})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, wanted in arrays.items():
        np.testing.assert_array_equal(np.asarray(found[name]), wanted)


SAFETENSORS_LIES = [
    ({"w": entry(offsets=(0, 4800))}, "truncated"),
    ({"w": entry(offsets=(0, 40))}, "cannot be"),
    ({"w": entry(offsets=(48, 0))}, "cannot be"),
    ({"w": entry(offsets=(-48, 0))}, "impossible"),
    ({"w": entry(shape=(3, -4))}, "impossible"),
    ({"w": entry(shape=(2**40, 2**40))}, "cannot be"),
    ({"w": entry(shape=(3, 4.0))}, "impossible"),
    ({"w": entry(dtype="F8_E4M3")}, "F8_E4M3"),
    ({"w": {"dtype": "F32"}}, "incomplete"),
    ({"w": 3}, "incomplete"),
    ([1, 2], "not a table"),
    (b'{"w": {}, "w": {}}', "twice"),
    (b'{"w": ', "not JSON"),
    (b'{"\xff": 1}', "not JSON"),
    (b"[" * 100_000, "not"),
]


@pytest.mark.parametrize(("header", "message"), SAFETENSORS_LIES, ids=range(len(SAFETENSORS_LIES)))
def test_safetensors_headers_that_lie(header, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(safetensors_file(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_safetensors_header_of_impossible_length(length, tmp_path):
    path = safetensors_file(tmp_path / "a.safetensors", {"w": entry()}, length=length)
    with pytest.raises(ValueError, match="truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "..\\a", 3])
def test_an_index_that_names_files_elsewhere(name, tmp_path):
    safetensors_file(tmp_path / "a.safetensors", {"w": entry()})
    (tmp_path / "x").mkdir()
    index = tmp_path / "x" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match="another folder"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "b.safetensors"}}, "shard 'b.safetensors' is missing"),
        ({"weight_map": {"v": "a.safetensors"}}, "lacks the tensors v"),
        ({"weights": {}}, "not an index"),
        ([], "not an index"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(index, message, tmp_path):
    safetensors_file(tmp_path / "a.safetensors", {"w": entry()})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "model.safetensors.index.json")


def hdf5_file(path, fill):
    with h5py.File(path, "w") as file:
        file["a/w"] = VALUES
        fill(file)
    return path


HDF5_TRICKS = [
    (lambda f: f.create_dataset("z", data=np.zeros(10**6, "f4"), compression="gzip"), "chunks"),
    (lambda f: f.create_dataset("z", (3,), "f4", external=[("/etc/passwd", 0, 12)]), "another"),
    (
        lambda f: f.create_virtual_dataset(
            "z", _virtual(h5py.VirtualLayout((3,), "f4"), h5py.VirtualSource("b.h5", "w", (3,)))
        ),
        "another",
    ),
]


def _virtual(layout, source):
    layout[:] = source
    return layout


@pytest.mark.parametrize(("fill", "message"), HDF5_TRICKS, ids=["chunks", "external", "virtual"])
def test_hdf5_datasets_that_reach_elsewhere_or_grow(fill, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(hdf5_file(tmp_path / "a.h5", fill))


def test_hdf5_links_to_other_files_are_not_followed(tmp_path):
    hdf5_file(tmp_path / "b.h5", lambda f: None)

    def fill(file):
        file["link"] = h5py.ExternalLink("b.h5", "/a/w")
        file["soft"] = h5py.SoftLink("/a/w")

    assert list(read_checkpoint(hdf5_file(tmp_path / "a.h5", fill))) == ["a/w"]


def test_hdf5_bfloat16_as_keras_stores_it(tmp_path):
    import ml_dtypes

    def fill(file):
        file.create_dataset("b", data=VALUES.astype(ml_dtypes.bfloat16)).attrs["dtype"] = "bfloat16"

    found = read_checkpoint(hdf5_file(tmp_path / "a.h5", fill))["b"]
    np.testing.assert_array_equal(np.asarray(found), VALUES)
    assert found.dtype == "float32"


def whole_files(folder):
    """One whole file of each kind, with 5,000 values."""
    values = np.arange(5000, dtype="float32")
    content = {"w": tensor(Storage(size=5000), 0, (5000,), (1,))}
    yield torch_file(folder / "a.pth", content, values.tobytes())
    header = {"w": entry(shape=(5000,), offsets=(0, 20000))}
    yield safetensors_file(folder / "a.safetensors", header, values.tobytes())
    with h5py.File(folder / "a.h5", "w") as file:
        file["w"] = values
    yield folder / "a.h5"
    with zipfile.ZipFile(folder / "a.keras", "w") as archive:
        archive.write(folder / "a.h5", "model.weights.h5")
    yield folder / "a.keras"


def test_whole_files_of_each_kind(tmp_path):
    for path in whole_files(tmp_path):
        found = np.asarray(read_checkpoint(path)["w"])
        np.testing.assert_array_equal(found, np.arange(5000))


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.3, 0.9, 0.999])
def test_truncated_files_of_each_kind(share, tmp_path):
    for path in whole_files(tmp_path):
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match="Cannot read the checkpoint") as error:
            tensors = read_checkpoint(path)
            np.asarray(tensors["w"])
        assert path.name in str(error.value)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_values_or_a_value_error(seed, tmp_path):
    rng = np.random.default_rng(seed)
    for path in whole_files(tmp_path):
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            for value in read_checkpoint(path).values():
                assert np.asarray(value).shape == value.shape
        except ValueError as error:
            assert "Cannot read the checkpoint" in str(error) or "damaged" in str(error)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 375042383\n"
PAGES = [
    ("<html>404: Not Found</html>\n" * 20, "web page.*Download the file in a browser"),
    ("\ufeff\n<!DOCTYPE html>\n<title>Virus scan warning</title>", "web page"),
    ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    (LFS, "Git LFS pointer to a file of 375042383 bytes.*git lfs pull"),
    ("not found, whatever it was\n" * 20, ""),
]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.h5", "a.keras", "a.json", "a.txt"])
@pytest.mark.parametrize(("text", "message"), PAGES, ids=range(len(PAGES)))
def test_text_in_place_of_weights(text, message, name, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"Cannot read the checkpoint.*{message}"):
        read_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match=f"Cannot read the checkpoint.*{message}"):
        read_preset(tmp_path / name)


@pytest.mark.parametrize(("text", "message"), PAGES[:4], ids=range(4))
def test_text_in_place_of_a_config(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        read_preset(tmp_path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "none.pth")


def test_values_are_read_when_they_are_used(tmp_path):
    for path in list(whole_files(tmp_path))[:2]:  # HDF5 has a small cache of its own
        tensor = read_checkpoint(path)["w"]
        with open(path, "r+b") as file:  # a value that is written now is a value that is found
            data = file.read()
            file.seek(data.index(np.arange(5000, dtype="f4").tobytes()))
            file.write(np.float32(-1).tobytes())
        assert np.asarray(tensor)[0] == -1


def test_keras_window_reads_like_a_file(tmp_path):
    *_, path = whole_files(tmp_path)
    from keras_sam.converters.readers import _Window
    from keras_sam.converters.torch_files import map_file, zip_member

    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.weights.h5")
        wanted = io.BytesIO(archive.read(info))
    window = _Window(zip_member(map_file(path), info))
    for offset, whence, count in [(0, 0, 10), (5, 1, 7), (-20, 2, 50), (3, 0, -1), (10**6, 0, 5)]:
        assert window.seek(offset, whence) == wanted.seek(offset, whence)
        assert window.read(count) == wanted.read(count)
    window.close()


def test_a_pickle_of_fast_sam_is_called_so(tmp_path):
    path = tmp_path / "FastSAM-x.pt"
    path.write_bytes(b"\x80\x02cultralytics.nn.tasks\nSegmentationModel\n.")
    with pytest.raises(ValueError, match="looks like FastSAM"):
        read_checkpoint(path)
