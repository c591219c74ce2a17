"""The commands and their options. What they do is imported when they run, so that --help answers at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="From an X-ray detector frame to trusted sample parameters. The stages, in order: simulate, cross-check, "
    "preprocess, train and baseline, infer, evaluate, report; `snakemake` runs them all.",
    epilog="Exit status: 0 done, 1 a bug of ours, 2 something that you can mend (one line says what and how), "
    "130 interrupted.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: at once, and readable in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path, typer.Option("--config", "-c", help="Configuration: one file is one run.")]
StudyName = Annotated[str | None, typer.Option("--study", help="Study of the configuration; default: all of them.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the results, <results>/<run>/<study>/.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one option, e.g. simulate.simulations=8000 (of each study) or seed=7; may be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]

DEMO = Path("config/demo.yaml")
RESULTS = Path("results")


def _version(value: bool) -> None:
    if value:
        from scatterflow.provenance import versions

        print(f"scatterflow {versions(())['scatterflow']}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    """Options before the command."""


def _stage(name: str, help: str) -> None:
    """Add the command of one stage: all of them take the same options."""

    @app.command(name, help=help)
    def command(
        config: Config = DEMO,
        study: StudyName = None,
        results: Results = RESULTS,
        override: Override = None,
        json: Json = False,
    ) -> None:
        from scatterflow.cli.stages import run_stage

        run_stage(name, config, study, results, override or [], json)


_stage("simulate", "Simulate samples of the prior; continues a stopped run.")
_stage("cross-check", "Compute some stored simulations with the other engine and compare.")
_stage("preprocess", "Stored counts to features: noise, cut, scaling, masks.")
_stage("train", "Train the models of the study; continues a stopped run.")
_stage("sweep", "Train a model with varied options (section sweep) and keep the best; continues a stopped run.")
_stage("baseline", "Approximate Bayesian computation on the stored simulations.")


@app.command()
def infer(
    frames: Annotated[
        list[str] | None,
        typer.Argument(help="Frames: CBF, TIFF, EDF, or scan.h5::/entry/data/data. Without any: the stage infer."),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Bundle of the model: results/.../models/NAME.")] = None,
    instrument: Annotated[
        Path | None, typer.Option("--instrument", help="Instrument of the frames: YAML, or .poni of pyFAI.")
    ] = None,
    incidence_deg: Annotated[
        float | None, typer.Option("--incidence-deg", help="Angle between beam and surface; needed with .poni.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for what is found of each frame.")] = None,
    watch: Annotated[
        str | None,
        typer.Option("--watch", help="Folder or SWMR file that is being filled: answer frames as they come."),
    ] = None,
    number: Annotated[int | None, typer.Option("--frames", help="With --watch: end after so many frames.")] = None,
    idle_s: Annotated[float, typer.Option("--idle-s", help="With --watch: end when none came for so long [s].")] = 30.0,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", help="With --watch: an answer after so long is called late [ms].")
    ] = None,
    check: Annotated[
        float | None,
        typer.Option("--check", help="With --watch: share of the time for verdicts; 1: on every frame. Default: 0.15."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="With --watch: file whose non-zero pixels mean nothing.")
    ] = None,
    config: Config = DEMO,
    study: StudyName = None,
    results: Results = RESULTS,
    override: Override = None,
    json: Json = False,
) -> int:
    """Parameters of real frames, and whether to trust them.

    With FRAMES and --model, one line per frame: file, status and why. Status is ok, outside (the model does not know
    such frames: do not use its answer), masked-out, unreadable or wrong-instrument. A bad frame does not stop the
    others; exit status 2 if any frame got no answer (the last three), else 0. The parameters are in the document of
    --json and in the files of --output.

    With --watch and --model, the same for frames that are still coming (kind nanodiffraction): a refreshed bundle is
    picked up; ends when the file is closed, after --frames or --idle-s, or by a signal. Whole frames of the detector are
    cut as the scan of the model's study. Where time is short, frames are answered but unchecked, and say so.

    Without FRAMES, the stage infer of the configuration, as the workflow runs it.
    """
    if watch is not None:
        if model is None or frames or instrument or incidence_deg is not None:
            raise typer.BadParameter("--watch needs --model, and neither FRAMES nor --instrument nor --incidence-deg")
        from scatterflow.cli.watch import follow
        from scatterflow.watch import Settings

        settings = Settings(frames=number, idle_s=idle_s, deadline_ms=deadline_ms)
        if check is not None:
            settings = replace(settings, check=check)
        return follow(watch, model, output, settings, json, mask=mask)
    if any(each is not None for each in (number, deadline_ms, check, mask)):
        raise typer.BadParameter("--frames, --deadline-ms, --check and --mask need --watch")
    if not frames and (model or instrument or incidence_deg is not None or output):
        raise typer.BadParameter("give FRAMES, or leave out --model, --instrument, --incidence-deg and --output")
    if not frames:
        from scatterflow.cli.stages import run_stage

        run_stage("infer", config, study, results, override or [], json)
        return 0
    if model is None:
        raise typer.BadParameter("FRAMES need --model")
    from scatterflow.cli import frames as command

    return command.infer(frames, model, instrument, incidence_deg, output, json)


_stage("evaluate", "Judge posteriors on simulations that no training has seen.")
_stage("report", "Write report.html of the run.")


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="Store, its manifest.json, or the folder of the study or the stage.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged and missing shards anew, by the configuration of the store.")
    ] = False,
    config: Config = DEMO,
    study: StudyName = None,
    override: Override = None,
    json: Json = False,
) -> int:
    """Decode and check every shard of a store of simulations or features.

    With --repair, bad shards (nothing else) are made anew, with SCATTERFLOW_FANOUT=slurm as Slurm tasks, and the whole
    is checked again. Exit status 2 if one is damaged or missing, or stays so.
    """
    from scatterflow.cli.stages import verify_store

    return verify_store(store, repair, config, study, override or [], json)


@app.command()
def status(
    config: Config = DEMO,
    study: StudyName = None,
    results: Results = RESULTS,
    override: Override = None,
    json: Json = False,
) -> None:
    """What is done, running, failed and left, per stage."""
    from scatterflow.cli.status import show_status

    show_status(config, study, results, override or [], json)


@app.command()
def doctor(config: Config = DEMO, results: Results = RESULTS, json: Json = False) -> int:
    """Check this machine and say what to do.

    Exit status 2 if something is missing that every run needs.
    """
    from scatterflow.cli.doctor import examine

    return examine(config, results, json)
