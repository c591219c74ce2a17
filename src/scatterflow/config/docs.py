"""Write config/README.md and workflow/schemas/config.schema.json from the models, or check that they are in sync.

`python -m scatterflow.config.docs [--check]`, in the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scatterflow.config.study import RunConfig

README = Path("config/README.md")
_SINGULAR = {"studies": "study", "space": "option"}
_STUDY = "studies.<study>"
# options that say of which kind their section is: they cannot be left out, although their models have a default
_TAGS = ("kind", "network")
SCHEMA = Path("workflow/schemas/config.schema.json")

_TOP = """\
# Configuration

<!-- Generated from src/scatterflow/config by `python -m scatterflow.config.docs`: edit the models, not this page. -->

One file is one run. `config/demo.yaml` is what `make demo` runs; `config/paper.yaml` has the sizes of the paper.
Another file replaces the demo, it is never merged into it:

```
.venv/bin/snakemake --cores all --configfile config/paper.yaml
.venv/bin/scatterflow train --config config/paper.yaml --study layers05
```

**Names.** A run has a name and any number of studies, each with a name of its own: results go to
`results/<run>/<study>/`. Everything below `studies.<study>.` belongs to one study; the tables below leave that prefix
out. `<view>`, `<material>`, `<model>` stand for names that you choose. Names end with their unit: `_nm`, `_deg`, `_mm`,
`_px` (pixels), `_per_nm`. Rows (z) count upwards, columns (y) from the left.

**Single options** are changed for one command, without editing the file. `--set` takes the dotted path, with the prefix
or, for every study that the command works on, without:

```
.venv/bin/scatterflow train --set models.summary-maf.training.flow.batch_size=64
.venv/bin/scatterflow simulate --set seed=7 --set studies.multilayer.simulate.simulations=8000
```

**Mistakes** are found before anything runs: an unknown option is refused with the nearest name, a value must have its
type and lie in its range, and what contradicts another option is refused. YAML anchors (`&name`, `*name`, `<<: *name`)
avoid repetition; put the shared parts under the first study that uses them. Values are plain: `1e5` is a number, and a
whole one where the option wants that; `"1e5"` is text.

**Editors** complete and check a file that begins with
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json`.

**Source** says where a default comes from. An option without default is **required**.
"""


def generate() -> dict[Path, str]:
    """Content of the generated files by path, relative to the repository's root."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | RunConfig.model_json_schema()
    return {README: readme(), SCHEMA: json.dumps(schema, indent=1, ensure_ascii=False) + "\n"}


def readme() -> str:
    """The option table of every section, in Markdown."""
    parts = [_TOP]
    kinds = {
        kind.model_fields["kind"].default: set(sections(kind, _STUDY))
        for suffix, kind in _sections(RunConfig.model_fields["studies"].annotation, "studies")
    }
    for path, model in dict.fromkeys(sections(RunConfig)):
        heading = f"`{_short(path)}`" if path else "The run"
        of = [kind for kind, found in kinds.items() if (path, model) in found]
        if path == _STUDY:
            heading = f"A study of kind `{of[0]}`"
        elif path and len(of) < len(kinds):
            heading += f" (kind `{of[0]}`)"
        for tag in _TAGS:
            if path != _STUDY and tag in model.model_fields:
                heading += f" of {tag} `{model.model_fields[tag].default}`"
        parts.append(f"## {heading}\n\n{_paragraph(model)}\n\n{_table(path, model)}\n")
    return "\n".join(parts)


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section below `model` with its dotted path; names that the user chooses stand in angle brackets."""
    yield path, model
    for name, field in model.model_fields.items():
        for suffix, section in _sections(field.annotation, name):
            yield from sections(section, f"{path}.{name}{suffix}".lstrip("."))


def options(model: type[BaseModel] = RunConfig) -> Iterator[tuple[str, type[BaseModel], str, FieldInfo]]:
    """(dotted path, section, name, field) of every option."""
    for path, section in sections(model):
        for name, field in section.model_fields.items():
            yield f"{path}.{name}".lstrip("."), section, name, field


def _sections(annotation: Any, name: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections inside an annotation, with what follows the option's name in the path."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    elif get_origin(annotation) is dict:
        singular = _SINGULAR.get(name, name.removesuffix("s"))
        for suffix, section in _sections(get_args(annotation)[1], name):
            yield f".<{singular}>{suffix}", section
    elif get_origin(annotation) in (list, tuple):
        for item in get_args(annotation):
            for suffix, section in _sections(item, name):
                yield f"[]{suffix}", section
    else:
        for item in get_args(annotation):
            yield from _sections(item, name)


def _short(path: str) -> str:
    """A path as the tables show it: below a study, without the study."""
    return path.removeprefix("studies.<study>.")


def _paragraph(model: type[BaseModel]) -> str:
    return textwrap.fill(_escaped(" ".join((model.__doc__ or "").split())), 120)


def _table(path: str, model: type[BaseModel]) -> str:
    rows = ["| option | type | default | unit | range | what it is | source |", "|---|---|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        cells = [
            f"`{_short(f'{path}.{name}'.lstrip('.'))}`",
            _type(field.annotation),
            "**required**" if name in _TAGS else _default(field),
            str(extra.get("unit", "")),
            _range(field),
            _escaped(field.description or ""),
            _escaped(str(extra.get("source", ""))),
        ]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _escaped(text: str) -> str:
    """`<run>` would be taken for HTML."""
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _type(annotation: Any) -> str:
    """A type in words."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(item) for item in arguments))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(item) for item in arguments)}]"
    if origin is dict:
        return f"names with {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words: dict[Any, str] = {
        int: "integer",
        float: "number",
        str: "text",
        bool: "`true` or `false`",
        NoneType: "`null`",
    }
    return words[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "its own" if isinstance(value, BaseModel) else f"`{_value(value)}`"


def _value(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def _range(field: FieldInfo) -> str:
    """Limits of a field: of its value, or of the number of its items."""
    found: dict[str, Any] = {}
    for item in field.metadata:
        for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [f"{signs[name]} {_value(found[name])}" for name in signs if name in found]
    many = get_origin(field.annotation) in (tuple, list, dict)
    unit = "entries" if many else "characters"
    limits += [f"at least {found['min_length']} {unit}"] if "min_length" in found else []
    limits += [f"at most {found['max_length']} {unit}"] if "max_length" in found else []
    limits += [f"`{found['pattern']}`"] if "pattern" in found else []
    return ", ".join(limits).replace("at least 1 entries", "not empty")


def main(arguments: list[str] | None = None) -> int:
    """Write the generated files; with --check only compare, and return 1 if one is out of sync."""
    parser = argparse.ArgumentParser(prog="python -m scatterflow.config.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of sync")
    check = parser.parse_args(arguments).check
    if not Path("pyproject.toml").is_file():
        sys.exit("run this in the root of the repository")
    stale = []
    for path, text in generate().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"out of sync: {', '.join(stale)}; run python -m scatterflow.config.docs", file=sys.stderr)
    elif stale:
        print(f"wrote {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
