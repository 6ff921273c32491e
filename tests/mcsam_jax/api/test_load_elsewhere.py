"""`mcsam_jax.load` on a mesh of several devices, and from a bucket."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.demo.demo import write_image_files
from tests.testing.cloud_storage import CloudStorage
from tests.testing.simulated_devices import make_xla_flags
from tests.testing.training_run import ROOT

GENERATE = """if True:
  import json, sys
  import mcsam_jax
  path, mesh, *studies = json.loads(sys.argv[1])
  model = mcsam_jax.load(path, mesh=mesh)
  reports = model.generate(studies, num_return=2)
  print(json.dumps([[each.text, each.log_prob, each.token_log_probs.tolist()] for report in reports
                    for each in report.nbest]))
  explanation = model.explain(studies[0])
  print(json.dumps([explanation.words, explanation.log_probs.tolist(), explanation.heat_maps.tolist()]))
  assert path.startswith("gs://") or "tensorflow" not in sys.modules
  print(json.dumps([model.encode(studies).image_embedding.tolist(), len(model.memory_topics())]))
"""


def run(program: str, *arguments: str, **environment: str) -> list:
  """Returns the lines of JSON that a program prints."""
  process = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False,
                           cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment)
  assert process.returncode == 0, process.stderr
  return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def studies(workdir, tmp_path_factory):
  """Returns the folders of the images of five studies."""
  root = tmp_path_factory.mktemp("images")
  for number, record in enumerate(open_workdir(workdir).open_split("val")):
    if number < 5:
      write_image_files(record, root / f"{number}")
  return sorted(map(str, root.iterdir()))


@pytest.mark.slow
def test_a_mesh_of_four_devices_gives_the_same(workdir, studies):
  expected = run(GENERATE, json.dumps([str(workdir), None, *studies]))
  found = run(GENERATE, json.dumps([str(workdir), {"data": -1, "tensor": 2}, *studies]), XLA_FLAGS=make_xla_flags(4))
  assert [text for text, *_ in found[0]] == [text for text, *_ in expected[0]] and len(expected[0]) == 10
  assert [log_prob for _, log_prob, _ in found[0]] == pytest.approx([log_prob for _, log_prob, _ in expected[0]],
                                                                    abs=1e-3)
  assert found[1][0] == expected[1][0] and found[2][1] == expected[2][1]
  for row, other in zip(found[2][0], expected[2][0], strict=True):
    assert row == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_a_model_is_loaded_from_a_bucket(workdir, studies, tmp_path):
  expected = run(GENERATE, json.dumps([str(workdir), None, *studies]))
  with CloudStorage(tmp_path).serving() as storage:
    root = pathlib.Path(workdir)                             # epath.Path has no rglob
    for path in root.rglob("*"):
      if path.is_file():
        storage.put("bucket", f"run/{path.relative_to(root)}", path.read_bytes())
    assert run(GENERATE, json.dumps(["gs://bucket/run", None, *studies]), **storage.environment) == expected
    assert not storage.unknown_requests
