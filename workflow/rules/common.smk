# What every rule uses. The package of this checkout comes first on the path, here and in every job, so that the code
# that runs is the code whose hash stands in `params`, wherever else scatterflow is installed (container, conda).
import fcntl
import os
import re
import sys
from pathlib import Path

SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
)

from scatterflow.config.loading import load_run
from scatterflow.errors import ScatterflowError
from scatterflow.provenance import stage_params
from scatterflow.stages import has

# All software in one file, for --software-deployment-method apptainer (envs/README.md).
IMAGE = "envs/scatterflow.sif"

# What does the work of a stage; the rule with the stage's name only collects what was made.
WORK = {
    "simulate": "simulate_study",
    "cross-check": "compare_engines",
    "preprocess": "preprocess_study",
    "train": "train_model",
    "sweep": "run_sweep",
    "baseline": "run_baselines",
    "infer": "infer_posterior",
    "evaluate": "evaluate_study",
    "report": "write_report",
}


def stop(message):
    """End snakemake with one line instead of a traceback."""
    print(f"scatterflow: {message}", file=sys.stderr)
    sys.exit(2)


def read_run():
    """The run of the one configuration file: --configfile, or the demo. Its path goes to `config["file"]`, for jobs."""
    if workflow.config_settings.config:
        stop(
            "--config is not used here: one file is one run; copy the file, edit it and pass it with --configfile"
        )
    if len(workflow.configfiles) > 1:
        stop(
            f"--configfile takes one file (files are never merged), got {len(workflow.configfiles)}"
        )
    path = (
        workflow.configfiles[0]
        if workflow.configfiles
        else Path(workflow.basedir) / "config" / "demo.yaml"
    )
    config.clear()
    config["file"] = str(path)
    try:
        return load_run(path)
    except ScatterflowError as error:
        stop(error)


def hold_folder():
    """Refuse to work where another snakemake does; the kernel frees the lock when a process ends, even by kill -9."""
    global held
    held = open(".snakemake/scatterflow.lock", "w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stop("another snakemake is at work in this folder; wait for it or stop it")
    except OSError:
        pass  # some file systems of clusters know no locks; the stages guard their own folders


# What a stage is made from, directly.
NEEDS = {
    "simulate": (),
    "cross-check": ("simulate",),
    "preprocess": ("simulate",),
    "train": ("preprocess",),
    "sweep": ("preprocess",),
    "baseline": ("preprocess",),
    "infer": ("train",),
    "evaluate": ("infer", "baseline"),
    "report": ("evaluate", "cross-check", "sweep"),
}


def products(stage):
    """What a stage leaves, for all studies; a sweep for those that have one in their configuration."""
    if stage == "report":
        return [
            f"{RESULTS}/{name}" for name in ("report.html", "metrics.json", "figures")
        ]
    if stage == "train":
        return all_bundles()
    if stage == "sweep":
        return [
            f"{RESULTS}/{name}/sweep/manifest.json"
            for name, study in RUN.studies.items()
            if study.sweep is not None
        ]
    name = "metrics" if stage == "evaluate" else "manifest"
    return [
        f"{RESULTS}/{study}/{stage}/{name}.json"
        for study in RUN.studies
        if has(stage, RUN.studies[study].kind)
    ]


def up_to(stage):
    """Products of a stage and of all that it is made from, directly or not.

    Asked for one by one: snakemake takes a lost product for needless where what was made from it is still there, so
    a stage that failed when it was to replace its product would never run again.
    """
    earlier = [file for need in NEEDS[stage] for file in up_to(need)]
    return list(dict.fromkeys(earlier + products(stage)))


def made_by(stage):
    """Input of a stage's own rule: what the stage makes, and what that is made from.

    `-R train` and `-f train` force the stage's own rule, which has no output; this hands it on to the one at work.
    """

    def files_of_stage(wildcards):
        if not products(stage):
            stop(f"no study of {config['file']} has a section `{stage}`")
        if workflow.get_rule(stage.replace("-", "_")) in workflow.dag.forcerules:
            workflow.dag.forcerules.add(workflow.get_rule(WORK[stage]))
        return up_to(stage)

    return files_of_stage


def one_of(names):
    """A wildcard constraint: exactly one of the names."""
    return "|".join(map(re.escape, sorted(names)))


def determined_by(stage):
    """The `params` of a stage's rule: plain values of the options and hashes of the code that determine its products."""

    def params(wildcards):
        return stage_params(RUN, wildcards.get("study"), stage, wildcards.get("model"))

    return params


def fans_out(rule):
    """True if the profile (or --set-resources) says by `fanout` that a rule spreads its work over jobs of its own."""
    return "fanout" in workflow.resource_settings.overwrite_resources.get(rule, {})


def image_of(rule):
    """The container of what may fan out; the controller of a fan-out runs where sbatch is, its tasks as the profile says."""
    return None if fans_out(rule) else IMAGE


def longest_first(wildcards):
    """Priority of a training, 50 to 99: the larger its time budgets, the sooner it begins; those without any, first."""
    training = RUN.studies[wildcards.study].models[wildcards.model].training
    phases = [
        training,
        *(getattr(training, name) for name in type(training).model_fields),
    ]
    budgets = [budget for phase in phases if (budget := getattr(phase, "budget_s", 0))]
    return 50 + min(49, sum(budgets) // 10) if budgets else 99


def of_each_study(pattern):
    """`pattern` below the results, for every study."""
    return expand(f"{RESULTS}/{pattern}", study=RUN.studies)


def bundles_of_study(wildcards):
    """The bundle of every model of a study."""
    return [
        f"{RESULTS}/{wildcards.study}/models/{model}/bundle.json"
        for model in RUN.studies[wildcards.study].models
    ]


def all_bundles():
    """The bundle of every model of every study."""
    return [
        f"{RESULTS}/{name}/models/{model}/bundle.json"
        for name, study in RUN.studies.items()
        for model in study.models
    ]


def real_frames(wildcards):
    """Frames and instrument files of a study, as far as they are there: the report says which frames are missing."""
    data = Path(os.environ.get("SCATTERFLOW_DATA") or "../shared/data")
    folder = Path(os.path.relpath(config["file"])).parent
    study = RUN.studies[wildcards.study]
    paths = [data / name for name in study.real_files]
    paths += [folder / name for name in study.instrument_files]
    return [str(path) for path in paths if path.is_file()]
