"""Adapter of the rule run_sweep: calls scatterflow.stages.sweep."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.script import snakemake

if __name__ == "__main__":  # worker processes import this file again, and need nothing from it
    from adapter import logged

    from scatterflow.slurm import options
    from scatterflow.stages import sweep
    from scatterflow.study import load_study

    with logged(snakemake):
        study = load_study(snakemake.config["file"], snakemake.wildcards.study)
        options.take_from(dict(snakemake.resources.items()))
        # The stage uses every core that its process may use: leave it as many as `snakemake --cores` allows.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: snakemake.threads])
        sweep.run(study, Path(snakemake.output.manifest).parents[1])
