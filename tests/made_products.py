"""Products of a whole run, made in seconds: real images and profiles, posteriors in closed form.

In the normal coordinate an observation is x = t + s e with t, e ~ N(0, 1): the exact posterior is a Gaussian, so what
the report must say about each estimator (calibrated, too narrow, worse than the prior) is known without training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom, chi2, kstest

from scatterflow.config.loading import parse_run, read_yaml
from scatterflow.config.study import RunConfig
from scatterflow.multilayer import MultilayerStudy
from scatterflow.stages import cross_check, evaluate, report
from scatterflow.study import study_of

ROOT = Path(__file__).parents[1]
STUDY = "multilayer"
N, DRAWS = 200, 300
LEVELS = (0.5, 0.68, 0.9, 0.95)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FRAME = "p03/frame_00005.cbf"


@dataclass(frozen=True)
class Estimator:
    """Label, noise of what it sees, and by which factor its posterior's width and centre are wrong."""

    label: str
    noise: float
    width: float = 1.0
    shift: float = 0.0


ESTIMATORS = {
    "summary-maf.image": Estimator("CVAE + flow, image + profile", 1.0),
    "summary-maf.profile": Estimator("CVAE + flow, profile only", 1.5),
    "maf-profile": Estimator("flow on the profile", 1.4),
    "abc-kde": Estimator("ABC rejection + KDE, profile", 2.0, width=0.8, shift=1.2),
    "abc-regression": Estimator("ABC + regression adjustment, profile", 1.8, width=0.6),
}


def run_config(name: str = "made", frames: bool = True) -> RunConfig:
    """The demo's multilayer study under another name, with one real frame to infer."""
    content = read_yaml(ROOT / "config" / "demo.yaml")
    study = content["studies"][STUDY]
    content |= {"run": name, "studies": {STUDY: study}}
    study.setdefault("inference", {})["frames"] = (
        [{"name": "p03", "files": [FRAME], "instrument": "p03.yaml", "source": "DESY P03, MIT licence"}]
        if frames
        else []
    )
    return parse_run(content, "made")


