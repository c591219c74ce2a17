"""`make data`: the frames of workflow/frames.tsv, checked by hash, into SCATTERFLOW_DATA (default ../shared/data)."""

import csv
import hashlib
import os
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


def main() -> str | None:
    """Fetch what is missing or damaged. Returns the line that says what went wrong, None if all is there."""
    folder = Path(os.environ.get("SCATTERFLOW_DATA") or ROOT.parent / "shared" / "data").resolve()
    with open(ROOT / "workflow" / "frames.tsv", encoding="utf-8") as table:
        for name, sha256, url in csv.reader((line for line in table if not line.startswith("#")), delimiter="\t"):
            path = folder / name
            try:
                if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                    print(f"there already: {path}")
                    continue
                print(f"fetching {name}", flush=True)
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                    content = answer.read()
                if hashlib.sha256(content).hexdigest() != sha256:
                    return f"{url} must have the sha256 {sha256}: it was changed there; nothing was written"
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial")
                partial.write_bytes(content)
                partial.replace(path)
            except OSError as error:  # URLError is one
                return f"{name} could not be fetched: {error}; fetch {url} by hand into {path.parent}"
    print(f"all frames are in {folder}")
    return None


if __name__ == "__main__":
    problem = main()
    if problem:
        print(f"make data: {problem}", file=sys.stderr)
        sys.exit(2)
