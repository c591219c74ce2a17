"""The report's page of kind particles: complete, in words, escaped, and plain about what cannot be trusted."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_hex
from scipy.stats import binomtest, norm

from scatterflow.errors import StoreError
from scatterflow.particles import QUANTITIES, ParticlesStudy
from scatterflow.report import particlemeasured, particlesections, particletables, particleverdict, style
from scatterflow.report.figures.particles import spread
from scatterflow.report.gallery import Gallery, Section
from scatterflow.report.numbers import significant
from scatterflow.report.page import StudyPage
from scatterflow.report.particles import page
from scatterflow.report.tables import Table
from scatterflow.stages import report
from scatterflow.stages.particles.evaluate import CONFIDENCE, read_estimates
from tests import made_particles as made

KEYS = [
    "accuracy", "examples", "limits", "calibration", "ablation", "frames", "frames-rebuilt", "forward", "training", "cost",
]  # fmt: skip
LABELS = {name: name for name in ("honest", "bare", "cut-fit", "peak", "uniform")}
Found = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def study(results: Path) -> ParticlesStudy:
    return made.write(results)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def shown(study: ParticlesStudy, results: Path, figures: Path) -> StudyPage:
    return page(study, results / "gold", Gallery(figures, "gold"))


@pytest.fixture(scope="module")
def found(study: ParticlesStudy, results: Path) -> Found:
    return dict(json.loads((results / "gold" / "evaluate" / "metrics.json").read_text()))


def section(shown: StudyPage, key: str) -> Section:
    return next(each for each in shown.sections if each.key == key)


def cells(table: Table, row: str) -> dict[str, str]:
    return dict(zip(table.heads, next(each for each in table.rows if each[0] == row), strict=True))


def test_every_section_is_there_and_every_figure_has_words_and_a_size(shown: StudyPage) -> None:
    assert [each.key for each in shown.sections] == KEYS
    assert not any(each.missing for each in shown.sections)
    assert [item.what for item in shown.missing] == [f"1 of 3 real frames: {made.FILES[2]}"]
    pictures = [picture for each in shown.sections for picture in each.pictures]
    assert len(pictures) == 12
    for picture in pictures:
        assert len(picture.alt) > 40
        assert len(picture.caption) > 30
        assert min(picture.width, picture.height) > 100
        assert not {"nan", "none", "inf"} & set((picture.alt + " " + picture.caption).lower().split())


def test_tables_tell_what_the_answers_are_worth(shown: StudyPage, study: ParticlesStudy, results: Path) -> None:
    rows = read_estimates(results / "gold" / "infer" / "honest.nc")["test"]
    errors, _, coverage = section(shown, "accuracy").tables
    told = cells(errors, "honest")
    apart = float(np.median(rows["wasserstein_nm"]))
    uniform = read_estimates(results / "gold" / "baseline" / "uniform.nc")["test"]["wasserstein_nm"]
    assert told["p(R)"] == f"{apart:.2g} nm ({apart / float(np.median(uniform)):.2f})"
    off = np.abs(rows["distance_nm"] - rows["distance_nm_true"])
    assert told["spacing D"] == f"{100 * float(np.median(off / rows['distance_nm_true'])):.1f} %"
    held = (rows["disorder_true"] >= rows["disorder_low"]) & (rows["disorder_true"] <= rows["disorder_high"])
    ends = binomtest(int(held.sum()), held.size).proportion_ci(CONFIDENCE)
    assert cells(coverage, "honest")["disorder w/D"] == (
        f"{100 * float(held.mean()):.1f} % ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
    )
    assert all(text.endswith(", off") for text in cells(coverage, "bare").values() if "%" in text)
    assert cells(errors, "people: half of 46 analysts")["width of p(R)"] == "within 40 %"
    assert cells(errors, "uniform p(R): no measurement")["spacing D"] == "\N{EN DASH}"
    assert "the first 2" in errors.notes[0]
    assert study.config.baselines.fitted == 2


def test_modes_have_a_table_of_those_who_tell_any(shown: StudyPage, results: Path) -> None:
    rows = read_estimates(results / "gold" / "infer" / "honest.nc")["test"]
    table = section(shown, "accuracy").tables[1]
    assert [row[0] for row in table.rows] == ["honest", "bare", "least-squares fit of two cuts", particletables.PEOPLE]
    off = np.abs(rows["mode_radius_nm"] - rows["mode_radius_nm_true"])[:, 0]  # the study has one mode
    relative = 100 * float(np.median(off / rows["mode_radius_nm_true"][:, 0]))
    told = cells(table, "honest")
    assert told["mean radius"] == f"{significant(float(np.median(off)), 2)} nm ({relative:.1f} %)"
    assert (told["share"], told["images"]) == ("\N{EN DASH}", "200")
    assert cells(table, "least-squares fit of two cuts")["images"] == "2"
    assert "are matched in the order of their radii" in table.notes[0]


def test_shares_of_several_modes_are_told_in_percentage_points(found: Found) -> None:
    several = copy.deepcopy(found)
    several["estimators"]["honest"]["test"]["modes"] |= {"number": 2, "mode_share": {"median_error": 0.034}}
    table = particletables.modes(several, LABELS)
    assert table is not None
    assert cells(table, "honest")["share"] == "3.4 %"
    for entry in several["estimators"].values():
        entry["test"].pop("modes", None)
    assert particletables.modes(several, LABELS) is None


def test_a_study_is_trusted_for_its_first_model_alone(found: Found) -> None:
    assert particleverdict.wrong_widths(found, "honest") == []
    assert particleverdict.wrong_widths(found, "bare") == list(QUANTITIES[:3])
    good = particleverdict.verdict(found, [])
    apart = {name: found["estimators"][name]["test"]["wasserstein_nm"]["median"] for name in ("honest", "cut-fit")}
    assert good is not None
    assert good.ok == (apart["honest"] < apart["cut-fit"])
    for worse, ok in ((0.5, False), (2.0, True)):
        changed = copy.deepcopy(found)
        changed["estimators"]["cut-fit"]["test"]["wasserstein_nm"]["median"] = worse * apart["honest"]
        verdict = particleverdict.verdict(changed, [])
        assert verdict is not None
        assert verdict.ok == ok
        assert "can be trusted" in verdict.sentences[2]
        changed["estimators"].pop("honest")  # leaves the model whose intervals are too narrow
        verdict = particleverdict.verdict(changed, [])
        assert verdict is not None
        assert not verdict.ok
        assert "cannot be trusted for spacing D, disorder w/D, mean radius" in verdict.sentences[2]


def test_without_a_fit_the_best_baseline_is_the_rival_and_without_any_nothing_is_trusted(found: Found) -> None:
    for left, ok in ((("honest", "uniform"), True), (("honest", "peak"), False), (("honest",), False)):
        changed = found | {"estimators": {name: found["estimators"][name] for name in left}}
        verdict = particleverdict.verdict(changed, [])
        assert verdict is not None
        assert verdict.ok == ok
    assert particleverdict.verdict(found | {"estimators": {"uniform": found["estimators"]["uniform"]}}, []) is None


def test_beyond_the_prior_widths_and_verdicts_are_told(found: Found, shown: StudyPage) -> None:
    (table,) = section(shown, "calibration").tables
    far = found["estimators"]["honest"]["beyond"]
    assert cells(table, "honest")["spacing D: width"] == f"{far['width_over_test']['distance_nm']:.2f}"
    assert cells(table, "honest")["called outside"].startswith(f"{100 * far['outside']:.1f} %")
    assert f"{far['width_over_test']['disorder']:.2f} times as wide for disorder" in section(shown, "calibration").lead


def test_errors_are_told_over_what_the_counts_allow(found: Found, shown: StudyPage, tmp_path: Path) -> None:
    normal = float(norm.ppf(0.75))
    errors = [entry["distance_nm"]["median_error"] for entry in found["estimators"]["honest"]["counts"]]
    least = [normal * entry["distance_nm"] for entry in found["bound"]["counts"]]
    ratios = [error / bound for error, bound in zip(errors, least, strict=True)]
    assert len(ratios) == 2
    by_counts, by_disorder = section(shown, "limits").pictures
    assert (
        f"Honest over the bound: spacing D {significant(min(ratios), 2)} to {significant(max(ratios), 2)}"
        in by_counts.caption
    )
    assert "over the bound: spacing D" in by_disorder.caption
    changed = found | {"bound": {name: each for name, each in found["bound"].items() if name != "disorder_bins"}}
    (again,) = particlesections.allowed(changed, Gallery(tmp_path, "gold"), 3)
    assert "bound:" not in again.pictures[1].caption


def test_ablation_compares_models_on_the_same_images(found: Found, shown: StudyPage) -> None:
    (table,) = section(shown, "ablation").tables
    assert [row[0] for row in table.rows] == ["honest, with artefacts", "bare, without artefacts"]
    tests = [found["estimators"][name]["test"]["distance_nm"]["median_error"] for name in ("bare", "honest")]
    assert f"{tests[0] / tests[1]:.2g} for spacing D" in section(shown, "ablation").lead
    assert particlesections.ablated(found, []) == []
    assert particlesections.ablated(found, ["honest", "bare"]) == []


@pytest.mark.parametrize(("despite", "words"), [(True, "as far as the model explains them"), (False, "mean nothing")])
def test_the_verdict_tells_how_frames_outside_are_answered(despite: bool, words: str) -> None:
    entry = {
        "file": "a_00001.cbf",
        "set": "gold",
        "status": "outside",
        "despite_misfit": despite,
        "estimates": {"x": 1},
    }
    told = particlemeasured.sentence([entry, entry | {"file": "a_00002.cbf"}])
    assert told.startswith("0 of 2 real frames lie in the range of the simulations; 2 lie outside: ")
    assert words in told


def test_numbers_of_frames_that_are_outside_do_not_look_trustworthy(shown: StudyPage, figures: Path) -> None:
    answers, why = section(shown, "frames").tables
    good, bad, missing = answers.rows
    assert [good[0], bad[0]] == ["frame 5 (p03)", "frame 33 (p03)"]
    assert good[1:3] == ["ok", good[2].strip("()")]
    assert all(cell.startswith("(") and cell.endswith(")") for cell in bad[2:6])
    assert missing[1:] == ["missing", *["\N{EN DASH}"] * 5]
    assert why.rows[1][-1] == made.WHY
    images = section(shown, "frames-rebuilt").pictures
    assert "not to be trusted" in images[1].caption
    assert "not to be trusted" not in images[0].caption
    for number, grey in ((0, False), (1, True)):
        drawn = (figures / f"gold-frame-{number}.svg").read_text()
        assert ("outside: not to be trusted" in drawn) == grey
        assert (style.BLUE in drawn) != grey
    assert shown.verdict is not None
    assert "1 of 2 real frames lie in the range" in shown.verdict.sentences[-1]
    assert "1 lies outside" in shown.verdict.sentences[-1]


def test_text_of_files_is_escaped_and_starts_no_formula(study: ParticlesStudy, results: Path) -> None:
    html = report.run(made.run_config(), results, tell=lambda _: None).read_text()
    assert study.name in html
    assert made.HOSTILE not in html
    assert "&lt;script&gt;$x$_00005.cbf" in html
    assert "by hand &lt;b&gt;" in html
    assert "arXiv 2303.03772" in html
    written = json.loads((results / "metrics.json").read_text())["studies"]["gold"]
    assert written["verdict"]["ok"] in (True, False)
    assert written["cross_check"]["engine"] == "dwba"


def test_every_colour_has_its_twin_on_dark_paper(shown: StudyPage, figures: Path) -> None:
    used = set()
    for path in figures.glob("*.svg"):
        for node in ElementTree.fromstring(path.read_text()).iter():
            if "image" in node.tag:
                continue
            for part in node.get("style", "").split(";"):
                key, _, value = part.partition(":")
                if key.strip() in ("fill", "stroke") and value.strip().startswith("#"):
                    used.add(value.strip())
    arrows = {to_hex(colormaps["cividis"](1.0))}  # an image and its bar are the same on any paper
    assert shown.sections
    assert len(used & set(style._DARK)) > 5
    assert used <= set(style._DARK) | arrows, used - set(style._DARK) - arrows


def test_what_is_missing_names_its_command(study: ParticlesStudy, tmp_path: Path) -> None:
    bare = page(study, tmp_path / "gold", Gallery(tmp_path, "gold"))
    assert (bare.verdict, bare.tiles) == (None, [])
    commands = {item.command for item in bare.missing}
    stages = ("simulate", "cross_check", "train", "baseline", "infer", "evaluate")
    assert commands == {f"snakemake {stage}" for stage in stages}
    lacking = {each.key: each.missing for each in bare.sections}
    assert list(lacking) == ["accuracy", "examples", "limits", "calibration", "frames", "forward"]
    assert all("snakemake" in words for words in lacking.values())


def test_damaged_products_end_in_one_line(study: ParticlesStudy, found: Found, tmp_path: Path) -> None:
    folder = tmp_path / "gold"
    for relative, text in (
        ("evaluate/metrics.json", "[]"),
        ("evaluate/metrics.json", json.dumps(found | {"estimators": {"honest": {"kind": "model"}}})),
        ("infer/examples.nc", "no NetCDF"),
        ("infer/frames.json", '[{"file": "a.cbf"}]'),
        ("cross-check/manifest.json", "{}"),
    ):
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        with pytest.raises(StoreError, match=path.name):
            page(study, folder, Gallery(tmp_path, "gold"))
        path.unlink()


def test_a_study_without_disorder(tmp_path: Path) -> None:
    sample = made.STUDY["sample"] | {"interference": "hard-disks", "distance_nm": [12.0, 18.0]}
    numbers = {"simulations": 40, "held_back": 20, "validation": 10, "shard_size": 40, "chunk_size": 20}
    evaluation = {"series_rows": 10, "counts_series": [1e5], "bound_rows": 2}
    study = made.write(tmp_path, sample=sample, simulate=numbers, evaluation=evaluation)
    assert "disorder" not in study.prior.names
    without = page(study, tmp_path / "gold", Gallery(tmp_path, "gold"))
    assert [each.key for each in without.sections] == KEYS
    assert not section(without, "calibration").tables
    heads = [head for each in without.sections for table in each.tables for head in table.heads]
    assert "spacing D" in heads
    assert not any("disorder" in head for head in heads)


def test_absent_variables_and_numbers_leave_gaps_not_failures(found: Found, tmp_path: Path) -> None:
    hollow = copy.deepcopy(found)
    for entry in hollow["estimators"].values():
        entry.pop("counts", None)
        entry.pop("disorder_bins", None)
        entry.pop("beyond", None)
        for name in ("disorder", "width_nm", "wasserstein_nm", "wasserstein_over_uniform", "outside"):
            entry["test"].pop(name, None)
    gallery = Gallery(tmp_path, "gold")
    assert particlesections.allowed(hollow, gallery, 0) == []
    assert particlesections.calibration(hollow, gallery, 0).tables == []
    assert particlesections.accuracy(hollow, {"honest": xr.Dataset()}, gallery, 0).pictures == []
    verdict = particleverdict.verdict(hollow, [])
    assert verdict is not None
    assert not verdict.ok  # it gives no p(R)
    assert particletables.errors(hollow, LABELS).rows[0][1] == "\N{EN DASH}"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**9 - 1)), min_size=1, unique=True), st.booleans())
def test_frames_are_placed_by_the_number_in_their_name(frames: list[tuple[str, int]], stack: bool) -> None:
    end = "run7_{}.cbf" if not stack else "run7.h5::/entry/data[{}]"
    summaries = [{"file": end.format(number), "set": each} for each, number in frames]
    assert particlemeasured.numbers(summaries) == [float(number) for _, number in frames]
    assert particlemeasured.numbers([*summaries, summaries[0]]) is None
    assert particlemeasured.called([{"file": "last.cbf", "set": "a"}]) == ["last.cbf (a)"]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)), st.integers(1, 20))
def test_a_thinned_choice_is_finite_ascending_and_small(values: list[float], number: int) -> None:
    array = np.array(values)
    places = spread(array, number)
    finite = np.flatnonzero(np.isfinite(array))
    assert len(places) == min(number, len(finite))
    assert np.isfinite(array[places]).all()
    assert (np.diff(places) > 0).all()
    if len(places) > 1:
        assert (places[0], places[-1]) == (finite[0], finite[-1])
