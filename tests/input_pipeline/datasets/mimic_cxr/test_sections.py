"""Sections agree with those of MIT-LCP's parser on synthetic reports; rules for individual studies."""

import json
import pathlib
import re

import pytest

from input_pipeline.datasets.mimic_cxr.sections import extract_sections, SECTION_NAMES, split_sections

PARITY = pathlib.Path(__file__).parents[3] / "parity"
ROWS = json.loads((PARITY / "mimic_sections.json").read_text())
RULES = json.loads((PARITY / "mimic_section_rules.json").read_text())

# As in the files of the data set, every line but the first begins with a blank.
REPORT = (
    "                                 FINAL REPORT\n"
    " INDICATION:  Cough.\n \n"
    " TECHNIQUE:  Two views.\n \n"
    " NOTE:  Read with Dr. ___.\n \n"
    " FINDINGS:  The lungs are clear.\n \n"
    " EXAMINATION:  Chest.\n \n"
    " HISTORY:  Asthma.\n \n"
    " IMPRESSION:  Normal.\n \n"
    " RECOMMENDATION(S):  None.\n")
UNKNOWN = "s10000000"


def names(report):
  return [section.name for section in split_sections(report)]


def parse_header_name(header):
  (_, section) = split_sections(f"x\n {header}: it is so")
  assert section.text == "it is so"
  return section.name


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_agrees_with_mit_lcp(row):
  assert names(row["text"]) == row["names"]
  last = {section.name: section.text.strip() for section in split_sections(row["text"])}
  assert {name: last.get(name) for name in row["last"]} == row["last"]
  parts = extract_sections(row["text"], UNKNOWN)
  assert tuple(parts) == SECTION_NAMES
  assert all(parts[name] == (text or "") for name, text in row["last"].items() if name in parts)


@pytest.mark.parametrize("report", [row["text"] for row in ROWS] + [REPORT])
def test_sections_cover_the_report(report):
  """Sections are in order and don't overlap, and between them there are only headers and blanks."""
  end, between = 0, []
  for section in split_sections(report):
    assert section.start >= end and report[section.start:section.start + len(section.text)] == section.text
    between.append(report[end:section.start])
    end = section.start + len(section.text)
  assert end == len(report)
  assert all(re.fullmatch(r"(\s*[A-Z ()/,-]+:)*\s*", gap) for gap in between)


@pytest.mark.parametrize("headers,name", [
    ("IMPRESSION|CONCLUSION|FINDINGS AND IMPRESSION|FINDINGS/IMPRESSION|FINDINGS/ IMPRESSION|IMPRESSON|IMPRRESSION|"
     "IMORESSION|IMPRESSOIN|IMPRSSION|IMPRESION|IMPERSSION|MPRESSION|IMPESSION|NDICATION", "impression"),
    ("FINDINGS|FINDING|FINDINS|FINDINDGS|FINDGINGS|FINDNGS|FINDNINGS|FINIDNGS|REFERENCE FINDINGS|CHEST, TWO VIEWS|"
     "PORTABLE AP FILM|LEFT RIBS|ONE VIEW OF THE ABDOMEN", "findings"),
    ("INDICATION|REASON FOR EXAMINATION|REASON FOR EXAM|CLINICAL INDICATION|IDICATION", "indication"),
    ("HISTORY|CLINICAL HISTORY|PATIENT HISTORY|CLINICAL INFORMATION|PFI|CHEST PAIN HISTORY", "history"),
    ("COMPARISON|COMPARISONS|COMPARISON EXAM|COMPARISON FILM|REFERENCE EXAM|COMPARISION|COMPARSION|COMPARRISON|"
     "COMPARISIONS", "comparison"),
    ("EXAMINATION|EXAM|TYPE OF EXAMINATION", "examination"),
    ("RECOMMENDATIONS|RECOMMENDATION|RECOMMENDATION(S)", "recommendations"),
    ("WET READ|WETREAD", "wet read"), ("CONCUSION|COINCLUSION", "conclusion"),
    ("ADDENDUM|SECOND ADDENDUM", "addendum"), ("TECHNIQUE", "technique"), ("NOTIFICATION", "notification"),
    ("DATE", "date"), ("COMMENT", "comment"), (" NOTE ", "note"), ("DR", "dr"),
])
def test_names_of_headers(headers, name):
  for header in headers.split("|"):
    assert parse_header_name(header) == name


def test_where_a_header_is_not_seen():
  assert names("x\n HISTORY: A\n DATE: B\n EXAM:\n NOTE: C\n WET READ: D") == [
      "preamble", "history", "date", "examination", "wet read"]       # NOTE is on the first line of EXAM's text
  for text in ("HISTORY: first thing in the file", "x\nHISTORY: no blank", "x\n History: small letters",
               "x\n HISTORY:no blank after it", "x\n HISTORY 2: a number"):
    assert names(text) == ["full report"]


def test_empty_findings_do_not_count():
  assert names("x\n FINDINGS:\n \n IMPRESSION: \n \n NOTE: a") == ["preamble", "note"]
  found = split_sections("x\n FINDINGS:  \n \n NOTE: a\n \n b\n \n c")
  assert [section[:2] for section in found] == [("preamble", "x\n "), ("note", "a"), ("last_paragraph", " b\n \n c")]
  assert names("x\n TECHNIQUE:  \n \n IMPRESSION: a\n \n b") == ["preamble", "technique", "impression"]


def test_study_without_a_rule_is_read_unchanged():
  assert extract_sections(REPORT, UNKNOWN) == {
      "findings": "The lungs are clear.", "impression": "Normal.", "indication": "Cough.", "history": "Asthma.",
      "technique": "Two views.", "comparison": ""}


@pytest.mark.parametrize("study,section", RULES["section_by_study"].items())
def test_rule_that_takes_a_section(study, section):
  text = {"recommendations": "None.", "examination": "Chest.", "technique": "Two views.", "indication": "Cough.",
          "note": "Read with Dr. ___.", "history": "Asthma."}[section]
  expected = extract_sections(REPORT, UNKNOWN) | {"findings": text, "impression": ""}
  if section in expected:
    expected[section] = ""
  assert extract_sections(REPORT, study) == expected


def test_the_last_section_that_a_rule_names():
  report = REPORT + " \n TECHNIQUE:  Lungs are clear.\n"
  parts = extract_sections(report, "s59279892")
  assert parts["findings"] == "Lungs are clear." and parts["technique"] == "" == parts["impression"]
  without = report.replace("TECHNIQUE", "METHOD")
  assert extract_sections(without, "s59279892") == extract_sections(without, UNKNOWN)


@pytest.mark.parametrize("study,characters", RULES["character_range_by_study"].items())
def test_rule_that_takes_characters(study, characters):
  low, high = characters
  report = REPORT + " ".join(str(n) for n in range(400))
  expected = {"findings": report[low:high].strip(), "impression": ""}
  assert extract_sections(report, study) == extract_sections(report, UNKNOWN) | expected
  assert bool(expected["findings"]) == (high > 0)                     # (0, 0): nothing that can be used


def test_all_rules_are_known():
  studies = [*RULES["section_by_study"], *RULES["character_range_by_study"]]
  assert len(studies) == 54
  assert all(extract_sections(REPORT * 3, study)["impression"] == "" for study in studies)
