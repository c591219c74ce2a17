"""What determines a product: identity hashes, source hashes, versions."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scatterflow.config.study import RunConfig

PACKAGE = "scatterflow"


def digest(value: Any) -> str:
    """sha256 (hex) of a plain JSON value; independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _strip_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _source_files(module: str) -> list[Path]:
    """Files of a module, or of a package with its page templates, found without importing them."""
    root = Path(__file__).parent.joinpath(*module.split(".")[1:])
    if root.is_dir():
        return sorted(path for path in root.rglob("*") if path.suffix in (".py", ".j2", ".css"))
    return [root.with_suffix(".py")]


@lru_cache
def source_hash(*modules: str) -> str:
    """Hash of the code of modules ("scatterflow.observe") and packages: comments, docstrings and layout do not count."""
    parts = []
    for module in sorted(set(modules)):
        for path in _source_files(module):
            text = path.read_text(encoding="utf-8")
            meaning = ast.dump(_strip_docstrings(ast.parse(text))) if path.suffix == ".py" else text
            parts.append([str(path.relative_to(Path(__file__).parent)), meaning])
    return digest(parts)


def versions(
    packages: Iterable[str] = ("numpy", "torch", "bornagain", "xarray", "zarr", "nflows", "sbi"),
) -> dict[str, str]:
    """Versions of Python, of scatterflow and of `packages`, read from their metadata (nothing is imported)."""
    found = {name: _version(name) for name in (PACKAGE, *packages)}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


@lru_cache
def _version(package: str) -> str | None:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) is not None else None


def git_commit(folder: Path | None = None) -> str:
    """Commit of the working tree with "-dirty" where it was changed; "unknown" outside a repository."""
    where = folder or Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return commit.stdout.strip() if commit.returncode == 0 else "unknown"


_LIKELIHOOD = (
    "scatterflow.baselines.likelihood",
    "scatterflow.baselines.scoring",
    "scatterflow.baselines.poisson",
    "scatterflow.forward.nanodiffraction_slopes",
)
_SCANS = (
    "scatterflow.stages.nanodiffraction.scans",
    "scatterflow.forward.fields",
    "scatterflow.scan",
    "scatterflow.scanfile",
    "scatterflow.preprocess.bragg",
    "scatterflow.frames",
    "scatterflow.framefiles",
    "scatterflow.framehdf5",
    "scatterflow.hdf5",
)
_REGRESSION = (
    "scatterflow.models.regressor",
    "scatterflow.models.regressor_training",
    "scatterflow.models.nanophysics",
    "scatterflow.models.lean",
    "scatterflow.models.donut",
    "scatterflow.models.nanobeam",
    "scatterflow.training",
    "scatterflow.checkpoint",
    "scatterflow.data",
)

_DUAL_BRANCH = (
    "scatterflow.models.dualbranch",
    "scatterflow.models.dualbranch_training",
    "scatterflow.models.particlemodel",
    "scatterflow.models.particlebundle",
    "scatterflow.models.mixture",
    "scatterflow.refine",
    "scatterflow.models.flow",
    "scatterflow.models.fastflow",
    "scatterflow.models.fitting",
    "scatterflow.models.posterior",
    "scatterflow.training",
    "scatterflow.checkpoint",
    "scatterflow.data",
)
_ANSWERS = ("scatterflow.estimates", "scatterflow.sizescores", "scatterflow.imagecheck")

