"""Adapter of the rule infer_posterior: calls the stage of the study's kind."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.script import snakemake

if __name__ == "__main__":  # worker processes import this file again, and need nothing from it
    from adapter import logged

    from scatterflow.stages import stage
    from scatterflow.study import load_study

    with logged(snakemake):
        study = load_study(snakemake.config["file"], snakemake.wildcards.study)
        stage("infer", study.kind).run(study, Path(snakemake.output.manifest).parents[1])
