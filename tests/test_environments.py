"""Environments of codebases, tried with wheels of a few lines and no network."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench import environments
from bench.errors import BenchError
from bench.recipe.codebases import Codebase, Environment, Step

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
    step = Step(pip=["--no-index", "--find-links", str(wheels), *pins])
    environment = {"python": THIS_PYTHON, "steps": [step], **environment}
    return Codebase(
        name=name, title=name, packages=[], models={}, environment=Environment(kind="own", **environment)
    )


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


def test_a_created_environment_runs_what_the_adapter_pinned_and_drift_from_it_is_found(wheels: Path) -> None:
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
    assert listed.size_bytes > 100_000
    assert listed.create_s > 0

    # A second create finds it, and does not touch it.
    said.clear()
    assert environments.create(codebase, progress=said.append) == folder
    assert ["already there" in line for line in said] == [True]

    update = [python, "-m", "pip", "install", "-q", "--no-index", f"--find-links={wheels}", "tinydet==2.0"]
    subprocess.run(update, check=True)
    assert [str(drift) for drift in environments.check(codebase)] == ["tinydet is 2.0, locked is 1.0"]
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "tinydet"], check=True)
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


def test_a_failed_create_shows_the_end_of_pips_output_and_leaves_no_half_environment(
    wheels: Path, cache: Path
) -> None:
    codebase = codebase_with(wheels, "tinydet==3.0")
    with pytest.raises(BenchError) as error:
        environments.create(codebase, progress=silent)
    assert "tinydet==3.0" in error.value.message
    assert "No matching distribution" in Path(error.value.where or "").read_text()
    assert environments.list_environments() == []
    assert [path.name for path in (cache / "envs").iterdir()] == [".tiny.lock"]
    with pytest.raises(BenchError) as missing:
        environments.python_of(codebase)
    assert missing.value.hint == "bench env create tiny"


def test_an_interrupted_or_killed_create_is_not_taken_for_an_environment(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebase = codebase_with(wheels, "tinydet==1.0")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environments, "_install", interrupted)
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


def test_only_the_named_packages_of_benchs_environment_are_shared_and_pip_cannot_delete_them(
    wheels: Path,
) -> None:
    """`pydantic` is named, so what it requires comes along; `pytest` is not and stays invisible. The
    codebase's own pin of a shared package wins, and replacing it there leaves bench's own untouched."""
    here = importlib.metadata.version("annotated_types")
    write_wheel(wheels, "annotated_types", "0.0.1")
    codebase = codebase_with(wheels, "annotated_types==0.0.1", overlay=["pydantic"])
    folder = environments.create(codebase, progress=silent)
    python = environments.python_of(codebase)
    assert run_python(python, "import pydantic_core; print(pydantic_core.__version__)")
    assert "No module named 'pytest'" in run_python(
        python, "try: import pytest\nexcept ImportError as e: print(e)"
    )
    assert run_python(python, "import annotated_types; print(annotated_types.version)") == "0.0.1"
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-q", "-y", "pydantic-core", "annotated_types"], check=False
    )
    assert importlib.metadata.version("annotated_types") == here
    assert run_python(Path(sys.executable), "import annotated_types, pydantic_core; print(1)") == "1"
    lock = environments.read_lock(folder)
    assert "pydantic-core" in lock["shared"]
    assert "annotated-types" not in lock["shared"]


def test_namespace_folders_are_shared_by_distribution_and_not_as_a_whole(tmp_path: Path) -> None:
    """`nvidia/` belongs to many distributions: sharing one of them must not share the others."""
    site = tmp_path / "site"
    for name, files in {
        "one": ["space/one/lib.so", "one.libs/a.so", "one-1.dist-info/METADATA", "../../bin/one"],
        "two": ["space/two/lib.so", "two-1.dist-info/METADATA"],
    }.items():
        for file in files[:-1] if name == "one" else files:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(f"Name: {name}\nVersion: 1\n")
        (site / f"{name}-1.dist-info" / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    (one,) = importlib.metadata.distributions(name="one", path=[str(site)])
    environments.link_distribution(one, tmp_path / "overlay")
    shared = {str(path.relative_to(tmp_path / "overlay")) for path in (tmp_path / "overlay").rglob("*")}
    assert shared == {"one.libs", "one-1.dist-info", "space", "space/one"}
    assert (tmp_path / "overlay/space/one/lib.so").read_text()


@pytest.mark.slow
def test_what_had_to_be_compiled_is_built_once_and_again_only_for_another_version_it_was_linked_with(
    wheels: Path, tmp_path: Path
) -> None:
    source = tmp_path / "compiled"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (source / "backend.py").write_text(
        "import os, shutil\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        "    open(os.environ['BUILDS'], 'a').write('built ')\n"
        "    name = 'compiled-1.0-py3-none-any.whl'\n"
        f"    shutil.copy({str(wheels)!r} + '/' + name, folder)\n"
        "    return name\n"
    )
    write_wheel(wheels, "compiled", "1.0")
    builds = tmp_path / "builds"

    def codebase(pin: str) -> Codebase:
        build = Step(
            pip=["--no-index", "{adapter}"], build_against=["tinydet"], variables={"BUILDS": str(builds)}
        )
        made = codebase_with(wheels, pin, groups={"compiled-ops": [build]})
        return made.model_copy(update={"folder": source})

    first = environments.create(codebase("tinydet==1.0"), ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built "
    # Who built the optional kernels wants them used, also where they are not asked for by name.
    assert environments.python_of(codebase("tinydet==1.0")).is_relative_to(first)
    environments.remove(codebase("tinydet==1.0"))
    environments.create(codebase("tinydet==1.0"), ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built "
    environments.create(codebase("tinydet==2.0"), ["compiled-ops"], progress=silent)
    assert builds.read_text() == "built built "
    with pytest.raises(BenchError, match="no optional group 'compiled-op'") as error:
        environments.create(codebase("tinydet==1.0"), ["compiled-op"], progress=silent)
    assert error.value.hint == "did you mean compiled-ops?"


def test_a_requirement_that_no_pin_names_is_reported_with_the_line_to_add(wheels: Path) -> None:
    write_wheel(wheels, "hungry", "1.0", requires=("tinydet<2",))
    codebase = codebase_with(wheels, "hungry==1.0")
    said: list[str] = []
    environments.create(codebase, progress=said.append)
    expected = "tinydet 1.0 is not pinned; add tinydet==1.0 to adapter.yaml"
    assert [str(drift) for drift in environments.check(codebase)] == [expected]
    assert any(expected in line for line in said)


def test_steps_that_contradict_each_other_are_an_error(wheels: Path) -> None:
    second = Step(pip=["--no-index", "--find-links", str(wheels), "hungry==1.0"])
    write_wheel(wheels, "hungry", "1.0", requires=("tinydet>=2",))
    codebase = codebase_with(wheels, "tinydet==1.0")
    environment = codebase.environment.model_copy(update={"steps": [*codebase.environment.steps, second]})
    with pytest.raises(BenchError, match=r"tinydet is 2\.0, locked is 1\.0"):
        environments.create(codebase.model_copy(update={"environment": environment}), progress=silent)
    assert environments.list_environments() == []


def test_a_codebase_of_benchs_own_environment_needs_no_other(cache: Path) -> None:
    codebase = Codebase(name="native", title="native", packages=["torch"], models={})
    assert environments.python_of(codebase) == Path(sys.executable)
    environments.create(codebase, progress=silent)
    assert environments.versions(codebase)["numpy"] == importlib.metadata.version("numpy")
    assert not cache.exists()
    with pytest.raises(BenchError, match="own environment"):
        environments.remove(codebase)


def test_drift_of_benchs_own_environment_is_measured_against_its_own_pins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codebase = Codebase(name="native", title="native", packages=["torch"], models={})
    installed = importlib.metadata.version("numpy")
    pins = [f"numpy=={installed}", "pandas==0.1; extra == 'native'", "not-installed==1.0"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: pins)
    assert [(drift.package, drift.locked) for drift in environments.check(codebase)] == [("pandas", "0.1")]


def test_a_python_that_is_not_installed_is_named(wheels: Path) -> None:
    with pytest.raises(BenchError, match=r"needs python 3\.1, which is not on PATH"):
        environments.create(codebase_with(wheels, "tinydet==1.0", python="3.1"), progress=silent)
    with pytest.raises(BenchError, match=r"shares pydantic with bench"):
        environments.create(
            codebase_with(wheels, "tinydet==1.0", python="3.1", overlay=["pydantic"]), progress=silent
        )


def test_a_lock_that_is_not_readable_is_no_environment(wheels: Path) -> None:
    folder = environments.create(codebase_with(wheels, "tinydet==1.0"), progress=silent)
    for content in ("", json.dumps([1])):
        (folder / "lock.json").write_text(content)
        assert environments.list_environments() == []
