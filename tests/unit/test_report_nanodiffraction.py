"""The report's sections of kind nanodiffraction: complete, in words, escaped, and plain about what fails."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scatterflow import maps
from scatterflow.config.loading import parse_run
from scatterflow.errors import StoreError
from scatterflow.report import (
    mapframes,
    mapsections,
    maptables,
    mapverdict,
    mapwords,
    style,
)
from scatterflow.report import nanodiffraction as reporting
from scatterflow.report.figures import maps as drawing
from scatterflow.report.gallery import Gallery, Picture, Section
from scatterflow.report.page import code
from scatterflow.study import Study, study_of
from tests import made_scans

HOSTILE = "<script>$x$"
SEEDS = [
    {"model": "lean", "seed": 1, "ok": True, "ratio": {"strain": 1.1}, "seconds": 41.0},
    {"model": "lean", "seed": 2, "ok": False, "ratio": {"strain": 9.0}, "why": "stayed on the plateau"},
]
LATENCY = [
    {"estimator": "lean", "device": "CPU", "ms": 0.2},
    {"estimator": "lean", "device": "GPU", "ms": 0.01, "p99_ms": 9.0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study")
    paper = made_scans.scan(16, seed=1)
    named = paper.assign_coords(estimator=["likelihood", HOSTILE, "lost", "centroid"])
    scans = {"paper": named, "particle": made_scans.scan(12, seed=2, film=False, experiment=True)}
    made_scans.write(made, scans)
    return made


@pytest.fixture(scope="module")
def scans(folder: Path) -> dict[str, xr.Dataset]:
    return reporting.read_scans(folder / "infer")


@pytest.fixture(scope="module")
def found(scans: dict[str, xr.Dataset]) -> dict[str, Any]:
    through_a_file = json.dumps(maps.evaluation(scans) | {"seeds": SEEDS, "latency": LATENCY}, allow_nan=False)
    return dict(json.loads(through_a_file))


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def sections(scans: dict[str, xr.Dataset], found: dict[str, Any], figures: Path) -> list[Section]:
    return reporting.sections(scans, found, Gallery(figures, "film"), 7)


def pictures(sections: list[Section]) -> list[Picture]:
    return [picture for section in sections for picture in section.pictures]


def test_every_section_is_there_and_keys_are_unique(sections: list[Section]) -> None:
    keys = [section.key for section in sections]
    assert keys == ["accuracy", "maps-paper", "points-paper", "frames-particle", "maps-particle", "points-particle",
                    "agreement-particle", "film", "seeds", "latency"]  # fmt: skip
    assert not any(section.missing for section in sections)
    assert len([p for section in sections if section.key.startswith("maps-") for p in section.pictures]) == 6


def test_every_figure_has_words_a_size_and_a_caption(sections: list[Section]) -> None:
    for picture in pictures(sections):
        assert len(picture.alt) > 40
        assert len(picture.caption) > 30
        assert picture.width > 0
        assert picture.height > 0
        assert "nan" not in (picture.alt + picture.caption).lower().split()


def test_text_of_files_is_escaped_on_the_page_and_no_formula_in_figures(sections: list[Section], figures: Path) -> None:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    source = (resources.files("scatterflow.report") / "templates" / "page.html.j2").read_text(encoding="utf-8")
    macros = source[: source.index("<!DOCTYPE html>")]
    html = environment.from_string(macros + "{% for s in sections %}{{ body(s) }}{% endfor %}").render(
        sections=sections
    )
    assert "<script" not in html
    assert "&lt;script&gt;$x$" in html
    assert "made by hand &lt;b&gt;" in html
    drawn = "".join((figures / f"film-paper-map-{name}.svg").read_text() for name in made_scans.PARAMETERS)
    assert "&lt;script&gt;$x$" in drawn


def test_every_colour_has_its_twin_on_dark_paper(figures: Path) -> None:
    used = set()
    for path in figures.glob("*.svg"):
        for node in ElementTree.fromstring(path.read_text()).iter():
            if "image" in node.tag:
                continue
            for part in node.get("style", "").split(";"):
                key, _, value = part.partition(":")
                if key.strip() in ("fill", "stroke") and value.strip().startswith("#"):
                    used.add(value.strip())
    # colour bars are images but for the arrows at their ends
    arrows = {to_hex(colormaps[name](end)) for name in ("PuOr", "cividis") for end in (0.0, 1.0)}
    on_images = {drawing.ON_IMAGE, drawing.INK_ON_IMAGE}  # an image is the same on any paper
    assert len(used & set(style._DARK)) > 5
    assert used <= set(style._DARK) | arrows | on_images, used - set(style._DARK) - arrows - on_images


def test_verdict_names_the_best_the_published_and_what_does_not_fit(found: dict[str, Any]) -> None:
    verdict = reporting.verdict(found)
    assert verdict is not None
    assert not verdict.ok  # the particle is no film
    simulated = reporting.verdict({**found, "scans": {"paper": found["scans"]["paper"]}})
    assert simulated is not None
    assert simulated.ok
    text = " ".join(verdict.sentences)
    merit = found["scans"]["paper"]["merit"]["estimators"]
    ratios = [part["ratio"] for part in merit["likelihood"]["parameters"].values()]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times the Cramér" in text
    assert found["scans"]["particle"]["goodness"]["verdict"]["why"] in text
    assert f"{HOSTILE} (errors of up to" in text
    assert "1 of 2 seeds of lean succeed" in text
    assert [value for value, _ in reporting.tiles(found)][-1] == f"{max(ratios):.2f}"


def test_without_a_good_estimator_the_study_cannot_be_trusted(scans: dict[str, xr.Dataset]) -> None:
    paper = scans["paper"]
    for name, words in ((HOSTILE, "cannot be trusted for strain"), ("centroid", "states no errors")):
        verdict = reporting.verdict(maps.evaluation({"paper": paper.sel(estimator=[name, "lost"])}))
        assert verdict is not None
        assert not verdict.ok
        assert words in " ".join(verdict.sentences)
    dark = paper.copy(deep=True)
    dark["status"][:] = "missing"
    dark["estimate"][:] = dark["goodness"][:] = np.nan
    verdict = reporting.verdict(maps.evaluation({"paper": dark}))
    assert verdict is not None
    assert (verdict.ok, verdict.sentences[0]) == (False, "No estimator answers.")


def test_published_figures_stand_beside_ours_only_where_they_compare(scans: dict[str, xr.Dataset]) -> None:
    for fields in ("paper", "random"):
        found = maps.evaluation({"paper": scans["paper"].assign_attrs(fields=fields)})["scans"]["paper"]
        published = maps.PUBLISHED if found["as_published"] else {"estimators": {}}
        rows = [row for table in maptables.merit(found, {"strain": "1"}, published) for row in table.rows]
        bound = found["merit"]["estimators"]["likelihood"]["parameters"]["strain"]["bound"]
        shown = {row[0]: row[4] for row in rows if "(published)" in row[0]}
        expected = {
            f"{name} (published)": f"{row['strain'][1] / bound:.2f}"
            for name, row in maps.PUBLISHED["estimators"].items()
        }
        assert shown == (expected if fields == "paper" else {})
        assert bool(mapverdict.published_sentence(found, maps.PUBLISHED)) == (fields == "paper")


def test_what_is_missing_names_its_command(scans: dict[str, xr.Dataset], tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, "film")
    assert "scatterflow infer" in reporting.sections({}, {}, gallery, 0)[0].missing.replace("snakemake", "scatterflow")
    bare = {"particle": scans["particle"].drop_dims("shown").drop_vars(["x_um", "y_um"])}
    found = {section.key: section for section in reporting.sections(bare, {}, gallery, 0)}
    assert list(found) == ["accuracy", "frames-particle", "maps-particle", "agreement-particle", "film"]
    assert all("snakemake evaluate" in found[key].missing for key in ("accuracy", "agreement-particle", "film"))
    assert reporting.verdict({}) is None
    assert reporting.tiles({}) == []


def a_study() -> Study:
    simulate = {"simulations": 40, "shard_size": 20, "held_back": 10, "validation": 10}
    film = {"kind": "nanodiffraction", "simulate": simulate, "models": {"lean": {"network": "lean"}}}
    return study_of(parse_run({"run": "made", "seed": 3, "studies": {"film": film}}, "made"), "film")


def test_the_page_of_a_study(scans: dict[str, xr.Dataset], tmp_path: Path) -> None:
    study, results = a_study(), tmp_path / "film"
    gallery = Gallery(tmp_path, "film")
    empty = reporting.page(study, results, gallery)
    assert (empty.verdict, empty.tiles) == (None, [])
    assert {item.command for item in empty.missing} == {
        f"snakemake {stage}" for stage in ("evaluate", "infer", "simulate", "train")
    }
    (results / "evaluate").mkdir(parents=True)
    alone = scans["paper"].sel(estimator=["likelihood"]).drop_dims("shown")
    alone.to_netcdf(results / "evaluate" / "scan-paper.nc", engine="h5netcdf")
    found = maps.evaluation({"paper": alone})
    (results / "evaluate" / "metrics.json").write_text(json.dumps(found | {"identity": {"features": "abc"}}))
    (results / "models" / "lean").mkdir(parents=True)
    (results / "models" / "lean" / "history.csv").write_text("epoch,train_loss,val_loss\n0,2.0,2.5\n1,1.0,1.25\n")
    made = reporting.page(study, results, gallery)
    assert made.verdict is not None
    assert made.verdict.ok
    assert [item.command for item in made.missing] == ["snakemake simulate"]
    assert made.sections[-1].key == "training"
    assert "lowest validation loss 1.25" in made.sections[-1].pictures[0].caption
    assert made.identity == {"simulations": study.simulation_identity(), "features": "abc"}
    (results / "evaluate" / "metrics.json").write_text("{}")
    with pytest.raises(StoreError, match="must hold the figures of merit of maps"):
        reporting.page(study, results, gallery)


def test_figures_of_merit_of_other_estimators_are_not_shown(
    scans: dict[str, xr.Dataset], found: dict[str, Any], tmp_path: Path
) -> None:
    other = {"particle": scans["particle"].sel(estimator=["centroid", "likelihood"]).drop_dims("shown")}
    made = {section.key: section for section in reporting.sections(other, found, Gallery(tmp_path, "film"), 0)}
    assert all("snakemake evaluate" in made[key].missing for key in ("accuracy", "agreement-particle", "film"))


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scan-a.nc").write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError, match=r"scan-a\.nc must be a readable NetCDF file"):
        reporting.read_scans(tmp_path)
    with xr.open_dataset(folder / "infer" / "scan-paper.nc", engine="h5netcdf") as opened:
        opened.load().drop_vars("goodness").to_netcdf(tmp_path / "scan-a.nc", engine="h5netcdf")
    with pytest.raises(StoreError, match=r"goodness in .*scan-a\.nc must be there"):
        reporting.read_scans(tmp_path)


def test_all_maps_of_a_parameter_share_the_scale_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = 1e-3 * rng.uniform(-1, 1, (5, 6))
    rows = [
        drawing.MapRow("truth", truth, None, np.full_like(truth, 1e-4)),
        drawing.MapRow("good", truth + 1e-4, truth * 0 + 1e-4, None),
        drawing.MapRow("lost", 100 * truth, 99 * truth, np.full_like(truth, 1e-4)),
    ]
    figure = drawing.parameter_maps("strain", "1", rows, drawing.Extent(0, 6, 0, 5, "µm"), True, np.ones((5, 6), bool))
    images = [axes.images[0] for axes in figure.axes if axes.images]
    limits = [image.get_clim() for image in images]
    assert len(images) == 3 + 2 + 2
    values = {limit for image, limit in zip(images, limits, strict=True) if image.get_cmap().name == "PuOr"}
    assert len(values) == 2, "values, and errors"
    assert all(low == -high for low, high in values)
    assert max(high for _, high in values) < 60, "in units of 1e-4 or 1e-3: the lost estimator sets no scale"


def test_dark_points_and_constant_maps_set_no_scale() -> None:
    rng = np.random.default_rng(0)
    use = np.zeros((5, 6), bool)
    use[1:4, 1:4] = True
    found = np.where(use, 1e-3 * rng.uniform(-1, 1, use.shape), 5.0)  # at the border of the prior where it is dark
    sd = np.where(use, 1e-4, 1.0)
    rows = [drawing.MapRow("good", found, None, sd), drawing.MapRow("constant", 0 * found, None, None)]
    extent = drawing.Extent(6, 0, 5, 0, "µm")  # positions may descend
    figure = drawing.parameter_maps("strain", "1", rows, extent, False, use)
    limits = {axes.images[0].get_cmap().name: axes.images[0].get_clim() for axes in figure.axes if axes.images}
    exponent = int(np.floor(np.log10(np.abs(found[use]).max())))
    assert 0.9 < limits["PuOr"][1] * 10.0**exponent / np.abs(found[use]).max() <= 1
    assert limits["cividis"] == pytest.approx((0.0, 1.15))


def test_points_stand_on_their_pixels(
    scans: dict[str, xr.Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def remember(values: np.ndarray, label: str, extent: drawing.Extent, points: list[tuple[float, float]]) -> Figure:
        seen.extend(points)
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(drawing, "marked_map", remember)
    scan = scans["paper"]
    mapsections.points_section("paper", scan, Gallery(tmp_path, "film"))
    expected = [
        (float(scan["x_um"][column]), float(scan["y_um"][row]))
        for row, column in zip(scan["shown_row"].values, scan["shown_column"].values, strict=True)
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-12)


@given(st.floats(-0.1, 0.1), st.floats(1e-7, 1e-2))
def test_values_read_back_within_a_tenth_of_their_error(value: float, sd: float) -> None:
    text = mapwords.scaled(value, sd, "deg", value).replace("\N{MINUS SIGN}", "-")
    match = re.fullmatch(r"\(?(-?[\d.]+) ± ([\d.]+)\)?(?:·10(\S+))? deg, truth (-?[\d.]+)(?:·10\S+)? deg", text)
    assert match, text
    size = 10.0 ** int(match[3].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if match[3] else 1.0
    assert abs(float(match[1]) * size - value) <= 0.06 * sd
    assert float(match[2]) * size == pytest.approx(sd, rel=0.06)
    assert float(match[4]) == float(match[1])
    assert not match[1].startswith("-0.0" + "0" * 8)


@pytest.mark.parametrize("unit", ["1", "deg"])
def test_zero_has_no_sign(unit: str) -> None:
    assert "\N{MINUS SIGN}" not in mapwords.scaled(-1e-9, 1e-4, unit, -1e-9)


def test_the_cut_and_the_assumptions_of_a_measured_scan(sections: list[Section], scans: dict[str, xr.Dataset]) -> None:
    made = next(section for section in sections if section.key == "frames-particle")
    assert "rows 10 to 41 and columns 8 to 39" in made.lead
    assert "Assumed: energy_kev" in made.lead
    assert "46 µm out of focus" in made.lead
    assert "z 14 to 45, y 6 to 37" in made.pictures[0].caption
    assert "z 30.0, y 22.0" in made.pictures[0].caption, "the peak's centre, as it was made"
    geometry, masked = made.tables
    known = {name: entry for name, entry in made_scans.GEOMETRY.items() if entry["sd"]}
    off = {name: abs(entry["config"] - entry["value"]) / entry["sd"] for name, entry in known.items()}
    assert [name for name, by in off.items() if by > mapframes.AGREES] == ["energy_kev", "peak_width"]
    # the width may be smaller than the estimate: who estimated it says that it agrees
    assert [row[3].split(",")[0] for row in geometry.rows] == ["NO", "yes", "yes"]
    assert [row[0] for row in geometry.rows] == ["energy_kev", "outer_zone_nm", "peak_width / pixel"]
    assert geometry.notes[1] == "Not told by the frames: distance_mm<b> (degenerate)."
    assert "The frames contradict the configuration: energy_kev by 5.0 errors." in made.lead
    assert "does not explain these frames (7.0 % of their counts are left)" in made.lead
    assert "Estimated from 96 frames" in geometry.notes[0]
    assert [row for row in masked.rows if row[1] != "0"] == [["hot", "2"], ["in gaps between modules", "64"]]


def test_scans_that_tell_nothing_of_their_frames_have_no_such_section(
    scans: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    assert mapframes.frames_section("paper", scans["paper"], Gallery(tmp_path, "film")) is None
    given = scans["particle"].drop_vars("overview").assign_attrs(roi_rows="[1, 2]", estimated_geometry_missing="dark")
    del given.attrs["roi_sigmas"], given.attrs["estimated_geometry"]
    made = mapframes.frames_section("particle", given, Gallery(tmp_path, "film"))
    assert made is not None
    assert made.lead.startswith("Cut out, as configured: rows 1 to 2")
    assert "could not be estimated from the frames: dark." in made.lead
    assert not made.pictures


@pytest.mark.parametrize("text", ["nothing", "[1]", '{"energy_kev": 3}', '{"energy_kev": {"value": "x", "sd": 1}}'])
def test_an_estimated_geometry_of_another_form_is_refused(scans: dict[str, xr.Dataset], text: str) -> None:
    with pytest.raises(StoreError, match="estimated_geometry of scan a must be a JSON object"):
        mapframes.estimated_geometry(scans["particle"].assign_attrs(estimated_geometry=text), "a")


def test_the_worst_seed_of_each_model_and_the_limit_are_marked() -> None:
    nothing = {"model": "donut", "seed": 5, "ok": False, "why": "diverged"}
    table = maptables.seeds([*SEEDS, {"model": "donut", "seed": 4, "ok": True, "ratio": {"strain": 1.4}}, nothing])
    assert table is not None
    marked = [row[0] for row in table.rows if "(worst)" in row[0]]
    assert marked == ["lean, seed 2 (worst)", "donut, seed 5 (worst)"]
    assert table.rows[-1][:2] == ["limit", f"{mapverdict.GOOD:g}"]
    assert table.rows[1][1:] == ["9.00", "\N{EN DASH}", "failed: stayed on the plateau"]


def test_every_pair_of_estimators_stands_in_the_matrix(found: dict[str, Any], figures: Path) -> None:
    agreement = found["scans"]["particle"]["agreement"]
    parameter = "chi_deg"
    drawn = (figures / f"film-particle-agreement-matrix-{parameter}.svg").read_text(encoding="utf-8")
    texts = {node.text for node in ElementTree.fromstring(drawn).iter() if node.tag.endswith("text")}
    matrix = agreement["parameters"][parameter]["pearson"]
    pairs = [matrix[i][j] for i in range(len(matrix)) for j in range(i)]
    assert len(pairs) == 6
    for value in pairs:
        assert f"{value:.2f}".replace("-", "\N{MINUS SIGN}") in texts


def test_deviances_of_all_estimators_of_a_measured_scan_stand_beside_each_other(
    sections: list[Section], found: dict[str, Any]
) -> None:
    film = next(section for section in sections if section.key == "film")
    assert len(film.pictures) == 3, "a map of each of two scans, and the deviances of the measured one"
    entries = found["scans"]["particle"]["goodness"]["estimators"]
    assert len(entries) == 4
    for name, entry in entries.items():
        assert f"{name} {entry['quantiles']['50']:.2f}" in film.pictures[2].caption


def test_numbers_of_points_do_not_overlap_and_stay_near() -> None:
    points = np.array([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
    moved = drawing.apart(points, 1.0)
    between = np.hypot(*(moved[:, None] - moved).transpose(2, 0, 1))[~np.eye(4, dtype=bool)]
    assert between.min() > 0.9
    np.testing.assert_array_equal(moved[3], points[3])
    assert np.abs(moved - points).max() < 2
