"""The worker processes of one launch: one process per rank, all in one process group of their own on each machine.

Every launcher is a command line (`launchers.py`); what they have in common is here: environment, log, socket, killing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

import bench.worker
from bench import shipped
from bench.measure import interrupts
from bench.measure.deadline import Deadline, encodable
from bench.measure.family import descendants, is_running, oom_kills
from bench.measure.launchers import Launcher, Rendezvous, allocated, command, meeting
from bench.measure.listening import listening, welcome, write_script
from bench.measure.scratch import MAX_SOCKET_PATH, new_folder, socket_places
from bench.record.models import Reason
from bench.text_safety import visible
from bench.worker.__main__ import PRELOAD_VARIABLE
from bench.worker.channel import SOCKET_VARIABLE, ProtocolError, decode, encode

#: The package of adapters that a worker sees, unless its arm is of another revision of this project.
ADAPTERS = shipped.ROOT / "adapters"

#: Variables of our own interpreter that would lead another one astray.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "PYTHONSAFEPATH")

#: No answer of a worker is as long as this.
MAX_MESSAGE_BYTES = 1 << 28


class WorkerFailure(Exception):
    """A worker did not answer as it should: its arm fails, the others go on."""

    def __init__(self, reason: Reason, message: str, stage: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.stage = stage


#: Threads of what is not timed sleep while they wait: beside other processes, spinning makes a step ten times as long.
UNTIMED = {"OMP_WAIT_POLICY": "passive"}
LOG_TAIL_LINES = 30


@dataclass(frozen=True)
class LaunchSpec:
    """What is needed to start the workers of an arm."""

    python: Path
    launcher: Launcher
    ranks: int
    variables: Mapping[str, str]
    log: Path
    source: Path | None = None
    """A folder to import from before any installed package."""
    adapters: Path = ADAPTERS
    preload: tuple[str, ...] = ()
    """Modules to import in a process that serves no arm but forks workers (`WorkerGroup.server`)."""
    nodes: int = 1
    """Machines that the ranks are spread over."""
    shared: Path | None = None
    """A folder that all of them see."""


def worker_path(folder: Path, adapters: Path = ADAPTERS) -> Path:
    """A folder for PYTHONPATH that shows a foreign interpreter `bench.worker` and `adapters`, and nothing else of
    this project or of the packages installed beside it."""
    package = folder / "bench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "worker").symlink_to(Path(bench.worker.__file__).parent)
    (folder / "adapters").symlink_to(adapters)
    return folder


class Forked:
    """A worker that another process forked, as far as `subprocess.Popen` is needed of it."""

    def __init__(self, server: WorkerGroup, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs. With the server gone it is gone as well: both are killed together."""
        if self._code is None:
            try:
                self._code = self._server.request("poll", 10.0, pid=self.pid)[0]["code"]
            except WorkerFailure:
                self._code = -signal.SIGKILL
        return self._code

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked worker", timeout)
            time.sleep(0.005)
        return code


