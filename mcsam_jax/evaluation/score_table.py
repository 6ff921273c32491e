"""The scores of `scoring.score_reports` as the text that a person reads in a terminal."""

from collections.abc import Mapping, Sequence

from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import UNKNOWN

_NAMES = {"constant": "constant report", "nearest": "nearest image's", "medoid": "medoid of nearest",
          "nearest_own": "nearest, own", "medoid_own": "medoid, own"}        # by the model's own features
F1 = (("micro-F1", ("micro", "f1")), ("macro-F1", ("macro", "f1")))


def format_table(scores: Mapping) -> str:
  """Returns the model, its control and the baselines in rows, metrics in columns, and what else is to be known.

  Scores that an earlier version stored may lack intervals and more; they are left out.
  """
  main = scores.get("references", {}).get("main", "r2gen")
  sure, control = scores.get("intervals", {}), scores.get("controls", {}).get("shuffled_images")
  rows = [("this model", scores["nlg"][main], scores["labels"])]
  if control:
    rows.append(("images shuffled", control["nlg"][main], control["labels"]))
  rows += [(_NAMES.get(name, name), of["nlg"], of["labels"]) for name, of in scores["baselines"].items()]

  columns = [metric.replace("_", "-") for metric in METRICS] + [name for name, _ in F1 if scores["labels"]]
  subjects = scores.get("num_subjects", scores["num_studies"])
  of_subjects = f" of {subjects} subjects" if subjects != scores["num_studies"] else ""
  lines = [f"{scores['num_studies']} studies{of_subjects}, protocol {main}", _line("", columns)]
  for number, (name, nlg, labels) in enumerate(rows):
    lines.append(_line(name, [_number(value) for value in _values(nlg, labels)]))
    if not number and sure:
      lines.append(_line("95 % interval", [_span(of) for of in _values(sure["nlg"][main], sure["labels"])]))
  if scores["labels"]:
    lines.append("micro-F1, macro-F1: of all findings, uncertain as negative; macro over those that references have"
                 + (f"; labeler: {scores['labeler']}" if scores.get("labeler") else ""))
  lines += [*_of_radeval(scores), *_leads(scores), *_of_labels(scores), *_of_unseen(scores, main), *_of_reports(scores)]
  return "\n".join([*lines, *(f"{key}: {note}" for key, note in scores["notes"].items())])


def _values(nlg: Mapping, labels: Mapping | None) -> list:
  return [nlg[metric] for metric in METRICS] + [labels[average][rate] for _, (average, rate) in F1 if labels]


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _span(interval: Mapping | None) -> str:
  """Returns an interval in few characters: .412-.455, or 3.10-3.57."""
  if interval is None:
    return "-"
  low, high = interval["low"], interval["high"]
  if high < 0.9995:
    return f"{low:.3f}-{high:.3f}".replace("0.", ".")
  return f"{low:.2f}-{high:.2f}"


def _line(name: str, cells: Sequence[str]) -> str:
  return f"{name:<18}" + "".join(f"{cell:>11}" for cell in cells)


def paired_differences(lead: Mapping) -> str:
  """Returns on which scores one is ahead and on which behind, beyond doubt of the draw; "" where none can tell.

  Args:
    lead: its lead in "nlg", "labels" and, where it is known, "radeval": for each score {"low", "high"}, the interval,
      where None in it, or instead of it, can't tell.
  """
  leads = {metric.replace("_", "-"): of for metric, of in lead["nlg"].items()} | dict(lead.get("radeval") or {})
  if lead["labels"]:
    leads |= {title: lead["labels"][average][rate] for title, (average, rate) in F1}
  found = {title: of for title, of in leads.items() if of and of["low"] is not None}
  ahead, behind, open_ = ([title for title, of in found.items() if test(of)] for test in (
      lambda of: of["low"] > 0, lambda of: of["high"] < 0, lambda of: of["low"] <= 0 <= of["high"]))
  for word, titles in (("ahead", ahead), ("behind", behind)):
    if found and len(titles) == len(found):
      return f"{word} on every score"
  return "; ".join(f"{word} on {', '.join(titles)}" for word, titles in (
      ("ahead", ahead), ("behind", behind), ("undecided", open_)) if titles)


