"""Files of model bundles of any kind: weights (safetensors) and bundle.json with their checksums. Nothing in them runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from scatterflow.errors import BundleError
from scatterflow.products import replacing
from scatterflow.provenance import digest

AGAIN = "train the model again, or copy the bundle again"


def write_bundle(
    folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None
) -> Path:
    """Write `content` (plain JSON), `tensors` and files `texts` as the bundle `folder`, complete or not at all.

    Returns the path of its bundle.json. Raises StoreError where the disk refuses.
    """
    weights = save_safetensors(dict(tensors))
    whole = {**content, "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(weights).hexdigest()}}
    whole = json.loads(json.dumps(whole, allow_nan=False))
    whole["sha256"] = digest(whole)
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "weights.safetensors").write_bytes(weights)
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        (temporary / "bundle.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return folder / "bundle.json"


def read_bundle(folder: str | Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content and tensors that `write_bundle` wrote. Raises BundleError where it is missing, damaged or of
    another kind or format."""
    folder = Path(folder)
    content = read_bundle_json(folder / "bundle.json")
    place = f"bundle {folder}"
    if content.get("format") != version:
        raise BundleError(
            place, f"must have format {version}", content.get("format"), "use the version of scatterflow that wrote it"
        )
    if content.get("kind") != kind:
        raise BundleError(place, f"must be of kind {kind}", content.get("kind"), "choose another bundle")
    if content.pop("sha256", None) != digest(content):
        raise BundleError(f"{folder / 'bundle.json'}", "must be as it was written", "another checksum", AGAIN)
    return content, read_bundle_weights(folder / "weights.safetensors", content)


def read_bundle_json(path: Path) -> dict[str, Any]:
    """Content of bundle.json. Raises BundleError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}", "must exist", remedy="give the folder of a trained model") from None
    except OSError as error:
        raise BundleError(f"{path}", "must be readable", error.strerror) from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path}", "must be valid JSON", "a damaged file", AGAIN) from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}", "must be a JSON object", type(content).__name__, AGAIN)
    return content


def read_bundle_weights(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose checksum stands in bundle.json."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}", "must exist", remedy=AGAIN) from None
    except OSError as error:
        raise BundleError(f"{path}", "must be readable", error.strerror) from None
    weights = content.get("weights")
    if not isinstance(weights, dict) or weights.get("sha256") != hashlib.sha256(data).hexdigest():
        raise BundleError(f"{path}", "must be as it was written", "another checksum", AGAIN)
    try:
        return dict(load_safetensors(data))
    except SafetensorError as error:
        raise BundleError(f"{path}", "must be a safetensors file", error, AGAIN) from None
