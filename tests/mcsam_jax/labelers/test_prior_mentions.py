"""Mentions of an earlier study: what counts as one, what doesn't, and their character offsets."""

import pytest

from mcsam_jax.labelers.prior_mentions import find_prior_mentions


def mentioned_words(report):
  return [report[start:end] for start, end in find_prior_mentions(report)]


@pytest.mark.parametrize("report, words", [
    ("Stable cardiomegaly.", ["Stable"]),
    ("The effusion is unchanged.", ["unchanged"]),
    ("No significant change in the right effusion.", ["No significant change"]),
    ("The nodule has not changed.", ["has not changed"]),
    ("Interval increase in the effusion.", ["Interval increase"]),
    ("There is a new left effusion.", ["new"]),
    ("Persistent opacity at the base.", ["Persistent"]),
    ("Sternal wires are again seen.", ["are again seen"]),
    ("The pneumothorax has resolved.", ["has resolved"]),
    ("The previously noted nodule is gone.", ["previously noted"]),
    ("The tube has been removed.", ["has been removed"]),
    ("Worsening edema.", ["Worsening"]),
    ("The heart remains enlarged.", ["remains enlarged"]),
    ("No longer any consolidation.", ["No longer"]),
    ("Compared to the prior radiograph the lungs are clearer.", ["Compared to the prior radiograph"]),
    ("heart size normal . effusion decreased from the previous exam .", ["decreased from", "previous exam"]),
    ("As compared to the study of ___, lines are in place.", ["As compared to"]),
    ("The effusion is larger than on the prior study.", ["on the prior study"]),
    ("Prior x-ray demonstrates effusion.", ["Prior x-ray"]),
    ("Seen on the previous xrays and the old x ray.", ["on the previous xrays", "and the old x ray"]),
    ("Increased from the prior X\u2011ray.", ["Increased from", "prior X\u2011ray"]),
    ("Larger than on patient\u2019s prior film.", ["on patient\u2019s prior film"]),
])
def test_comparisons_are_mentions(report, words):
  assert mentioned_words(report) == words


@pytest.mark.parametrize("report", [
    "", "The heart is normal in size. The lungs are clear.", "Increased interstitial markings.",
    "Low lung volumes.", "Old healed rib fractures.", "Prior sternotomy.",
    "Calcified nodes from prior granulomatous disease.",
    "No prior studies for comparison.", "No comparison available.", "Right effusion larger than left.",
    "Comparison with old films would be helpful.", "Follow up to ensure resolution.",
    "Repeat films after a short interval.",
    "no pneumothorax . <unk> xxxx .",
])
def test_other_sentences_have_no_mention(report):
  assert mentioned_words(report) == []


def test_offsets_refer_to_the_original_report():
  report = "  LUNGS ARE CLEAR.\n\nHEART:\nUNCHANGED, \u0130 again seen"   # \u0130 grows when lower-cased
  spans = find_prior_mentions(report)
  assert [report[start:end] for start, end in spans] == ["UNCHANGED", "again seen"]
  assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))
