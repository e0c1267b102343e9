"""A throw-away SLURM on this machine: two nodes, eight pretended GPUs each, with accounting.

    python tests/slurm/sandbox.py up FOLDER      # prints the nodes and returns; needs root
    python tests/slurm/sandbox.py down FOLDER    # ends what `up` started, and nothing else

It never touches a SLURM that somebody else configured. Every call of a client has a time limit, since clients wait for
minutes for a controller that is gone.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "sinfo", "sacct")
SYSTEM_CONFIG = Path("/etc/slurm")
HOSTS = Path("/etc/hosts")
MARK = "# written by Worldtune's tests/slurm/sandbox.py"
NODES = 2
GPUS = 8
STOP_ORDER = ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged")


class SandboxUnavailableError(RuntimeError):
    """This machine cannot or must not run the sandbox."""


def ensure_installed() -> None:
    """Install SLURM by apt where it is missing.

    Raises:
        SandboxUnavailableError: it is missing and cannot be installed.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SandboxUnavailableError(f"{', '.join(missing)} missing; as root: apt-get install {' '.join(PACKAGES)}")
    # RUNLEVEL=1 keeps the packages from starting their services.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-q", *command], env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode != 0:
            raise SandboxUnavailableError(f"apt-get {command[0]} failed: {(done.stderr or done.stdout)[-1000:]}")


def check_free() -> None:
    """Refuse where another SLURM is configured, or another sandbox runs.

    Raises:
        SandboxUnavailableError: there is one.
    """
    if os.geteuid() != 0:
        raise SandboxUnavailableError("the sandbox makes device nodes and needs root")
    for name in ("slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf"):
        path = SYSTEM_CONFIG / name
        if not path.is_symlink() and not path.exists():
            continue
        if not path.is_symlink() or (path.exists() and MARK not in path.read_text()):
            raise SandboxUnavailableError(f"{path} belongs to another SLURM; the sandbox keeps away")
        running = list(Sandbox(path.readlink().parent.parent).alive()) if path.exists() else []
        if running:
            folder = path.readlink().parent.parent
            raise SandboxUnavailableError(f"a sandbox runs in {folder}: python tests/slurm/sandbox.py down {folder}")


