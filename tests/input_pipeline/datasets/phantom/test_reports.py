import re

import numpy as np
import pytest

from input_pipeline.datasets import records
from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS, sample_findings
from input_pipeline.datasets.phantom.reports import find_mentions, read_findings, read_labels, write_report


def drawn_reports(count):
  for i in range(count):
    rng = np.random.default_rng((5, i))
    findings = sample_findings(rng)
    yield {finding.name: finding for finding in findings}, *write_report(findings, rng)


def cleaned(report):
  return re.sub(r"[^a-z0-9. ]", "", report.lower()).replace(".", " . ")


def test_read_findings_recovers_what_was_drawn():
  negatives = 0
  for drawn, findings, _ in drawn_reports(1000):
    for report in (findings, cleaned(findings)):
      for name, statement in read_findings(report).items():
        if name not in drawn:
          assert statement.state != "positive", (name, report)
          negatives += statement.state == "negative"
          continue
        finding = drawn[name]
        assert statement.state == "positive", (name, report)
        assert (statement.side, statement.zone, statement.severity, statement.kind) == (
            finding.side, finding.zone, finding.severity, finding.kind), report
        assert name != "Lung Lesion" or statement.size == finding.extent
  assert negatives > 5000


def test_impression_agrees_with_the_findings():
  for drawn, _, impression in drawn_reports(300):
    stated = {name for name, value in read_labels(impression).items() if value == "positive"}
    assert stated - {"No Finding"} == drawn.keys() - {"Support Devices"}


def test_normal_statements_are_read_as_negative():
  for drawn, findings, _ in drawn_reports(300):
    read = read_findings(findings)
    for name in ("Cardiomegaly", "Pneumothorax", "Pleural Effusion"):
      if name not in drawn and not ({"Pneumothorax", "Pleural Effusion"} <= drawn.keys()):
        assert read[name].state == "negative", (name, findings)


@pytest.mark.parametrize("report, name, state, side", [
    ("no pneumothorax or pleural effusion", "Pleural Effusion", "negative", ""),
    ("there is a small left pleural effusion without pneumothorax", "Pleural Effusion", "positive", "left"),
    ("there is a small left pleural effusion without pneumothorax", "Pneumothorax", "negative", ""),
    ("no pneumothorax but there is a large right pleural effusion", "Pleural Effusion", "positive", "right"),
    ("no pneumothorax . no pneumothorax . small right pneumothorax", "Pneumothorax", "positive", "right"),
    ("the heart is not enlarged", "Cardiomegaly", "negative", ""),
    ("the heart is mildly enlarged", "Cardiomegaly", "positive", ""),
    ("the lungs are not clear", "Consolidation", "absent", ""),
    ("left nodule and right consolidation", "Consolidation", "positive", "right"),
    ("left nodule and right consolidation", "Lung Lesion", "positive", "left"),
    ("there are bilateral pleural effusions", "Pleural Effusion", "positive", "bilateral"),
])
def test_known_sentences(report, name, state, side):
  statement = read_findings(report)[name]
  assert (statement.state, statement.side) == (state, side)


@pytest.mark.parametrize("report", ["", " . . ", "<unk> the the zone of . lobe", "12 mm", "XXXX"])
def test_reports_without_findings_have_no_labels(report):
  assert set(read_labels(report).values()) == {"absent"}


def test_labels_have_the_record_schema():
  for drawn, findings, _ in drawn_reports(50):
    labels = read_labels(findings)
    assert tuple(labels) == records.FINDINGS and set(labels.values()) <= set(records.LABEL_VALUES)
    assert {name for name in PHANTOM_FINDINGS if labels[name] == "positive"} == drawn.keys()
    assert (labels["No Finding"] == "positive") == (not drawn)


def test_wording_varies_within_a_small_vocabulary():
  reports = [cleaned(findings) for _, findings, _ in drawn_reports(1000)]
  lengths = [len(report.replace(".", "").split()) for report in reports]
  assert 20 <= np.percentile(lengths, 5) and np.percentile(lengths, 99) <= 50
  assert max(len(report.split()) for report in reports) < 60       # full stops count: none is cut
  assert len(set(reports)) > 600
  assert 80 < len({word for report in reports for word in report.split()}) < 250


def test_mentions_give_finding_label_and_characters():
  report = "Heart size is within normal limits. No effusion -- but there is a SMALL left pneumothorax."
  found = [(mention.finding, mention.label, report[mention.start:mention.end]) for mention in find_mentions(report)]
  assert found == [("Cardiomegaly", "negative", "Heart size is within normal"),
                   ("Pleural Effusion", "negative", "effusion"), ("Pneumothorax", "positive", "pneumothorax")]
  for _, report, _ in drawn_reports(200):
    states = {}
    for mention in find_mentions(report):
      states[mention.finding] = "positive" if "positive" in (mention.label, states.get(mention.finding)) else "negative"
    read = read_labels(report)
    assert states == {name: read[name] for name in PHANTOM_FINDINGS if read[name] != "absent"}
