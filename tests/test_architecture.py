"""Imports go down the layers, never up; light layers don't load heavy libraries; files and folders stay small."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("mcsam_jax", "input_pipeline", "configs")

# A unit (a package or module) may import the units that its layer or its own line below allows: everything in lower
# layers, plus the siblings that are listed after the arrow.
LAYERS = (
    {"mcsam_jax.__main__": ["mcsam_jax.cli"], "mcsam_jax.cli": ["mcsam_jax.demo"], "mcsam_jax.demo": [],
     "mcsam_jax.api": []},
    {"mcsam_jax.precompile": ["mcsam_jax.training"], "mcsam_jax.benchmark": ["mcsam_jax.training"],
     "mcsam_jax.pretrained": ["mcsam_jax.training"], "mcsam_jax.contact_sheet": ["mcsam_jax.training"],
     "mcsam_jax.export": ["mcsam_jax.evaluation"], "mcsam_jax.evaluation": [], "mcsam_jax.training": []},
    {"mcsam_jax.html_report": ["mcsam_jax.explain", "mcsam_jax.inference"],
     "mcsam_jax.explain": ["mcsam_jax.inference"], "mcsam_jax.inference": []},
    {"mcsam_jax.metrics": ["mcsam_jax.labelers"], "mcsam_jax.labelers": ["mcsam_jax.checkpoints"],
     "mcsam_jax.checkpoints": ["mcsam_jax.distributed"], "mcsam_jax.distributed": []},
    {"mcsam_jax.config": ["mcsam_jax.config_rules"], "mcsam_jax.config_rules": ["mcsam_jax.models"],
     "mcsam_jax.decoding": [], "mcsam_jax.memory_init": [], "mcsam_jax.models": [], "input_pipeline": []},
    {"configs": []},
)
# Modules without any import of the project, which every unit may use.
LEAVES = {"mcsam_jax", "mcsam_jax.errors", "mcsam_jax.findings", "mcsam_jax.retryable", "mcsam_jax.atomic_io",
          "mcsam_jax.hardware", "mcsam_jax.partitioning", "mcsam_jax.progress", "mcsam_jax.files",
          "mcsam_jax.files.home", "mcsam_jax.files.json_text", "mcsam_jax.files.lock", "mcsam_jax.files.outputs",
          "mcsam_jax.files.trace_cache", "mcsam_jax.files.untrusted", "mcsam_jax.extensions",
          "mcsam_jax.extensions.by_name"}
LEAF_IMPORTS = {(leaf, "mcsam_jax.errors") for leaf in ("mcsam_jax.retryable", "mcsam_jax.files.home",
                                                        "mcsam_jax.files.json_text", "mcsam_jax.files.lock",
                                                        "mcsam_jax.files.outputs", "mcsam_jax.extensions.by_name")}
LEAF_IMPORTS |= {("mcsam_jax.files.trace_cache", "mcsam_jax.atomic_io")}
# The public names, imported at their first use.
LEAF_IMPORTS |= {("mcsam_jax", module) for module in ("mcsam_jax.api", "mcsam_jax.config", "mcsam_jax.errors",
                                                      "mcsam_jax.evaluation.evaluate", "mcsam_jax.training.train")}

MAX_LINES = 400
MAX_FILES = 14


def unit_of(module: str) -> str | None:
  """Returns the unit of LAYERS that a module belongs to; None for leaves and other libraries."""
  if module in LEAVES:
    return None
  for layer in LAYERS:
    for unit in layer:
      if module == unit or module.startswith(f"{unit}."):
        return unit
  assert module.split(".")[0] not in SOURCES, f"{module} is in no layer: add it to LAYERS or LEAVES"
  return None


def allowed_imports(unit: str) -> set[str]:
  for number, layer in enumerate(LAYERS):
    if unit in layer:
      return {unit, *layer[unit], *(lower for below in LAYERS[number + 1:] for lower in below)}
  raise ValueError(unit)


def imported_modules(source: str, modules: set[str]) -> set[str]:
  """Returns the modules that a file imports anywhere, inside functions too."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names}
  return found


