"""The scores of `scoring.score_reports` as the table that a person reads in a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from mcsam_jax.html_report.scores import BASELINE_NAMES, KNOWLEDGE_SOURCES
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import UNKNOWN

SHUFFLED_IMAGES = "shuffled images"
F1_COLUMNS = (("micro-F1", ("micro", "f1")), ("macro-F1", ("macro", "f1")))


def format_table(scores: Mapping) -> str:
  """Returns a table with a row for the model, its control and each baseline, and further statistics below it.

  Statistics that the scores lack, such as intervals, are left out.
  """
  protocol = scores.get("preparation", {}).get("main_protocol", "r2gen")
  bounds, control = scores.get("intervals", {}), scores.get("controls", {}).get("shuffled_images")
  rows = [("this model", scores["nlg"][protocol], scores["labels"])]
  if control:
    rows.append((SHUFFLED_IMAGES, control["nlg"][protocol], control["labels"]))
  rows += [(_name_baseline(name), baseline["nlg"], baseline["labels"])
           for name, baseline in scores["baselines"].items()]

  columns = [metric.replace("_", "-") for metric in METRICS] + [name for name, _ in F1_COLUMNS if scores["labels"]]
  num_subjects = scores.get("num_subjects", scores["num_studies"])
  subjects = f" of {num_subjects} subjects" if num_subjects != scores["num_studies"] else ""
  lines = [f"{scores['num_studies']} studies{subjects}, protocol {protocol}", _format_row("", columns)]
  for index, (name, nlg, labels) in enumerate(rows):
    lines.append(_format_row(name, [_format_number(value) for value in _select_values(nlg, labels)]))
    if index == 0 and bounds:
      lines.append(_format_row("95% interval", [
          _format_interval(interval) for interval in _select_values(bounds["nlg"][protocol], bounds["labels"])]))
  if scores["labels"]:
    lines.append("micro-F1, macro-F1: all findings, uncertain as negative; macro over the findings that occur in the "
                 "references" + (f"; labeler: {scores['labeler']}" if scores.get("labeler") else ""))
  for describe in (_describe_radeval, _compare_with_baselines, _describe_label_averages, _describe_known_findings,
                   _describe_manual_labels,
                   _describe_details, _describe_heat_maps, _describe_unseen_references, _describe_texts):
    lines += describe(scores)
  return "\n".join([*lines, *(f"{key}: {note}" for key, note in scores["notes"].items())])


def _name_baseline(key: str) -> str:
  return BASELINE_NAMES.get(key, key)


def _select_values(nlg: Mapping, labels: Mapping | None) -> list:
  """Returns the values of a row, in the order of the columns."""
  return [nlg[metric] for metric in METRICS] + [labels[average][rate] for _, (average, rate) in F1_COLUMNS if labels]


def _format_number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _format_interval(interval: Mapping | None) -> str:
  """Returns an interval in few characters: .412-.455, or 3.10-3.57."""
  if interval is None:
    return "-"
  low, high = interval["low"], interval["high"]
  if high < 0.9995:
    return f"{low:.3f}-{high:.3f}".replace("0.", ".")
  return f"{low:.2f}-{high:.2f}"


def _format_row(name: str, cells: Sequence[str]) -> str:
  return f"{name:<25}" + "".join(f"{cell:>10}" for cell in cells)


def describe_differences(differences: Mapping) -> str:
  """Returns on which metrics a system is better or worse, judged by whether the interval excludes 0; "" without any.

  Args:
    differences: "nlg", "labels" and optionally "radeval", each with {"low", "high"} per metric. A metric counts only
      where it has an interval.
  """
  by_metric = {metric.replace("_", "-"): interval for metric, interval in differences["nlg"].items()}
  by_metric |= dict(differences.get("radeval") or {})
  if differences["labels"]:
    by_metric |= {name: differences["labels"][average][rate] for name, (average, rate) in F1_COLUMNS}
  known = {metric: interval for metric, interval in by_metric.items() if interval and interval["low"] is not None}
  verdicts = {"better": [metric for metric, interval in known.items() if interval["low"] > 0],
              "worse": [metric for metric, interval in known.items() if interval["high"] < 0],
              "no clear difference": [metric for metric, interval in known.items()
                                      if interval["low"] <= 0 <= interval["high"]]}
  for verdict in ("better", "worse"):
    if known and len(verdicts[verdict]) == len(known):
      return f"{verdict} on every metric"
  return "; ".join(f"{verdict} on {', '.join(metrics)}" for verdict, metrics in verdicts.items() if metrics)


def _compare_with_baselines(scores: Mapping) -> Iterator[str]:
  """Yields one line per baseline and control: where the model's paired difference excludes 0."""
  control = scores.get("controls", {}).get("shuffled_images")
  systems = {SHUFFLED_IMAGES: control,
             **{_name_baseline(name): baseline for name, baseline in scores["baselines"].items()}}
  for name, system in systems.items():
    summary = describe_differences(system["model_minus_this"]) if system and system.get("model_minus_this") else ""
    if summary:
      yield f"compared with {name}: {summary}"
  if control:
    gain = control["CIDEr_difference"]
    yield (f"mean CIDEr gain per study over {SHUFFLED_IMAGES} ({control['num_permutations']} permutations): "
           f"{gain['mean']:.3f}"
           + ("" if gain["low"] is None else f" (95% interval {gain['low']:.3f} to {gain['high']:.3f})"))