# the code whose change re-runs a stage, beside that of the stages before it
_STAGE_MODULES = {
    "cross-check": ("scatterflow.stages.cross_check",),
    "preprocess": ("scatterflow.stages.preprocess",),
    "train": (
        "scatterflow.stages.train",
        "scatterflow.models",
        "scatterflow.training",
        "scatterflow.checkpoint",
        "scatterflow.data",
        "scatterflow.verdict",
    ),
    "sweep": ("scatterflow.stages.sweep", "scatterflow.trials"),
    "baseline": (
        "scatterflow.stages.baseline",
        "scatterflow.stages.posteriors",
        "scatterflow.baselines",
        "scatterflow.exports",
        "scatterflow.experiment",
    ),
    "infer": (
        "scatterflow.stages.infer",
        "scatterflow.stages.posteriors",
        "scatterflow.inference",
        "scatterflow.experiment",
        "scatterflow.frames",
        "scatterflow.framefiles",
        "scatterflow.framehdf5",
        "scatterflow.hdf5",
        "scatterflow.exports",
    ),
    "evaluate": ("scatterflow.stages.evaluate", "scatterflow.diagnostics", "scatterflow.fisher"),
    "report": ("scatterflow.stages.report", "scatterflow.report"),
}


_KIND_MODULES = {
    "nanodiffraction": {
        "train": ("scatterflow.stages.nanodiffraction.train", *_LIKELIHOOD, *_SCANS, *_REGRESSION),
        "sweep": (
            "scatterflow.stages.sweep",
            "scatterflow.trials",
            "scatterflow.stages.nanodiffraction.trial",
            *_LIKELIHOOD,
        ),
        "baseline": (
            "scatterflow.stages.nanodiffraction.baseline",
            "scatterflow.stages.nanodiffraction.geometry",
            "scatterflow.ringfit",
            *_LIKELIHOOD,
            "scatterflow.baselines.correlation",
            "scatterflow.baselines.centroid",
            *_SCANS,
        ),
        "infer": (
            "scatterflow.stages.nanodiffraction.infer",
            *_LIKELIHOOD,
            *_SCANS,
            "scatterflow.nexus",
            *_REGRESSION,
        ),
        "evaluate": ("scatterflow.stages.nanodiffraction.evaluate", "scatterflow.maps", "scatterflow.landscape"),
    },
    "particles": {
        "train": ("scatterflow.stages.particles.train", "scatterflow.verdict", *_ANSWERS, *_DUAL_BRANCH),
        "sweep": ("scatterflow.stages.sweep", "scatterflow.trials", "scatterflow.stages.particles.trial"),
        "baseline": (
            "scatterflow.stages.particles.baseline",
            "scatterflow.stages.particles.sets",
            "scatterflow.baselines",
            *_ANSWERS,
        ),
        "infer": (
            "scatterflow.stages.particles.infer",
            "scatterflow.stages.particles.sets",
            "scatterflow.particleframes",
            "scatterflow.misfit",
            "scatterflow.preprocess.resample",
            "scatterflow.frames",
            "scatterflow.framefiles",
            "scatterflow.framehdf5",
            "scatterflow.hdf5",
            *_ANSWERS,
        ),
        "evaluate": ("scatterflow.stages.particles.evaluate", "scatterflow.particlebound", *_ANSWERS),
    },
}


def stage_source(stage: str, kind: str = "multilayer") -> str:
    """Hash of a stage's code for studies of a kind."""
    return source_hash(*_KIND_MODULES.get(kind, {}).get(stage, _STAGE_MODULES[stage]))


def stage_params(run: RunConfig, study_name: str | None, stage: str, model: str | None = None) -> dict[str, Any]:
    """What a stage depends on beside its inputs, as plain JSON: the options it reads and the hash of its code.

    A change in any of it re-runs the stage; number of workers, device and layout of files stay out.
    """
    from scatterflow.study import study_of  # studies need this module

    if stage == "report":
        return {"run": run.run, "source": source_hash(*_STAGE_MODULES[stage])}
    assert study_name is not None
    study = study_of(run, study_name)
    rows = {name: getattr(study.config.simulate, name) for name in ("simulations", "held_back", "validation")}
    if stage == "simulate":
        return {"identity": study.simulation_identity(), **rows}
    params: dict[str, Any] = {"source": stage_source(stage, study.kind), "seed": run.seed}
    if stage == "preprocess":
        return params | {"identity": study.features_identity(), **rows}
    return params | study.stage_options(stage, model)
