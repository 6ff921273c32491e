"""The output of `mcsam report` as text for people; `report.report` returns the same as a JSON object."""

import re
import textwrap

NOTICE = ("Research software, not a medical device: these reports are written by a model, may be wrong, and are not "
          "for diagnosis or treatment.")
WIDTH = 100
# Only a view that was guessed from the order of the files is worth correcting.
_VIEW_SOURCES = {"header": "", "name": "", "order": ", guessed from the order"}


def format_study(study: dict, number: int) -> str:
  """Returns the paragraph of one of the `studies` of the JSON object."""
  images = [f"{image['file']} ({image['view']}{_VIEW_SOURCES[image['view_source']]})"
            for image in study["images"] if image["used"]]
  lines = [f"[{number}] {', '.join(images)}"]
  lines += [f"    warning: {warning}" for warning in study["warnings"]]
  lines += _format_report(study, "")
  for rank, report in enumerate(study.get("nbest", ())[1:], 2):
    lines += _format_report(report, f"{rank}. ")
  return "\n".join(lines) + "\n"


def _format_report(report: dict, prefix: str) -> list[str]:
  """Returns the lines of a report and its log-probability; the prefix is the rank of any but the best."""
  text = capitalize_report(report["report"]) or "(empty report)"
  lines = textwrap.wrap(prefix + text, WIDTH, initial_indent="    ", subsequent_indent="    ")
  lines.append("    retrieved from training" if report["log_prob"] is None else
               f"    log-probability {report['log_prob']:.2f}")
  return lines


def format_output(output: dict, with_studies: bool) -> str:
  """Returns the notes and the notice of the JSON object, after its studies and unreadable files if `with_studies`."""
  paragraphs, lines = [], []
  if with_studies:
    paragraphs = [format_study(study, number) for number, study in enumerate(output["studies"], 1)]
    lines = [f"unreadable: {file['file']}: {file['reason']}" for file in output["unreadable"]]
  lines += [f"note: {note}" for note in output["notes"]]
  if output["studies"]:
    lines.append(f"{len(output['studies'])} report(s) by {output['workdir']}, step {output['step']}, "
                 f"{output['search']} search")
  return "\n".join([*paragraphs, *lines, output["notice"]])


def capitalize_report(report: str) -> str:
  """Returns a report of lower-case tokens as a person writes it: capitals, and no space before punctuation."""
  joined = re.sub(r"\s+([.,;:])", r"\1", " ".join(report.split()))
  return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), joined)