def _describe_radeval(scores: Mapping) -> Iterator[str]:
  """Yields one line for the scores of RadEval, and one for the user's own metrics."""
  for key, title in (("radeval", "RadEval"), ("own_metrics", "own metrics")):
    values, bounds = scores.get(key), scores.get("intervals", {}).get(key) or {}
    if values:
      yield f"{title}: " + ", ".join(
          f"{name} {_format_number(value)}" + (f" ({_format_interval(bounds[name])})" if bounds.get(name) else "")
          for name, value in values.items())


def _describe_label_averages(scores: Mapping) -> Iterator[str]:
  """Yields one line of F1 per way to count uncertain findings and per set of findings."""
  if not scores["labels"] or "uncertain_negative" not in scores["labels"]:
    return
  for uncertain, treatment in (("uncertain_negative", "uncertain as negative"),
                               ("uncertain_positive", "uncertain as positive")):
    for findings, title in (("all_findings", "all findings"), ("five_findings", "the 5 common findings")):
      averages = scores["labels"][uncertain][findings]
      if averages:
        f1s = ", ".join(f"{name.replace('_', ' ')} {rates['f1']:.3f}" for name, rates in averages.items())
        yield f"F1 of {title}, {treatment}: {f1s}"


def _describe_known_findings(scores: Mapping) -> Iterator[str]:
  """Yields one line per source: how well it knows each finding of the references, beside how well reports say it."""
  most_frequent = sorted((scores.get("known_findings") or {}).items(), key=lambda item: -item[1]["support"])
  for source, title in KNOWLEDGE_SOURCES.items():
    parts = [f"{name} {rates[source]['auc']:.2f} and {rates['f1'] or 0:.2f}" for name, rates in most_frequent
             if rates.get(source, {}).get("auc") is not None]
    if parts:
      yield f"known (AUC of {title}) and said (F1): {', '.join(parts)}"


def _describe_details(scores: Mapping) -> Iterator[str]:
  """Yields one line: of the findings that both reports state, how often their details agree."""
  attributes = scores.get("attributes")
  if attributes:
    yield "details of the findings that both reports state: " + ", ".join(
        f"{name} right in {counts['agree']} of {counts['total']} ({counts['agree'] / counts['total']:.1%})"
        for name, counts in attributes.items())


def _describe_heat_maps(scores: Mapping) -> Iterator[str]:
  """Yields one line: how often heat maps point at the finding."""
  rates = (scores.get("pointing_game") or {}).get("all")
  if rates and rates["n"]:
    yield (f"heat maps of {rates['n']} drawn findings that are mentioned: the maximum is on the finding in "
           f"{rates['own_map']:.1%}, that of another study's map in {rates['another_map']:.1%}, a random patch in "
           f"{rates['random_patch']:.1%}")


def _describe_manual_labels(scores: Mapping) -> Iterator[str]:
  """Yields one line: F1 against manual labels, beside that of the references and of shuffled images."""
  if manual := scores.get("manual_labels"):
    names = {"model": "this model", "shuffled_images": SHUFFLED_IMAGES, "references": "the references themselves"}
    yield f"micro-F1 and macro-F1 against manual labels of {len(manual['findings'])} findings: " + ", ".join(
        f"{name} {manual[key]['micro_f1']:.3f} and {manual[key]['macro_f1']:.3f}"
        for key, name in names.items() if manual[key])


def _describe_unseen_references(scores: Mapping) -> Iterator[str]:
  unseen = scores.get("unseen_references")
  if unseen and unseen["num_studies"]:
    nlg, cider = unseen["nlg"], scores["intervals"]["unseen_references"]["nlg"]["CIDEr"]
    yield (f"{unseen['num_studies']} studies whose reference does not appear verbatim in the training set: "
           f"BLEU-4 {nlg['BLEU_4']:.3f}, CIDEr {nlg['CIDEr']:.3f}"
           + (f" ({cider['low']:.3f} to {cider['high']:.3f})" if cider else "")
           + (f", micro-F1 {unseen['labels']['micro']['f1']:.3f}" if unseen["labels"] else ""))


def _describe_texts(scores: Mapping) -> Iterator[str]:
  """Yields what the generated reports look like beside the references: diversity, length, unknown words."""
  copied, empty = scores["copied_from_train_fraction"], scores.get("empty_fraction")
  yield (f"{scores['distinct_reports']} distinct reports, {scores['most_common_report_fraction']:.1%} are the most "
         "common one; "
         + ("" if copied is None else f"{copied:.1%} appear verbatim in the training set; ")
         + f"{scores['mean_num_words']:.1f} words per report, {scores['unk_fraction']['words']:.1%} of them {UNKNOWN}"
         + (f"; {empty:.1%} are empty" if empty else ""))
  unk_fraction = scores.get("preparation", {}).get("reference_unk_fraction")
  if unk_fraction is not None:
    yield f"{unk_fraction:.1%} of the references' words are {UNKNOWN} under protocol r2gen"
  references = scores.get("reference_statistics")
  if references:
    yield "; ".join(f"reports that {what}: {scores[key]:.1%} (references: {references[key]:.1%})"
                    for what, key in (("contain xxxx", "redacted_fraction"),
                                      ("mention an earlier study", "prior_mention_fraction"))
                    if scores[key] is not None)
