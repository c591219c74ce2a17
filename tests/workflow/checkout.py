"""A copy of the checkout in which a test may run snakemake, edit the configuration and edit the code."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PARTS = ("Snakefile", "src", "workflow", "profiles", "config", "envs")
WAIT_S = 900


@dataclass(frozen=True)
class Checkout:
    """The folder of a copy; its run is `tiny.yaml` there."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny" / "multilayer"

    def copy(self, folder: Path) -> Checkout:
        """This copy once more, with its results and snakemake's records, at another place."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, symlinks=True)
        return Checkout(folder)

    def snakemake(self, *arguments: str, configfile: str | None = "tiny.yaml") -> subprocess.CompletedProcess[str]:
        """Run snakemake to its end, as a user does in this folder."""
        return subprocess.run(
            self._command(arguments, configfile),
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )

    def make(self, *arguments: str) -> None:
        """Run snakemake, which must succeed."""
        done = self.snakemake(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def jobs(self, *arguments: str, configfile: str | None = "tiny.yaml") -> dict[str, int]:
        """Number of jobs of each working rule that a dry run announces; none if there is nothing to be done."""
        done = self.snakemake("--dry-run", *arguments, configfile=configfile)
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:", 1)[1].split("\ntotal", 1)[0]
        counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        return {name: count for name, count in counts.items() if "_" in name}

    def kill_when(self, ready: Callable[[], bool], *arguments: str) -> None:
        """Start snakemake and kill -9 it with everything that it started as soon as `ready()`."""
        process = subprocess.Popen(
            self._command(arguments, "tiny.yaml"),
            cwd=self.folder,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + WAIT_S
        try:
            while not ready():
                assert process.poll() is None, "snakemake ended before it could be killed"
                assert time.monotonic() < end, "what the test waits for did not happen"
                time.sleep(0.01)
        finally:
            with suppress(ProcessLookupError):  # it ended by itself: the assertion says so
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def configure(self, values: dict[str, Any]) -> None:
        """Set options of the study by dotted path, in the configuration file."""
        path = self.folder / "tiny.yaml"
        content = yaml.safe_load(path.read_text())
        for dotted, value in values.items():
            section = content["studies"]["multilayer"]
            *parents, last = dotted.split(".")
            for key in parents:
                section = section.setdefault(key, {})
            section[last] = value
        path.write_text(yaml.safe_dump(content))

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text that stands once in a file of the checkout."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new))

    def _command(self, arguments: tuple[str, ...], configfile: str | None) -> list[str]:
        chosen = ["--configfile", configfile] if configfile else []
        return [str(BIN / "snakemake"), *arguments, *chosen]


def new_checkout(folder: Path) -> Checkout:
    """A copy of what a run needs, with tests/workflow/tiny.yaml as its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.sif"))
        else:
            shutil.copy2(ROOT / part, folder / part)
    shutil.copy2(ROOT / "tests" / "workflow" / "tiny.yaml", folder / "tiny.yaml")
    return Checkout(folder)


def tree_sha256(folder: Path) -> str:
    """sha256 over the names and bytes of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        total.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _environment() -> dict[str, str]:
    """A user's: nothing activated; the real frames where the tests find them."""
    frames = Path(os.environ.get("SCATTERFLOW_DATA") or ROOT.parent / "shared" / "data")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "OMP_", "OPENBLAS"))}
    return inherited | {"SCATTERFLOW_DATA": str(frames)}
