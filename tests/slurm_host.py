"""A real SLURM on this host for the length of a test: munged, slurmctld and two slurmd, all as root.

`python tests/slurm_host.py` starts one and holds it until Ctrl-C, to try things by hand. Wants Debian's
slurm-wlm and munge. The configuration lies at its default place, since job steps lose SLURM_CONF: a SLURM
that is configured here already is somebody's, and is left alone. No accounting, so squeue is all there is
to ask.
"""

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

CONFIG = Path("/etc/slurm/slurm.conf")
OURS = "# written by tests/slurm_host.py; gone when its test ends"
NODES = ("n1", "n2")
PORTS = 17600  # and those after it: controller, then nodes
LOCK = Path(tempfile.gettempdir()) / "subliminal-slurm.lock"
TEXT = """{ours}
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=3600
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=1 RealMemory={memory} State=UNKNOWN"
)
MEMORY = 4000  # MB that each node claims to have; nothing here holds a job to it


def find_obstacle() -> str:
    """Why no SLURM can be started here, in a sentence; nothing where it can."""
    needed = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
    absent = [name for name in needed if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"needs a SLURM of its own (apt-get install slurm-wlm munge): no {', '.join(absent)} here"
    if os.geteuid() != 0:
        return "starts the daemons of a SLURM, which only root may"
    if CONFIG.exists() and OURS not in CONFIG.read_text(errors="replace"):
        return f"{CONFIG} is there already: a SLURM that is configured on this host is left alone"
    return ""


def search_path() -> str:
    """Daemons lie in sbin, which is not on everybody's path."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def call(*words: str, check: bool = True) -> str:
    """What a command of SLURM says."""
    environment = os.environ | {"PATH": search_path()}
    environment.pop("SLURM_CONF", None)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_for(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.2)


class Slurm:
    """A running cluster of two nodes with one core each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.munged: int | None = None

    def node_state(self, node: str) -> str:
        """`idle`, `allocated`, `draining`, `drained` and so on."""
        return call("sinfo", "-N", "-h", "-n", node, "-o", "%T").split()[0]

    def drain(self, node: str) -> None:
        """No new job goes there; what runs there ends in peace."""
        call("scontrol", "update", f"nodename={node}", "state=drain", "reason=a test")

    def resume(self, node: str) -> None:
        call("scontrol", "update", f"nodename={node}", "state=resume")

    def jobs(self, *states: str) -> list[tuple[str, str, str]]:
        """Id, state and node of all jobs, those that have ended included; or of those in some states."""
        rows = call("squeue", "-h", "-t", "all", "-o", "%i|%T|%N").splitlines()
        found = [tuple(row.split("|")) for row in rows]
        return [row for row in found if not states or row[1] in states]

    def cancel(self, job: str, kill: bool = False) -> None:
        """End a job; `kill` strikes its batch script and all its steps with SIGKILL, as no memory would."""
        call("scancel", *(["--full", "--signal=KILL"] if kill else []), job)

    def log(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log"))
        )

    # --- coming and going ---

    def start(self) -> None:
        host = platform.node().partition(".")[0]
        text = TEXT.format(ours=OURS, host=host, port=PORTS, folder=self.folder)
        for at, name in enumerate(NODES, start=1):
            text += NODE.format(name=name, host=host, port=PORTS + at, memory=MEMORY) + "\n"
        text += f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "state").mkdir()
        CONFIG.parent.mkdir(parents=True, exist_ok=True)
        CONFIG.write_text(text)
        self.start_munge()
        call("slurmctld")
        wait_for("slurmctld answers", lambda: "UP" in call("scontrol", "ping", check=False))
        for name in NODES:
            call("slurmd", "-N", name)
        wait_for("the nodes are idle", lambda: all(self.node_state(name) == "idle" for name in NODES))

    def start_munge(self) -> None:
        """Munge as its own user, as Debian has it; one that runs already will do."""
        if "Success" in call("sh", "-c", "munge -n | unmunge", check=False):
            return
        run = Path("/run/munge")
        run.mkdir(mode=0o755, exist_ok=True)
        run.chmod(0o755)
        shutil.chown(run, "munge", "munge")
        call("runuser", "-u", "munge", "--", shutil.which("munged", path=search_path()) or "munged")
        wait_for("munge answers", lambda: "Success" in call("sh", "-c", "munge -n | unmunge", check=False))
        self.munged = int((run / "munged.pid").read_text())

    def stop(self) -> None:
        """End everything that was started here, by its process number, and remove the configuration."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            for job, *_ in self.jobs("RUNNING", "PENDING", "COMPLETING", "SUSPENDED"):
                call("scancel", job, check=False)
            wait_for("its jobs have ended", lambda: not self.jobs("RUNNING", "COMPLETING"), 30)
        pids = [int(path.read_text()) for path in self.folder.glob("*.pid")]
        for pid in [*pids, *filter(None, [self.munged])]:
            end(pid)
        for process in psutil.process_iter():  # stepds hold on to their jobs when slurmd is gone
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "slurmstepd" and re.search(
                    str(self.folder), " ".join(open_paths(process))
                ):
                    end(process.pid)
        CONFIG.unlink(missing_ok=True)


def open_paths(process: psutil.Process) -> list[str]:
    return [file.path for file in process.open_files()] + [process.cwd()]


def end(pid: int) -> None:
    """Ask a process to end, and insist after a while."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:  # in a container nobody may be there to reap it
                return
            time.sleep(0.1)
        process.kill()


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """One at a time on a host; what a killed test left is ended first."""
    with open(LOCK, "a") as lock, tempfile.TemporaryDirectory(prefix="subliminal-slurm-") as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        end_leftovers()
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def end_leftovers() -> None:
    """The daemons that a configuration of ours names, though its test was killed."""
    if not CONFIG.exists() or OURS not in CONFIG.read_text(errors="replace"):
        return
    if found := re.search(r"^SlurmctldPidFile=(.+)/slurmctld\.pid$", CONFIG.read_text(), re.MULTILINE):
        for path in Path(found[1]).glob("*.pid"):
            pid = int(path.read_text())
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).name() in ("slurmctld", "slurmd"):
                    end(pid)
    CONFIG.unlink()


def main() -> int:
    if obstacle := find_obstacle():
        print(obstacle, file=sys.stderr)
        return 1
    with slurm() as cluster, contextlib.suppress(KeyboardInterrupt):
        print(
            f"SLURM is up; its logs are in {cluster.folder}. Ctrl-C ends it.\n{call('sinfo', '-N')}",
            flush=True,
        )
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
