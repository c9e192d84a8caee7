"""The tools that stand before the code: nothing that fails may look as if it passed."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def tools():
    """The modules of tools/, importable for these tests only."""
    sys.path.insert(0, str(TOOLS))
    names = ("check", "environment")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(TOOLS))
    for name in names:
        del sys.modules[name]


@pytest.fixture
def run_steps(tools, tmp_path, capsys):
    """Runs steps made of test files or commands; gives exit code, results by name and output."""
    check = tools["check"]

    def run(limit=60.0, **steps):
        made = []
        for name, content in steps.items():
            if isinstance(content, str):
                (tmp_path / f"test_{name}.py").write_text(content)
                made.append(
                    check.pytest_step(
                        name, "", f"--rootdir={tmp_path}", str(tmp_path / f"test_{name}.py")
                    )
                )
            else:
                made.append(check.Step(name, "", tuple(content), pytest=False))
        results = check.Runner(sys.executable, tmp_path / "logs", jobs=2, limit=limit).run(made)
        code = check.summarize(results)
        return code, {result.name: result for result in results}, capsys.readouterr().out

    return run


def test_counts_and_exit_code_are_pytests_own(run_steps):
    code, results, output = run_steps(
        good="def test_a(): pass\ndef test_b(): pass",
        mixed="import pytest\ndef test_a(): pass\ndef test_b(): assert 0, 'the cause'\n"
        "@pytest.mark.skip(reason='no such device')\ndef test_c(): pass",
    )
    assert code == 1
    assert (results["good"].passed, results["good"].failed) == (2, 0)
    assert (results["mixed"].passed, results["mixed"].failed) == (1, 1)
    assert "the cause" in output
    assert "skipped in mixed: 1 x no such device" in output
    assert "failed steps: mixed" in output
    assert output.splitlines()[-1] == "3 passed, 1 failed"


def test_success_is_reported_as_such(run_steps):
    code, _, output = run_steps(
        good="def test_a(): pass", command=[["{python}", "-c", "pass"], ["{python}", "-c", "pass"]]
    )
    assert code == 0
    assert output.splitlines()[-1] == "3 passed, 0 failed"
    assert "failed steps" not in output


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import os\ndef test_a(): pass\ndef test_b(): os._exit(0)", "no account"),  # dies, code 0
        ("import os, signal\ndef test_a(): os.kill(os.getpid(), 9)", "signal 9"),  # killed
        ("def not_a_test(): pass", "exit code 5"),  # nothing collected
        ("import no_such_module", "exit code 2"),  # not even importable
        ("def test_a(missing_fixture): pass", "exit code 1"),  # an error, not a failure
        (
            "import pytest\npytest.skip('all', allow_module_level=True)",
            "exit code 5",
        ),  # all skipped
        ([["{python}", "-c", "raise SystemExit(3)"]], "exit code 3"),  # a failing command
        ([["{python}", "-c", "1 / 0"], ["{python}", "-c", "pass"]], "exit code 1"),  # first of two
    ],
)
def test_every_way_to_go_wrong_fails_the_run(run_steps, content, reason):
    code, results, output = run_steps(step=content)
    assert code == 1
    assert results["step"].failed >= 1
    assert reason in results["step"].reason
    assert re.fullmatch(r"\d+ passed, [1-9]\d* failed", output.splitlines()[-1])


def test_tests_do_not_start_without_what_they_need(tools, tmp_path):
    mark = tmp_path / "started"
    commands = (("{python}", "-c", "raise SystemExit(3)"), ("touch", str(mark)))
    runner = tools["check"].Runner(sys.executable, tmp_path / "logs", jobs=1)
    result = runner.one(tools["check"].Step("late", "", commands))
    assert (result.passed, result.failed, result.reason) == (0, 1, "exit code 3")
    assert not mark.exists()


def test_a_hanging_step_is_stopped_with_its_children(run_steps, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code, results, _ = run_steps(
        limit=1.5,
        hang="import subprocess, sys\n"
        f"def test_a(): subprocess.call([sys.executable, '-c', {child!r}])",
    )
    assert code == 1
    assert "stopped after" in results["hang"].reason
    time.sleep(4)
    assert not mark.exists()


def test_steps_run_at_the_same_time(run_steps, tmp_path):
    """Each waits for a file that the other writes."""
    wait = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.touch()\n"
        "for _ in range(600): other.exists() and sys.exit(0) or time.sleep(0.1)\n"
        "sys.exit('nobody came')"
    )
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    code, _, _ = run_steps(
        one=[["{python}", "-c", wait, one, two]], two=[["{python}", "-c", wait, two, one]]
    )
    assert code == 0


def test_every_test_file_belongs_to_a_step(tools):
    """What one of the backends' steps leaves out must be named by another step."""
    check = tools["check"]
    words = [word for step in check.all_steps() for command in step.commands for word in command]
    left_out = {word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")}
    assert left_out
    for name in left_out:
        assert name in words
        assert (ROOT / name).exists()


def test_the_gate_runs_the_command_that_the_readme_gives(tools):
    command = "python3 tools/check.py"
    assert f"exec {command} " in (ROOT / ".ci" / "run").read_text()
    assert command in (ROOT / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, TOOLS / "check.py", "--list"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        step.name for step in tools["check"].all_steps()
    ]


def test_old_pythons_get_one_sentence(tools, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer") as caught:
        tools["environment"].require_python()
    assert "\n" not in str(caught.value)


def test_environment_is_made_once_per_recipe(tools, tmp_path):
    environment = tools["environment"].Environment(tmp_path / "venv", tmp_path / "log", say=print)
    made = []
    environment.ensure(["a"], made.append)
    environment.ensure(["a"], made.append)
    assert made == [environment]
    subprocess.run([environment.python, "-c", "import pip"], check=True)

    def interrupted(environment):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environment.ensure(["b"], interrupted)
    environment.ensure(["b"], made.append)  # starts over
    assert made == [environment, environment]


def test_a_folder_with_other_things_is_left_alone(tools, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    environment = tools["environment"].Environment(tmp_path, tmp_path / "logs" / "log")
    with pytest.raises(tools["environment"].SetupError, match="not a virtual environment"):
        environment.ensure(["a"], lambda environment: None)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_package_that_cannot_be_installed_is_named(tools, tmp_path, monkeypatch):
    environment = tools["environment"].Environment(tmp_path / "venv", tmp_path / "log")
    monkeypatch.setattr(type(environment), "python", property(lambda self: Path(sys.executable)))
    with pytest.raises(tools["environment"].SetupError, match="could not install .*no-such-folder"):
        environment.pip("--no-index", "./no-such-folder")
    assert environment.pip("--no-index", "./no-such-folder", must=False) is False


@pytest.fixture
def backend_suite(tmp_path):
    """A folder with this suite's conftest.py and one test that passes on the given backends."""

    def run(*arguments, good=("jax", "torch", "tensorflow")):
        shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
        (tmp_path / "test_it.py").write_text(
            "import os\n"
            "SEEN = os.environ['KERAS_BACKEND']\n"  # at import, when Keras would read it
            f"def test_it(): assert SEEN in {good!r}\n"
        )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        variables = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # as the steps have
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)

    return run


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_backend_option_is_set_before_tests_are_imported(backend_suite, backend):
    assert backend_suite("--backend", backend, good=(backend,)).returncode == 0


@pytest.mark.parametrize("words", [["--backend=all"], ["--backend", "all", "-x"]])
def test_backend_all_runs_each_in_its_own_process(backend_suite, words):
    done = backend_suite(*words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1 passed") == 3
    done = backend_suite(*words, good=("jax", "tensorflow"))  # the one in the middle fails
    assert done.returncode == 1
    assert done.stdout.count("1 passed") == 2
