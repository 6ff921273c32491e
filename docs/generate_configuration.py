"""Writes docs/configuration.md from configs/default.py: python docs/generate_configuration.py

The names and defaults are those of `get_config`, the explanations its comments: a field's own comment, and the lines
below it that hold nothing but a comment.
"""

import ast
from collections.abc import Iterator
import importlib
import io
import pathlib
import re
import tokenize
from typing import Any

from mcsam_jax.config import flatten_config

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Written by docs/generate_configuration.py from configs/default.py: edit that file, then run the script. -->

Every field, its default and its meaning. A field is set on the command line as `--config.section.field=value`; an
unknown name, a wrong type or an impossible value stops the command before any work. A workdir keeps its config in
`config.json`; when it is evaluated, fields of `decode`, `eval` and `mesh` may be set to other values.

[configs/default.py](../configs/default.py) is the schema. The configs beside it start from it and change
[these fields](#what-each-config-changes); `mcsam config show --config NAME` prints all values of one. For your own,
copy one of them and pass its path to `--config`.
"""

Row = tuple[str, str, str]            # field, default, explanation


def read_comments(source: str) -> dict[int, tuple[str, bool]]:
  """Returns the comment on each line of a Python source, and whether the line holds nothing else."""
  return {token.start[0]: (token.string.lstrip("# "), not token.line[:token.start[1]].strip())
          for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}


def explain(comments: dict[int, tuple[str, bool]], line: int) -> str:
  """Returns the comment on a line, continued by those that stand alone on the lines below it."""
  parts = [comments[line][0]] if line in comments else []
  while (line := line + 1) in comments and comments[line][1]:
    parts.append(comments[line][0])
  return " ".join(parts)


def read_fields(node: ast.Dict, comments: dict[int, tuple[str, bool]], prefix: str) -> Iterator[Row]:
  """Yields one row per field of a section; fields of a nested section follow a row for the section itself."""
  for key, value in zip(node.keys, node.values, strict=True):
    assert isinstance(key, ast.Constant)
    name, explanation = f"{prefix}.{key.value}", explain(comments, key.lineno)
    if isinstance(value, ast.Dict):
      yield f"{name}.*", "", explanation
      yield from read_fields(value, comments, name)
    else:
      yield name, format_value(ast.literal_eval(value)), explanation


def read_schema() -> Iterator[tuple[str, str, list[Row]]]:
  """Yields the name, explanation and rows of each section of the schema; fields outside sections are one section."""
  source = (ROOT / "configs" / "default.py").read_text()
  comments = read_comments(source)
  (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
  for statement in function.body:
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
      name, value = statement.targets[0].attr, statement.value
      explanation = explain(comments, statement.lineno)
      if isinstance(value, ast.Call):
        assert isinstance(value.args[0], ast.Dict)
        yield name, explanation, list(read_fields(value.args[0], comments, name))
      else:
        yield name, "", [(name, format_value(ast.literal_eval(value)), explanation)]


def format_value(value: Any) -> str:
  """Returns a value as it is typed on the command line, as code."""
  text = str(value).lower() if isinstance(value, bool) else str(value)
  return f"`{text}`" if text else '`""`'


def format_table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
  """Returns a Markdown table; tags such as <unk> become code, because a browser would swallow them."""
  def format_cell(text: str) -> str:
    return re.sub(r"(?<!`)(<\w+>)(?!`)", r"`\1`", text).replace("|", r"\|")

  lines = [header, ("---",) * len(header), *rows]
  return "".join(f"| {' | '.join(format_cell(cell) for cell in line)} |\n" for line in lines)


def compare_configs() -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
  """Returns one row per field that some config changes, and the header: field, default, one column per config."""
  names = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py") if path.stem != "default")
  default, *others = (flatten_config(importlib.import_module(f"configs.{name}").get_config())
                      for name in ("default", *names))
  rows = [(f"`{field}`", format_value(value),
           *(format_value(other[field]) if other[field] != value else "" for other in others))
          for field, value in default.items() if any(other[field] != value for other in others)]
  return rows, ("field", "default", *names)


def make_page() -> str:
  """Returns the text of docs/configuration.md."""
  parts = [INTRODUCTION]
  for name, explanation, rows in read_schema():
    parts.append(f"## {name}\n")
    if explanation:
      parts.append(f"{explanation[0].upper()}{explanation[1:]}.\n")
    parts.append(format_table([(f"`{field}`", default, text) for field, default, text in rows],
                              ("field", "default", "meaning")))
  parts.append("## What each config changes\n")
  parts.append(format_table(*compare_configs()))
  return "\n".join(parts)


if __name__ == "__main__":
  PAGE.write_text(make_page())
