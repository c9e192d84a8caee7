"""The real clients of Kaggle and Hugging Face against a server on this machine."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_sam.presets import locate
from keras_sam.presets.clients import HubSource, KaggleSource, UrlSource
from tests.presets.servers import COMMIT, KAGGLE_PORT, Process, run, serving

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "keras_hub_0_32"
FILES = {name: FIXTURE / name for name in ("config.json", "model.weights.h5", "metadata.json")}
KAGGLE = "kaggle://keras/sam/keras/tiny/5"
HUB = "hf://keras/tiny"
# Reads every value, and prints what only this file has.
LOAD = """
import sys
import numpy as np
preset = presets.read_preset(sys.argv[1] if len(sys.argv) > 1 else ADDRESS)
print(sum(float(np.abs(np.asarray(a)).sum()) for a in preset.arrays.values()))
"""
LOAD_TINY = LOAD.replace("ADDRESS", repr("tiny"))


def load(address, home, **variables):
    return run(LOAD.replace("ADDRESS", repr(address)), home, **variables)


@pytest.fixture(scope="module")
def checksum(tmp_path_factory):
    out, error = load(str(FIXTURE), tmp_path_factory.mktemp("home"))
    assert not error
    return out


@pytest.fixture
def kaggle():
    with serving(FILES, KAGGLE_PORT) as server:
        yield server


@pytest.fixture
def hub():
    with serving(FILES) as server:
        yield server


def asked(server):
    """The files whose content was asked for; the clients ask for other things as well."""
    names = [path.rsplit("/", 1)[1] for method, path, _ in server.requests if method == "GET"]
    return [name for name in names if name in server.files]


# --- Kaggle ---------------------------------------------------------------------------------


def test_kaggle_only_what_is_needed_is_asked_for_and_only_once(kaggle, tmp_path, checksum):
    assert load(KAGGLE, tmp_path) == (checksum, "")
    assert asked(kaggle) == ["config.json", "model.weights.h5"]
    assert load(KAGGLE, tmp_path) == (checksum, "")
    assert len(asked(kaggle)) == 2
    folder = tmp_path / "kaggle/models/keras/sam/keras/tiny"
    assert (folder / "5/model.weights.h5").read_bytes() == FILES["model.weights.h5"].read_bytes()
    assert (folder / ".complete/5/model.weights.h5.complete").exists()


def test_kaggle_from_the_cache_with_the_network_cut(tmp_path, checksum):
    with serving(FILES, KAGGLE_PORT):
        load(KAGGLE, tmp_path)
    assert load(KAGGLE, tmp_path) == (checksum, "")
    assert load(KAGGLE, tmp_path, KERAS_SAM_OFFLINE=1) == (checksum, "")
    out, error = load("kaggle://keras/sam/keras/other/5", tmp_path)
    assert "ConnectionError: Kaggle's model 'keras/sam/keras/other/5' cannot be reached" in error
    out, error = load("kaggle://keras/sam/keras/other/5", tmp_path, KERAS_SAM_OFFLINE=1)
    assert "KERAS_SAM_OFFLINE forbids to download it" in error


def test_kaggle_without_a_version_takes_the_newest_and_all_files_of_it(kaggle, tmp_path, checksum):
    assert load(KAGGLE.removesuffix("/5"), tmp_path) == (checksum, "")
    versions = [path for method, path, _ in kaggle.requests if path.endswith("GetModelInstance")]
    assert len(versions) == 1
    assert (tmp_path / "kaggle/models/keras/sam/keras/tiny/5/config.json").exists()


def test_kaggle_tries_again_when_the_server_dies_halfway(kaggle, tmp_path, checksum):
    kaggle.dies_after, kaggle.deaths = 200_000, 2
    assert load(KAGGLE, tmp_path) == (checksum, "")
    assert asked(kaggle) == ["config.json"] + 3 * ["model.weights.h5"]


def test_kaggle_goes_on_where_a_process_was_killed(kaggle, tmp_path, checksum):
    part = tmp_path / "kaggle/models/keras/sam/keras/tiny/5/model.weights.h5"
    part.parent.mkdir(parents=True)
    part.write_bytes(kaggle.files["model.weights.h5"][:200_000])
    assert load(KAGGLE, tmp_path) == (checksum, "")
    assert [part for _, _, part in kaggle.requests if part] == ["bytes=200000-"]


def test_kaggle_gives_up_in_the_end_and_takes_no_part_for_the_whole(kaggle, tmp_path, checksum):
    kaggle.dies_after, kaggle.deaths = 20_000, 99
    _, error = load(KAGGLE, tmp_path)
    assert "ConnectionError: Kaggle's model" in error
    assert "model.weights.h5 broke off again and again" in error
    kaggle.deaths = 0
    assert load(KAGGLE, tmp_path) == (checksum, "")


def test_kaggle_wrong_hash(kaggle, tmp_path, checksum):
    kaggle.wrong_hash = True
    _, error = load(KAGGLE, tmp_path)
    assert "ValueError: Kaggle's model" in error
    assert "damaged and was deleted" in error
    assert not list(tmp_path.glob("kaggle/**/config.json"))
    kaggle.wrong_hash = False
    assert load(KAGGLE, tmp_path) == (checksum, "")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, "FileNotFoundError"), (403, "PermissionError"), (500, "ConnectionError")],
)
def test_kaggle_refusals(status, error, kaggle, tmp_path):
    kaggle.status = status
    _, message = load(KAGGLE, tmp_path)
    assert f"{error}: Kaggle's model 'keras/sam/keras/tiny/5' answers {status}" in message


def test_kaggle_two_processes_at_once(kaggle, tmp_path, checksum):
    kaggle.pause = 0.3
    code = LOAD.replace("ADDRESS", repr(KAGGLE))
    processes = [Process(code, tmp_path) for _ in range(3)]
    assert [process.finish() for process in processes] == [(checksum, "")] * 3
    assert sorted(asked(kaggle)) == ["config.json", "model.weights.h5"]


def test_kaggle_a_file_in_place_of_the_cache(kaggle, tmp_path):
    (tmp_path / "kaggle").write_text("I am a file")
    _, error = load(KAGGLE, tmp_path)
    assert "NotADirectoryError: Kaggle's model" in error
    assert "KAGGLEHUB_CACHE" in error
    assert (tmp_path / "kaggle").read_text() == "I am a file"


LITTLE_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
"""


