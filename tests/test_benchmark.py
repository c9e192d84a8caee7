"""tools/benchmark.py: its table, and with small models that everybody does the same work."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ANSWER = "@@ "  # as benchmark_here.py says it
TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def run(tmp_path):
    """Runs the tool with small models; gives its rows by variant and side, and all it wrote."""

    def run(*words, code=0):
        command = [sys.executable, str(TOOLS / "benchmark.py"), "--quick", "--out", str(tmp_path)]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr  # the table says why
        return what_it_wrote(tmp_path, done.stdout)

    return run


@pytest.fixture
def run_here(tmp_path, here):
    """The same with PyTorch and all sides in one process, for what the cases themselves do."""

    def run(*words):
        code, printed = here(["--quick", "--out", str(tmp_path), *words])
        assert code == 0, printed
        return what_it_wrote(tmp_path, printed)

    return run


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Asks one process for the runs of all tests; gives a run's exit code and what it printed."""
    script = TOOLS.parent / "tests" / "benchmark_here.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("shared"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
    )

    def ask(words):
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        pytest.fail(f"The process ended with exit code {process.wait()}; stderr says why.")

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


def what_it_wrote(folder, printed):
    measured = json.loads((folder / "benchmark.json").read_text())
    table = (folder / "benchmark.md").read_text()
    assert table.strip() == printed.strip()
    for row in measured["rows"]:
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["repeats"] == len(row["all_seconds"])
    rows = {(row["variant"], row["side"]): row for row in measured["rows"]}
    return rows, measured, table


@pytest.fixture(scope="module")
def benchmarks():
    """Modules of tools/benchmarks, importable for these tests only."""
    sys.path.insert(0, str(TOOLS))
    yield {name: importlib.import_module(f"benchmarks.{name}") for name in ("case", "table")}
    sys.path.remove(str(TOOLS))
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


def answer(seconds, **others):
    found = {"seconds": seconds, "first": 7.5, "cpu_seconds": 2 * seconds, "facts": {}}
    memory = {"model": 100_000_000, "preparing": 900_000_000, "idle": 150_000_000}
    return {**found, **memory, "peak": 1_234_000_000, **others}


def test_the_table_says_what_was_measured(benchmarks):
    make = benchmarks["case"].Case
    variants = {"1 prompt": 1, "8 prompts": 8}
    case = make("clicks", {"ours": None, "theirs": None}, variants=variants, unit="ms per prompt")
    answers = {
        ("1 prompt", "ours"): [answer(s) for s in (0.04, 0.01, 0.02)],
        ("8 prompts", "ours"): [
            answer(0.08, facts={"records": 1234, "loss": 0.5}, peak=2e8, first=None)
        ],
        ("1 prompt", "theirs"): [answer(0.05, peak=None)],
        ("8 prompts", "theirs"): [answer(0.32, cpu_seconds=0.0)],
    }
    table = benchmarks["table"]
    rows = table.summarize("decoder", case, answers)
    about = {"date": "2026-01-02", "command": "x --y", "machine": "2 x Z", "backend": "jax"}
    missing = [("decoder", "nobody", "not installed: nobody"), ("huge", "ours", "failed, code 3")]
    lines = table.markdown(rows, {**about, "versions": {"keras": "3"}}, missing).splitlines()
    assert lines[0] == "2026-01-02; 2 x Z; ours on jax; keras 3" and lines[2] == "    x --y"
    assert lines[4] == "### decoder: clicks, median of 3"
    assert lines[8:12] == [
        "| ours, 1 prompt | 20 | 10..40 | 1.00 | 40 | 1.00 | 7.5 | 1,234 | 900 "
        "| 1,134 / 1,084 |  |",
        "| theirs, 1 prompt | 50 | 50..50 | 2.50 | 100 | 2.50 | 7.5 | ? | 900 | ? / ? |  |",
        "| ours, 8 prompts | 10 | 10..10 | 1.00 | 20 | 1.00 | ? | 200 | 900 "
        "| 100 / 50 | 1,234 records, 0.5 loss |",
        "| theirs, 8 prompts | 40 | 40..40 | 4.00 | 0 | 0.00 | 7.5 | 1,234 | 900 "
        "| 1,134 / 1,084 |  |",
    ]
    assert {line.count("|") for line in lines[6:12]} == {12}  # as many cells in each
    assert lines[13] == "* nobody: not installed: nobody"
    assert lines[15] == "### huge" and lines[17] == "* ours: failed, code 3"


def test_all_sides_are_measured_in_turn(run):
    rows, measured, table = run("--cases", "rle", "--repeats", "2")
    assert [side for _, side in rows] == ["ours", "Meta", "pycocotools"]
    assert rows["", "ours"]["facts"] == rows["", "Meta"]["facts"]
    for row in rows.values():
        assert row["repeats"] == 2 and row["peak"] > 1e6
    assert measured["versions"]["keras"] and measured["quick"] is True
    assert measured["missing"] == [] and table.count("| Meta |") == 1


def test_what_cannot_run_is_named_and_the_rest_is_measured(run, tmp_path):
    peer = tmp_path / "peer" / "keras_hub.py"
    peer.parent.mkdir()
    words = ["--cases", "encoder", "rle", "--sides", "KerasHub, float32", "pycocotools"]
    words += ["--repeats", "1", "--keras-hub", str(peer.parent)]
    peer.write_text("raise ImportError('it wants something')")
    rows, measured, table = run(*words)
    assert list(rows) == [("", "pycocotools")]
    assert "* KerasHub, float32: " in table and "it wants something" in table
    peer.write_text("import os; os._exit(3)")
    rows, measured, table = run(*words, code=1)
    assert list(rows) == [("", "pycocotools")]
    assert measured["missing"] == [["encoder", "KerasHub, float32", "failed, exit code 3"]]


