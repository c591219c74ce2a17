"""A finished study of kind particles but for its models, whose answers are the truth with errors of known size.

Simulations, baselines and figures of merit are those of the real stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import norm

from scatterflow import estimates, imagecheck, seeds
from scatterflow.config.loading import parse_run
from scatterflow.config.study import RunConfig
from scatterflow.exports import write_tree
from scatterflow.particleframes import ParticleFrame, _shown, result_dataset
from scatterflow.particles import VIEW, ParticlesStudy
from scatterflow.products import write_json
from scatterflow.stages import simulate
from scatterflow.stages.particles import baseline, evaluate, sets
from scatterflow.study import study_of

HOSTILE = "<script>$x$"
WHY = "it looks like no simulation <b>of the study</b>"
# error in the spread of the truth over the test images, and stated over true errors
MODELS = {"honest": (0.05, 1.0), "bare": (0.2, 0.3)}
FILES = (f"{HOSTILE}_00005.cbf", f"{HOSTILE}_00033.cbf", f"{HOSTILE}_00045.cbf")
GOLD = {"name": "Au", "delta": 3e-5, "beta": 3e-6}
SILICON = {"name": "Si", "delta": 5e-6, "beta": 8e-8}
STUDY: dict[str, Any] = {
    "kind": "particles",
    "instrument": {
        "wavelength_nm": 0.1, "incidence_deg": 0.4, "distance_mm": 2500, "pixel_mm": 0.172, "shape": [400, 400],
        "background": 0, "resolution_mm": 0, "beam": "direct", "beam_z_px": 20, "beam_y_px": 200,
        "views": {"image": {"rows": [[130, 290]], "columns": [40, 360], "bins": [16, 20]}},
    },
    "sample": {
        "material": GOLD, "radius_nm": [1.0, 7.0], "sizes": 12, "distance_nm": [8.0, 18.0],
        "modes": {"mean_radius_nm": [2.0, 4.0], "relative_width": [0.15, 0.35]},
        "substrate": {"material": SILICON, "roughness_nm": 0.4, "hurst": 0.6, "correlation_length_nm": 20.0},
    },
    "simulate": {"simulations": 260, "held_back": 200, "validation": 20, "shard_size": 260, "chunk_size": 20},
    "models": {"honest": {}, "bare": {"artefacts": False}},
    "baselines": {"methods": ["cut-fit", "peak", "uniform"], "fitted": 2, "starts": 2},
    "evaluation": {"series_rows": 20, "counts_series": [1e4, 1e6], "bound_rows": 6},
    "inference": {"frames": [{"name": "p03", "files": list(FILES), "instrument": "i.yaml", "source": "by hand <b>"}]},
}  # fmt: skip
CHECK = {
    "engine": "dwba", "reference": "bornagain", "geometry": "bornagain", "simulations": 2, "stored": True,
    "tolerance": 0.01, "views": {"image": {"largest": 7e-5, "median": 2e-7, "simulation": 3}},
    "core_seconds_per_simulation": {"dwba": 0.02, "bornagain": 0.6},
}  # fmt: skip


def run_config(**changes: Any) -> RunConfig:
    return parse_run({"run": "made", "seed": 3, "studies": {"gold": STUDY | changes}}, "made")


def write(results: Path, **changes: Any) -> ParticlesStudy:
    """All products of the study below `results`, as the report reads them."""
    study = study_of(run_config(**changes), "gold")
    assert isinstance(study, ParticlesStudy)
    folder = results / "gold"
    simulate.run(study, folder)
    baseline.run(study, folder)
    images, facts = sets.simulated(study, folder), {}
    for name, (error, stated) in MODELS.items():
        groups = {f"/{each}": answers(study, rows, error, stated, name) for each, rows in images.items()}
        write_tree(folder / "infer" / f"{name}.nc", groups)
        facts[name] = {"label": name, "seconds_per_image": 0.002}
    write_tree(folder / "infer" / "examples.nc", {"/": examples(study, images[sets.TEST].isel(simulation=slice(0, 2)))})
    frames = write_frames(study, folder, images[sets.TEST])
    numbers = {n: {"n": r.sizes["simulation"], "total_counts": r.attrs["total_counts"]} for n, r in images.items()}
    write_json(folder / "infer" / "manifest.json", {"models": facts, "sets": numbers, "frames": frames})
    write_json(folder / "cross-check" / "manifest.json", CHECK)
    for name in MODELS:
        rows = [f"dual-branch,{n},{n + 1},{9 - n},{9.5 - n},0.001," for n in range(5)]
        (folder / "models" / name).mkdir(parents=True)
        text = "\n".join(["phase,epoch,seconds,train_loss,val_loss,lr,stopped", *rows, ""])
        (folder / "models" / name / "history.csv").write_text(text)
    evaluate.run(study, folder)
    return study


def answers(study: ParticlesStudy, rows: xr.Dataset, error: float, stated: float, key: str) -> xr.Dataset:
    """The truth of `rows` with normal errors, and central intervals of `stated` times their width."""
    theta, generator = rows["parameters"].values, np.random.default_rng(seeds.integer(study.seed, key))
    cube = study.prior.to_cube(theta)
    moved = study.prior.from_cube(np.clip(cube + error * generator.standard_normal(cube.shape) / 3, 1e-6, 1 - 1e-6))
    p = study.size_distribution(moved).values
    found = {estimates.P: p, f"{estimates.P}_low": 0.8 * p, f"{estimates.P}_high": np.minimum(1.2 * p, 1)}
    reach = float(norm.ppf((1 + study.config.inference.interval) / 2)) * stated
    for name, truth in study.quantities(theta).items():
        sd = error * study.quantities(study.prior.sample(500).values)[name].std()
        found[name] = truth + sd * generator.standard_normal(truth.shape)
        found[f"{name}_sd"] = np.full(truth.shape, stated * sd)
        found[f"{name}_low"], found[f"{name}_high"] = found[name] - reach * sd, found[name] + reach * sd
    named = estimates.with_modes(estimates.labelled(study, found), study.prior.names, moved)
    result = estimates.beside_truth(study, named, theta)
    return result.assign(outside=("simulation", np.arange(len(theta)) % 20 == 0))


def examples(study: ParticlesStudy, rows: xr.Dataset) -> xr.Dataset:
    """What stage infer keeps of test images: answers, recorded and rebuilt images."""
    result = answers(study, rows, *MODELS["honest"], "examples")
    counts, valid = rows[VIEW].values, rows[f"mask_{VIEW}"].values
    rebuilt = imagecheck.fitted(study.expected(rows["parameters"].values), counts, valid).image
    for name, values in (("recorded", counts), ("valid", valid), ("rebuilt", rebuilt)):
        result[name] = (("simulation", "z", "y"), values)
    for axis in "zy":
        result[f"q{axis}"] = (axis, study.coordinates(VIEW)[f"q{axis}_{VIEW}"][1])
    return result.assign_attrs(model="honest")


def write_frames(study: ParticlesStudy, folder: Path, rows: xr.Dataset) -> list[dict[str, Any]]:
    """Frames: one in range, one outside, one that is missing."""
    found: list[dict[str, Any]] = []
    groups = {"/": xr.Dataset()}
    for number, (file, status, why) in enumerate(zip(FILES[:2], ("ok", "outside"), ("in range", WHY), strict=True)):
        one = rows.isel(simulation=[number])
        samples = np.repeat(one["parameters"].values, 8, axis=0)
        samples = samples * np.random.default_rng(number).uniform(0.98, 1.02, samples.shape)
        named = xr.DataArray(samples, dims=("sample", "parameter"), coords={"parameter": list(study.prior.names)})
        answer = answers(study, one, *MODELS["honest"], file)
        answer = answer.drop_vars([name for name in answer if str(name).endswith("_true")])  # nobody knows it here
        best = one["parameters"].values if number else None
        frame = ParticleFrame(
            file, status, why, answer,
            {"features": {"value": 1.0, "threshold": 2.0}}, named,
            _shown(study, samples, study.preprocess(one), study.config.instrument, best),
            bool(number),
        )  # fmt: skip
        assert frame.shown is not None
        groups[f"/{number}"] = xr.merge(
            [result_dataset(frame).drop_vars("samples"), frame.shown], combine_attrs="drop_conflicts"
        )
        found.append({"set": "p03", "source": "by hand <b>"} | frame.summary())
    found.append({"set": "p03", "source": "", "file": FILES[2], "status": "missing", "why": "get it by `make data`"})
    write_tree(folder / "infer" / "frames.nc", groups)
    write_json(folder / "infer" / "frames.json", found)
    return found
