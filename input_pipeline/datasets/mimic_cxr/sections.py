r"""Splits the reports of MIMIC-CXR into findings, impression and other sections.

A report is free text. Most reports start each section with a header in capitals
and a colon at the start of a line; there are hundreds of headers, many with
typos, and some reports have none. What published scores call "the findings" is
the output of the section parser of MIT-LCP, the authors of MIMIC-CXR (Johnson et
al., 2019). This module reproduces that parser, including its errors:

- A header on the first line of another section's text is ignored.
- "NDICATION" is read as impression and "PFI" as history. "CONCUSION" is
  corrected to conclusion, but unlike "CONCLUSION" it isn't read as impression.
- A headline that contains "CHEST" or "PORTABLE" starts the findings. If no other
  findings follow, the findings are the text up to the next header, often only a
  date.

If a report has neither findings nor impression, the text after the first blank
line of its last section is named `last_paragraph`.

The parser fails on some individual studies. For these, MIT-LCP lists the section
or the character range that contains the report proper. These rules are in
section_rules.json, next to this file.
"""

import json
import pathlib
import re
from typing import NamedTuple

SECTION_NAMES = ("findings", "impression", "indication", "history", "technique", "comparison")

# In the files of the data set every line but the first begins with a blank.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"

# Section name -> headers that match exactly; these are checked first.
_SYNONYMS = {
    "impression": ("conclusion", "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion",
                   "imperssion", "mpression", "impession", "ndication"),
    "findings": ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical information", "pfi"),
    "comparison": ("reference exam", "comparision", "comparisions", "comparsion", "comparrison"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation", "recommendation(s)"),
    "wet read": ("wetread",),
    "conclusion": ("concusion", "coinclusion"),
}
_CANONICAL_NAMES = {header: name for name, headers in _SYNONYMS.items() for header in headers}
# Other headers get the first of these names that they contain ("findings and impression" is the impression).
_SUBSTRING_NAMES = ("impression", "findings", "history", "comparison", "addendum")
# A headline that contains one of these starts the findings.
_VIEW_TERMS = ("chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap",
               "frontal and", "two views", "frontal view", "pa view", "ap view", "one view", "lateral view",
               "bone window", "frontal upright", "frontal semi-upright", "ribs", "pa and lat")

_RULES = json.loads(pathlib.Path(__file__).with_name("section_rules.json").read_text())


class Section(NamedTuple):
  """A section of a report, at the characters report[start:start + len(text)]."""
  name: str
  text: str      # not stripped
  start: int


def split_sections(report: str) -> list[Section]:
  """Returns the sections of a report in order: at least one, and several may have the same name.

  Args:
    report: the full text of a study's file.
  """
  sections = _split_at_headers(report)
  sections = [section for section in sections if section.name not in ("impression", "findings") or section.text.strip()]
  if not any(section.name in ("impression", "findings") for section in sections):
    name, text, start = sections[-1]
    head, blank_line, tail = text.partition(_BLANK_LINE)
    if blank_line:
      sections[-1:] = [Section(name, head, start), Section("last_paragraph", tail, start + len(head + blank_line))]
  return sections


def extract_sections(report: str, study: str) -> dict[str, str]:
  """Returns the text of each of SECTION_NAMES; "" for sections that the report lacks.

  If several sections have the same name, the last one is used. If section_rules.json has a rule for the study, the
  text selected by the rule becomes the findings, and the impression is empty. For eight of these studies both are
  empty, because their reports contain nothing usable. Other sections are unchanged, except that a section used as the
  findings isn't repeated under its own name.

  Args:
    report: the full text of a study's file; the rules refer to its characters.
    study: id of the study, "s" and eight digits.
  """
  texts = {section.name: section.text.strip() for section in split_sections(report)}
  if study in _RULES["character_range_by_study"]:
    low, high = _RULES["character_range_by_study"][study]
    texts |= {"findings": report[low:high].strip(), "impression": ""}
  # A report without the section of its rule isn't the one that the rule was made for, so the rule is skipped.
  elif _RULES["section_by_study"].get(study) in texts:
    texts |= {"findings": texts.pop(_RULES["section_by_study"][study]), "impression": ""}
  return {name: texts.get(name, "") for name in SECTION_NAMES}


def _split_at_headers(report: str) -> list[Section]:
  """Splits a report at its headers; the text before the first header is the preamble."""
  header = _HEADER.search(report)
  if header is None:
    return [Section("full report", report, 0)]
  sections = [Section("preamble", report[:header.start(1)], 0)]
  while header is not None:
    name, start = _normalize_header(header[1]), header.end()
    line_end = report.find("\n", start)
    header = _HEADER.search(report, start if line_end < 0 else line_end)     # headers on the same line are ignored
    end = len(report) if header is None else header.start()
    sections.append(Section(name, report[start:end], start))
  return sections


def _normalize_header(header: str) -> str:
  """Returns the section name for a header: a common name for synonyms, else the header in lower case."""
  header = header.lower().strip()
  if header in _CANONICAL_NAMES:
    return _CANONICAL_NAMES[header]
  for name in _SUBSTRING_NAMES:
    if name in header:
      return name
  return "findings" if any(term in header for term in _VIEW_TERMS) else header
