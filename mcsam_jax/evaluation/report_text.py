"""What `mcsam report` says, as text for people. The same as JSON is `report.report`'s result."""

import re
import textwrap

NOTICE = ("Research software, no medical device: these reports are written by a model, may be wrong, and are not for "
          "diagnosis or treatment.")
WIDTH = 100
_TOLD_BY = {"header": "", "name": "", "order": ", told by order"}      # what a user may want to put right


def of_study(study: dict, number: int) -> str:
  """Returns the paragraph of a study, one of the `studies` of the JSON."""
  shown = [f"{image['file']} ({image['view']}{_TOLD_BY[image['view_told_by']]})"
           for image in study["images"] if image["shown"]]
  lines = [f"[{number}] {', '.join(shown)}"]
  lines += [f"    warning: {warning}" for warning in study["warnings"]]
  report = readable(study["report"]) or "(nothing)"
  lines += textwrap.wrap(report, WIDTH, initial_indent="    ", subsequent_indent="    ")
  lines.append(f"    log-probability {study['log_prob']:.2f}")
  return "\n".join(lines) + "\n"


def of_all(whole: dict, with_studies: bool) -> str:
  """Returns what stands below the studies, and with_studies these before it."""
  parts = [of_study(study, number) for number, study in enumerate(whole["studies"], 1)] if with_studies else []
  lines = [f"refused {refused['file']}: {refused['reason']}" for refused in whole["refused"]] if with_studies else []
  lines += [f"note: {note}" for note in whole["notes"]]
  if whole["studies"]:
    lines.append(f"{len(whole['studies'])} report(s) by {whole['workdir']}, step {whole['step']}, "
                 f"{whole['search']} search")
  return "\n".join([*parts, *lines, whole["notice"]])


def readable(report: str) -> str:
  """Returns a report in words as a person writes: no blank before a full stop, sentences begin in capitals."""
  joined = re.sub(r"\s+([.,;:])", r"\1", " ".join(report.split()))
  return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), joined)
