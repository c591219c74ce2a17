"""A real Slurm of three nodes on this machine: munge, slurmctld and three slurmd with files and ports of their own.

With accounting also slurmdbd and its database, MariaDB.

Nothing outside its folder is read or written, so it does not matter whether the host belongs to a cluster. The daemons
run as the user of the tests: an ordinary one, or root with the capabilities setuid and setgid. They end with the
process that has started them.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "setpriv")
ACCOUNTING = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr")
ACCOUNT = "physics"  # with accounting: whose jobs are taken
NODES = ("cpu1", "cpu2", "gpu1")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_WAIT_S = 90.0
_WATCH_S = 2.0

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=30
KillWait=3
MinJobAge=3600
MaxArraySize=1001
GresTypes=gpu
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu1} CPUs=8 RealMemory=16000
NodeName=cpu2 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu2} CPUs=8 RealMemory=16000
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu1} CPUs=8 RealMemory=16000 Gres=gpu:1
PartitionName=DEFAULT DefMemPerCPU=1000 PreemptMode=REQUEUE LLN=YES
PartitionName=cpu Nodes=cpu[1-2] Default=YES PriorityTier=1
PartitionName=urgent Nodes=cpu[1-2] PriorityTier=10
PartitionName=gpu Nodes=gpu1 PriorityTier=1
PartitionName=gpu-urgent Nodes=gpu1 PriorityTier=10
"""
_ACCOUNTED = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageHost": "127.0.0.1",
    "AccountingStorageEnforce": "associations,limits",
}
_DBD_CONF = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
_SQL = """\
CREATE DATABASE slurm;
GRANT ALL ON slurm.* TO slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
"""


def lacking(*, accounting: bool = False) -> str:
    """Why a Slurm cannot run here; "" if it can."""
    needed = PROGRAMS + (ACCOUNTING if accounting else ())
    absent = [name for name in needed if shutil.which(name, path=_PATH) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge" + (
            " slurmdbd mariadb-server-core mariadb-client-core" if accounting else ""
        )
        return f"no {', '.join(absent)} (Debian: apt install {packages})"
    if os.geteuid() == 0 and not (_capable(6) and _capable(7)):  # CAP_SETGID and CAP_SETUID, linux/capability.h
        return "root without the capabilities setuid and setgid cannot run slurmd"
    return ""


def can_mount() -> bool:
    """True if this process may mount file systems."""
    return _capable(21)  # CAP_SYS_ADMIN