def project_files() -> dict[str, pathlib.Path]:
  """Returns the path of each module of the project."""
  return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
          for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))}


def violations(files: dict[str, str]) -> list[str]:
  """Returns one line for each forbidden import among modules, given as {module: source}."""
  lines = []
  for module, source in files.items():
    for imported in sorted(imported_modules(source, set(files))):
      if imported.split(".")[0] not in SOURCES or imported == module:
        continue
      if module in LEAVES:
        if (module, imported) not in LEAF_IMPORTS:
          lines.append(f"leaf {module} imports {imported}")
        continue
      unit, target = unit_of(module), unit_of(imported)
      if target and target not in allowed_imports(unit):
        lines.append(f"{module} imports {imported}")
  return lines


def test_imports_go_down():
  assert violations({module: path.read_text() for module, path in project_files().items()}) == []


@pytest.mark.parametrize("module, source", [
    ("mcsam_jax.models.mcsam", "from mcsam_jax.training import train"),
    ("mcsam_jax.models.mcsam", "def f():\n  from mcsam_jax.evaluation.scorer import Scorer"),
    ("mcsam_jax.decoding.loop", "import mcsam_jax.models.mcsam"),
    ("mcsam_jax.evaluation.evaluate", "from mcsam_jax.training.train import train"),
    ("mcsam_jax.errors", "from mcsam_jax import config"),
    ("input_pipeline.pipeline", "from mcsam_jax.models import mcsam")])
def test_an_upward_import_is_found(module, source):
  names = {name: "" for name in project_files()}
  assert len(violations(names | {module: source})) == 1


def test_no_unit_imports_itself_in_a_circle():
  graph = {unit: set() for layer in LAYERS for unit in layer}
  files = project_files()
  for module, path in files.items():
    if unit := unit_of(module):
      graph[unit] |= {target for name in imported_modules(path.read_text(), set(files))
                      if name.split(".")[0] in SOURCES and (target := unit_of(name)) and target != unit}
  while free := [unit for unit, targets in graph.items() if not targets & graph.keys()]:
    for unit in free:
      del graph[unit]
  assert not graph, f"imports in a circle: {sorted(graph)}"


LIGHT_UNITS = {             # by the libraries that they must not load
    ("jax", "tensorflow"): ("mcsam_jax.evaluation.score_files", "mcsam_jax.cli"),
    ("tensorflow",): ("mcsam_jax.models", "mcsam_jax.decoding", "mcsam_jax.metrics", "mcsam_jax.labelers",
                      "mcsam_jax.inference", "mcsam_jax.evaluation.report", "mcsam_jax.api"),
}


@pytest.mark.parametrize("forbidden", LIGHT_UNITS)
def test_light_layers_do_not_load_heavy_libraries(forbidden):
  modules = [module for module in project_files()
             if any(module == unit or module.startswith(f"{unit}.") for unit in LIGHT_UNITS[forbidden])]
  assert len(modules) > len(LIGHT_UNITS[forbidden])
  script = (f"import importlib, sys\nfor module in {modules!r}:\n  importlib.import_module(module)\n"
            f"  if loaded := {set(forbidden)!r} & sys.modules.keys():\n    sys.exit(f'{{module}} loads {{loaded}}')")
  result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-2000:]


def test_files_and_folders_stay_small():
  folders = {}
  for path in [*project_files().values(), *(ROOT / "tests").rglob("*.py")]:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it by subject"
    folders.setdefault(path.parent, []).append(path.name)
  for folder, names in folders.items():
    assert len(names) <= MAX_FILES, f"{folder.relative_to(ROOT)} has {len(names)} files: it has two subjects"


def test_each_class_name_is_one_class():
  homes = {}
  for module, path in project_files().items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ClassDef):
        homes.setdefault(node.name, []).append(module)
  assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
