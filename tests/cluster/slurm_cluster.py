"""A real SLURM on this machine: a controller and two nodes with two GPUs each in name, all files in one folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
NODES = ("one", "two")
SLURM_CONF = """
ClusterName=bagnet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5 # a requeued job waits so many seconds
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool_%n
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmdLogFile={folder}/slurmd_%n.log
SlurmdParameters=config_overrides # more cores than there are
SlurmdTimeout=10
ReturnToService=2
KillWait=3
MinJobAge=3600
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={one}
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={two}
PartitionName=all Nodes=one,two Default=YES State=UP
"""


def why_not() -> str | None:
    """Why no SLURM can run here; None if it can."""
    if os.geteuid() != 0:
        return "slurmd needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge" if missing else None


class Slurm:
    """Daemons that end with `stop`. SLURM's commands find them by the environment's SLURM_CONF, `conf`."""

    def __init__(self, folder: Path):
        self.folder, self.conf, self.daemons = folder, folder / "slurm.conf", {}
        ports = {name: _free_port() for name in ("controller", *NODES)}
        self.conf.write_text(SLURM_CONF.format(folder=folder, host=socket.gethostname().split(".")[0], **ports))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        for name in ("state", *(f"spool_{node}" for node in NODES)):
            (folder / name).mkdir()

    def start(self) -> None:
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        wait_for((self.folder / "munge.socket").exists, "munged")
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        wait_for(lambda: told("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"], "SLURM")

    def kill_node(self, node: str) -> None:
        """As if its power were cut: its daemon, those that watch its jobs, so that none can tell, and the jobs."""
        self.daemons.pop(node).kill()  # first, so that no job starts that is not in the list
        jobs = told("squeue", f"--nodelist={node}", "--noheader", "--format=%A").split()
        for file, mark in (("cmdline", "slurmstepd: [{}."), ("environ", "SLURM_JOB_ID={}\0")):
            marks = [mark.format(job).encode() for job in jobs]
            for path in Path("/proc").glob(f"[0-9]*/{file}"):
                with contextlib.suppress(OSError):  # it has ended
                    if any(mark in path.read_bytes() for mark in marks):
                        os.kill(int(path.parent.name), signal.SIGKILL)

    def stop(self) -> None:
        told("scancel", "--user=root", "--signal=KILL", "--full")
        told("scancel", "--user=root")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not told("squeue", "--noheader"), "the end of all jobs", seconds=20)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            daemon.wait(20)

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            self.daemons[name] = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> object:
    """What the condition gives, once it is something. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not (met := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.1)
    return met


def told(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