def _capable(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    return bool(held >> number & 1)


@dataclass
class Cluster:
    """The daemons; `env` holds the variables with which clients find them."""

    folder: Path
    accounting: bool = False
    conf: str = ""
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder}/bin{os.pathsep}{_PATH}"}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir()
        (self.folder / "bin").mkdir()
        srun = self.folder / "bin" / "srun"  # snakemake's job step drops the variable
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun", path=_PATH)} "$@"\n'
        )
        srun.chmod(0o755)
        for node in NODES:
            (self.folder / f"spool.{node}").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = ("port", "dbd", "database", *NODES)
        given = dict(zip(names, map(str, _free_ports(len(names))), strict=True))
        given |= {"host": socket.gethostname().split(".")[0], "user": self.user}
        given |= {"folder": str(self.folder)}
        self.conf = _CONF.format(**given)
        if self.accounting:
            socket_path = str(self.folder / "munge.socket")  # clients of slurmdbd know no other option for it
            chosen = _ACCOUNTED | {"AccountingStoragePort": given["dbd"], "AccountingStoragePass": socket_path}
            kept = [line for line in self.conf.splitlines() if line.split("=")[0] not in chosen]
            self.conf = "\n".join([*(f"{key}={value}" for key, value in chosen.items()), *kept]) + "\n"
        self.configure()
        (self.folder / "gres.conf").write_text("NodeName=gpu1 Name=gpu File=/dev/null\n")
        self.start_munge()
        if self.accounting:
            self._start_accounting(given)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait(self.idle)
        threading.Thread(target=self._watch, daemon=True).start()

    def configure(self, **options: str) -> None:
        """Write slurm.conf, with other values for options."""
        lines = [f"{key}={value}" for key, value in options.items()]
        kept = [line for line in self.conf.splitlines() if line.split("=")[0] not in options]
        (self.folder / "slurm.conf").write_text("\n".join([*lines, *kept]) + "\n")

    def start_munge(self) -> None:
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        names |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        paths = [f"--{option}={self.folder / name}" for option, name in names.items()]
        self._start("munged", "munged", "--foreground", "--force", *paths)  # --force: the folder is ours, not root's
        self.wait((self.folder / "munge.socket").exists)

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-i")
        self.wait(lambda: self.run("scontrol", "ping").returncode == 0)

    def _start_accounting(self, given: dict[str, str]) -> None:
        """MariaDB, slurmdbd, and an account that this user's jobs belong to."""
        data, user = self.folder / "database", given["user"]
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(_DBD_CONF.format(**given))
        conf.chmod(0o600)
        (self.folder / "init.sql").write_text(_SQL)
        made = self.run("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}", "--skip-test-db")
        assert made.returncode == 0, made.stdout + made.stderr
        options = {"datadir": data, "socket": self.folder / "mariadb.socket", "pid-file": self.folder / "mariadb.pid"}
        options |= {"port": given["database"], "bind-address": "127.0.0.1", "user": user}
        options |= {"init-file": self.folder / "init.sql", "innodb-buffer-pool-size": "32M"}
        chosen = [f"--{key}={value}" for key, value in options.items()]
        self._start("mariadbd", "mariadbd", "--no-defaults", "--skip-name-resolve", *chosen)
        self.wait((self.folder / "mariadb.pid").exists)
        self._start("slurmdbd", "slurmdbd", "-D")
        self.wait(lambda: self.run("sacctmgr", "--noheader", "show", "cluster").returncode == 0)
        for added in (("cluster", "test"), ("account", ACCOUNT), ("user", user, f"account={ACCOUNT}")):
            done = self.run("sacctmgr", "--immediate", "add", *added)
            assert done.returncode == 0, done.stdout + done.stderr

    def start_node(self, name: str, hidden: Path | None = None) -> None:
        """Start a node's slurmd; on it the folder `hidden` is empty, as one that is not shared (see `can_mount`)."""
        command = ["slurmd", "-D", "-N", name]
        if hidden is not None:
            mount = f"mount -t tmpfs none {shlex.quote(str(hidden))} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
        self._start(name, *command)

    def _watch(self) -> None:
        """What an administrator does: put back into service what Slurm itself took out (a slow machine, a lost call)."""
        while not self.ended.wait(_WATCH_S):
            with suppress(subprocess.TimeoutExpired):
                shown = self.run("sinfo", "--noheader", "--list-reasons", "--Node", "--format=%N|%E|%T").stdout
                for line in shown.splitlines():
                    node, reason, state = line.strip().split("|", 2)
                    if reason.strip() != "test":
                        with (self.folder / "watch.log").open("a") as log:
                            log.write(f"{time.strftime('%H:%M:%S')} {node} was {state}: {reason}\n")
                        self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End one daemon: munged, slurmctld or a node's slurmd (SIGKILL leaves its tasks alive)."""
        process = self.daemons.pop(name)
        process.send_signal(number)
        process.wait()

    def idle(self) -> bool:
        """True if every node is there and has nothing to do."""
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout.split("\n")
        return {line.strip() for line in states if line.strip()} == {f"{node} idle" for node in NODES}

    def reset(self) -> None:
        """No jobs, all nodes idle, all daemons there: as it was at the start."""
        if "munged" not in self.daemons:
            self.start_munge()
        if "slurmctld" not in self.daemons:
            self.start_controller()
        self.run("scancel", f"--user={os.getuid()}")
        for node in NODES:
            if node not in self.daemons:
                self.start_node(node)
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait(lambda: not self.jobs())
        self.wait(self.idle)

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of Slurm, to its end."""
        return subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=_WAIT_S)

    def jobs(self, *states: str) -> list[tuple[str, str, str]]:
        """Job id (123 or 123_4), state and node of the jobs that are not over."""
        chosen = [f"--states={','.join(states)}"] if states else []
        text = self.run("squeue", "--noheader", "--array", "--format=%i|%T|%N", *chosen).stdout
        return [(job, state, node) for job, state, node in (line.split("|") for line in text.split())]

    def wait(self, true: Callable[[], object], seconds: float = _WAIT_S) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"what the test waits for did not happen\n{self.state()}"
            time.sleep(0.1)

    def state(self) -> str:
        """What the cluster says of itself, for the message of a test that fails."""
        shown = [self.run(*command.split()).stdout for command in ("squeue --array", "sinfo --Node --long", "sinfo -R")]
        logs = [path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log")]
        return "\n".join([*shown, *logs])

    def stop(self) -> None:
        """End every process: jobs first, then the daemons, then what they have left."""
        self.ended.set()
        if "slurmctld" in self.daemons and "munged" in self.daemons:
            self.run("scancel", f"--user={os.getuid()}")
        for name in list(self.daemons):
            self.end(name, signal.SIGKILL if name in NODES else signal.SIGTERM)
        for process in self.processes():
            os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Processes of this cluster and of its jobs, but for this one: all have its configuration in their environment."""
        mark = f"SLURM_CONF={self.folder}/".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes() and int(path.parts[2]) != os.getpid():
                    found.append(int(path.parts[2]))
            except OSError:
                continue  # it has ended meanwhile, or is another user's
        return found

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                env=os.environ | self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
