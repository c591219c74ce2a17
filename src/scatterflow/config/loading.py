"""Read a configuration file and say in one line what is wrong with it."""

from __future__ import annotations

import difflib
import json
import numbers
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scatterflow.config.study import RunConfig
from scatterflow.errors import ConfigError

T = TypeVar("T", bound=BaseModel)

# A configuration is a few kilobytes. The limits stop what is none: a wrong file, a device, or a few lines of nested
# aliases that stand for more values than the memory holds.
MAX_BYTES = 1_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 40
_PATHS = "space"  # a mapping of dotted paths to options, which are checked as such
_NAME = r"[A-Za-z0-9][\w-]{0,63}"


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-5 is a number (YAML 1.1 wants 1.0e-5), and a key given twice is an error."""

    def get_single_node(self) -> yaml.Node | None:
        """The root of the document, checked before anything is built from it."""
        root = super().get_single_node()
        if root is not None:
            self._check(root, {}, MAX_DEPTH)
        return root

    def _check(self, node: yaml.Node, sizes: dict[int, int | None], depth: int) -> int:
        """Number of values below `node`, aliases expanded; refuse what is too large, recursive or keyed twice."""
        if depth == 0:
            raise _problem(f"must not be nested deeper than {MAX_DEPTH}", node)
        size = sizes.get(id(node), 0)
        if size is None:
            raise _problem("an alias must not hold itself", node)
        if not size:
            sizes[id(node)] = None
            size = 1
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                size += sum(self._check(value, sizes, depth - 1) for _, value in node.value)
            elif isinstance(node, yaml.SequenceNode):
                size += sum(self._check(item, sizes, depth - 1) for item in node.value)
            if size > MAX_VALUES:
                raise _problem(f"must not hold more than {MAX_VALUES} values", node)
            sizes[id(node)] = size
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse duplicate keys, of which YAML would silently keep the last, and keys that are no text."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                text = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _problem(f"keys must be text, got {text}", key)
            if key.value in seen:
                raise _problem(f"key {key.value!r} is given twice", key)
            seen.add(key.value)


def _problem(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_text(path: Path, what: str = "configuration") -> str:
    """The text of a small UTF-8 file. Raises ConfigError, naming the file `what`, where that cannot be read."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{what} {path}", f"must be smaller than {MAX_BYTES // 1000} kB", remedy="check the path")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}", "must exist", remedy="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{what} {path}", "must be a readable text file", reason) from None


