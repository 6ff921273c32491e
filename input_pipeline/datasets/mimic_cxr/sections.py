r"""MIMIC-CXR's reports, taken apart into findings, impression and the rest.

A report is free text. Most put a header in capitals and a colon at the start of
a line before each part; there are hundreds of headers, with all the slips of a
keyboard, and some reports have none. What published scores call "the findings"
is what the section parser of MIT-LCP, MIMIC-CXR's authors, finds (Johnson et
al., 2019), so this module finds the same, slips of its own included:

- A header on the first line of another section's text is not seen.
- "NDICATION" counts as impression, "PFI" as history, and "CONCUSION" becomes
  the conclusion that it was meant to be, but not the impression that
  "CONCLUSION" becomes.
- A headline with "CHEST" or "PORTABLE" in it opens the findings. Where no other
  findings follow, they are what stands before the next header, often a mere date.

Where a report has neither findings nor impression, what follows the first blank
line of its last section is named `last_paragraph`.

Some single studies still come out wrong, and for these MIT-LCP wrote down which
section, or which characters, hold all that the report says. Those rules are in
section_rules.json, next to this file.
"""

import json
import pathlib
import re
from typing import NamedTuple

SECTION_NAMES = ("findings", "impression", "indication", "history", "technique", "comparison")      # what read_report gives

# The blank is there in the files of the dataset, where each line but the first begins with one.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"

# What a header is called -> headers that are this and nothing else. Asked first.
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
# A longer header is called by the first of these that it contains ("findings and impression" is the impression) ...
_SUBSTRING_NAMES = ("impression", "findings", "history", "comparison", "addendum")
# ... and a headline that names the film opens the findings.
_FILM_HEADERS = ("chest", "portable", "pa and lateral", "lateral and pa", "ap and lateral", "lateral and ap", "frontal and",
         "two views", "frontal view", "pa view", "ap view", "one view", "lateral view", "bone window",
         "frontal upright", "frontal semi-upright", "ribs", "pa and lat")

_RULES = json.loads(pathlib.Path(__file__).with_name("section_rules.json").read_text())


class Section(NamedTuple):
  name: str
  text: str      # not stripped
  start: int     # report[start:start + len(text)] == text


def split_sections(report: str) -> list[Section]:
  """Returns the sections of a report in their order, never none; several may have the same name.

  Args:
    report: the text of a study's file, whole.
  """
  found = _split_at_headers(report)
  found = [section for section in found if section.name not in ("impression", "findings") or section.text.strip()]
  if not any(section.name in ("impression", "findings") for section in found):
    name, text, start = found[-1]
    head, blank_line, tail = text.partition(_BLANK_LINE)
    if blank_line:
      found[-1:] = [Section(name, head, start), Section("last_paragraph", tail, start + len(head + blank_line))]
  return found


def extract_sections(report: str, study: str) -> dict[str, str]:
  """Returns the text of each of PARTS, "" for what the report lacks.

  Of several sections of one name the last one counts. For a study that has a rule of its own, what the rule picks is
  all that the report says: it stands as the findings, and the impression is empty. Eight of these reports say nothing
  that can be used, so both are empty. The other parts stay as they are, except that a section which became the
  findings is not repeated under its own name.

  Args:
    report: the text of a study's file, whole: the rules count its characters.
    study: id of the study, "s" and eight digits.
  """
  parts = {section.name: section.text.strip() for section in split_sections(report)}
  if study in _RULES["character_range_by_study"]:
    low, high = _RULES["character_range_by_study"][study]
    parts |= {"findings": report[low:high].strip(), "impression": ""}
  # A report without the section that its rule names is not the one which the rule was made for: no rule then.
  elif _RULES["section_by_study"].get(study) in parts:
    parts |= {"findings": parts.pop(_RULES["section_by_study"][study]), "impression": ""}
  return {name: parts.get(name, "") for name in SECTION_NAMES}


def _split_at_headers(report: str) -> list[Section]:
  """Cuts a report at its headers; what stands before the first is the preamble."""
  header = _HEADER.search(report)
  if header is None:
    return [Section("full report", report, 0)]
  found = [Section("preamble", report[:header.start(1)], 0)]
  while header is not None:
    name, start = _normalize_header(header[1]), header.end()
    line_end = report.find("\n", start)
    header = _HEADER.search(report, start if line_end < 0 else line_end)     # the rest of the line is skipped
    end = len(report) if header is None else header.start()
    found.append(Section(name, report[start:end], start))
  return found


def _normalize_header(header: str) -> str:
  """Returns what a header is called: one name for all that mean the same, else its own in lower case."""
  header = header.lower().strip()
  if header in _CANONICAL_NAMES:
    return _CANONICAL_NAMES[header]
  for name in _SUBSTRING_NAMES:
    if name in header:
      return name
  return "findings" if any(word in header for word in _FILM_HEADERS) else header
