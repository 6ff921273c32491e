"""The examples and the notebook run as they are, on a workdir with random weights."""

import json
import pathlib
import runpy
import shutil
import sys

import pytest

from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def demo(workdir, tmp_path_factory):
  """Returns a workdir with the images of a study, like that of the demo."""
  folder = tmp_path_factory.mktemp("runs") / "demo"
  shutil.copytree(workdir, folder)
  write_image_files(open_workdir(workdir).open_split("val")[0], folder / "phantoms" / "phantom-0")
  return folder


@pytest.mark.slow
def test_generate(demo, monkeypatch, capsys):
  images = sorted((demo / "phantoms" / "phantom-0").iterdir())
  monkeypatch.setattr(sys, "argv", ["generate.py", str(demo), *map(str, images), "--nbest", "2"])
  runpy.run_path(str(EXAMPLES / "generate.py"), run_name="__main__")
  lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning")]
  assert [line[:2] for line in lines] == ["1.", "2.", "le"]


def test_quickstart_notebook(demo, capsys):
  """Runs the code of all cells in order, with this workdir instead of the demo's."""
  notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
  cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  parameters, *others = cells
  assert parameters["metadata"]["tags"] == ["parameters"] and "MODEL" in "".join(parameters["source"])
  source, variables = "".join(parameters["source"]), {}
  assert '"../runs/demo"' in source
  exec(source.replace('"../runs/demo"', repr(str(demo))), variables)
  for cell in others:
    exec("".join(cell["source"]), variables)
  assert variables["report"].text == variables["explanation"].text
  assert capsys.readouterr().out.splitlines()[0] == str(variables["report"])
  assert all(cell["outputs"] == [] for cell in cells)                       # none is committed
