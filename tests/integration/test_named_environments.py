"""Environments by a name of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import environments
from bench.environments import build, named
from bench.errors import BenchError
from bench.measure.preflight import check_interpreter, interpreter_of
from bench.recipe.codebases import Codebase, find_codebases
from bench.recipe.plan import Arm
from bench.recipe.workload import Workload
from tests.conftest import FAKE, Cli

CODEBASES = find_codebases([FAKE])
FAKE_CODEBASE = CODEBASES["fake"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))


def arm(**known: str) -> Arm:
    return Arm("a", "fake", "a", {}, "all", Workload(), {}, {}, None, **known)  # type: ignore[arg-type]


def test_adopted_interpreter_runs_the_arms_that_name_it() -> None:
    packages = environments.adopt("mine", FAKE_CODEBASE, Path(sys.executable))
    assert "numpy" in packages
    assert interpreter_of(arm(environment="mine"), FAKE_CODEBASE) == Path(sys.executable)
    assert [(one.name, one.codebase) for one in environments.list_environments()] == [("mine", "fake")]
    environments.remove_named("mine")
    assert environments.names() == []
    assert Path(sys.executable).exists()


def test_environment_of_the_codebase_name_is_its_default() -> None:
    environments.adopt("mmdet", CODEBASES["mmdet"].model_copy(update={"environment": FAKE_CODEBASE.environment}),
                       Path(sys.executable))  # fmt: skip
    assert environments.python_of(CODEBASES["mmdet"]) == Path(sys.executable)


def test_interpreter_that_lacks_the_codebase_is_refused() -> None:
    wanted = FAKE_CODEBASE.environment.model_copy(update={"smoke": "no_such_module"})
    lacking = FAKE_CODEBASE.model_copy(update={"environment": wanted})
    with pytest.raises(BenchError, match="no_such_module"):
        environments.adopt("mine", lacking, Path(sys.executable))
    with pytest.raises(BenchError, match="not a Python interpreter"):
        environments.adopt("mine", FAKE_CODEBASE, Path("/bin/false"))
    assert environments.names() == []


def test_adapter_is_imported_in_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_interpreter(Path(sys.executable), FAKE_CODEBASE)
    monkeypatch.chdir(Path(sys.executable).parents[1])
    check_interpreter(Path("bin") / Path(sys.executable).name, FAKE_CODEBASE)
    with pytest.raises(BenchError, match="this is a folder"):
        check_interpreter(Path("bin"), FAKE_CODEBASE)
    (tmp_path / "adapter.py").write_text("import no_such_module\n")
    broken = FAKE_CODEBASE.model_copy(update={"folder": tmp_path})
    with pytest.raises(BenchError, match="no_such_module"):
        check_interpreter(Path(sys.executable), broken)
    with pytest.raises(BenchError, match="this is no Python interpreter"):
        check_interpreter(Path("/bin/ls"), broken)


def test_arm_without_its_interpreter_fails_with_the_path(cli: Cli) -> None:
    done = cli.run(cli.recipe(arms=[{"codebase": "fake", "python": "/no/python"}], baseline={}), "--trust")
    assert done.code == 4
    assert "/no/python: not an interpreter that can be started" in done.err
    assert "None" not in done.err


def test_names_of_environments_are_hinted_at(cli: Cli) -> None:
    environments.adopt("fake-mine", FAKE_CODEBASE, Path(sys.executable))
    for command in ("check", "remove"):
        done = cli("env", command, "fake-min", "--adapters", FAKE)
        assert (done.code, "did you mean fake-mine" in done.err) == (2, True)


def test_unknown_name_and_name_of_another_codebase_are_refused() -> None:
    with pytest.raises(BenchError, match="no environment is called 'mine'"):
        interpreter_of(arm(environment="mine"), FAKE_CODEBASE)
    environments.adopt("mine", FAKE_CODEBASE, Path(sys.executable))
    with pytest.raises(BenchError, match="is of fake, not of native"):
        named.named_python("mine", CODEBASES["native"])
    with pytest.raises(BenchError, match="taken by another"):
        environments.create(CODEBASES["mmdet"], name="mine", pins=["mmdet==3.2.0"])


def test_own_interpreter_has_to_be_there(tmp_path: Path) -> None:
    assert interpreter_of(arm(python=sys.executable), FAKE_CODEBASE) == Path(sys.executable)
    with pytest.raises(BenchError, match="not an interpreter"):
        interpreter_of(arm(python=str(tmp_path)), FAKE_CODEBASE)


def test_pins_make_an_environment_that_needs_a_name() -> None:
    with pytest.raises(BenchError, match="--as NAME"):
        environments.create(CODEBASES["mmdet"], pins=["mmdet==3.2.0"])


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        ({"paddlepaddle": "3.3.1"}, "paddlepaddle-gpu==3.3.1"),
        ({"mmcv-lite": "2.1.0"}, "--group compiled-ops"),
        ({"torch": "2.14.1"}, ""),
    ],
)
def test_advice_for_a_gpu_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], words: str
) -> None:
    codebase: Codebase = CODEBASES["mmdet"]
    folder = environments.folder_of_name("x")
    lock = {"codebase": "mmdet", "packages": packages, "interpreter": sys.executable}
    monkeypatch.setattr("bench.environments.store.lock_of", lambda _: lock)
    assert build.gpu_advice(codebase, folder) == ""
    monkeypatch.setattr(build, "NVIDIA_DRIVER", tmp_path)
    assert words in build.gpu_advice(codebase, folder)