def assert_same_work(rows, fact, first="ours, float32", bound=1e-3):
    """All that have the same weights come to the same, roughly so in bfloat16."""
    for variant in {variant for variant, _ in rows}:
        expected = rows[variant, first]["facts"][fact]
        for (of, side), row in rows.items():
            if of == variant:
                allowed = 0.05 if "bfloat16" in side else bound
                assert row["facts"][fact] == pytest.approx(expected, rel=allowed), side


def test_encoders(run_here, tmp_path):
    for name in ("openvino", "onnxruntime", "transformers"):
        pytest.importorskip(name)
    peer = tmp_path / "peer" / "keras_hub.py"  # as KerasHub's, whose classes ours are named after
    peer.parent.mkdir()
    peer.write_text("from keras_sam.compat.keras_hub import models")
    words = ["--cases", "encoder", "--repeats", "1", "--keras-hub", str(peer.parent)]
    words += ["--sides", "ours", "Meta", "transformers", "KerasHub, float32", "alone, float32"]
    rows, measured, _ = run_here(*words)
    assert measured["missing"] == [] and len(rows) == 10
    with_the_same_weights = {
        key: row
        for key, row in rows.items()
        if not key[1].startswith(("KerasHub", "the backend's"))
    }
    assert_same_work(with_the_same_weights, "largest value")
    assert len(with_the_same_weights) == 8


def test_the_encoders_of_sam2(run_here):
    pytest.importorskip("transformers")
    words = ["--cases", "hiera", "--repeats", "1", "--sides", "float32"]
    rows, measured, _ = run_here(*words)
    assert measured["missing"] == [] and len(rows) == 3
    same = {key: row for key, row in rows.items() if "SAM 2.1" in key[1]}
    assert_same_work(same, "largest value", first="ours, SAM 2.1 tiny, float32")


def test_the_encoders_of_mobile_sam_and_a_click_with_each_model(run_here):
    if importlib.util.find_spec("mobile_sam") is None:  # cannot be imported without stand-ins
        pytest.skip("mobilesam-mirror is not installed")
    words = ["--cases", "mobile", "family", "--repeats", "1", "--sides", "float32", "ours, SAM"]
    rows, measured, _ = run_here(*words)
    assert measured["missing"] == []
    same = {key: row for key, row in rows.items() if "MobileSAM" in key[1]}
    assert_same_work(same, "largest value", first="ours, MobileSAM, float32")
    clicked = {
        side for _, side in rows if side in ("ours, SAM", "ours, SAM-HQ", "ours, SAM 2.1 tiny")
    }
    assert len(clicked) == 3


def test_decoders(run_here):
    for name in ("openvino", "transformers"):
        pytest.importorskip(name)
    rows, measured, table = run_here("--cases", "decoder", "--repeats", "1")
    assert measured["missing"] == [] and len(rows) == 3 * 7
    assert_same_work(rows, "deviation")
    assert "| CPU ms per prompt |" in table and "| Meta, float32, 64 prompts |" in table


def test_exported_files(run_here):
    for name in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    cases = ("export_encoder", "export_decoder", "export_predictor")
    sides = ("in ONNX Runtime", "exported, in", "Keras on")
    rows, measured, _ = run_here("--cases", *cases, "--repeats", "1", "--sides", *sides)
    assert measured["missing"] == []
    compared = {
        "export_encoder": ("largest value", "ours in ONNX Runtime, float32", 2),
        "export_decoder": ("deviation", "ours in ONNX Runtime", 3),
        "export_predictor": ("result", "Keras on torch", 6),
    }
    for case, (fact, first, count) in compared.items():
        of_case = {key: row for key, row in rows.items() if row["case"] == case}
        assert len(of_case) == count
        assert_same_work(of_case, fact, first=first)


def test_everybody_answers_a_click_alike(run_here):
    rows, _, _ = run_here("--cases", "click", "--repeats", "1")
    assert_same_work(rows, "pixels", bound=0.01)


def test_everybody_takes_the_same_training_step(run_here):
    rows, _, _ = run_here("--cases", "train", "--repeats", "1")
    assert_same_work(rows, "loss", first="ours", bound=0.01)


def test_loading_and_importing(run_here):
    rows, measured, _ = run_here("--cases", "load", "import", "--repeats", "1")
    assert measured["missing"] == []
    loaded = {key: row for key, row in rows.items() if key[0]}
    assert_same_work(loaded, "million weights", first="ours", bound=0.02)
    assert rows["", "keras_sam, after keras"]["seconds"] < rows["", "keras"]["seconds"]
    assert rows["", "keras"]["peak"] is None


def test_int8_says_what_it_costs(run):
    pytest.importorskip("skimage")
    rows, _, _ = run("--cases", "int8", "--repeats", "1", "--backend", "jax")
    facts = rows["", "ours, int8"]["facts"]
    found = facts["mask IoU with float32, of 24 coins"]
    assert 0.95 < found < 1.0  # not the same weights, nearly the same masks
    assert facts["largest value"] == pytest.approx(
        rows["", "ours, float32"]["facts"]["largest value"], rel=0.05
    )


def test_a_busy_neighbour_changes_no_mask(run_here):
    sides = ("on torch, imported", "on torch, OMP")
    rows, _, table = run_here("--cases", "busy", "--repeats", "1", "--sides", *sides)
    assert len(rows) == 4 and len({row["facts"]["pixels"] for row in rows.values()}) == 1
    assert "| on torch, OMP_WAIT_POLICY=passive, busy |" in table
