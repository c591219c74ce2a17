"""Which options of a model are varied to find better ones, and between which values."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError, model_validator

from scatterflow.config.base import Section, option

MOST = 10_000  # trials: as one campaign, a Slurm array after the other
Value = bool | int | float | str | tuple[int, ...] | None
_KINDS = ("kind", "network")  # options that say what a model is
Model = TypeVar("Model", bound=Section)


class RangeConfig(Section):
    """Values between two limits, for a random search; whole numbers where the option takes only these."""

    low: int | float = option(help="lower limit")
    high: int | float = option(help="upper limit")
    log: bool = option(False, help="draw the logarithm of the value uniformly, not the value")

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be above 0 where log is true")
        return self


class SweepConfig(Section):
    """Trainings of one model with varied options (stage sweep); the best one on validation rows becomes a bundle."""

    model: str = option(help="name of the model in `models` whose options are varied; what is not varied is as there")
    search: Literal["grid", "random"] = option(
        "grid", help="grid: every combination of the values; random: combinations drawn at random", source="random: "
        "Bergstra & Bengio 2012, jmlr.org/papers/v13/bergstra12a.html",
    )  # fmt: skip
    trials: int | None = option(
        None, ge=1, le=MOST, help="number of combinations of a random search; raising it keeps those that are trained"
    )
    seeds: int = option(
        1,
        ge=1,
        le=MOST,
        help="trainings of each combination (`training.seed` 0, 1, ...): an ensemble that shows the luck",
    )
    parallel: int | None = option(
        None,
        ge=1,
        help="trainings at once on one machine; none: one per core and `training.threads`. Slurm has its own",
    )
    space: dict[str, tuple[Value, ...] | RangeConfig] = option(
        min_length=1,
        help="options of the model by dotted path, each with a list of values, or a mapping for a random search: "
        "`training.flow.learning_rate: {low: 1e-4, high: 1e-2, log: true}`",
    )

    @model_validator(mode="after")
    def _search(self) -> Self:
        for key, values in self.space.items():
            if isinstance(values, RangeConfig):
                if self.search == "grid":
                    raise ValueError(f"space: {key} must be a list of values in a grid; or choose search: random")
            elif not values:
                raise ValueError(f"space: {key} must have at least one value")
            elif len(set(map(str, values))) < len(values):
                raise ValueError(f"space: {key} must not have a value twice, got {list(values)}")
        if (self.search == "random") != (self.trials is not None):
            raise ValueError("trials must be given in a random search, and only there")
        if self.seeds > 1 and "training.seed" in self.space:
            raise ValueError("space: training.seed is what `seeds` varies; leave one of them out")
        if self.count > MOST:
            raise ValueError(f"space: {self.count} trainings are too many, at most {MOST}; take fewer values or seeds")
        return self

    @property
    def count(self) -> int:
        """Number of trainings."""
        sizes = [len(values) for values in self.space.values() if not isinstance(values, RangeConfig)]
        return self.seeds * (self.trials if self.trials is not None else math.prod(sizes))

    def check(self, models: Mapping[str, Section]) -> None:
        """Raise ValueError where the sweep does not fit the study's models."""
        if self.model not in models:
            raise ValueError(f"sweep.model must be one of {sorted(models)}, got {self.model!r}")
        model = models[self.model]
        known = [".".join(path) for path in _paths(model.model_dump(mode="json"))]
        for key, values in self.space.items():
            if key in _KINDS or key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                remedy = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
                raise ValueError(f"sweep.space: {key} is no option of model {self.model!r} that can vary; {remedy}")
            for value in (values.low, values.high) if isinstance(values, RangeConfig) else values:
                varied(model, {key: value})


def varied(model: Model, settings: Mapping[str, Value]) -> Model:
    """The model with other values for some options, by dotted path. Raises ValueError where they are not valid."""
    content = model.model_dump(mode="json")
    for key, value in settings.items():
        section = content
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    try:
        return type(model).model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        text = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        told = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ValueError(f"sweep.space: {told}: {text[0].lower()}{text[1:]}") from None


def takes_fractions(model: Section, key: str, values: RangeConfig) -> bool:
    """True if the option takes numbers between whole ones."""
    middle = (values.low + values.high) / 2
    if middle == int(middle):
        middle += min(1, values.high - values.low) / 4
    try:
        varied(model, {key: middle})
    except ValueError:
        return False
    return True


def _paths(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Paths of all options that are no sections."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from ((key, *rest) for rest in _paths(value))
        else:
            yield (key,)