class Sandbox:
    """One SLURM, all of it below `folder`, but for links in /etc/slurm and two names in /etc/hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.run = self.folder / "run"
        self.logs = self.folder / "log"

    @property
    def nodes(self) -> list[str]:
        return [f"node{number}" for number in range(1, NODES + 1)]

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        check_free()
        ensure_installed()
        check_free()
        for name in ("etc", "log", "run", "state", "munge", "db", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            self._configure()
            self._start_munge()
            self._start_accounting()
            self._spawn("slurmctld", "slurmctld", "-D", "-i")
            for node in self.nodes:
                self._spawn(f"slurmd.{node}", "slurmd", "-D", "-N", node)
            self._until("idle nodes", lambda: self._idle_nodes() == NODES, seconds=60)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel all jobs, end what `start` started, and remove the links and names."""
        if any(name == "slurmctld" for name, _ in self.alive()):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.client("scancel", "--user=root")
                self._until("end of all jobs", lambda: not self.client("squeue", "-h", "-o", "%i"), seconds=20)
        for kind in STOP_ORDER:
            for name, pid in list(self.alive()):
                if name.split(".")[0] == kind:
                    self._end(pid, seconds=15)
                    (self.run / f"{name}.pid").unlink()
        for path in SYSTEM_CONFIG.glob("*.conf"):
            if path.is_symlink() and path.readlink().parent == self.folder / "etc":
                path.unlink()
        lines = HOSTS.read_text().splitlines(keepends=True)
        HOSTS.write_text("".join(line for line in lines if MARK not in line))

    def client(self, *command: str, seconds: float = 20) -> str:
        """Run a SLURM client and return what it prints.

        Raises:
            RuntimeError: it fails.
            subprocess.TimeoutExpired: it takes longer than `seconds`.
        """
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def alive(self) -> Iterator[tuple[str, int]]:
        """Yield name and process id of the daemons that run; a recycled id is told by the program's name."""
        for path in sorted(self.run.glob("*.pid")):
            pid = int(path.read_text())
            if running_program(pid) == path.stem.split(".")[0]:
                yield path.stem, pid

    def _spawn(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        """Start a daemon in the foreground, in a session of its own, and note its process id."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        with open(self.logs / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                [shutil.which(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=variables | (environment or {}),
                cwd=self.folder,
                start_new_session=True,
            )
        (self.run / f"{name}.pid").write_text(str(process.pid))
        time.sleep(0.1)
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended at once:\n{self._tail(name)}")

    def _end(self, pid: int, *, seconds: float) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not running_program(pid):
                    return
                time.sleep(0.05)

    def _until(self, what: str, ready: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                if ready():
                    return
            time.sleep(0.1)
        logs = "\n".join(self._tail(path.stem) for path in sorted(self.logs.glob("*.log")))
        raise RuntimeError(f"no {what} within {seconds:.0f} s\n{logs}")

    def _tail(self, name: str) -> str:
        paths = [path for path in (self.logs / f"{name}.log", self.logs / f"{name}.out") if path.exists()]
        return "\n".join(f"--- {path}\n" + "\n".join(path.read_text().splitlines()[-8:]) for path in paths)

    def _idle_nodes(self) -> int:
        return int(self.client("sinfo", "-h", "-p", "cpu", "-t", "idle", "-o", "%D", seconds=5) or 0)

    def _start_munge(self) -> None:
        key = self.folder / "munge/munge.key"
        key.parent.chmod(0o700)
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._spawn(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.run}/munge.socket"),
            *(f"--pid-file={self.run}/munged.own", f"--log-file={self.logs}/munged.log"),
            f"--seed-file={self.folder}/munge/seed",
        )
        self._until("munge socket", (self.run / "munge.socket").exists, seconds=20)

    def _start_accounting(self) -> None:
        data, database = self.folder / "db/data", self.run / "mysql.sock"
        install = ("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
        with open(self.logs / "mariadb-install.log", "wb") as output:
            subprocess.run(
                [*install, "--auth-root-authentication-method=normal"],
                stdout=output,
                stderr=output,
                timeout=120,
                check=True,
            )
        self._spawn(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={database}"),
            *("--skip-networking", f"--pid-file={self.run}/mariadbd.own"),
            *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
        )
        query = ("mariadb", "--no-defaults", "-S", str(database), "-uroot", "-e")
        self._until("database", lambda: self.client(*query, "create database slurm_acct_db") == "", seconds=60)
        self._spawn("slurmdbd", "slurmdbd", "-D", environment={"MYSQL_UNIX_PORT": str(database)})
        self._until("accounting", lambda: self.client("sacctmgr", "-n", "show", "cluster", seconds=5) == "", seconds=60)
        for entry in (["cluster", "sandbox"], ["account", "sandbox"], ["user", "root", "account=sandbox"]):
            self.client("sacctmgr", "-i", "add", *entry)

    def _configure(self) -> None:
        host, etc = socket.gethostname().split(".")[0], self.folder / "etc"
        port_controller, port_accounting, *ports = free_ports(2 + NODES)
        # SLURM takes character devices only; these behave like /dev/null.
        for number in range(GPUS):
            device = self.run / f"gpu{number}"
            if not device.exists():
                try:
                    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
                except PermissionError as error:
                    raise SandboxUnavailableError("this container may not make device nodes") from error
        (etc / "gres.conf").write_text(
            f"{MARK}\nNodeName=node[1-{NODES}] Name=gpu Type=h100 File={self.run}/gpu[0-{GPUS - 1}]\n"
        )
        (etc / "cgroup.conf").write_text(f"{MARK}\nCgroupMountpoint=/sys/fs/cgroup\nConstrainDevices=no\n")
        (etc / "slurmdbd.conf").write_text(
            f"""{MARK}
AuthType=auth/munge
AuthInfo=socket={self.run}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port_accounting}
SlurmUser=root
LogFile={self.logs}/slurmdbd.log
PidFile={self.run}/slurmdbd.own
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
        )
        (etc / "slurmdbd.conf").chmod(0o600)
        nodes = "\n".join(
            f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=64 Boards=1 Sockets=1 "
            f"CoresPerSocket=64 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:h100:{GPUS} State=UNKNOWN"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        # cred_expire bounds how long a requeued job waits before it starts again.
        (etc / "slurm.conf").write_text(
            f"""{MARK}
ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port_controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.run}/munge.socket,cred_expire=10
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.run}/slurmctld.own
SlurmdPidFile={self.run}/slurmd.%n.own
SlurmctldLogFile={self.logs}/slurmctld.log
SlurmdLogFile={self.logs}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=30
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=43200
KillWait=30
SlurmdTimeout=60
InactiveLimit=0
Waittime=0
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={port_accounting}
AccountingStoragePass={self.run}/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=1000 State=UP PriorityTier=10
PartitionName=gpu Nodes=ALL MaxTime=INFINITE DefMemPerCPU=1000 State=UP PriorityTier=10
PartitionName=requeued Nodes=ALL MaxTime=INFINITE DefMemPerCPU=1000 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=graced Nodes=ALL MaxTime=INFINITE DefMemPerCPU=1000 PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
"""
        )
        # The plugin's inner srun gets no SLURM_CONF and reads only the default place.
        SYSTEM_CONFIG.mkdir(exist_ok=True)
        for path in etc.iterdir():
            link = SYSTEM_CONFIG / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        # torchrun's rendezvous looks the first node up by its name.
        with open(HOSTS, "a") as hosts:
            hosts.writelines(f"127.0.0.1 {node} {MARK}\n" for node in self.nodes)


def running_program(pid: int) -> str:
    """Return the name of the program that runs as `pid`, empty where none does; a zombie runs no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    name, _, rest = state[state.index("(") + 1 :].rpartition(")")
    return "" if rest.split()[0] == "Z" else name


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    sandbox = Sandbox(arguments.folder)
    if arguments.action == "down":
        sandbox.stop()
        return
    try:
        sandbox.start()
    except SandboxUnavailableError as error:
        sys.exit(f"error: {error}")
    print(sandbox.client("sinfo", "-o", "%P %D %t %c %m %G"))


if __name__ == "__main__":
    main()
