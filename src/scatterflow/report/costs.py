"""What the stages took, from the files that Snakemake's `benchmark:` writes beside their products."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from scatterflow.report.metrics import Cost

# columns of a benchmark file: https://snakemake.readthedocs.io/en/stable/snakefiles/rules.html#benchmark-rules
_COLUMNS = {"seconds": "s", "core_seconds": "cpu_time", "max_rss_mb": "max_rss"}


def read_costs(folder: Path) -> dict[str, Cost]:
    """Cost of each rule by the name of its file below `folder`; what a short job left unmeasured is None."""
    found = {}
    for path in sorted(folder.glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as handle:
            row = next(csv.DictReader(handle, delimiter="\t"), {})
        found[path.stem] = Cost.model_validate({name: _number(row.get(key)) for name, key in _COLUMNS.items()})
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:  # "NA" or "-"
        return None
    return value if math.isfinite(value) else None
