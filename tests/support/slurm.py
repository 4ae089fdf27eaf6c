"""A Slurm of two nodes on this machine, in a folder of its own: no accounting, no cgroups, nothing outside the folder."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
ARRAY_SIZE = 2
"""Tasks of one array: few, so that the tests come to the limit."""
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
MaxArraySize={array_size}
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
KillWait=1
PrologEpilogTimeout=60
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1024
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1024
PartitionName=main Nodes=ALL Default=YES
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running Slurm, which SLURM_CONF points to. Skips where none can start."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("slurm")
    ports = free_ports(3)
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(
        CONFIG.format(
            folder=folder, host=host, user=getpass.getuser(), ports=ports, array_size=ARRAY_SIZE
        )
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {
        name: f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")
    }
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        munged = [
            program("munged"),
            "--foreground",
            "--force",
            *files.values(),
            f"--socket={folder / 'munge.socket'}",
        ]
        for name, command in {
            "munged": munged,
            "slurmctld": [program("slurmctld"), "-D"],
            "one": [program("slurmd"), "-D", "-N", "one"],
            "two": [program("slurmd"), "-D", "-N", "two"],
        }.items():
            stack.callback(stop, start(command, folder / f"{name}.out"))
        wait_until_idle(folder)
        yield folder
        subprocess.run(["scancel", "--full", f"--user={getpass.getuser()}"], check=False)


@pytest.fixture
def slurm_user(slurm: Path) -> Path:
    """The same, for those who submit through submitit."""
    pytest.importorskip("submitit")
    return slurm


def program(name: str) -> str | None:
    """Where it is; daemons lie outside the path of ordinary users."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(command: list[str | None], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def wait_until_idle(folder: Path) -> None:
    """Until both nodes take jobs. Skips where they have not after half a minute, with what the daemons said."""
    for _ in range(150):
        seen = subprocess.run(
            ["sinfo", "--noheader", "--format=%t %D"], capture_output=True, text=True, check=False
        )
        if seen.stdout.split() == ["idle", "2"]:
            return
        time.sleep(0.2)
    said = [
        f"{file.name}: {line}"
        for file in sorted(folder.glob("*.out"))
        for line in file.read_text().splitlines()[-3:]
    ]
    pytest.skip(
        "Slurm does not start: " + "; ".join([seen.stdout.strip(), seen.stderr.strip(), *said])
    )
