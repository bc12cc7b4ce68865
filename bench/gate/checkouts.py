"""A codebase at a git revision: a work tree of its own, which goes with the check that made it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, near
from bench.recipe.codebases import BUILTIN, Codebase, get_codebase, load_codebase
from bench.recipe.plan import Arm, Checkout


@dataclass(frozen=True)
class Source:
    """A codebase whose source is a git checkout. ``folder``: what is imported from, inside the repository."""

    codebase: Codebase
    repository: Path
    folder: Path
    configs_only: bool = False
    """The repository has configurations for the codebase, which itself is installed."""

    @classmethod
    def of(cls, codebase: Codebase, path: Path, *, configs_only: bool = False) -> Source:
        try:
            top = Path(_git(path, "rev-parse", "--show-toplevel"))
        except BenchError:
            raise BenchError(f"{path} is not in a git checkout", hint="--source CODEBASE=PATH") from None
        return cls(codebase, top, path.resolve().relative_to(top.resolve()), configs_only)

    def commit(self, revision: str) -> str:
        try:
            return _git(self.repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except BenchError:
            names = _git(self.repository, "for-each-ref", "--format=%(refname:short)").split()
            fetched = "CI fetches only the newest commit: actions/checkout with fetch-depth: 0"
            hint = near(revision, names) or fetched
            raise BenchError(f"unknown revision '{revision}' in {self.repository}", hint=hint) from None

    @contextlib.contextmanager
    def checkout(self, commit: str, tree: Path) -> Iterator[Checkout]:
        """A work tree of a commit, gone afterwards."""
        try:
            _git(self.repository, "worktree", "add", "--quiet", "--detach", str(tree), commit)
            yield Checkout(
                commit,
                tree,
                tree / self.folder,
                self._adapter(tree),
                self._in_tree(BUILTIN, tree),
                self.repository,
                self.configs_only,
            )
        finally:
            with contextlib.suppress(BenchError):
                _git(self.repository, "worktree", "remove", "--force", str(tree))
            shutil.rmtree(tree, ignore_errors=True)
            with contextlib.suppress(BenchError):
                _git(self.repository, "worktree", "prune")

    def _adapter(self, tree: Path) -> Codebase:
        """The adapter of that revision, where it is part of the same repository; else the one in use."""
        folder = self._in_tree(self.codebase.folder, tree)
        return load_codebase(folder) if folder and (folder / "adapter.yaml").exists() else self.codebase

    def _in_tree(self, path: Path, tree: Path) -> Path | None:
        top = self.repository.resolve()
        return tree / path.resolve().relative_to(top) if path.resolve().is_relative_to(top) else None


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command. Inside a hook git's own variables would point it to another repository."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=variables
        ).stdout.strip()
    except FileNotFoundError:
        raise BenchError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"git {' '.join(arguments)} failed: {error.stderr.strip()}") from None


def repository_of(folder: Path) -> Path | None:
    """The top of the git checkout that a folder is in, unless it is that of bench itself."""
    try:
        top = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    except BenchError:
        return None
    return None if top == BUILTIN.parent.resolve() else top


def adapters_here(folder: Path) -> list[Path]:
    """Adapter folders that the git checkout around a folder holds; none where it is that of bench itself."""
    top = repository_of(folder)
    listed = _git(top, "ls-files", "--", "adapter.yaml", "*/adapter.yaml").splitlines() if top else []
    return [top / Path(one).parent for one in listed if top and (top / one).with_suffix(".py").is_file()]


def sources_here(folder: Path, codebases: Mapping[str, Codebase], arms: Sequence[Arm]) -> list[Source]:
    """What a check compares when `--source` does not say it.

    Args:
        folder: Where the user is.
        codebases: The known ones, by name.
        arms: Those of the recipe.

    Returns:
        In a checkout of the user's, the measured codebases whose adapter, package, function or configuration it
        holds; else this project's own codebase in its own checkout.

    Raises:
        BenchError: The checkout holds none of them, or arms of one codebase come from several of its folders.
    """
    top = repository_of(folder)
    if top is None:
        if all(arm.codebase != "native" for arm in arms):
            hint = "--source CODEBASE=PATH, or run this in its checkout"
            raise BenchError("no git checkout of a measured codebase", where=str(folder), hint=hint)
        return [Source.of(get_codebase("native", codebases), BUILTIN.parent)]
    found: dict[str, Source] = {}
    for arm in arms:
        path = _code(codebases[arm.codebase], arm, top)
        config = path is None and Path(arm.own_name).is_relative_to(top)
        if path or config:
            source = Source.of(codebases[arm.codebase], path or top, configs_only=config)
            if found.setdefault(arm.codebase, source) != source:
                both = f"{found[arm.codebase].folder or '.'} and {source.folder}"
                raise BenchError(f"arms of {arm.codebase} come from {both}", hint="check one at a time")
    if not found:
        names = ", ".join(sorted({arm.codebase for arm in arms}))
        raise BenchError(
            f"{top} holds neither adapter, package, function nor configuration of {names}",
            hint="--source CODEBASE=PATH of its checkout",
        )
    return list(found.values())


def _code(codebase: Codebase, arm: Arm, top: Path) -> Path | None:
    """The folder of a checkout that an arm is imported from."""
    source = arm.source.resolve() if arm.source else codebase.source_folder
    if source is not None and source.is_relative_to(top):
        return source
    module, function, _ = arm.own_name.partition(":")
    package = module.partition(".")[0] if function else codebase.packages[0].replace("-", "_")
    for folder in (top, top / "src"):
        if (folder / package / "__init__.py").is_file() or (folder / f"{package}.py").is_file():
            return folder
    if codebase.folder.is_relative_to(top):
        return top / "src" if (top / "src").is_dir() else top
    return None


def sources_of(texts: Sequence[str], codebases: Mapping[str, Codebase]) -> list[Source]:
    """`--source CODEBASE=PATH`, one or several. Raises BenchError for another form."""
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not Path(path).is_dir():
            raise BenchError(f"--source {text}: expected CODEBASE=PATH of a git checkout")
        found.append(Source.of(get_codebase(name, dict(codebases)), Path(path)))
    return found