def read_yaml(path: Path, what: str = "configuration") -> Any:
    """The content of a YAML file. Raises ConfigError if it cannot be read or parsed; nothing in it is executed."""
    return parse_yaml(read_text(path, what), f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """The content of YAML text. Raises ConfigError, naming the text `where`, if it cannot be parsed."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}{line}", "must be valid YAML", problem) from None
    except ValueError as error:  # a tag that its text does not fit: !!int x, !!timestamp 2000-13-01
        raise ConfigError(where, "must be valid YAML", error) from None
    except RecursionError:
        raise ConfigError(where, "must be valid YAML", f"must not be nested deeper than {MAX_DEPTH}") from None


def load_run(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The run of a configuration file.

    `overrides` maps dotted paths ("studies.multilayer.simulate.simulations") to values that replace the file's.
    Raises ConfigError with path, value and remedy.
    """
    path = Path(path)
    content = read_yaml(path)
    for key, value in (overrides or {}).items():
        content = _override(content, key, key.split("."), value)
    return parse_run(content, str(path))


def parse_run(content: Any, where: str = "configuration") -> RunConfig:
    """The run of a parsed configuration. Raises ConfigError naming the first wrong field."""
    return validate(RunConfig, content, where)


def validate(model: type[T], content: Any, where: str) -> T:
    """`content` as a frozen `model`. Raises ConfigError naming the first wrong field, with the nearest known key."""
    if not isinstance(content, Mapping):
        raise ConfigError(where, "must be a mapping of options", _shown(content))
    plain = _plain(content, where)
    try:
        # strict, so that neither "12" nor yes is taken for a number; in JSON, since strict Python wants tuples
        section = model.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise _explain(model, error.errors(include_url=False), plain, where) from None
    _check_names(plain, where)
    return section


def _check_names(content: Any, where: str) -> None:
    """Names that users choose become folders, files and parts of dotted paths."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == _PATHS:
                continue
            if not re.fullmatch(_NAME, name, re.ASCII):
                must = "must consist of letters, digits, _ and -, begin with a letter or digit and have at most 64"
                raise ConfigError(f"name {name!r} in {where}", must)
            _check_names(value, where)
    elif isinstance(content, list):
        for item in content:
            _check_names(item, where)


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON knows it; whole numbers written as 1e5 become integers."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    raise ConfigError(where, "must hold numbers, text, lists and mappings only", f"a {type(value).__name__}")


def _override(content: Any, dotted: str, keys: list[str], value: Any) -> dict[str, Any]:
    """`content` with one value replaced; nothing is changed in place, since YAML aliases share their values."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"override {dotted!r}", "must name an option", remedy="check the dotted path")
    key, *rest = keys
    return {**content, key: _override(content.get(key, {}), dotted, rest, value) if rest else value}


def _explain(model: type[BaseModel], problems: list[ErrorDetails], content: Any, where: str) -> ConfigError:
    """One line for the first problem (an unknown key first: a misspelt key often causes the others)."""
    problems.sort(key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    if first["type"] == "json_invalid":
        return ConfigError(where, "must hold valid text", first["msg"].removeprefix("Invalid JSON: "))
    location = _location(first, content)
    same = [p for p in problems if _location(p, content) == location]  # the branches of a union each give one
    place = f"{'.'.join(location)} in {where}" if location else where
    rest = len(problems) - len(same)
    more = f" ({rest} more problem{'s' if rest > 1 else ''})" if rest else ""
    if first["type"] == "extra_forbidden":
        return _unknown(place, str(first["loc"][-1]), _known_keys(model, first["loc"][:-1]), more)
    if first["type"] == "missing":
        return ConfigError(f"option {place}", "is missing", remedy=f"add it, see config/README.md{more}")
    if first["type"] == "union_tag_not_found":  # the option that says of which kind a section is
        tag, known = first["ctx"]["discriminator"].strip("'"), _known_keys(model, first["loc"])
        wrong = next((key for key in first["input"] if key not in known), None)
        within = ".".join(location)
        if wrong is not None:
            return _unknown(f"{within}.{wrong} in {where}", wrong, known, more)
        return ConfigError(
            f"option {within}.{tag} in {where}", "is missing", remedy=f"add it, see config/README.md{more}"
        )
    if first["type"] == "union_tag_invalid":
        tag, tags = first["ctx"]["discriminator"].strip("'"), first["ctx"]["expected_tags"]
        got = _shown(first["input"][tag]) + more
        return ConfigError(f"option {'.'.join((*location, tag))} in {where}", f"must be one of {tags}", got)
    message = " or ".join(dict.fromkeys(p["msg"].removeprefix("Value error, ") for p in same))
    if first["type"] == "value_error":
        return ConfigError(f"option {place}:", message + more)
    return ConfigError(f"option {place}:", message[0].lower() + message[1:], _shown(first["input"]) + more)


def _unknown(place: str, key: str, known: list[str], more: str) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return ConfigError(f"option {place}", "is unknown", remedy=remedy + more)


def _location(problem: ErrorDetails, content: Any) -> tuple[str, ...]:
    """Where a problem lies in the file: pydantic's location without the branches of unions, which no file shows."""
    place: list[str] = []
    for part in problem["loc"]:
        known = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
        if inside := part in known:
            content = content[part]
        if inside or (problem["type"] == "missing" and part is problem["loc"][-1]):
            place.append(str(part))
    return tuple(place)


def _shown(value: Any) -> str:
    """A short picture of a wrong value."""
    if value is None:
        return "nothing"
    return "a mapping" if isinstance(value, Mapping) else reprlib.repr(value)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Option names of the section at `location`, following unions, dicts and tuples."""
    types: list[Any] = [model]
    named = False  # the next part is a name that the user has chosen
    for part in location:
        if named or isinstance(part, int):
            named = False
            continue
        fields = [kind.model_fields[part] for kind in types if part in kind.model_fields]
        if fields:
            types = [section for field in fields for section in _sections(field.annotation)]
            named = any(get_origin(field.annotation) is dict for field in fields)
        else:  # the tag of a union, which pydantic adds
            types = [kind for kind in types if _kind(kind) == part] or types
    return sorted({name for kind in types for name in getattr(kind, "model_fields", {})})


def _kind(section: type[BaseModel]) -> Any:
    """The tag of a section in a union, which its field `kind` holds; None where it has none."""
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


def _sections(annotation: Any) -> list[Any]:
    """The section models inside an annotation such as dict[str, A | B]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, dict, tuple, list) or get_args(annotation):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return []
