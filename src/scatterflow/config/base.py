"""The base of every config section, and the one way to declare a field with its unit and source."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict


class Section(BaseModel):
    """A frozen section of the configuration: unknown keys are refused, defaults are checked, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def option(default: Any = ..., *, help: str, unit: str = "", source: str = "", **limits: Any) -> Any:
    """A config field with its documentation.

    `unit` ("nm", "deg", "" for none) and `source` (where the default comes from: a paper's table, a manual) go into the
    generated option table and the JSON schema. `limits` are pydantic's (gt, ge, lt, le, min_length ...).
    """
    extra: JsonDict = {key: text for key, text in (("unit", unit), ("source", source)) if text}
    return Field(default, description=help, json_schema_extra=extra, **limits)
