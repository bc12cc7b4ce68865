"""Environments of codebases, tried with wheels of a few lines and no network."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import environments
from bench.environments import build, installer
from bench.errors import BenchError
from bench.recipe.codebases import Codebase, Environment, Step, find_codebases
from tests.conftest import ROOT

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def write_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """The smallest thing that pip calls a wheel: one module with a version, and its metadata."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"version = '{version}'\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {requirement}\n" for requirement in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, content)


def codebase_with(wheels: Path, *pins: str, name: str = "tiny", **environment: Any) -> Codebase:
    step = Step(packages=list(pins), options=offline(wheels))
    environment = {"python": THIS_PYTHON, "steps": [step], **environment}
    return Codebase(
        name=name, title=name, packages=[], models={}, environment=Environment(kind="own", **environment)
    )


def offline(wheels: Path) -> list[str]:
    return ["--no-index", "--find-links", str(wheels)]


def uv_pip(command: str, python: Path, *arguments: str) -> None:
    subprocess.run([installer.uv(), "pip", command, "-q", "--python", python, *arguments], check=True)


def run_python(python: Path, code: str) -> str:
    return subprocess.run([python, "-Ic", code], capture_output=True, text=True).stdout.strip()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    write_wheel(folder, "tinydet", "1.0")
    write_wheel(folder, "tinydet", "2.0")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(_: str) -> None:
    pass


def test_drift_from_a_created_environment_is_found(wheels: Path) -> None:
    codebase = codebase_with(wheels, "tinydet==1.0", smoke="tinydet")
    said: list[str] = []
    folder = environments.create(codebase, progress=said.append)
    python = environments.python_of(codebase)
    assert run_python(python, "import tinydet; print(tinydet.version)") == "1.0"
    assert any("step 1/1" in line for line in said)
    assert environments.check(codebase) == []
    assert environments.versions(codebase)["tinydet"] == "1.0"
    (listed,) = environments.list_environments()
    assert (listed.codebase, listed.folder) == ("tiny", folder)
    assert listed.size_bytes > 0
    assert listed.create_s > 0

    # A second create finds it, and does not touch it.
    said.clear()
    assert environments.create(codebase, progress=said.append) == folder
    assert ["already there" in line for line in said] == [True]

    uv_pip("install", python, *offline(wheels), "tinydet==2.0")
    assert [str(drift) for drift in environments.check(codebase)] == ["tinydet is 2.0, locked is 1.0"]
    uv_pip("uninstall", python, "tinydet")
    with pytest.raises(BenchError, match="does not import tinydet"):
        environments.check(codebase)

    # Another pin is another environment: the old one is never used for it.
    other = codebase_with(wheels, "tinydet==2.0")
    with pytest.raises(BenchError) as error:
        environments.python_of(other)
    assert "other versions" in error.value.message
    assert error.value.hint == "bench env create tiny"
    assert environments.remove(codebase) == [folder]
    assert not folder.exists()


def test_a_failed_create_leaves_a_log_and_no_environment(wheels: Path, cache: Path) -> None:
    codebase = codebase_with(wheels, "tinydet==3.0")
    with pytest.raises(BenchError) as error:
        environments.create(codebase, progress=silent)
    assert "tinydet==3.0" in error.value.message
    assert "there is no version of tinydet==3.0" in Path(error.value.where or "").read_text()
    assert environments.list_environments() == []
    assert [path for path in (cache / "envs").iterdir() if path.is_dir()] == []
    with pytest.raises(BenchError) as missing:
        environments.python_of(codebase)
    assert missing.value.hint == "bench env create tiny"


