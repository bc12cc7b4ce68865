"""Slurm with several nodes on one host, from Debian's packages, which are unpacked and not installed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

PACKAGES = [
    "slurmd", "slurmctld", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libhwloc15",
]  # fmt: skip

CONFIGURATION = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=5
KillWait=1
MinJobAge=30
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
{nodes}
PartitionName=bench Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
"""


def unpacked() -> Path:
    """A folder with the programs; the test is skipped where the packages cannot be had."""
    root = Path(os.path.expanduser("~/.cache/bench-tests/slurm"))
    if not (root / "complete").exists():
        if os.getuid() or not shutil.which("apt-get") or not shutil.which("dpkg"):
            pytest.skip("Slurm's daemons need Debian's packages and root")
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        command = ["apt-get", "download", *PACKAGES]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"Debian's packages of Slurm cannot be had: {done.stderr.strip()[-200:]}")
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        (root / "complete").touch()
    return root


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Cluster:
    """A controller and some nodes. Use as a context manager."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.root = folder, unpacked()
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        library = self.root / "usr/lib/x86_64-linux-gnu"
        plugins = library / "slurm-wlm"
        ctld, *ports = free_ports(nodes + 1)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "LD_LIBRARY_PATH": f"{plugins}:{library}",
            "PATH": f"{self._commands()}:{os.environ['PATH']}",
        }
        (folder / "state").mkdir(parents=True)
        lines = [
            f"NodeName={name} NodeHostname={platform.node()} NodeAddr=127.0.0.{at} Port={port} CPUs=2 RealMemory=1000"
            for at, (name, port) in enumerate(zip(self.names, ports, strict=True), start=1)
        ]
        values = {"host": platform.node(), "ctld": ctld, "folder": folder, "plugins": plugins}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(nodes="\n".join(lines), **values))

    def _commands(self) -> Path:
        """Slurm's commands by the names that users know."""
        commands = self.folder / "bin"
        commands.mkdir(parents=True)
        for path in (self.root / "usr/bin").iterdir():
            (commands / path.name.removesuffix("-wlm")).symlink_to(path)
        return commands

    def __enter__(self) -> Cluster:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        sbin, folder = self.root / "usr/sbin", self.folder
        munge = [
            f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")
        ]
        self._start(
            "munged", sbin / "munged", "-F", "-f", f"--key-file={key}", f"--seed-file={folder}/seed", *munge
        )
        self._until(lambda: (folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", sbin / "slurmctld-wlm", "-D", "-i")
        for name in self.names:
            self._start(name, sbin / "slurmd-wlm", "-D", "-N", name, "-d", sbin / "slurmstepd-wlm")
        self._until(
            lambda: self.command("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(self.names),
            "sinfo",
        )
        return self

    def _start(self, name: str, *command: object) -> None:
        log = (self.folder / f"{name}.out").open("wb")
        self.processes[name] = subprocess.Popen(
            list(map(str, command)), env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def _until(self, ready: object, what: str) -> None:
        for _ in range(300):
            if ready():  # type: ignore[operator]
                return
            time.sleep(0.1)
        said = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self.folder.glob("*.out"))
        logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
        raise AssertionError(f"{what} is not ready\n{said}\n{logs}")

    def command(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def kill(self, name: str) -> None:
        """End a node without a word: its daemon, and all that it started."""
        daemon = psutil.Process(self.processes.pop(name).pid)
        # A step daemon is no child of slurmd: it names its node in its arguments or its environment.
        family = [daemon, *daemon.children(recursive=True)]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mine = process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if mine and process.environ().get("SLURMD_NODENAME") == name:
                    family += [process, *process.parents()[:1]]
        for process in family:
            with contextlib.suppress(psutil.Error):
                if (
                    "munged" not in process.name()
                    and "slurmctld" not in process.name()
                    and process.pid != os.getpid()
                ):
                    process.kill()

    def __exit__(self, *_: object) -> None:
        mine = self.environment["SLURM_CONF"]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == mine:
                    process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
