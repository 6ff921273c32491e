"""Reference numbers and real data that are not part of the checkout."""

import os
import pathlib

import pytest

SHARED = pathlib.Path(os.environ.get("MCSAM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
  """shared("parity/x.json") is the path of a file in MCSAM_SHARED; the test is skipped, and says so, without it."""
  def find(name):
    if not (SHARED / name).exists():
      pytest.skip(f"{SHARED / name} is absent: set MCSAM_SHARED to the folder that holds it")
    return SHARED / name
  return find
