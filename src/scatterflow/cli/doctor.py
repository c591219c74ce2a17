"""Check a machine: what scatterflow needs, what it can use, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from scatterflow import provenance
from scatterflow.cli.doctor_slurm import slurm
from scatterflow.cli.findings import MISSING, OK, WARNING, Finding, call
from scatterflow.cli.output import result
from scatterflow.config.instrument_file import read_instrument
from scatterflow.config.loading import load_run
from scatterflow.config.study import RunConfig
from scatterflow.errors import ScatterflowError
from scatterflow.fanout import VARIABLE, backend_name, processes
from scatterflow.progress import size

_MIN_DISK_BYTES = 2e9  # the demo writes 0.2 GB; the rest is room for the installation and the report
_MIN_MEMORY_BYTES = 4e9  # two processes of BornAgain and one training
_PACKAGES = (
    "numpy",
    "xarray",
    "zarr",
    "dask",
    "torch",
    "lightning",
    "nflows",
    "sbi",
    "fabio",
    "h5py",
    "hdf5plugin",
    "snakemake",
    "snakemake-executor-plugin-slurm",
    "submitit",
)
_GLIBC = (2, 35)  # of BornAgain's wheel


def examine(config: Path, results: Path, as_json: bool) -> int:
    """Print every finding with its remedy; returns 2 if something is missing that every run needs, else 0."""
    findings = list(_findings(config, results))
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.what:{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':8} {'':{width}}  -> {finding.remedy}")
    missing = [finding.what for finding in findings if finding.state == MISSING]
    lines.append(f"missing: {', '.join(missing)}" if missing else "this machine can run scatterflow")
    result({"ok": not missing, "findings": [asdict(finding) for finding in findings]}, lines, as_json)
    return 2 if missing else 0


def _findings(config: Path, results: Path) -> Iterator[Finding]:
    yield Finding("python", OK, f"{platform.python_version()} in {sys.prefix}")
    yield from _packages()
    yield _c_library()
    yield _bornagain()
    yield _cores()
    yield _memory()
    yield _disk(results)
    yield _gpu()
    yield from slurm(results)
    yield _fanout()
    run, finding = _configuration(config)
    yield finding
    if run is not None:
        yield from _frames(run, config)


def _packages() -> Iterator[Finding]:
    found, lacking = [], []
    for name in (provenance.PACKAGE, *_PACKAGES):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name)
    yield Finding("packages", OK, ", ".join(found))
    if lacking:
        yield Finding("packages", MISSING, f"without {', '.join(lacking)}", "run `make install`")


def _c_library() -> Finding:
    name, version = platform.libc_ver()
    found = f"{name} {version}".strip() or "unknown"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < _GLIBC:
        remedy = "BornAgain's wheel needs glibc 2.35: use envs/container.def or conda (envs/README.md)"
        return Finding("C library", WARNING, found, remedy)
    return Finding("C library", OK, found)


def _bornagain() -> Finding:
    """In a process of its own: a wheel built for a newer C library ends the process."""
    done = call(sys.executable, "-c", "import bornagain; print(bornagain.version_str)")
    if done is not None and done.returncode == 0:
        return Finding("BornAgain", OK, done.stdout.strip())
    libc = " ".join(platform.libc_ver()) or "an unknown C library"
    why = "no answer" if done is None else (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    remedy = "run `make install`; its wheel needs glibc 2.35: on older systems use envs/container.def or conda"
    return Finding("BornAgain", MISSING, f"cannot be imported ({why}; {libc})", remedy)


def _cores() -> Finding:
    usable, all_cores = processes(None), os.cpu_count() or 1
    found = f"{usable} of {all_cores}"
    if usable < 2:
        return Finding("cores", WARNING, found, "everything works, simulations take twice as long as on 2")
    return Finding("cores", OK, found)


def _memory() -> Finding:
    free = _free_memory()
    if free is None:
        return Finding("memory", WARNING, "unknown", "watch it: two processes of BornAgain and a training need 4 GB")
    if free < _MIN_MEMORY_BYTES:
        remedy = "close other programs, or lower simulate.workers"
        return Finding("memory", WARNING, f"{size(free)} free", remedy)
    return Finding("memory", OK, f"{size(free)} free")


def _free_memory() -> float | None:
    """Bytes that can be used: what the kernel calls available, within the limit of the control group."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control groups, or the limit "max"
        return free
    return min(free, limit)


def _disk(results: Path) -> Finding:
    folder = results.absolute()
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return Finding("disk", MISSING, f"{folder} cannot be written", "choose another folder with --results")
    free = shutil.disk_usage(folder).free
    if free < _MIN_DISK_BYTES:
        return Finding("disk", WARNING, f"{size(free)} free in {folder}", "free some space or use --results")
    return Finding("disk", OK, f"{size(free)} free in {folder}")


def _gpu() -> Finding:
    without = "everything works on the CPU; training of the paper's sizes wants a GPU"
    done = call("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if done is None or done.returncode != 0 or not done.stdout.strip():
        return Finding("GPU", WARNING, "none found", without)
    names = "; ".join(line.strip() for line in done.stdout.strip().splitlines())
    code = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"
    seen = call(sys.executable, "-c", code)
    if seen is not None and seen.returncode == 0 and seen.stdout.strip().endswith("True"):
        return Finding("GPU", OK, f"{names}, CUDA {seen.stdout.split()[0]}")
    return Finding(
        "GPU", WARNING, f"{names}, but torch cannot use it", "install the CUDA build of torch: envs/README.md"
    )


def _fanout() -> Finding:
    try:
        return Finding("simulations", OK, f"run by the backend {backend_name()} ({VARIABLE})")
    except ScatterflowError as error:
        return Finding("simulations", MISSING, str(error), f"unset {VARIABLE} or use --profile slurm")


def _configuration(config: Path) -> tuple[RunConfig | None, Finding]:
    try:
        run = load_run(config)
    except ScatterflowError as error:
        return None, Finding("configuration", MISSING, str(error), "mend it or give another with --config")
    return run, Finding("configuration", OK, f"{config}: run {run.run}, studies {', '.join(run.studies)}")


def _frames(run: RunConfig, config: Path) -> Iterator[Finding]:
    """Whether the real frames of the configuration and their instrument files are there."""
    folder = Path(os.environ.get("SCATTERFLOW_DATA") or "../shared/data")
    files = {folder / name for study in run.studies.values() for name in study.real_files}
    lost = sorted(str(path) for path in files if not path.is_file())
    if lost:
        found = f"{len(files) - len(lost)} of {len(files)} in {folder}; missing: {', '.join(lost)}"
        yield Finding("real frames", WARNING, found, "run `make data`, or set SCATTERFLOW_DATA to their folder")
    else:
        found = f"{len(files)} of {len(files)} in {folder}" if files else "none in this configuration"
        yield Finding("real frames", OK, found)
    instruments = {config.parent / name for study in run.studies.values() for name in study.instrument_files}
    for path in sorted(instruments):
        try:
            read_instrument(path)
        except ScatterflowError as error:
            yield Finding("instrument", WARNING, str(error), "mend the file: its frames cannot be read without it")
