"""README and docs/: links lead somewhere, commands and fields exist, generated pages and repeated figures agree."""

import argparse
import ast
import importlib.util
import inspect
import pathlib
import re
import shlex

import pytest

import mcsam_jax
from mcsam_jax.cli.main import make_parser
from mcsam_jax.config import default_config, flatten_config

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = ("mcsam_jax", "input_pipeline", "configs", "tests", "launch", "docs", "examples")
MAX_README_LINES = 150
COMMAND = re.compile(r"(?:^|(?<=\s))mcsam (?=[a-z])")
CONTINUATION = re.compile(r"\\\n\s*")
FILE_NAME = re.compile(rf"(?<![\w/.$-])((?:{'|'.join(SOURCES)})/[\w/.-]+\.\w+)")
FILE_SUFFIXES = {"npz", "json", "jsonl", "md", "py", "bin", "pth", "html", "log", "safetensors"}
documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def split_code(text: str) -> tuple[str, list[str], list[str]]:
  """Returns a document's prose without code, its code blocks, and its inline code."""
  fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
  text = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.M | re.S)
  indented = [block for block in re.findall(r"(?:^(?: {4}.*)\n+)+", text, re.M) if block.strip()]
  text = re.sub(r"^ {4}.*$", "", text, flags=re.M)
  return re.sub(r"`[^`\n]+`", "", text), fenced + indented, re.findall(r"`([^`\n]+)`", text)


def anchors(path: pathlib.Path) -> set[str]:
  """Returns the anchors that GitHub gives the headings of a document."""
  text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
  found = set()
  for heading in re.findall(r"^#+ (.+)$", text, re.M):
    slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    number = 0
    while (anchor := f"{slug}-{number}" if number else slug) in found:
      number += 1
    found.add(anchor)
  return found


def commands_of(text: str) -> list[str]:
  """Returns the `mcsam` commands of a document, with the variables of their code block filled in."""
  _, blocks, inline = split_code(text)
  commands = [code for code in inline if code.startswith("mcsam ")]
  for block in blocks:
    block = CONTINUATION.sub("", block)
    variables = dict(re.findall(r'^\s*([A-Z]+)="(.*?)"', block, re.M))
    for line in block.splitlines():
      if match := COMMAND.search(line):
        commands.append(re.sub(r"\$([A-Z]+)", lambda name: variables.get(name[1], name[0]), line[match.start():]))
  return commands


def find_parser(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
  """Returns the parser of the (sub)command that the words name, and the words after it."""
  parser = make_parser()
  while choices := next((action.choices for action in parser._actions
                         if isinstance(action, argparse._SubParsersAction)), None):
    if not words or words[0].startswith("-"):
      break
    assert words[0] in choices, f"there is no {parser.prog} {words[0]}"
    parser, words = choices[words[0]], words[1:]
  return parser, words


def check_command(command: str) -> None:
  """Asserts that the verb, the flags and the config fields of a command exist; values may be placeholders."""
  parser, words = find_parser(shlex.split(command, comments=True)[1:])
  known = {*parser._option_string_actions, *(f"--config.{field}" for field in flatten_config(default_config()))}
  unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known
  assert not unknown, f"{command}: {parser.prog} has no {unknown}"


def test_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
  prose, _, _ = split_code(path.read_text())
  for target in re.findall(r"\]\(([^)\s]+)\)", prose):
    if re.match(r"https?://|mailto:", target):
      continue
    file, _, anchor = target.partition("#")
    linked = (path.parent / file).resolve() if file else path
    assert linked.exists(), f"{path.name} links to {target}, which doesn't exist"
    if anchor and linked.suffix == ".md":
      assert anchor in anchors(linked), f"{path.name} links to {target}, but {linked.name} has no such heading"


def test_every_document_is_in_the_index():
  prose, _, _ = split_code((ROOT / "docs" / "index.md").read_text())
  linked = set(re.findall(r"\]\(([\w]+\.md)\)", prose))
  assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


@documents
def test_commands_exist(path):
  for command in commands_of(path.read_text()):
    check_command(command)


def test_a_wrong_command_is_found():
  for command in ("mcsam sing", "mcsam train --loud", "mcsam train --config.train.steps=3", "mcsam benchmark --fast",
                  "mcsam import-weights cat x"):
    with pytest.raises(AssertionError):
      check_command(command)


@documents
def test_python_calls_exist(path):
  """Calls of `mcsam_jax` and of a loaded `model` in Python snippets have parameters of these names."""
  for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S):
    if block.startswith(">>>"):
      continue
    for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
      owner, _, name = ast.unparse(call.func).rpartition(".")
      if owner in ("mcsam_jax", "model"):
        function = getattr(mcsam_jax if owner == "mcsam_jax" else mcsam_jax.Model, name)
        arguments = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(function).bind_partial(**arguments)


