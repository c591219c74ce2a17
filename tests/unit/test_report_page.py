"""The page of a run: complete, self-contained, escaped, and plain about what is missing or wrong."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scatterflow.config.study import RunConfig
from scatterflow.errors import StoreError
from scatterflow.report import numbers
from scatterflow.report.headline import best_model, study_verdict, works
from scatterflow.report.metrics import StudyMetrics
from scatterflow.stages import report
from tests.made_products import FRAME, STUDY, frame_verdict, run_config, shared_run

LIMIT_BYTES = 10_000_000
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements of a page in order, its text, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    return shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def page(made: tuple[Path, RunConfig]) -> Page:
    return Page((made[0] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def numbers_only(made: tuple[Path, RunConfig], tmp_path: Path) -> Path:
    """Results that hold the metrics and nothing that is drawn from arrays: quick to report."""
    target = tmp_path / "results"
    (target / STUDY / "evaluate").mkdir(parents=True)
    shutil.copy(made[0] / STUDY / "evaluate" / "metrics.json", target / STUDY / "evaluate" / "metrics.json")
    return target


def edit_metrics(results: Path, **changes: Any) -> None:
    path = results / STUDY / "evaluate" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_page_loads_nothing_from_anywhere(made: tuple[Path, RunConfig], page: Page) -> None:
    html = (made[0] / "report.html").read_text(encoding="utf-8")
    assert len(html.encode()) < LIMIT_BYTES
    assert not page.all("script")
    assert not page.open
    for tag, attrs in page.elements:
        for key in ("src", "href", "srcset", "data", "poster", "action"):
            address = attrs.get(key)
            assert address is None or address.startswith(("data:", "#")), (tag, address[:80])
        assert not any(name.startswith("on") for name in attrs), tag
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_every_figure_has_words_and_its_size(page: Page) -> None:
    figures = page.all("img")
    assert len(figures) > 3 * 18  # all marginals of both examples and of the experiment, and more
    for figure in figures:
        assert len(figure["alt"] or "") > 20
        assert int(figure["width"] or 0) > 0
        assert int(figure["height"] or 0) > 0
    assert len({figure["src"] for figure in figures}) > 3 * 18


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert links
    assert {(link or "")[1:] for link in links} <= set(ids)


def test_verdict_comes_first_and_says_what_does_not_work(made: tuple[Path, RunConfig], page: Page) -> None:
    first = page.text.index("can be trusted")
    assert first < page.text.index("Which estimator")
    metrics = json.loads((made[0] / STUDY / "evaluate" / "metrics.json").read_text())
    gain = metrics["estimators"]["summary-maf.image"]["information_gain"]["mean"]
    assert f"{gain:.2f}" in page.text
    failing = [entry["label"] for entry in metrics["estimators"].values() if not entry["works"]]
    assert failing
    sentence = page.text[page.text.index("Does not work:") :].split("\n")[0]
    assert all(label in sentence for label in failing)


def test_every_number_of_the_tables_is_there(made: tuple[Path, RunConfig], page: Page) -> None:
    config = made[1].studies[STUDY]
    metrics = json.loads((made[0] / STUDY / "evaluate" / "metrics.json").read_text())
    for entry in metrics["estimators"].values():
        assert entry["label"] in page.text
    for row in metrics["paper"].values():
        assert f"{row['log_prob']:.1f}".replace("-", "\N{MINUS SIGN}") in page.text
    for text in (FRAME, "outside", metrics["identity"]["simulations"], "BornAgain", f"seed {made[1].seed}"):
        assert text in page.text
    for index, layer in enumerate(config.sample.layers, start=1):
        assert f"layer{index:02d}_{layer}.correlation_length_nm" in page.text
    assert "cross_correlation_length_nm: 2000" in page.text  # the complete configuration


def test_figures_are_files_too(made: tuple[Path, RunConfig]) -> None:
    folder = made[0] / "figures"
    drawn = list(folder.glob("*.svg"))
    assert len(drawn) > 3 * 18
    for path in drawn:
        ElementTree.parse(path)
    assert {path.read_bytes()[:8] for path in folder.glob("*.png")} == {b"\x89PNG\r\n\x1a\n"}


def test_metrics_of_the_run_hold_those_of_the_studies(made: tuple[Path, RunConfig]) -> None:
    found = json.loads((made[0] / "metrics.json").read_text())
    own = json.loads((made[0] / STUDY / "evaluate" / "metrics.json").read_text())
    assert {key: found["studies"][STUDY][key] for key in own} == own
    assert found["studies"][STUDY]["verdict"]["ok"] is True
    assert found["seed"] == made[1].seed
    assert found["run"] == made[1].run
    assert len(found["config_sha256"]) == 64


def test_the_same_products_give_the_same_page(made: tuple[Path, RunConfig], numbers_only: Path) -> None:
    pages = [report.run(made[1], numbers_only).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_text_of_files_and_names_is_escaped(numbers_only: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    metrics = json.loads((numbers_only / STUDY / "evaluate" / "metrics.json").read_text())
    for entry in metrics["estimators"].values():
        entry["label"] = bad + entry["label"]
    frame = frame_verdict(why=bad) | {"file": f'"{bad}', "set": bad}
    frame["scores"] = {bad: frame["scores"]["features"]}
    identity = {bad: bad}
    cost = {bad: {"seconds": 1.0}}
    edit_metrics(
        numbers_only, estimators=metrics["estimators"], frames=[frame], identity=identity, cost=cost, paper={bad: {}}
    )
    config = run_config()
    study = config.studies[STUDY]
    frames = study.inference.frames[0].model_copy(update={"source": bad, "files": (bad,)})
    inference = study.inference.model_copy(update={"frames": (frames,)})
    # names with such letters are refused by the configuration; the page must not rely on that
    config = config.model_copy(
        update={"run": bad, "studies": {STUDY: study.model_copy(update={"inference": inference})}}
    )
    html = report.run(config, numbers_only).read_text(encoding="utf-8")
    found = Page(html)
    assert found.text.count("<script>alert(1)</script>") > 10
    assert not found.all("script")
    assert all(figure["src"] != "x" for figure in found.all("img"))
    assert all("onerror" not in attrs for _, attrs in found.elements)


def test_study_name_is_escaped(made: tuple[Path, RunConfig], tmp_path: Path) -> None:
    config = made[1].model_copy(update={"studies": {"<script>x": made[1].studies[STUDY]}})
    found = Page(report.run(config, tmp_path).read_text(encoding="utf-8"))
    assert "<script>x" in found.text
    assert not found.all("script")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "metrics.json", "figures"}


def test_empty_run_says_what_is_missing_and_how_to_make_it(tmp_path: Path) -> None:
    found = Page(report.run(run_config(), tmp_path).read_text(encoding="utf-8"))
    assert "no verdict yet" in found.text
    for command in ("snakemake evaluate", "snakemake train", "snakemake simulate", "make data"):
        assert command in found.text
    assert not found.all("img")
    assert json.loads((tmp_path / "metrics.json").read_text())["studies"][STUDY]["verdict"] is None


def test_missing_frames_are_named_with_the_command(numbers_only: Path) -> None:
    edit_metrics(
        numbers_only, frames=[{"set": "p03", "file": FRAME, "status": "missing", "why": "get it by `make data`"}]
    )
    found = Page(report.run(run_config(), numbers_only).read_text(encoding="utf-8"))
    missing = found.text[found.text.index("What is missing") :]
    assert FRAME in missing
    assert "make data" in missing.split("Which estimator")[0]
    assert "real frames lie outside" not in found.text


def test_run_without_real_frames_misses_none(numbers_only: Path) -> None:
    edit_metrics(numbers_only, frames=[])
    found = Page(report.run(run_config(frames=False), numbers_only).read_text(encoding="utf-8"))
    assert "names no real frames" in found.text
    assert "make data" not in found.text


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"n_held_back": "many"}, "n_held_back"),
        ({"estimators": {"x": {"information_gain": {"mean": float("nan")}}}}, "estimators.x.information_gain.mean"),
        ({"frames": {"a": 1}}, "frames"),
        ({"estimators": {"x": {"coverage": {"levels": [0.9], "joint": [float("inf")]}}}}, "coverage.joint.0"),
    ],
)
def test_damaged_metrics_are_an_error_that_names_the_field(numbers_only: Path, changes: Any, place: str) -> None:
    edit_metrics(numbers_only, **changes)
    with pytest.raises(StoreError, match=place):
        report.run(run_config(), numbers_only)


@pytest.mark.parametrize(
    ("relative", "content"),
    [
        ("evaluate/metrics.json", b"{"),
        ("evaluate/arrays.nc", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ("evaluate/arrays.nc", b""),
        ("models/summary-maf/history.csv", b""),
        ("models/summary-maf/history.csv", b"a,b\n1,2\n"),
        ("simulate/manifest.json", b"no json"),
        ("infer/frames.json", b'[{"file": 3}]'),
    ],
)
def test_damaged_products_are_errors_and_keep_the_old_report(numbers_only: Path, relative: str, content: bytes) -> None:
    config = run_config()
    report.run(config, numbers_only)
    before = {path: path.read_bytes() for path in numbers_only.rglob("*") if path.is_file()}
    edit_metrics(numbers_only, frames=[])
    path = numbers_only / STUDY / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=path.name):
        report.run(config, numbers_only)
    for old, content_before in before.items():
        if old.relative_to(numbers_only).parts[0] != STUDY:  # what the report itself wrote
            assert old.read_bytes() == content_before


def metrics_of(made: tuple[Path, RunConfig]) -> dict[str, Any]:
    return dict(json.loads((made[0] / STUDY / "evaluate" / "metrics.json").read_text()))


def test_verdict_of_narrow_posteriors_is_that_they_cannot_be_trusted(made: tuple[Path, RunConfig]) -> None:
    raw = metrics_of(made)
    best = best_model(StudyMetrics.model_validate(raw))
    assert best is not None
    coverage = raw["estimators"][best]["coverage"]
    coverage["joint"] = [low - 0.05 for low in coverage["low"]]
    verdict = study_verdict(StudyMetrics.model_validate(raw))
    assert verdict is not None
    assert not verdict.ok
    assert any("cannot be trusted" in sentence for sentence in verdict.sentences)


def test_verdict_of_estimators_below_the_prior_is_that_none_works(made: tuple[Path, RunConfig]) -> None:
    raw = metrics_of(made)
    for entry in raw["estimators"].values():
        entry["works"] = None
        entry["information_gain"] = {"mean": 4.9, "se": 1.0, "n": 500}
    metrics = StudyMetrics.model_validate(raw)
    assert not any(works(entry) for entry in metrics.estimators.values())
    verdict = study_verdict(metrics)
    assert verdict is not None
    assert not verdict.ok
    assert verdict.sentences[0].startswith("No estimator")


def test_more_information_wins_but_models_come_before_baselines(made: tuple[Path, RunConfig]) -> None:
    raw = metrics_of(made)
    gains = np.linspace(9, 8, len(raw["estimators"]))[::-1]  # the last, an ABC baseline, has most
    for gain, entry in zip(gains, raw["estimators"].values(), strict=True):
        entry |= {"works": True, "information_gain": {"mean": float(gain), "se": 0.1, "n": 500}}
    models = [name for name in raw["estimators"] if not name.startswith("abc")]
    assert best_model(StudyMetrics.model_validate(raw)) == models[-1]


def test_verdict_names_the_level_that_fails_worst_and_which_way(made: tuple[Path, RunConfig]) -> None:
    raw = metrics_of(made)
    best = best_model(StudyMetrics.model_validate(raw))
    assert best is not None
    coverage = raw["estimators"][best]["coverage"]
    for shift, word in ((-0.2, "too narrow"), (0.2, "too wide")):
        coverage["joint"] = [(low + high) / 2 for low, high in zip(coverage["low"], coverage["high"], strict=True)]
        coverage["joint"][coverage["levels"].index(0.68)] += shift
        verdict = study_verdict(StudyMetrics.model_validate(raw))
        assert verdict is not None
        assert word in verdict.sentences[1]
        assert "68 % regions" in verdict.sentences[1]


def test_frames_that_cannot_be_judged_are_said_so(numbers_only: Path) -> None:
    frames = [frame_verdict() | {"status": "masked-out", "scores": {}, "why": "use `--instrument`"}, frame_verdict()]
    edit_metrics(numbers_only, frames=frames)
    html = report.run(run_config(), numbers_only).read_text(encoding="utf-8")
    assert "1 of 2 real frames cannot be used: masked-out" in html
    assert "1 of 2 real frames lie outside" in html
    assert "use <code>--instrument</code>" in html


def test_training_time_adds_up_over_phases(made: tuple[Path, RunConfig], page: Page) -> None:
    history = pd.read_csv(made[0] / STUDY / "models" / "summary-maf" / "history.csv")
    total = history.groupby("phase")["seconds"].max().sum()
    assert f"summary-maf: {len(history)} epochs in phases cvae, flow, {numbers.seconds(total)};" in page.text


def test_cost_is_what_snakemake_measured_in_the_order_of_the_stages(numbers_only: Path) -> None:
    folder = numbers_only / STUDY / "benchmarks"
    folder.mkdir()
    header = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    for name, wall, memory, cpu in (
        ("evaluate_study", "12.5", "300.1", "20.25"),
        ("simulate_study", "61.0", "900.0", "118.0"),
        ("train_model.summary-maf", "0.4", "NA", "-"),
    ):
        (folder / f"{name}.tsv").write_text(f"{header}{wall}\t0:00:01\t{memory}\t1\t1\t1\t0\t0\t99\t{cpu}\n")
    found = Page(report.run(run_config(), numbers_only).read_text(encoding="utf-8"))
    table = found.text[found.text.index("Cost per rule") :]
    places = [table.index(name) for name in ("simulate study", "train model", "evaluate study", "all rules")]
    assert places == sorted(places)
    assert re.search(r"run baselines\s*not run here", table)
    assert "run sweep" not in table, "this study has none"
    cost = json.loads((numbers_only / "metrics.json").read_text())["studies"][STUDY]["cost"]
    size = sum(path.stat().st_size for path in (numbers_only / STUDY / "evaluate").iterdir()) / 1e6
    measured = {"seconds": 12.5, "core_seconds": 20.25, "max_rss_mb": 300.1}
    assert cost["evaluate_study"] == measured | {"shards": None, "disk_mb": size}
    assert cost["train_model.summary-maf"]["core_seconds"] is None
