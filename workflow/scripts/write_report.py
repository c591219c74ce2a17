"""Adapter of the rule write_report: calls scatterflow.stages.report."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.script import snakemake

if __name__ == "__main__":  # worker processes import this file again, and need nothing from it
    from adapter import logged

    from scatterflow.config.loading import load_run
    from scatterflow.stages import report

    with logged(snakemake):
        page = Path(snakemake.output.page)
        report.run(load_run(snakemake.config["file"]), page.parent, workers=snakemake.threads)
