"""Cleaning agrees with R2Gen on every stored row and is idempotent."""

import json
import random

import pytest

from input_pipeline import text

REFERENCE_FIELDS = {"iu_xray": "iu", "mimic_cxr": "mimic"}


@pytest.mark.parametrize("rules", text.RULES)
def test_cleaning_agrees_with_r2gen(rules, shared):
  rows = json.loads(shared("parity/r2gen_text.json").read_text())["rows"]
  assert len(rows) == 46
  for row in rows:
    assert text.clean(row["raw"], rules) == row[REFERENCE_FIELDS[rules]], row["raw"]


@pytest.mark.parametrize("rules", text.RULES)
def test_cleaning_twice_changes_only_whitespace(rules):
  rng = random.Random(0)
  pieces = ["1. ", " 2. ", ". 3. ", "..", ". ", ".", " ", "  ", "\n", "_", "__", "'", '"', "/", "-", "<", "@",
            "[", "A", "b", "T1", "5", "%", "(", ":", ";", ", "]
  for _ in range(3000):
    once = text.clean("".join(rng.choices(pieces, k=rng.randrange(12))), rules)
    assert text.clean(once, rules).split() == once.split(), once


@pytest.mark.parametrize("report, iu_xray, mimic_cxr", [
    ("", " .", " ."),
    ("No effusion? Yes! [A-Z] 50% of_x", "no effusion yes a-z 50 ofx .", "no effusion yes a-z 50 ofx ."),
    ("Stable.  5. Mild  change.. 1. Edema", "stable .  . mild  change . edema .", "stable . mild change . edema ."),
    ("A 3.2-cm nodule; RUL/LLL isn't new", "a 32-cm nodule rullll isnt new .", "a 32-cm nodule rullll isnt new ."),
])
def test_known_answers(report, iu_xray, mimic_cxr):
  assert text.clean(report, "iu_xray") == iu_xray
  assert text.clean(report, "mimic_cxr") == mimic_cxr
