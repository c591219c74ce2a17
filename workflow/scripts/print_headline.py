"""`make demo`: where the report of a run is, and what it says first."""

import json
import sys
from pathlib import Path


def main(results: Path) -> None:
    """Print the verdict of each study of a finished run, from its metrics.json."""
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    print()
    for name, study in metrics["studies"].items():
        for sentence in study["verdict"]["sentences"]:
            print(f"{name}: {sentence}")
    print(f"\nReport: {(results / 'report.html').resolve().as_uri()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