def test_an_interrupted_or_killed_create_leaves_no_environment(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebase = codebase_with(wheels, "tinydet==1.0")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environments.create(codebase, progress=silent)
        assert [path for path in (cache / "envs").iterdir() if path.is_dir()] == []

    # What a kill leaves: everything but the lock, which is written last.
    folder = environments.create(codebase, progress=silent)
    (folder / "lock.json").unlink()
    (folder / "garbage").touch()
    with pytest.raises(BenchError, match="has not been created"):
        environments.python_of(codebase)
    assert environments.create(codebase, progress=silent) == folder
    assert not (folder / "garbage").exists()
    assert environments.python_of(codebase).exists()


def test_two_creates_at_once_build_one_environment(wheels: Path) -> None:
    codebase = codebase_with(wheels, "tinydet==1.0")
    said: list[str] = []
    threads = [threading.Thread(target=environments.create, args=(codebase, (), said.append)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for what in ("waiting for", "already there", ": ready after"):
        assert sum(what in line for line in said) == 1, said
    assert len(environments.list_environments()) == 1


def test_environments_store_a_package_once(wheels: Path, cache: Path) -> None:
    """Two environments and uv's cache hold one file of tinydet; removing one leaves the others whole."""
    first, second = (codebase_with(wheels, "tinydet==1.0", name=name) for name in ("one", "two"))
    modules = [
        next(environments.create(codebase, progress=silent).glob("venv/lib/*/site-packages/tinydet.py"))
        for codebase in (first, second)
    ]
    assert modules[0].stat().st_ino == modules[1].stat().st_ino
    assert modules[0].stat().st_nlink == 3
    environments.remove(first)
    assert environments.check(second) == []


def test_locked_requirements_are_read_beside_the_adapter(wheels: Path, tmp_path: Path) -> None:
    def codebase(version: str) -> Codebase:
        (tmp_path / "requirements.txt").write_text(f"tinydet=={version}\n")
        step = Step(requirements="requirements.txt", options=offline(wheels))
        return codebase_with(wheels, steps=[step], smoke="tinydet").model_copy(update={"folder": tmp_path})

    folder = environments.create(codebase("1.0"), progress=silent)
    assert environments.versions(codebase("1.0")) == {"tinydet": "1.0"}
    # Another content of the file is another environment.
    assert environments.create(codebase("2.0"), progress=silent) != folder
    assert environments.versions(codebase("2.0")) == {"tinydet": "2.0"}


def test_only_what_is_listed_is_installed(wheels: Path) -> None:
    write_wheel(wheels, "hungry", "1.0", requires=("tinydet<2",))
    environments.create(codebase_with(wheels, "hungry==1.0"), progress=silent)
    assert environments.versions(codebase_with(wheels, "hungry==1.0")) == {"hungry": "1.0"}


def write_sdist(folder: Path, build: str) -> None:
    """A source distribution whose wheel is made by these statements."""
    body = "".join(f"    {line}\n" for line in build.splitlines())
    arguments = "folder, config_settings=None, metadata_directory=None"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: compiled\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"import os, shutil, subprocess\ndef build_wheel({arguments}):\n{body}",
    }
    with tarfile.open(folder / "compiled-1.0.tar.gz", "w:gz") as sdist:
        for name, content in files.items():
            member = tarfile.TarInfo(f"compiled-1.0/{name}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content.encode()))


def compiling(wheels: Path, **variables: str) -> Step:
    return Step(
        packages=["compiled==1.0"], options=offline(wheels), build_against=["tinydet"], variables=variables
    )


def test_an_interrupted_build_leaves_no_process(wheels: Path, tmp_path: Path) -> None:
    write_sdist(wheels, "subprocess.run('echo $$ > $PID.new; mv $PID.new $PID; sleep 60', shell=True)")
    file = tmp_path / "pid"
    codebase = codebase_with(wheels, "tinydet==1.0", groups={"ops": [compiling(wheels, PID=str(file))]})

    def interrupt(line: str) -> None:
        if "Building" in line:
            while not file.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.create(codebase, ["ops"], progress=interrupt)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.nightly
def test_what_was_compiled_is_kept_for_what_it_fits(wheels: Path, tmp_path: Path) -> None:
    write_sdist(
        wheels,
        "open(os.environ['BUILDS'], 'a').write('built ')\n"
        "return os.path.basename(shutil.copy(os.environ['WHEEL'], folder))",
    )
    write_wheel(tmp_path, "compiled", "1.0")
    builds = tmp_path / "builds"
    step = compiling(wheels, BUILDS=str(builds), WHEEL=str(tmp_path / "compiled-1.0-py3-none-any.whl"))
    first, other = (
        codebase_with(wheels, f"tinydet=={version}", groups={"compiled-ops": [step]})
        for version in ("1.0", "2.0")
    )
    folder = environments.create(first, ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built "
    # Who built the optional kernels wants them used, also where they are not asked for by name.
    assert environments.python_of(first).is_relative_to(folder)
    environments.remove(first)
    environments.create(first, ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built "
    environments.create(other, ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built built "
    with pytest.raises(BenchError, match="no optional group 'compiled-op'") as error:
        environments.create(first, ["compiled-op"], progress=silent)
    assert error.value.hint == "did you mean compiled-ops?"


def test_uv_takes_pips_indexes_and_wheels(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pip's two places for settings its variables win over its file; a variable of uv wins over both."""
    config = wheels / "pip.conf"
    config.write_text("[global]\nindex-url = file:///from-file\nfind-links =\n  /one\n  /two\n")
    for variable in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "file:///from-variable")
    monkeypatch.setenv("PIP_CERT", "/some/cert")
    settings = installer.pip_settings()
    assert settings["UV_DEFAULT_INDEX"] == "file:///from-variable"
    assert settings["UV_FIND_LINKS"] == "/one,/two"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert settings["SSL_CERT_FILE"] == "/some/cert"
    monkeypatch.setenv("UV_FIND_LINKS", "/three")
    assert installer.variables()["UV_FIND_LINKS"] == "/three"


def test_codebases_on_torch_are_locked_to_the_same_torch() -> None:
    """A ratio of two codebases must not be one of two builds of torch or numpy."""

    def pins(path: Path) -> dict[str, str]:
        lines = (line.partition(" ")[0].lower().split("==") for line in path.read_text().splitlines())
        return {pin[0]: pin[1] for pin in lines if len(pin) == 2}

    own = pins(ROOT / "requirements.lock")
    for name in ("mmdet", "detectron2"):
        locked = pins(find_codebases()[name].folder / "requirements.txt")
        assert {"torch", "torchvision", "numpy"} <= locked.keys()
        shared = locked.keys() & own.keys()
        assert {package: locked[package] for package in shared} == {
            package: own[package] for package in shared
        }


def test_a_codebase_of_benchs_own_environment_needs_no_other(cache: Path) -> None:
    codebase = Codebase(name="native", title="native", packages=["torch"], models={})
    assert environments.python_of(codebase) == Path(sys.executable)
    environments.create(codebase, progress=silent)
    assert environments.versions(codebase)["numpy"] == importlib.metadata.version("numpy")
    assert not cache.exists()
    with pytest.raises(BenchError, match="own environment"):
        environments.remove(codebase)


def test_benchs_own_environment_is_checked_against_its_pins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codebase = Codebase(name="native", title="native", packages=["torch"], models={})
    installed = importlib.metadata.version("numpy")
    pins = [f"numpy=={installed}", "pandas==0.1; extra == 'native'", "not-installed==1.0"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: pins)
    assert [(drift.package, drift.locked) for drift in environments.check(codebase)] == [("pandas", "0.1")]


def test_a_python_that_is_not_installed_is_named(wheels: Path) -> None:
    with pytest.raises(BenchError, match=r"No interpreter found for Python 3\.99 "):
        environments.create(codebase_with(wheels, "tinydet==1.0", python="3.99"), progress=silent)


def test_a_lock_that_is_not_readable_is_no_environment(wheels: Path) -> None:
    folder = environments.create(codebase_with(wheels, "tinydet==1.0"), progress=silent)
    for content in ("", json.dumps([1])):
        (folder / "lock.json").write_text(content)
        assert environments.list_environments() == []


def test_a_lock_of_an_earlier_bench_is_listed(wheels: Path) -> None:
    """It had more fields. Its environment can be listed and removed."""
    codebase = codebase_with(wheels, "tinydet==1.0")
    folder = environments.create(codebase, progress=silent)
    lock = environments.read_lock(folder)
    (folder / "lock.json").write_text(json.dumps({**lock, "shared": [], "not_pinned": []}))
    assert [one.folder for one in environments.list_environments()] == [folder]
    assert environments.remove(codebase) == [folder]