def mean(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "se": float(values.std(ddof=1) / np.sqrt(len(values))),
        "n": len(values),
        "truncated_mean": float(np.sort(values)[len(values) // 20 : -len(values) // 20].mean()),
    }


def posteriors(
    study: MultilayerStudy, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Truths (observation, parameter) in the normal coordinate; centre and sd of each estimator's posterior there."""
    p = len(study.prior.names)
    truth = rng.normal(size=(N, p))
    informed = np.linspace(0.4, 4.0, p)  # some parameters are measured well, others hardly
    found = {}
    for name, e in ESTIMATORS.items():
        s = e.noise * informed
        x = truth + s * rng.normal(size=truth.shape)
        found[name] = (x / (1 + s**2) + e.shift, np.broadcast_to(e.width * s / np.sqrt(1 + s**2), truth.shape))
    return truth, found


def judge(
    study: MultilayerStudy, truth: np.ndarray, centre: np.ndarray, sd: np.ndarray, label: str, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Metrics of one estimator, its ranks (observation, parameter) and its joint coverage at a grid of levels."""
    z = (truth - centre) / sd
    gain = (-0.5 * z**2 - np.log(sd) + 0.5 * truth**2).sum(axis=1)
    draws = centre[:, None] + sd[:, None] * rng.normal(size=(N, DRAWS, truth.shape[1]))
    ranks = (draws < truth[:, None]).sum(axis=1)
    inside = chi2.cdf((z**2).sum(axis=1), truth.shape[1])  # credibility of the region whose border is the truth
    grid = np.linspace(0, 1, 51)
    box = study.prior.to_box(study.prior.from_normal(truth))
    error = np.abs(study.prior.to_box(study.prior.from_normal(centre)) - box).mean(axis=1)
    p_values = {
        name: float(kstest((ranks[:, i] + rng.random(N)) / (DRAWS + 1), "uniform").pvalue)
        for i, name in enumerate(study.prior.names)
    }
    levels = np.array(LEVELS)
    prior = study.prior.log_prob_box(study.prior.from_normal(truth))
    metrics = {
        "label": label,
        "works": bool(gain.mean() > 5 * gain.std(ddof=1) / np.sqrt(N)),
        "information_gain": mean(gain) | {"sigmas": float(gain.mean() / (gain.std(ddof=1) / np.sqrt(N)))},
        "log_prob": mean(gain + prior),
        "mae_median": mean(error),
        "mae_map": mean(error * 1.1),
        "wasserstein_to_abc": {"mean": 0.08, "sd": 0.03},
        "outside_support_share": {"mean": 0.31, "se": 0.01, "n": N} if label.startswith("ABC rej") else None,
        "coverage": {
            "levels": list(LEVELS),
            "joint": [float((inside <= level).mean()) for level in LEVELS],
            "low": (binom.ppf(0.005, N, levels) / N).tolist(),
            "high": (binom.ppf(0.995, N, levels) / N).tolist(),
        },
        "sbc": {"ks_p": p_values, "holm_rejected": [k for k, v in p_values.items() if v < 0.01 / len(p_values)]},
        "seconds_per_observation": 0.021,
    }
    return metrics, ranks, (inside[:, None] <= grid).mean(axis=0)


def observed(
    study: MultilayerStudy, theta: np.ndarray, start: int, experiment: bool = False
) -> tuple[xr.Dataset, xr.Dataset]:
    """Recorded counts and features of samples `theta`, simulated by the study's engine."""
    counts = study.simulate(study.prior.dataarray(theta, start=start))
    noisy = study.observe(counts, experiment=experiment)
    return noisy, study.preprocess(noisy)


def example_group(
    study: MultilayerStudy, theta: np.ndarray, samples: dict[str, np.ndarray], experiment: bool = False
) -> xr.Dataset:
    """A group of examples: samples (estimator, example, draw, parameter), counts, features, predictive bands."""
    noisy, features = observed(study, theta, 0, experiment)
    best = next(iter(samples))
    predicted = np.stack([observed(study, rows[:12], 100, experiment)[1]["profile"].values for rows in samples[best]])
    qz = noisy["qz_profile"].values
    return xr.Dataset(
        {
            "observation": ("example", np.arange(len(theta))),
            "truth": (("example", "parameter"), theta),
            "samples": (("estimator", "example", "draw", "parameter"), np.stack(list(samples.values())).astype("f4")),
            "profile": (("example", "profile_point"), features["profile"].values),
            "mask_profile": (("example", "profile_point"), features["mask_profile"].values.astype("i1")),
            "predictive": (
                ("example", "quantile", "profile_point"), np.quantile(predicted, QUANTILES, axis=1).swapaxes(0, 1),
            ),
            "predictive_mean": (("example", "profile_point"), predicted.mean(axis=1)),
            "predictive_sd": (("example", "profile_point"), predicted.std(axis=1, ddof=1)),
            "image": (("example", "z_image", "y_image"), noisy["image"].values),
            "mask_image": (("example", "z_image", "y_image"), noisy["mask_image"].values.astype("i1")),
        },
        coords={
            "estimator": list(samples), "parameter": list(study.prior.names), "quantile": list(QUANTILES),
            "qz": ("profile_point", qz),
        },
        attrs={"predictive_estimator": best, "predictive_draws": 12},
    )  # fmt: skip


def frame_arrays(study: MultilayerStudy, rng: np.random.Generator) -> xr.Dataset:
    """A frame like no simulation: a broad hump, with gaps."""
    qz, qy = np.linspace(-0.6, 2.6, 240), np.linspace(-1.6, 1.6, 210)
    counts = 4e4 * np.exp(-((qz[:, None] - 0.6) ** 2) / 0.1 - (np.abs(qy) - 0.9) ** 2 / 0.08) + 3
    counts = rng.poisson(counts).astype("f4")
    counts[60:64] = counts[150:154] = np.nan
    counts[:, 100:103] = np.nan
    profile = np.exp(-np.linspace(0, 3, 359))
    return xr.Dataset(
        {
            "counts": (("z", "y"), counts),
            "profile": ("profile_point", profile),
            "mask_profile": ("profile_point", (np.arange(359) % 60 > 4).astype("i1")),
        },
        coords={"qz": ("z", qz), "qy": ("y", qy)},
        attrs={"horizon_qz": 0.42, "specular_qz": 0.85},
    )


def frame_verdict(why: str = "it looks like no simulation of the study") -> dict[str, Any]:
    quantiles = {"5": 0.7, "25": 0.8, "50": 0.95, "75": 1.05, "95": 1.3, "99": 1.6}
    return {
        "set": "p03", "file": FRAME, "status": "outside", "why": why,
        "scores": {
            "features": {"value": 1450.0, "threshold": 1.6, "in_range_quantiles": quantiles},
            "predictive": {"value": 22.0, "threshold": 2.1, "in_range_quantiles": quantiles},
        },
    }  # fmt: skip


def write_groups(path: Path, groups: dict[str, xr.Dataset]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, (name, group) in enumerate(groups.items()):
        group.to_netcdf(path, mode="a" if i else "w", group=name, engine="h5netcdf")


def make_products(folder: Path, study: MultilayerStudy, seed: int = 7) -> None:
    """Write what the stages before the report leave below `folder` (results/<run>/<study>/)."""
    rng = np.random.default_rng(seed)
    names = list(study.prior.names)
    truth, found = posteriors(study, rng)
    judged = {k: judge(study, truth, *found[k], e.label, rng) for k, e in ESTIMATORS.items()}
    theta = study.prior.from_normal(truth[:2])
    samples = {
        k: study.prior.from_normal(c[:2, None] + s[:2, None] * rng.normal(size=(2, DRAWS, len(names))))
        for k, (c, s) in found.items()
    }
    expert = study.expert()
    assert expert is not None
    t = study.prior.to_normal(expert.values).clip(-4, 4)
    near = {
        k: study.prior.from_normal(t + 0.2 + found[k][1][:1, None] * rng.normal(size=(1, DRAWS, len(names))))
        for k in found
    }
    example = example_group(study, theta, samples)
    image = study.preprocess(observed(study, theta, 0)[0])["image"].values
    prior_log_prob = study.prior.log_prob_box(study.prior.from_normal(truth))
    metrics = {
        "format": 1, "study": study.name, "kind": "multilayer", "n_held_back": N, "samples": DRAWS,
        "prior": {"log_prob": mean(prior_log_prob), "mae_median": mean(rng.normal(0.24, 0.02, N))},
        "estimators": {k: m for k, (m, _, _) in judged.items()},
        "paper": {
            "ABC + KDE": {"wasserstein": None, "log_prob": -22.1, "mae": 0.34, "inference_s": 18e6, "data_set_s": None,
                          "amortized": False},
            "NFs + CVAEs": {"wasserstein": 0.06, "wasserstein_sd": 0.04, "log_prob": -14.9, "mae": 0.33,
                            "inference_s": 4.56, "data_set_s": 18e6, "amortized": True},
        },
        "experiment": {
            k: {"log_prob": 6.2, "information_gain": 2.1, "mae_map": 0.21, "mae_median": 0.2} for k in ESTIMATORS
        },
        "frames": [frame_verdict()],
        "out_of_range": {"scores": {}, "false_alarm": {"rate": 0.012, "low": 0.004, "high": 0.03, "n": N}},
        "reconstruction": {
            "mean_absolute_error_rebuilt": mean(rng.normal(0.021, 0.004, N)),
            "mean_absolute_error_mean_image": mean(rng.normal(0.087, 0.01, N)),
            "model": "summary-maf",
        },
        "abc_library": {"n": 3500, "seconds_per_observation": 0.01},
        "cost": {
            job: {"seconds": s, "core_seconds": 1.9 * s, "max_rss_mb": 400.0 + s}
            for job, s in {"simulate_study": 120.0, "preprocess_study": 4.2, "train_model.summary-maf": 95.0,
                           "train_model.maf-profile": 31.0, "run_baselines": 6.0, "infer_posterior": 22.0,
                           "evaluate_study": 14.0}.items()
        },
        "sensitivity": evaluate.sensitivity(study, theta_of_fisher(study)),
        "identity": {"simulations": study.simulation_identity(), "features": study.features_identity()},
    }  # fmt: skip
    (folder / "evaluate").mkdir(parents=True)
    (folder / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    level = np.linspace(0, 1, 51)
    tarp = np.stack([c + 0.02 * np.sin(np.pi * level) for *_, c in judged.values()])
    keys = {"estimator": list(judged)}
    write_groups(
        folder / "evaluate" / "arrays.nc",
        {
            "example": example,
            "experiment": example_group(study, expert.values, near, experiment=True),
            "sbc": xr.Dataset(
                {"ranks": (("estimator", "observation", "parameter"), np.stack([r for _, r, _ in judged.values()]))},
                coords=keys | {"parameter": names}, attrs={"samples": DRAWS},
            ),
            "coverage": xr.Dataset(
                {"joint": (("estimator", "level"), np.stack([c for *_, c in judged.values()])),
                 "tarp": (("estimator", "level"), tarp)},
                coords=keys | {"level": level}, attrs={"n": N},
            ),
            "reconstruction": xr.Dataset(
                {"image": (("example", "z_image", "y_image"), image),
                 "rebuilt": (("example", "z_image", "y_image"), image + 0.02 * rng.normal(size=image.shape)),
                 "rebuilt_sd": (("example", "z_image", "y_image"), np.full(image.shape, 0.02))},
            ),
        },
    )  # fmt: skip
    write_groups(folder / "infer" / "frames.nc", {"0": frame_arrays(study, rng)})
    (folder / "infer" / "frames.json").write_text(json.dumps([frame_verdict()]))
    for model in study.config.models:
        (folder / "models" / model).mkdir(parents=True)
        history(rng).to_csv(folder / "models" / model / "history.csv", index=False)
    (folder / "cross-check").mkdir()
    (folder / "cross-check" / "manifest.json").write_text(json.dumps(engines_compared(study)))
    (folder / "simulate").mkdir()
    manifest = {
        "format": 1, "identity": study.simulation_identity(), "simulations": 4000, "engine": "bornagain",
        "core_seconds": 228.0, "versions": {"bornagain": "25.0"}, "checksum": "0" * 64,
    }  # fmt: skip
    (folder / "simulate" / "manifest.json").write_text(json.dumps(manifest))


def theta_of_fisher(study: MultilayerStudy) -> xr.DataArray:
    """Few samples: enough for a table."""
    return study.prior.sample(4)


def engines_compared(study: MultilayerStudy) -> dict[str, Any]:
    """As the stage cross-check writes it, of samples that no store holds."""
    theta = study.prior.sample(2)
    own, reference = (study.simulate(theta, engine=engine) for engine in ("dwba", "bornagain"))
    views = {
        name: cross_check.deviation(own[name], reference[name], cross_check.comparable(study.config.instrument, name))
        for name in study.views
    }
    return {
        "format": 1, "engine": "dwba", "reference": "bornagain", "geometry": "bornagain", "simulations": len(theta),
        "stored": True, "tolerance": study.config.forward.tolerance,
        "views": views,
        "core_seconds_per_simulation": {"dwba": 2e-3, "bornagain": 3e-2},
    }  # fmt: skip


def history(rng: np.random.Generator) -> pd.DataFrame:
    """Losses that fall and level off, in two phases."""
    parts = []
    for phase, scale in (("cvae", 40.0), ("flow", 4.0)):
        epoch = np.arange(40)
        train = scale * (np.exp(-epoch / 8) - 0.5) + 0.02 * scale * rng.normal(size=40)
        parts.append(
            pd.DataFrame(
                {
                    "epoch": epoch,
                    "seconds": epoch * 1.1,
                    "train_loss": train,
                    "val_loss": train + 0.05 * scale,
                    "lr": 1e-3,
                    "phase": phase,
                }
            )
        )
    return pd.concat(parts)


def make_run(results: Path, config: RunConfig | None = None) -> RunConfig:
    """Products of every study of `config` (the demo's) below `results`; returns the configuration."""
    config = config or run_config()
    for name in config.studies:
        make_products(results / name, study_of(config, name))
    return config


def shared_run(folder: Path) -> tuple[Path, RunConfig]:
    """The results of one run with its report below `folder`, made at the first call; and its configuration."""
    results, config = folder / "made-run", run_config()
    if not (results / "report.html").exists():
        make_run(results, config)
        report.run(config, results)
    return results, config