@documents
def test_config_fields_exist(path):
  fields = list(flatten_config(default_config()))
  groups = {field.rpartition(".")[0] for field in fields}
  sections = {field.partition(".")[0] for field in fields if "." in field}
  unknown = set()
  _, _, inline = split_code(path.read_text())
  for code in inline:
    name = code.partition("=")[0]
    section, suffix = name.partition(".")[0], name.rpartition(".")[2]
    if (re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", name) and section in sections and suffix not in FILE_SUFFIXES
        and (section != "model" or path.name == "model.md")       # elsewhere `model` may be a Python object
        and name not in fields and name not in groups):
      unknown.add(name)
  assert not unknown, f"{path.name}: the config has no {unknown}"


@documents
def test_files_in_code_exist(path):
  """Scripts that commands run and files that the text names; those of tests may be named without `tests/`."""
  _, blocks, inline = split_code(path.read_text())
  for code in [*blocks, *inline]:
    for name in FILE_NAME.findall(code):
      assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), f"{path.name} names {name}"


def test_documents_that_the_code_names_exist():
  paths = [path for folder in SOURCES for path in (ROOT / folder).rglob("*")
           if path.suffix in (".py", ".sh", ".sbatch", ".html")]
  for path in paths:
    for name in re.findall(r"\bdocs/\w+\.\w+", path.read_text()):
      assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


def test_configuration_is_that_of_the_schema():
  spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  page = module.make_page()
  assert (ROOT / "docs" / "configuration.md").read_text() == page, "run: python docs/generate_configuration.py"
  listed = re.findall(r"^\| `([\w.]+)` \| `", page.partition("## What each config")[0], re.M)
  assert sorted(listed) == sorted(flatten_config(default_config()))


def read_table(text: str) -> dict[str, dict[str, str]]:
  """Returns the rows of a Markdown table: {first cell: {column: cell}}."""
  lines = [[cell.strip(" *") for cell in line.strip().strip("|").split("|")]
           for line in text.splitlines() if line.startswith("|")]
  return {cells[0]: dict(zip(lines[0][1:], cells[1:])) for cells in lines[2:]}


def test_results_in_the_readme_are_those_of_the_document():
  readme = (ROOT / "README.md").read_text().partition("<!-- results")[2].partition("<!-- end of results")[0]
  document = (ROOT / "docs" / "results.md").read_text().partition("## IU X-Ray")[2]
  table = re.search(r"^\| \| BLEU-1 .*\n(?:\|.*\n)+", document, re.M)
  assert table
  expected, measured = read_table(table[0]), 0
  for label, scores in read_table(readme).items():
    if "as published" in label:
      continue
    assert label in expected, f"docs/results.md has no row {label}"
    assert scores == {column: expected[label][column] for column in scores}, label
    measured += 1
  assert measured >= 3
  verdict = re.sub(r"^\|.*$", "", readme, flags=re.M)
  for figure in re.findall(r"(?<![\d.])\.\d+", verdict):
    assert re.search(rf"(?<!\d){re.escape(figure)}(?!\d)", document), f"docs/results.md has no figure {figure}"
