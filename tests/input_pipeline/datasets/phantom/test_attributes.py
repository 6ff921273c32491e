"""The details of findings in two phantom reports are compared."""

import numpy as np

from input_pipeline.datasets.phantom.attributes import compare_attributes, count_agreement, describe_differences
from input_pipeline.datasets.phantom.patient import sample_findings
from input_pipeline.datasets.phantom.reports import write_report

REFERENCE = "There is a large left pneumothorax. A 20 mm nodule is seen in the right upper lung. No pleural effusion."


def test_only_findings_that_both_reports_state_are_compared():
  generated = "a small left pneumothorax is seen . a 32 mm nodule is in the right lower zone . there is an effusion ."
  pairs = compare_attributes(REFERENCE, generated)
  values = {(pair.finding, pair.name): (pair.reference, pair.generated) for pair in pairs}
  assert values == {
      ("Pneumothorax", "side"): ("left", "left"), ("Pneumothorax", "severity"): ("large", "small"),
      ("Lung Lesion", "side"): ("right", "right"), ("Lung Lesion", "zone"): ("upper", "lower"),
      ("Lung Lesion", "size"): ("20 mm", "32 mm")}
  assert count_agreement(pairs) == {"side": {"agree": 2, "total": 2}, "zone": {"agree": 0, "total": 1},
                                    "severity": {"agree": 0, "total": 1}, "size": {"agree": 0, "total": 1}}
  differences = describe_differences(pairs)
  assert differences == {"Pneumothorax": "small instead of large",
                         "Lung Lesion": "lower instead of upper, 32 mm instead of 20 mm"}


def test_a_report_agrees_with_itself_in_any_wording():
  for number in range(50):
    findings = sample_findings(np.random.default_rng(number))
    first, second = (write_report(findings, np.random.default_rng(seed))[0] for seed in (1, 2))
    assert describe_differences(compare_attributes(first, second)) == {}
