"""Files that stages hand to each other: written beside their place and renamed when complete, read with clean errors."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scatterflow.errors import StoreError
from scatterflow.files import disk_errors, write_atomic


def write_json(path: Path, content: Any) -> Path:
    """Write `content` (plain JSON, no NaN) so that `path` is either the old or the complete new file."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    return path


def read_json(path: Path, made_by: str) -> Any:
    """Content of a JSON product; `made_by` names the command that makes it. Raises StoreError if missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}", "must exist", remedy=f"run `{made_by}` first") from None
    except OSError as error:
        raise StoreError(f"{path}", "must be readable", error.strerror) from None
    except (ValueError, RecursionError):
        raise StoreError(f"{path}", "must be valid JSON", remedy=f"delete it and run `{made_by}` again") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path (file or folder, beside `path`) that takes the place of `path` when the block succeeds.

    Raises StoreError where the disk is full or the folder cannot be written; what was there before stays.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            temporary = holder / path.name
            yield temporary
            if path.is_dir():
                path.rename(holder / "old")  # a folder cannot be renamed over another
            temporary.replace(path)
        finally:
            shutil.rmtree(holder, ignore_errors=True)
