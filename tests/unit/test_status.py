"""What `scatterflow status` says of simulations that failed or are under way."""

from pathlib import Path

import pytest

from scatterflow.cli import status
from scatterflow.errors import SimulationError
from scatterflow.manifest import Place
from scatterflow.progress import quiet
from scatterflow.slurm import campaign
from scatterflow.slurm.summary import summarise
from scatterflow.stages import simulate
from tests.store_study import tiny


def test_failed_shards_say_why_and_where(tmp_path: Path) -> None:
    study = tiny(40, error_at=12)
    with pytest.raises(SimulationError):
        simulate.run(study, tmp_path, quiet)
    state = status._simulate(study, tmp_path)
    assert state.state == "failed"
    assert "30 of 40 simulations, 10 failed" in state.detail
    assert "layer01_TaO.delta must be physical" in state.detail
    assert "000000010-000000020.json" in state.detail


def test_core_time_so_far_and_to_go(tmp_path: Path) -> None:
    study = tiny(40)
    simulate.run(study, tmp_path, quiet)
    place = Place(tmp_path, study.simulation_identity())
    assert "of one core)" in status._cost(place, 0)
    assert "to go)" in status._cost(place, 40)
    assert status._cost(Place(tmp_path, "0" * 64), 40) == ""


def test_slurm_tasks_are_told_even_where_slurm_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny(40)
    simulate.run(study, tmp_path, quiet)
    folder = simulate.jobs_folder(Place(tmp_path, study.simulation_identity()))
    assert summarise(folder) is None
    jobs = campaign.load(folder, "simulate")
    jobs.started(jobs.announce([[]]), 17)
    (folder / "17_0_log.err").write_text("Traceback\nMemoryError: too much\nsrun: error: task 0\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    detail = status._simulate(study, tmp_path).detail
    assert "Slurm does not answer" in detail
    assert f"last error: MemoryError: too much (log: {folder}/17_0_log.err)" in detail
