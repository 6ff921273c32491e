"""Draws examples of phantoms: both views, and both reports with the findings that agree, are missed or are invented.

A missed finding is also outlined on the images, because it is known where it was drawn.
"""

from collections.abc import Mapping, Sequence
from typing import cast, NamedTuple

import cv2
from etils import epath
import matplotlib.axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
import matplotlib.figure
import matplotlib.patches
import numpy as np

from input_pipeline.datasets.phantom.anatomy import locate_findings
from input_pipeline.datasets.phantom.attributes import compare_attributes, describe_differences
from input_pipeline.datasets.phantom.reports import find_mentions, read_labels
from input_pipeline.datasets.records import SPLITS
from input_pipeline.images import decode
from input_pipeline.splits import Split
from mcsam_jax.findings import FindingMention

IMAGE_SIZE = 256                                # pixels per side, that of `locate_findings`
DPI, ROW_HEIGHT, WIDTH = 100, 3.0, 11.5         # figure size: dots per inch, inches, inches
FONT_SIZE, LINE_HEIGHT, SPACE = 9, 19, 5        # points; pixels; pixels
HEADINGS = ("REFERENCE", "GENERATED", "COMPARED")


class Mark(NamedTuple):
  """How a finding of the generated report compares with the reference, as on the HTML page."""
  sign: str
  color: str
  tint: str
  line: str                                     # line style, so that marks differ not only by color


MARKS = {"agrees": Mark("✓", "#0a6c6a", "#dcefed", "solid"), "differs": Mark("≈", "#3c5798", "#e4eaf7", "dotted"),
         "missed": Mark("−", "#8a5200", "#fbeed7", "dashed"), "invented": Mark("+", "#8c2a66", "#f8e4ef", "dashdot")}


def draw_examples(studies: Sequence[Mapping], split: Split, seed: int, path: epath.Path) -> None:
  """Writes a figure with one row per study.

  Args:
    studies: with "record", "id", "reference" and "generated".
    split: a split of phantoms.
    seed: of the phantoms (data.phantom.seed).
    path: of the PNG.
  """
  figure = matplotlib.figure.Figure(figsize=(WIDTH, ROW_HEIGHT * len(studies) + 0.3), dpi=DPI)
  FigureCanvasAgg(figure)
  top = 1 - 0.3 / figure.get_figheight()
  side, row_height = 0.96 * ROW_HEIGHT / WIDTH, top / len(studies)
  legend = figure.add_axes((2 * side + 0.03, top, 1 - 2 * side - 0.03, 1 - top))
  _draw_words(legend, [(f"{name} {mark.sign}", mark) for name, mark in MARKS.items()], space=16)
  for row, study in enumerate(studies):
    bottom = top - (row + 1) * row_height
    record, relations = split[study["record"]], compare_findings(study["reference"], study["generated"])
    missed = [finding for finding, relation in relations.items() if relation == "missed"]
    number = int(study["id"].rsplit("-", 1)[1])
    masks = locate_findings((seed, SPLITS.index(split.name), number), only=missed)
    for view, jpeg in enumerate(record["images"][:2]):
      axes = figure.add_axes((view * (side + 0.004), bottom, side, 0.96 * row_height))
      axes.imshow(decode(jpeg, IMAGE_SIZE)[..., 0], cmap="gray", vmin=0, vmax=255)
      axes.axis("off")
      for finding in missed:
        _outline(axes, masks[finding][view], f"{MARKS['missed'].sign} {finding}")
    axes = figure.add_axes((2 * side + 0.03, bottom, 1 - 2 * side - 0.03, 0.96 * row_height))
    words: list[tuple[str, Mark | None]] = []
    for name in ("reference", "generated"):
      words += [(f"{name.upper()}\n", None), *_mark_words(study[name], relations, name == "reference"), ("\n\n", None)]
    differences = describe_differences(compare_attributes(study["reference"], study["generated"]))
    words.append(("COMPARED\n", None))
    words += [(f"{MARKS[relation].sign} {finding}" + (f": {differences[finding]}" if finding in differences else "")
               + "\n", None) for finding, relation in relations.items()]
    _draw_words(axes, words)
  figure.savefig(path)


def compare_findings(reference: str, generated: str) -> dict[str, str]:
  """Returns the key in MARKS of each finding that at least one of two reports states as positive."""
  theirs, ours = read_labels(reference), read_labels(generated)
  differences = describe_differences(compare_attributes(reference, generated))
  relations = {}
  for finding in theirs:
    is_true, is_stated = theirs[finding] == "positive", ours[finding] == "positive"
    if (is_true or is_stated) and finding != "No Finding":
      relations[finding] = ("missed" if not is_stated else "invented" if not is_true else
                            "differs" if finding in differences else "agrees")
  return relations


def _mark_words(report: str, relations: Mapping[str, str], is_reference: bool) -> list[tuple[str, Mark | None]]:
  """Returns the words of a report, each with its mark if it belongs to a mention that shows how a finding compares."""
  def is_shown(mention: FindingMention) -> bool:
    wrong_here = "invented" if is_reference else "missed"         # this report excludes what the other one states
    return mention.finding in relations and (mention.label == "positive" or relations[mention.finding] == wrong_here)

  mentions, words, end = [mention for mention in find_mentions(report) if is_shown(mention)], [], 0
  for word in report.split():
    start = report.index(word, end)
    end = start + len(word)
    mention = next((mention for mention in mentions if mention.start < end and mention.end > start), None)
    words.append((word, MARKS[relations[mention.finding]] if mention else None))
  return words


def _draw_words(axes: matplotlib.axes.Axes, words: Sequence[tuple[str, Mark | None]], space: int = SPACE) -> None:
  """Draws words from the top left, with line breaks at "\\n" and where the axes end, and `space` pixels in between."""
  axes.axis("off")
  renderer = FigureCanvasAgg(cast(matplotlib.figure.Figure, axes.figure)).get_renderer()
  box = axes.get_window_extent(renderer)
  axes.set_xlim(0, box.width)
  axes.set_ylim(box.height, 0)
  x, y = 0.0, 3.0
  for word, mark in words:
    text = axes.text(x, y, word.rstrip("\n"), fontsize=FONT_SIZE, va="top",
                     color="#5a626b" if word.strip() in HEADINGS else "black")
    width = text.get_window_extent(renderer).width if word.strip() else 0
    if x + width > box.width:
      x, y = 0.0, y + LINE_HEIGHT
      text.set_position((x, y))
    if mark:
      axes.add_patch(matplotlib.patches.Rectangle((x - 2, y - 2), width + 4, LINE_HEIGHT - 3, color=mark.tint,
                                                  zorder=0))
      axes.plot([x - 1, x + width + 1], [y + LINE_HEIGHT - 5] * 2, color=mark.color, linestyle=mark.line, linewidth=1.2)
    x += width + space
    for _ in range(word.count("\n")):
      x, y = 0.0, y + LINE_HEIGHT


def _outline(axes: matplotlib.axes.Axes, mask: np.ndarray, label: str) -> None:
  """Outlines a finding on an image, if it changed enough pixels there to be seen.

  Args:
    mask: the finding's pixels, bool [IMAGE_SIZE, IMAGE_SIZE].
  """
  smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4)
  if smooth.max() <= 0.5:
    return
  color = "#ffb84d"
  axes.contour(smooth, [0.5], colors=color, linewidths=1.3, linestyles="dashed")
  rows, columns = np.nonzero(smooth > 0.5)
  axes.text(np.clip(columns.mean(), 60, IMAGE_SIZE - 60), max(rows.min() - 5, 12), label, color=color, fontsize=8,
            ha="center", va="bottom")
