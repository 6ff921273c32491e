"""Constant reports are read from a workdir, or searched again if their file is damaged."""

import json

from etils import epath
import pytest

from mcsam_jax.evaluation.eval_files import _read_constants

GOOD = {"BLEU_4": {"report": "no effusion .", "val_score": 0.5}, "METEOR": None}


def read(tmp_path, content: bytes):
  (tmp_path / "constant.json").write_bytes(content)
  return _read_constants(epath.Path(tmp_path / "constant.json"), list(GOOD))


def test_intact_constants_are_read(tmp_path):
  assert read(tmp_path, json.dumps(GOOD).encode()) == GOOD
  assert _read_constants(epath.Path(tmp_path / "missing.json"), list(GOOD)) is None


@pytest.mark.parametrize("content", [
    b"", b"[" * 3000, b"\xff", b"[]", b"null", b"{}", json.dumps({"BLEU_4": GOOD["BLEU_4"]}).encode(),
    json.dumps(GOOD | {"BLEU_4": {"report": 3, "val_score": 0.5}}).encode(),
    json.dumps(GOOD | {"BLEU_4": {"report": "no effusion ."}}).encode(), json.dumps(GOOD | {"BLEU_4": []}).encode()])
def test_damaged_constants_count_as_missing(tmp_path, content):
  assert read(tmp_path, content) is None
