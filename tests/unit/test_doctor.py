"""`scatterflow doctor` on machines that lack something."""

from pathlib import Path

import pytest

from scatterflow.cli import doctor, doctor_slurm
from scatterflow.cli.findings import OK, WARNING


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (only,) = doctor_slurm.slurm(tmp_path)
    assert (only.state, only.found) == (WARNING, "no sbatch")
    assert only.remedy


def test_a_fanout_that_cannot_work_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCATTERFLOW_FANOUT", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor._fanout()
    assert (finding.state, bool(finding.remedy)) == ("missing", True)


@pytest.mark.parametrize(
    ("config", "state"),
    [
        ({"MinJobAge": "300 sec"}, OK),
        ({"MinJobAge": "60 sec"}, WARNING),
        ({"MinJobAge": "0"}, WARNING),
        ({}, WARNING),
    ],
)
def test_a_queue_that_forgets_too_soon(config: dict[str, str], state: str) -> None:
    finding = doctor_slurm._memory_of_jobs(config)
    assert (finding.state, bool(finding.remedy)) == (state, state == WARNING)


@pytest.mark.parametrize(("size", "state"), [("1001", OK), ("2", WARNING), ("0", WARNING)])
def test_arrays_that_are_too_small(size: str, state: str) -> None:
    assert doctor_slurm._arrays({"MaxArraySize": size}).state == state


@pytest.mark.parametrize(("kind", "state"), [("accounting_storage/none", WARNING), ("accounting_storage/slurmdbd", OK)])
def test_accounting(kind: str, state: str) -> None:
    assert doctor_slurm._accounting({"AccountingStorageType": kind}).state == state


def test_a_disk_of_one_machine(tmp_path: Path) -> None:
    """Every folder has a file system; that of the kernel's own processes is seen by no other machine."""
    found = list(doctor_slurm._shared({"results": tmp_path / "not" / "yet", "kernel": Path("/proc/self")}))
    assert [finding.what for finding in found] == ["shared disk (results)", "shared disk (kernel)"]
    assert found[1].state == WARNING
    assert "is on proc" in found[1].found


def test_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._c_library().found.split()[0] in ("glibc", "unknown")
    for version, state in {"2.34": WARNING, "2.35": OK, "2.41": OK}.items():
        monkeypatch.setattr("platform.libc_ver", lambda version=version: ("glibc", version))
        finding = doctor._c_library()
        assert (finding.state, bool(finding.remedy)) == (state, state == WARNING)
