"""Cost per job from benchmark files, records of shards and the disk."""

from pathlib import Path

import pytest

from scatterflow import manifest
from scatterflow.manifest import Place, RunStatus
from scatterflow.progress import quiet
from scatterflow.report import tables
from scatterflow.report.costs import study_costs
from scatterflow.report.metrics import Cost, StudyMetrics
from scatterflow.stages import simulate
from tests.store_study import tiny

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def measured(folder: Path, job: str, core: float) -> None:
    (folder / "benchmarks").mkdir(exist_ok=True)
    text = f"{HEAD}7.5\t0:00:07\t250.0\t1\t1\t1\t0\t0\t99\t{core}\n"
    (folder / "benchmarks" / f"{job}.tsv").write_text(text)


def test_shards_count_wherever_they_were_made(tmp_path: Path) -> None:
    study = tiny(40)
    simulate.run(study, tmp_path, quiet)
    place = Place(tmp_path, study.simulation_identity())
    spent = sum(record.seconds for record in manifest.read_records(place).values())
    assert study_costs(tmp_path)["simulate_study"].core_seconds == pytest.approx(spent), "without any benchmark"
    measured(tmp_path, "simulate_study", spent / 2)
    here = study_costs(tmp_path)["simulate_study"]
    assert (here.seconds, here.shards) == (7.5, 4)
    assert here.core_seconds == pytest.approx(spent), "a benchmark that has missed some"
    measured(tmp_path, "simulate_study", 2 * spent)
    assert study_costs(tmp_path)["simulate_study"].core_seconds == pytest.approx(2 * spent, abs=1e-6)
    begun = manifest.read(place.status, RunStatus)
    manifest.write(place.status, begun.model_copy(update={"backend": "slurm"}))
    assert study_costs(tmp_path)["simulate_study"].core_seconds == pytest.approx(3 * spent, abs=1e-6)
    size = sum(path.stat().st_size for path in place.folder.rglob("*") if path.is_file())
    assert study_costs(tmp_path)["simulate_study"].disk_mb == pytest.approx(size / 1e6)


def test_disk_space_of_a_model_is_its_own(tmp_path: Path) -> None:
    for name, size in (("a", 1000), ("a.training", 500), ("b", 70)):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "file").write_bytes(bytes(size))
    measured(tmp_path, "train_model.a", 1.0)
    measured(tmp_path, "train_model.b", 2.0)
    found = study_costs(tmp_path)
    assert {job: cost.disk_mb for job, cost in found.items()} == {"train_model.a": 1.5e-3, "train_model.b": 7e-5}


def test_the_table_adds_up_and_names_what_was_not_run() -> None:
    jobs = {
        "train_model.a": Cost(seconds=60.0, core_seconds=7200.0, max_rss_mb=300.0, disk_mb=1.0),
        "train_model.b": Cost(seconds=30.0, core_seconds=None, max_rss_mb=900.0, disk_mb=2.0),
        "simulate_study": Cost(seconds=600.0, core_seconds=3600.0, shards=4000),
    }
    table = tables.cost(StudyMetrics(cost=jobs), ["simulate_study", "preprocess_study", "train_model"])
    rows = {row[0]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert list(rows) == ["simulate study", "preprocess study", "train model", "all rules"]
    assert (rows["simulate study"]["shards"], rows["simulate study"]["core-hours"]) == ("4,000", "1.0")
    assert rows["preprocess study"]["jobs"] == "not run here"
    train = rows["train model"]
    assert (train["jobs"], train["core-hours"], train["peak memory"], train["on disk"]) == (
        "2",
        "2.0",
        "900 MB",
        "3 MB",
    )
    assert (rows["all rules"]["jobs"], rows["all rules"]["core-hours"]) == ("3", "3.0")