def test_kaggle_a_full_disk(kaggle, tmp_path, checksum):
    _, error = run(LITTLE_ROOM + LOAD.replace("ADDRESS", repr(KAGGLE)), tmp_path)
    assert "OSError" in error
    assert "model.weights.h5 cannot be stored" in error
    assert load(KAGGLE, tmp_path) == (checksum, "")


def test_kaggle_weights_that_arrive_truncated(kaggle, tmp_path):
    kaggle.files["model.weights.h5"] = kaggle.files["model.weights.h5"][:300_000]
    _, error = load(KAGGLE, tmp_path)
    assert "ValueError: Cannot read the checkpoint" in error
    assert "truncated" in error


@pytest.mark.parametrize(
    "address",
    ["kaggle://keras/sam", "kaggle://a/b/c/d/newest", "kaggle://a/b/c/d/5/e", "kaggle://a//c/d"],
)
def test_kaggle_addresses(address):
    with pytest.raises(ValueError, match="must be kaggle://owner/model/framework/variation"):
        KaggleSource.parse(address)


# --- Hugging Face ---------------------------------------------------------------------------


def test_hub_keras_hub_s_files(hub, tmp_path, checksum):
    assert load(HUB, tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    assert asked(hub) == ["config.json", "model.weights.h5"]
    assert load(HUB, tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    assert len(asked(hub)) == 2


def test_hub_from_the_cache_with_the_network_cut(tmp_path, checksum):
    with serving(FILES) as server:
        load(HUB, tmp_path, HF_ENDPOINT=server.url)
    cut = {"HF_ENDPOINT": server.url}
    for variables in (cut, {"HF_HUB_OFFLINE": 1}, {"KERAS_SAM_OFFLINE": 1}):
        assert load(HUB, tmp_path, **variables) == (checksum, "")
    for variables in (cut, {"HF_HUB_OFFLINE": 1}):
        _, error = load("hf://keras/other", tmp_path, **variables)
        assert "ConnectionError: Hugging Face's repository 'keras/other' cannot be reached" in error
    _, error = load("hf://keras/other", tmp_path, KERAS_SAM_OFFLINE=1)
    assert "KERAS_SAM_OFFLINE forbids to download it" in error


def test_hub_revision_and_single_file(hub, tmp_path, checksum):
    assert load(f"{HUB}@{COMMIT}", tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    hub.files["sub/model.keras"] = (FIXTURE / "model.keras").read_bytes()
    assert load(f"{HUB}@v2/sub/model.keras", tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    assert any("/resolve/v2/sub/model.keras" in path for _, path, _ in hub.requests)


@pytest.fixture
def transformers_files(tmp_path):
    from tests.checkpoints import hugging_face_model

    hugging_face_model().save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    return {path.name: path for path in (tmp_path / "saved").iterdir()}


def test_hub_transformers_files_in_shards(transformers_files, tmp_path):
    wanted, error = load(str(tmp_path / "saved"), tmp_path)
    assert not error
    with serving(transformers_files) as server:
        assert load("hf://a/b", tmp_path, HF_ENDPOINT=server.url) == (wanted, "")
        assert set(asked(server)) == set(transformers_files) - {"generation_config.json"}
    # What is known not to be there is not asked for again.
    assert load("hf://a/b", tmp_path, HF_HUB_OFFLINE=1) == (wanted, "")
    assert load("hf://a/b", tmp_path, HF_ENDPOINT=server.url) == (wanted, "")


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/passwd", "a/../b.safetensors"])
def test_hub_an_index_that_names_files_elsewhere(name, transformers_files, tmp_path):
    index = json.loads(transformers_files["model.safetensors.index.json"].read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    files = {**transformers_files, "model.safetensors.index.json": json.dumps(index).encode()}
    with serving(files) as server:
        _, error = load("hf://a/b", tmp_path, HF_ENDPOINT=server.url)
        assert "names a file in another folder" in error
        assert not any("evil" in path or "passwd" in path for _, path, _ in server.requests)


def test_hub_goes_on_where_the_server_died(hub, tmp_path, checksum):
    hub.dies_after, hub.deaths = 300_000, 1
    code = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 100_000\n"
    code += LOAD.replace("ADDRESS", repr(HUB))  # the chunk else being 10 MB
    assert run(code, tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    assert "bytes=300000-" in [part for _, _, part in hub.requests]


def test_hub_wrong_hash(hub, tmp_path, checksum):
    hub.wrong_hash = True
    _, error = load(HUB, tmp_path, HF_ENDPOINT=hub.url)
    assert "ValueError: Hugging Face's repository 'keras/tiny'" in error
    assert "the download of model.weights.h5 is damaged and was deleted" in error
    assert not list(tmp_path.glob("hugging_face/**/model.weights.h5"))
    hub.wrong_hash = False
    assert load(HUB, tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")
    assert asked(hub).count("model.weights.h5") == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, "FileNotFoundError"), (403, "PermissionError"), (500, "ConnectionError")],
)
def test_hub_refusals(status, error, hub, tmp_path):
    hub.status = {"model.weights.h5": status}
    _, message = load(HUB, tmp_path, HF_ENDPOINT=hub.url)
    assert f"{error}: Hugging Face's repository 'keras/tiny'" in message
    assert "model.weights.h5" in message


def test_hub_a_repository_that_is_nothing_of_ours(hub, tmp_path):
    hub.files["config.json"] = b'{"model_type": "bert"}'
    _, error = load(HUB, tmp_path, HF_ENDPOINT=hub.url)
    assert "must be that of a SAM" in error
    assert "'bert'" in error


def test_hub_a_slow_server(hub, tmp_path):
    hub.pause = 30
    hub.files = {"config.json": hub.files["config.json"]}
    _, error = load(HUB, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_DOWNLOAD_TIMEOUT=1)
    assert "ConnectionError: Hugging Face's repository" in error


def test_hub_a_file_in_place_of_the_cache(hub, tmp_path):
    (tmp_path / "hugging_face").write_text("I am a file")
    _, error = load(HUB, tmp_path, HF_ENDPOINT=hub.url)
    assert "NotADirectoryError: Hugging Face's repository" in error
    assert "HF_HOME" in error


def test_hub_two_processes_at_once(hub, tmp_path, checksum):
    hub.pause = 0.3
    code = LOAD.replace("ADDRESS", repr(HUB))
    processes = [Process(code, tmp_path, HF_ENDPOINT=hub.url) for _ in range(3)]
    assert [process.finish() for process in processes] == [(checksum, "")] * 3


def test_hub_a_full_disk(hub, tmp_path, checksum):
    code = LITTLE_ROOM + LOAD.replace("ADDRESS", repr(HUB))
    _, error = run(code, tmp_path, HF_ENDPOINT=hub.url)
    assert "OSError" in error
    assert "model.weights.h5 cannot be stored" in error
    assert load(HUB, tmp_path, HF_ENDPOINT=hub.url) == (checksum, "")


@pytest.mark.parametrize("address", ["hf://a", "hf://a/b@", "hf://", "hf://a/b@v1@v2"])
def test_hub_addresses(address):
    with pytest.raises(ValueError, match="must be hf://owner/repository"):
        HubSource.parse(address)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a\\..\\x", "", "a//b", "."])
def test_names_that_leave_the_preset(name):
    for source in (KaggleSource("a/b/c/d/5"), HubSource("a/b"), UrlSource("http://x/y")):
        with pytest.raises(ValueError, match="own folder"):
            source.fetch(name)


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [(KAGGLE, "kagglehub", "kaggle"), (HUB, "huggingface_hub", "hub")],
)
def test_a_client_that_is_not_installed(source, module, extra, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None\n" + LOAD.replace("ADDRESS", repr(source))
    _, error = run(code, tmp_path)
    assert (
        f'ImportError: This needs {module}. Install it with: pip install "keras-sam[{extra}]"'
        in (error)
    )


# --- caches that are laid out otherwise ------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Clients that keep their files in a layout that is not known here."""
    folder = tmp_path / "elsewhere"
    asked = []

    def download(handle, name=None, path=None, revision=None):
        name = name or path
        asked.append((handle, name, revision))
        place = folder / "blobs" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(FILES[name].read_bytes())
        return str(place)

    monkeypatch.setenv("KAGGLEHUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setattr("kagglehub.model_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    return asked


@pytest.mark.parametrize("address", [KAGGLE, KAGGLE.removesuffix("/5"), HUB, f"{HUB}@v2"])
def test_a_cache_of_another_layout_gives_the_same(address, elsewhere):
    from keras_sam.presets import read_preset

    found, wanted = read_preset(address).arrays, read_preset(FIXTURE).arrays
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(wanted[name]))
    # Each file by the address as it was given: nothing was made up from the paths.
    given = address.removeprefix("kaggle://").removeprefix("hf://").partition("@")
    names = ["config.json", "model.weights.h5"]
    assert elsewhere == [(given[0], name, given[2] or None) for name in names]


@pytest.mark.parametrize("source", [KaggleSource("a/b/c/d/5"), HubSource("a/b")])
def test_nothing_is_cached_where_the_layout_is_not_known(source, elsewhere):
    source.fetch("config.json")
    assert source.cached("config.json") is None


def test_an_http_library_that_is_not_known_by_name(elsewhere, monkeypatch):
    class Broken(Exception):
        pass

    def download(*arguments, **kwargs):
        raise Broken("halfway")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(Broken, match="halfway"):
        HubSource("a/b").fetch("config.json")
    Broken.__module__ = "httpx3._exceptions"
    with pytest.raises(ConnectionError, match="'a/b' cannot be reached for config.json: halfway"):
        HubSource("a/b").fetch("config.json")


# --- built-in names -------------------------------------------------------------------------


@pytest.fixture
def builtin(tmp_path):
    """A data folder with one tiny built-in preset, which three servers have the weights of."""
    from keras_sam.presets import convert_checkpoint
    from keras_sam.presets.fetch import hash_of

    data = tmp_path / "data"
    convert_checkpoint(FIXTURE, data / "tiny")
    (data / "tiny" / "model.weights.h5").unlink()
    files = {
        "model.weights.h5": FILES["model.weights.h5"],
        "model.keras": FIXTURE / "model.keras",
        "tiny.keras": FIXTURE / "model.keras",
    }
    with serving(files, KAGGLE_PORT) as server:
        metadata = {
            "description": "A tiny SAM.",
            "parameters": 12345,
            "image_encoder_parameters": 10000,
            "tensors": 67,
            "license": "Apache-2.0",
            "files": ["config.json", "metadata.json"],
            "encoder_names": ["tiny_encoder"],
            "sources": [
                {"kaggle": "keras/sam/keras/tiny/5", "file": "model.weights.h5"},
                {"hugging_face": "keras/tiny", "file": "model.keras"},
                {"url": f"{server.url}/tiny.keras", "sha256": hash_of(FIXTURE / "model.keras")},
            ],
        }
        (data / "tiny" / "metadata.json").write_text(json.dumps(metadata))
        server.data = data
        yield server


def load_builtin(server, home, code=LOAD_TINY, **variables):
    folder = f"from keras_sam.presets import locate; locate._FOLDERS = ({str(server.data)!r},)\n"
    return run(folder + code, home, **{"HF_ENDPOINT": server.url, **variables})


def test_builtin_the_first_source_that_answers(builtin, tmp_path, checksum):
    assert load_builtin(builtin, tmp_path) == (checksum, "")
    assert asked(builtin) == ["model.weights.h5"]
    builtin.status = 500
    assert load_builtin(builtin, tmp_path) == (checksum, "")
    assert load_builtin(builtin, tmp_path, KERAS_SAM_OFFLINE=1) == (checksum, "")


@pytest.mark.parametrize(
    ("broken", "source"),
    [
        ({"model.weights.h5": 403}, "model.keras"),
        ({"model.weights.h5": 404, "model.keras": 500}, "tiny.keras"),
    ],
)
def test_builtin_the_next_source_when_one_fails(broken, source, builtin, tmp_path, checksum):
    builtin.status = broken
    assert load_builtin(builtin, tmp_path) == (checksum, "")
    assert asked(builtin)[-1] == source
    builtin.status = 500
    assert load_builtin(builtin, tmp_path) == (checksum, ""), "now from that source's cache"


def test_builtin_without_clients_meta_s_server_remains(builtin, tmp_path, checksum):
    code = "import sys; sys.modules['kagglehub'] = sys.modules['huggingface_hub'] = None\n"
    assert load_builtin(builtin, tmp_path, code + LOAD_TINY) == (checksum, "")
    assert asked(builtin) == ["tiny.keras"]


def test_builtin_no_source_says_why_for_each(builtin, tmp_path):
    builtin.status = 500
    _, error = load_builtin(builtin, tmp_path)
    for part in (
        "ConnectionError: The weights of 'tiny'",
        "* Kaggle's model 'keras/sam/keras/tiny/5': ",
        "* Hugging Face's repository 'keras/tiny': ",
        f"* The server of {builtin.url}/tiny.keras: ",
        "`load_weights=False`",
    ):
        assert part in error


def test_builtin_a_wrong_hash_is_not_loaded(builtin, tmp_path):
    builtin.status = {"model.weights.h5": 404, "model.keras": 404}
    builtin.files["tiny.keras"] = builtin.files["tiny.keras"][:-1] + b"x"
    _, error = load_builtin(builtin, tmp_path)
    assert "damaged and was deleted" in error
    assert not list(tmp_path.glob("keras/models/*.keras"))


def test_builtin_random_weights_ask_nobody(builtin, tmp_path):
    code = "print(presets.read_preset('tiny', load_weights=False).encoder['num_heads'])"
    assert load_builtin(builtin, tmp_path, code) == ("3", "")
    assert builtin.requests == []


def test_builtin_encoder_alone(builtin, tmp_path):
    code = "p = presets.read_preset('tiny_encoder'); print(sorted(p.parts), len(p.arrays))"
    with h5py.File(FIXTURE / "model.weights.h5") as file:
        encoder = [0]
        file.visititems(
            lambda name, entry: (
                encoder.append(1)
                if isinstance(entry, h5py.Dataset) and not name.startswith(("mask_", "layers/sam_"))
                else None
            )
        )
    assert load_builtin(builtin, tmp_path, code) == (f"['image_encoder'] {sum(encoder)}", "")


def test_builtin_list(builtin, tmp_path):
    code = "print({k: (v['parameters'], v['cached']) for k, v in presets.list_presets().items()})"
    assert load_builtin(builtin, tmp_path, code)[0] == "{'tiny': (12345, None)}"
    load_builtin(builtin, tmp_path)
    path = tmp_path / "kaggle/models/keras/sam/keras/tiny/5/model.weights.h5"
    assert load_builtin(builtin, tmp_path, code)[0] == f"{{'tiny': (12345, {str(path)!r})}}"


def test_the_released_presets_name_their_sources():
    for name in ("sam_base_sa1b", "sam_large_sa1b", "sam_huge_sa1b"):
        kaggle, hub, meta = locate.metadata(name)["sources"]
        assert kaggle == {"kaggle": f"keras/sam/keras/{name}/5", "file": "model.weights.h5"}
        size = name.split("_")[1]
        assert hub == {"hugging_face": f"facebook/sam-vit-{size}", "file": "model.safetensors"}
        assert meta["url"].startswith("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_")
        assert (len(meta["sha256"]), len(meta["md5"])) == (64, 32)
        assert meta["url"].removesuffix(".pth")[-6:] == meta["md5"][:6], "Meta's names hold it"
        assert locate.aliases()[f"vitdet_{size}_sa1b"] == name


def test_parameters_of_the_fixture_are_counted():
    from keras_sam import presets

    counted = sum(int(np.prod(a.shape)) for a in presets.read_preset(FIXTURE).arrays.values())
    assert counted == json.loads((FIXTURE / "metadata.json").read_text())["parameter_count"]
