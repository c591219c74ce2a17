"""Adapter of the rule compare_engines: calls scatterflow.stages.cross_check."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.script import snakemake

if __name__ == "__main__":  # worker processes import this file again, and need nothing from it
    from adapter import logged

    from scatterflow.stages import cross_check
    from scatterflow.study import load_study

    with logged(snakemake):
        study = load_study(snakemake.config["file"], snakemake.wildcards.study)
        cross_check.run(study, Path(snakemake.output.manifest).parents[1])