def _leads(scores: Mapping):
  """Yields where the model is ahead of a baseline or its control, and where behind, beyond doubt of the draw."""
  beside = {"images shuffled": scores.get("controls", {}).get("shuffled_images"),
            **{_NAMES.get(name, name): of for name, of in scores["baselines"].items()}}
  for name, of in beside.items():
    lead = of and of.get("model_minus_this")
    if not lead:
      continue
    where = paired_differences(lead)
    if where:
      yield f"against {name}: {where}"
  control = scores.get("controls", {}).get("shuffled_images")
  if control:
    of = control["CIDEr_difference"]
    yield (f"CIDEr with its own images minus with shuffled ones ({control['num_permutations']} permutations), a study: "
           f"{of['mean']:.3f}" + ("" if of["low"] is None else
                                  f" (95 % interval {of['low']:.3f} to {of['high']:.3f})"))


def _of_radeval(scores: Mapping):
  found, sure = scores.get("radeval"), scores.get("intervals", {}).get("radeval") or {}
  if found:
    yield "by RadEval: " + ", ".join(
        f"{name} {_number(value)}" + (f" ({_span(sure[name])})" if sure.get(name) else "")
        for name, value in found.items())


def _of_labels(scores: Mapping):
  if not scores["labels"] or "uncertain_negative" not in scores["labels"]:
    return
  for uncertain in ("uncertain_negative", "uncertain_positive"):
    for findings, title in (("all_findings", "all findings"), ("five_findings", "the 5 common findings")):
      averages = scores["labels"][uncertain][findings]
      if averages:
        f1s = ", ".join(f"{name.replace('_', ' ')} {rates['f1']:.3f}" for name, rates in averages.items())
        yield f"F1 of {title}, {uncertain.replace('_', ' ')}: {f1s}"


def _of_unseen(scores: Mapping, main: str):
  unseen = scores.get("unseen_references")
  if unseen and unseen["num_studies"]:
    cider = unseen["nlg"]["CIDEr"]
    interval = scores["intervals"]["unseen_references"]["nlg"]["CIDEr"]
    bleu = unseen["nlg"]["BLEU_4"]
    yield (f"{unseen['num_studies']} studies whose reference doesn't stand in train: BLEU-4 {bleu:.3f}, "
           f"CIDEr {cider:.3f}" + (f" ({interval['low']:.3f} to {interval['high']:.3f})" if interval else "")
           + (f", micro-F1 {unseen['labels']['micro']['f1']:.3f}" if unseen["labels"] else ""))


def _of_reports(scores: Mapping):
  copied = scores["copied_from_train"]
  yield (f"{scores['distinct_reports']} distinct reports, the commonest for {scores['most_common_share']:.1%}; "
         + ("" if copied is None else f"{copied:.1%} stand word for word in train; ")
         + f"{scores['mean_length']:.1f} words a report, {scores['unk_share']['words']:.1%} of them {UNKNOWN}"
         + (f"; {scores['blank_share']:.1%} are blank" if scores.get("blank_share") else ""))
  unk = scores.get("references", {}).get("unk_share")
  if unk is not None:
    yield f"of the references' words {unk:.1%} are {UNKNOWN}, under the protocol r2gen"
  truth = scores.get("of_references")
  if truth:
    told = [(name, scores[key], truth[key]) for name, key in (
        ("xxxx", "xxxx_share"), ("a claim about an earlier study", "prior_claims_share")) if scores[key] is not None]
    yield "reports with " + ", with ".join(f"{name}: {own:.1%} (references {meant:.1%})" for name, own, meant in told)
