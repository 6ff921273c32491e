"""`mcsam data` draws a few batches; a restricted data set needs permission."""

import numpy as np
import PIL.Image
import pytest

from input_pipeline.builder.prepare import prepare
from mcsam_jax import cli, contact_sheet
from tests.testing.tiny import make_arguments, make_config, PHANTOMS


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  """Returns --config arguments with prepared data."""
  fields = PHANTOMS | {"data.data_dir": tmp_path_factory.mktemp("data"), "data.augment": True}
  prepare(make_config(fields), log=lambda line: None)
  return fields


def run_data(fields, path, *arguments):
  """Returns the exit status of `mcsam data`."""
  return cli.main(["data", "--config", "phantom", "--out", str(path), *arguments, *make_arguments(fields)])


@pytest.mark.parametrize("split, rows", [("train", 3), ("val", 2)])              # val: 6 studies in batches of 4
def test_the_sheet_has_a_row_per_batch(fields, tmp_path, capsys, split, rows):
  path = tmp_path / "sheet.png"
  assert run_data(fields, path, "--split", split, "--batches", "3", "--studies", "2") == 0
  output = capsys.readouterr().out
  assert f"{rows} batches of {split}" in output and str(path) in output
  assert ("augmented" in output) == (split == "train")
  with PIL.Image.open(path) as sheet:
    pixels = np.asarray(sheet)
  size, gap = contact_sheet.IMAGE_SIZE, contact_sheet.GAP
  study_width = 2 * size + gap
  assert pixels.shape[1] == gap + 2 * (study_width + 2 * gap)
  row_height = (pixels.shape[0] - gap) // rows
  for row in range(rows):
    top = gap + row * row_height + contact_sheet.LINE_HEIGHT + 2
    for left in (gap, gap + study_width + 2 * gap):
      assert np.ptp(pixels[top:top + size, left:left + size]) > 100                # an image
      report = pixels[top + size + contact_sheet.LINE_HEIGHT:top + row_height - 30, left:left + study_width]
      assert (report < 128).any()                                                  # a text


def test_the_same_step_gives_the_same_sheet_and_another_one_another(fields, tmp_path):
  sheets = []
  for name, step in (("a", 0), ("b", 0), ("c", 5)):
    assert run_data(fields, tmp_path / f"{name}.png", "--batches", "1", "--step", str(step)) == 0
    sheets.append((tmp_path / f"{name}.png").read_bytes())
  assert sheets[0] == sheets[1] != sheets[2]


def test_a_restricted_data_set_needs_permission(fields, tmp_path, capsys):
  restricted, path = fields | {"data.restricted": True}, tmp_path / "sheet.png"
  assert run_data(restricted, path) == 2
  assert "data.contact_sheet_restricted=true" in capsys.readouterr().err and not path.exists()
  assert run_data(restricted | {"data.contact_sheet_restricted": True}, path, "--batches", "1") == 0 and path.exists()


def test_wrong_arguments_get_one_line(fields, tmp_path, capsys):
  for arguments, reason in ((["--batches", "0"], "--batches 0"), (["--split", "dev"], "no split dev")):
    assert run_data(fields, tmp_path / "sheet.png", *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1