class WorkerGroup:
    """All ranks of one launch. Use as a context manager: whatever happens inside, its processes end.

    ``server``: a started group with `preload`, which forks the only rank of this one.
    """

    def __init__(self, spec: LaunchSpec, server: WorkerGroup | None = None) -> None:
        self.spec = spec
        self.server = server
        self.pythons: list[str] = []
        self._connections: list[socket.socket] = []
        self._buffers: list[bytearray] = []
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        """What runs the launchers of the other nodes."""
        self._address = ""
        if spec.nodes > 1 and spec.shared is not None:
            self._folder = new_folder([spec.shared])
        else:
            self._folder = new_folder(socket_places(), MAX_SOCKET_PATH)
        self._oom_kills = oom_kills()

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, deadline_s: float) -> None:
        """Start the processes and wait until every rank has said hello."""
        try:
            nodes = allocated(self.spec.nodes)
            at = meeting(nodes) if self.spec.ranks > 1 else None
            opened = listening(self._folder / "s", nodes)
        except (OSError, ValueError) as error:
            raise WorkerFailure("environment", str(error), "hello") from None
        with opened as (server, address):
            self._address = address
            server.listen(self.spec.ranks)
            # First of all the worker of this bench, whatever revision of it the source may hold.
            imports = [worker_path(self._folder / "path", self.spec.adapters), self.spec.source]
            found = [str(path) for path in imports if path]
            self.spec.log.parent.mkdir(parents=True, exist_ok=True)
            if self.server:
                self._process = self._forked(address, found)
            else:
                self._process, *self._others = self._started(address, found, at)
            self._accept(server, address, Deadline(deadline_s))

    def _started(
        self, address: str, imports: list[str], at: Rendezvous | None
    ) -> list[subprocess.Popen[bytes]]:
        """The launcher of each node, this one's first."""
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(imports),
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
            SOCKET_VARIABLE: address,
            **self.spec.variables,
        }
        if self.spec.preload:
            environment[PRELOAD_VARIABLE] = " ".join(self.spec.preload)
        spec, started = self.spec, []
        for number, node in enumerate(at.nodes if at else allocated(1)):
            logs = self._folder / f"ranks-{number}"
            argv = command(spec.launcher, spec.python, spec.ranks, logs, at, number)
            if node.prefix:
                # The environment does not pass to the other machine by itself.
                script = write_script(
                    self._folder / f"node-{number}.sh", argv, environment, self._folder, FOREIGN
                )
                argv = [*node.prefix, "sh", str(script)]
            with spec.log.open("ab") as log:
                try:
                    started.append(
                        subprocess.Popen(
                            argv,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            env=dict(os.environ) if node.prefix else environment,
                            cwd=self._folder,  # `-m` puts the current folder on the path: it must hold nothing
                            start_new_session=True,
                        )
                    )
                except OSError as error:
                    problem = f"cannot start {argv[0]}: {error.strerror}"
                    self._others = started  # they end with this group
                    raise WorkerFailure("environment", problem, "hello") from None
        return started

    def _forked(self, address: str, imports: list[str]) -> Forked:
        assert self.server is not None
        places: dict[str, Any] = {
            "socket": address,
            "log": str(self.spec.log.resolve()),
            "folder": str(self._folder),
        }
        reply = self.server.request("fork", 60.0, path=imports, **places)[0]
        return Forked(self.server, reply["pid"])

    def _accept(self, server: socket.socket, address: str, deadline: Deadline) -> None:
        by_rank: dict[int, tuple[socket.socket, bytearray]] = {}
        while len(by_rank) < self.spec.ranks:
            server.settimeout(0.2)  # only while starting: a process that dies before it connects is noticed
            try:
                with interrupts.allowed():
                    connection, _ = server.accept()
            except TimeoutError:
                assert self._process is not None
                if any(one.poll() is not None for one in (self._process, *self._others)):
                    raise self._ended("hello") from None
                if deadline.over():
                    raise WorkerFailure("hang", "did not start before the deadline", "hello") from None
                continue
            if not welcome(connection, address):
                continue
            self._connections.append(connection)
            buffer = bytearray()
            hello = self._read([(connection, buffer)], deadline, "hello")[0]
            by_rank[int(hello["rank"])] = (connection, buffer)
            self.pythons.append(str(hello["python"]))
        ordered = [by_rank[rank] for rank in sorted(by_rank)]
        self._connections = [connection for connection, _ in ordered]
        self._buffers = [buffer for _, buffer in ordered]

    def request(
        self, kind: str, deadline_s: float, *, by_rank: list[dict[str, Any]] | None = None, **fields: Any
    ) -> list[dict[str, Any]]:
        """Send one message to every rank and wait for all replies, in rank order. Raises WorkerFailure."""
        self.send(kind, by_rank=by_rank, **fields)
        return self.receive(kind, deadline_s)

    def send(self, kind: str, *, by_rank: list[dict[str, Any]] | None = None, **fields: Any) -> None:
        """Send one message to every rank; `receive` waits for what they answer. Raises WorkerFailure."""
        for rank, connection in enumerate(self._connections):
            own = by_rank[rank] if by_rank is not None else {}
            try:
                connection.sendall(encode({"type": kind, **fields, **own}))
            except OSError:
                raise self._ended(kind) from None

    def receive(self, kind: str, deadline_s: float) -> list[dict[str, Any]]:
        """Wait for every rank's reply to the message sent last, in rank order. Raises WorkerFailure."""
        ends = list(zip(self._connections, self._buffers, strict=True))
        replies = self._read(ends, Deadline(deadline_s), kind)
        for rank, reply in enumerate(replies):
            if reply["type"] == "error":
                place = f" (rank {rank})" if self.spec.ranks > 1 else ""
                raise WorkerFailure(reply["reason"], f"{reply['message']}{place}", kind)
            if reply["type"] != kind:
                raise WorkerFailure("protocol", f"answered '{reply['type']}' to '{kind}'", kind)
        return replies

    def _read(
        self, ends: list[tuple[socket.socket, bytearray]], deadline: Deadline, stage: str
    ) -> list[dict[str, Any]]:
        """One message from each end."""
        replies: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for index, (connection, _) in enumerate(ends):
                selector.register(connection, selectors.EVENT_READ, index)
            while len(replies) < len(ends):
                with interrupts.allowed():
                    events = selector.select(deadline.next_wait_s())
                if not events:
                    if not deadline.over():
                        continue
                    raise WorkerFailure("hang", f"no answer to '{stage}' before the deadline", stage)
                for key, _mask in events:
                    index = int(key.data)
                    connection, buffer = ends[index]
                    try:
                        received = connection.recv(1 << 20)
                    except OSError:
                        received = b""
                    if not received:
                        raise self._ended(stage)
                    buffer += received
                    line, newline, rest = buffer.partition(b"\n")
                    if not newline and len(buffer) > MAX_MESSAGE_BYTES:
                        raise WorkerFailure("protocol", "a message without an end", stage)
                    if newline:
                        buffer[:] = rest
                        selector.unregister(connection)
                        try:
                            replies[index] = encodable(decode(bytes(line)))
                        except (ProtocolError, RecursionError) as error:
                            raise WorkerFailure("protocol", str(error), stage) from None
                        # One rank's error must not wait for the others, which may wait for it.
                        if replies[index]["type"] == "error":
                            for missing in range(len(ends)):
                                replies.setdefault(missing, {"type": stage})
                            break
        return [replies[index] for index in range(len(ends))]

    def _ended(self, stage: str) -> WorkerFailure:
        """Why the process is gone."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return WorkerFailure("crash", "a rank closed its channel", stage)
        # A launcher of several ranks says with a code of its own that one was killed.
        killed = code == -signal.SIGKILL or (self.spec.ranks > 1 and code > 0)
        if killed and oom_kills() > self._oom_kills:
            return WorkerFailure("oom", "killed by the kernel: out of memory", stage)
        if code == -signal.SIGKILL:
            return WorkerFailure("killed", "killed by SIGKILL", stage)
        if code < 0:
            return WorkerFailure("crash", f"died of {signal.Signals(-code).name}", stage)
        return WorkerFailure("crash", f"the process ended with exit code {code}", stage)

    def stop(self, deadline_s: float = 30.0) -> None:
        """Say bye and wait for the end; what does not end by itself is killed."""
        with contextlib.suppress(WorkerFailure):
            self.request("bye", deadline_s)
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=deadline_s)
        self.kill()

    def kill(self) -> None:
        """End every process of this launch, whatever group it moved to. Safe to call twice."""
        started = [one for one in (self._process, *self._others) if one is not None]
        if started:
            family = [process for one in started for process in descendants(one.pid)]
            for one in started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(one.pid, signal.SIGKILL)
                one.wait()
            self._process, self._others = None, []
            while survivors := [*filter(is_running, family), *self._survivors()]:
                for survivor in survivors:
                    with contextlib.suppress(psutil.Error):
                        survivor.kill()
                psutil.wait_procs(survivors, timeout=5)
        for connection in self._connections:
            connection.close()
        self._connections, self._buffers = [], []
        self._collect_rank_logs()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _survivors(self) -> list[psutil.Process]:
        """Processes that carry this launch's socket in their environment: also those that left the group or whose
        parent is gone, as launchers and loader processes may have done. `descendants` has those that cleared it."""
        mine = (str(self._folder / "s"), self._address)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(SOCKET_VARIABLE) in mine and is_running(process):
                    found.append(process)
        return found

    def _collect_rank_logs(self) -> None:
        """A launcher that keeps the output of the other ranks in files: append them to the arm's log."""
        for path in sorted(self._folder.glob("ranks-*/workerlog.*")):
            with contextlib.suppress(OSError), self.spec.log.open("ab") as log:
                log.write(f"--- {path.name}\n".encode() + path.read_bytes())


def tail(log: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, whatever bytes a codebase printed; what a terminal would obey as its escape."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            found = file.read().decode("utf-8", "replace").splitlines()[-lines:]
            return [visible(line) for line in found]
    except OSError:
        return []


@contextlib.contextmanager
def refusing_nonsense() -> Iterator[None]:
    """What a worker says and no record can hold is a failure of its arm."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, (error.title, *first["loc"])))
        raise WorkerFailure("protocol", f"{field}: {first['msg']}", "record") from None
