"""Writes the HTML report: one file with its own styles, script and data, which loads nothing from a network.

`write_page` takes plain data, so that it serves evaluated splits and a user's own images alike. The template, styles
and script are the files in `assets`. The script draws only the studies in sight, so a page of 4,000 studies is as fast
as one of ten.

For a restricted data set the page shows only scores. If its user asks for the studies too, the page names the data use
agreement that applies to it.
"""

from collections.abc import Iterator, Mapping, Sequence
import importlib.resources
import io
import math
from typing import Protocol, TYPE_CHECKING

from etils import epath
import jinja2
import PIL.Image

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report.data import build_page_data, to_json
from mcsam_jax.html_report.forest import make_forest
from mcsam_jax.html_report.image_folder import ImageFolder
from mcsam_jax.html_report.scores import (
  get_nested,
  get_protocol,
  KNOWLEDGE_SOURCES,
  list_statistics,
  make_finding_rows,
  make_label_averages,
  make_main_table,
)

if TYPE_CHECKING:                          # imports JAX, which a page of scored files doesn't need
  from mcsam_jax.explain.slots import SlotDescription

MAX_IMAGE_SIDE = 512            # pixels of the shorter side of an image on the page
MAX_EMBEDDED_STUDIES = 300      # with more studies, images are files next to the page
SCRIPTS = ("studies.js", "heat.js", "card.js", "list.js", "app.js")
ASSETS = importlib.resources.files("mcsam_jax.html_report") / "assets"


class StudyCollection(Protocol):
  """Studies that can be counted and iterated over, in memory or read on demand."""

  def __len__(self) -> int:
    ...

  def __iter__(self) -> Iterator[Mapping]:
    ...


def write_page(path: epath.PathLike, scores: Mapping | None, studies: StudyCollection, *, title: str,
               subtitle: str = "", findings: Sequence[str] = FINDINGS, slots: "Sequence[SlotDescription]" = (),
               train_reports: Sequence[str] = (), pointing_game: Mapping | None = None, restricted: bool = False,
               show_restricted: bool = False, how_to_show_studies: str = "") -> None:
  """Writes the page atomically; with more than MAX_EMBEDDED_STUDIES studies, first writes images to NAME_images/.

  Images that an earlier page of the same path wrote are deleted; a user's own files are not touched (image_folder.py).

  A study is a mapping:
    id, generated: text.
    images: V grayscale JPEGs of any size; the model saw each of them completely.
    views: V views: frontal, lateral or other.
    reference: the reference report; None or absent if it isn't known.
    scores: {metric: number} of this study; optional, as are all keys below.
    labels, reference_labels: {finding: label} of the generated report and of the reference.
    differences: {finding: how its side, size or other details differ from the reference's}; absent: not compared.
    mentions, reference_mentions: mentions of findings in both reports: objects with finding, label, start, end
      (characters).
    warnings: texts that are shown above the report.
    explanation: an `explanations.Explanation`.

  Args:
    path: the file, *.html.
    scores: as `scoring.score_reports` returns them; None: the page has no scores.
    studies: B studies; iterated over once.
    findings: the findings that are marked and can be filtered by.
    slots: descriptions of all memory slots, from `slots.describe_slots`.
    train_reports: one per training record; the neighbors in explanations are indices of it.
    pointing_game: how often the model's heat maps point at findings, from `pointing_game.play_pointing_game`; None: it
      was not measured.
    restricted: whether the data set is restricted; then studies are left out.
    show_restricted: shows the studies of a restricted data set, too.
    how_to_show_studies: a notice for a page without studies.
  """
  path = epath.Path(path)
  studies_hidden = restricted and not show_restricted
  if studies_hidden:
    studies = ()
  folder = ImageFolder(path)
  save_image = folder.save if len(studies) > MAX_EMBEDDED_STUDIES else None
  page_data = build_page_data(map(_shrink_images, studies), findings, save_image, slots, train_reports)
  folder.write_list()
  page_data.columns["imageFolder"] = folder.name if save_image else None
  page_data.columns["pointingGame"] = _encode_pointing_game(pointing_game, findings)

  scores = scores or {}
  known_findings = scores.get("known_findings") or {}
  knowledge_sources = {source: title for source, title in KNOWLEDGE_SOURCES.items()
                       if known_findings and all(source in row for row in known_findings.values())}
  forest = make_forest(scores)
  titles, rows = make_main_table(scores)
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                   lstrip_blocks=True)
  environment.filters["score"] = lambda value: "–" if value is None or math.isnan(value) else f"{value:.3f}"
  environment.filters["percent"] = lambda value: f"{value:.0%}".replace("%", " %")
  environment.filters["points"] = lambda value: f"{100 * value:+.0f}".replace("-", "−")
  template = environment.from_string(read_asset("page.html"))
  atomic_write(path, template.render(
      title=title, subtitle=subtitle, titles=titles, rows=rows, protocol=get_protocol(scores),
      chosen_on=get_nested(scores, "baselines", "constant", "chosen_on") or "val",
      forest=forest, forest_verdicts=any(row.verdict for panel in forest for row in panel.rows),
      averages=make_label_averages(scores), finding_rows=make_finding_rows(scores), pointing_game=pointing_game or {},
      known_findings=known_findings, knowledge_sources=knowledge_sources,
      statistics=list_statistics(scores),
      notes=sorted(map(str, (scores.get("notes") or {}).values())), num_studies=len(studies),
      studies_hidden=studies_hidden, restricted=restricted, how_to_show_studies=how_to_show_studies,
      with_maps=any(name.startswith("maps-") for name, _ in page_data.blobs),
      details_compared=any(differences is not None for differences in page_data.columns["differences"]),
      with_intervals=any(cell.has_interval for row in rows for cell in row.cells),
      data=to_json(page_data.columns), blobs=page_data.blobs, style=read_asset("page.css"),
      script="\n".join(map(read_asset, SCRIPTS))).encode("utf-8", "replace"))


def read_asset(name: str) -> str:
  """Returns the text of a file in `assets`."""
  return (ASSETS / name).read_text(encoding="utf-8")


def _encode_pointing_game(pointing_game: Mapping | None, findings: Sequence[str]) -> dict[int, list] | None:
  """Returns [name, n, share of hits, the same of another study's map] by index of the finding, of all under -1."""
  indices = {"all": -1, **{finding: index for index, finding in enumerate(findings)}}
  rates_by_index = {indices[name]: [name, rates["n"], round(rates["own_map"], 3), round(rates["another_map"], 3)]
                    for name, rates in (pointing_game or {}).items() if name in indices and rates["n"]}
  return rates_by_index if -1 in rates_by_index else None


def _shrink_images(study: Mapping) -> dict:
  """Returns a study whose images are no larger than the page shows them."""
  return {**study, "images": [_shrink_image(jpeg) for jpeg in study["images"]]}


def _shrink_image(jpeg: bytes) -> bytes:
  """Returns a JPEG whose shorter side has at most MAX_IMAGE_SIDE pixels."""
  with PIL.Image.open(io.BytesIO(jpeg)) as image:
    scale = MAX_IMAGE_SIDE / min(image.size)
    if scale >= 1:
      return jpeg
    image.draft("L", (2 * MAX_IMAGE_SIDE, 2 * MAX_IMAGE_SIDE))    # decodes at 1/2, 1/4 or 1/8 of the size: faster
    width, height = (round(side * MAX_IMAGE_SIDE / min(image.size)) for side in image.size)
    small = image.convert("L").resize((width, height), PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  small.save(encoded, "JPEG", quality=88)
  return encoded.getvalue()
