"""The fields `views` and `labels`, which entries of an annotation.json may have beside those of R2Gen.

  views    one per image, in the order of image_path: frontal, lateral or other, or DICOM's ViewPosition, such as PA
  labels   {finding: label} with CheXpert's findings: positive, negative, uncertain or absent, or as in CheXpert's
           tables 1, 0, -1 or null; findings that are left out are absent
"""

from collections.abc import Iterator

from input_pipeline.datasets.mimic_cxr.tables import classify_view
from mcsam_jax.findings import FINDINGS, LABEL_VALUES, VIEWS

_CHEXPERT_LABELS = {1: "positive", 0: "negative", -1: "uncertain", None: "absent"}


def find_field_errors(entry: dict, name: str) -> Iterator[str]:
  """Yields one line for each error in the two fields of an entry; values are not quoted, except names of findings."""
  if "views" in entry:
    views, paths = entry["views"], entry.get("image_path")
    if not isinstance(views, list) or isinstance(paths, list) and len(views) != len(paths):
      yield f"{name}: views must be a list with one view for each image of image_path"
    elif wrong := [number for number, view in enumerate(views, 1)
                   if not (isinstance(view, str) and _read_view(view)[0])]:
      yield (f"{name}: number {wrong[0]} of its views must be {', '.join(VIEWS)}, or a ViewPosition such as PA, AP or "
             "LL")
  if "labels" in entry:
    labels = entry["labels"]
    if not isinstance(labels, dict):
      yield f"{name}: labels must be an object with a label for each finding"
      return
    if unknown := [finding for finding in labels if finding not in FINDINGS]:
      yield f"{name}: {len(unknown)} of its labels are for an unknown finding, expected {', '.join(FINDINGS)}"
    for finding in FINDINGS:
      if finding in labels and _read_label(labels[finding]) is None:
        yield f"{name}: the label of {finding} must be {', '.join(LABEL_VALUES)}, or 1, 0, -1 or null"


def read_views(entry: dict) -> tuple[list[str], list[str]]:
  """Returns the views of a valid entry, and how the source names them.

  Without `views`, two or more images are taken as frontal, lateral and others; a single one is `other`.
  """
  paths = entry["image_path"]
  if "views" not in entry:
    views = ["other"] if len(paths) == 1 else ["frontal", "lateral", *["other"] * len(paths)][:len(paths)]
    return views, [""] * len(paths)
  views, source_views = zip(*map(_read_view, entry["views"]))
  return list(views), list(source_views)


def order_images(views: list[str]) -> list[int]:
  """Returns the order in which a record holds its images: the first frontal one, the first lateral one, the others."""
  first = [views.index(view) for view in ("frontal", "lateral") if view in views]
  return first + sorted((index for index in range(len(views)) if index not in first),
                        key=lambda index: VIEWS.index(views[index]))


def read_labels(entry: dict) -> dict[str, str]:
  """Returns the label of each of FINDINGS of a valid entry; all are absent without `labels`."""
  labels = entry.get("labels", {})
  return {finding: _read_label(labels.get(finding)) or "absent" for finding in FINDINGS}


def _read_view(text: str) -> tuple[str, str]:
  """Returns the view and the source's name of it; the view is "" if the text is neither."""
  if text.strip().lower() in VIEWS:
    return text.strip().lower(), ""
  view, source_view = classify_view(text, "")
  return ("" if view == "other" else view), source_view


def _read_label(value) -> str | None:
  """Returns one of LABEL_VALUES; None for a value that isn't a label."""
  if isinstance(value, str):
    return value if value in LABEL_VALUES else None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return _CHEXPERT_LABELS.get(value) if value is None or is_number else None
