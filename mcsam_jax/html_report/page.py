"""The page of an evaluation: one HTML file that holds its own styles, script and data, and asks nothing of a network.

`write_page` takes plain data, so that it serves an evaluated split and a user's own images alike. The template, the
styles and the script are the files of `assets`; the script draws only the studies that are in sight, so a page of
4,000 is as quick as one of ten.

Of a restricted data set a page holds scores alone, unless its user asks for the studies too; then it says whose
agreement it falls under.
"""

from collections.abc import Collection, Mapping, Sequence
import importlib.resources
import io
import math
import re

from etils import epath
import jinja2
import PIL.Image

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report import data as page_data
from mcsam_jax.html_report import scores as page_scores

MAX_SIDE = 512                  # pixels of the shorter side of an image on the page
MAX_EMBEDDED = 300              # studies whose images are inside the file; those of more stand beside it
SCRIPTS = ("studies.js", "heat.js", "card.js", "list.js", "app.js")
PARTS = importlib.resources.files("mcsam_jax.html_report") / "assets"


def write_page(path: epath.PathLike, scores: Mapping | None, studies: Collection[Mapping], *, title: str,
               subtitle: str = "", findings: Sequence[str] = FINDINGS, slots: Sequence = (),
               train_reports: Sequence[str] = (), restricted: bool = False, show_restricted: bool = False) -> None:
  """Writes the page, whole or not at all; the images of more than MAX_EMBEDDED studies before it, into NAME_images/.

  Images that an earlier page of this name has left there are deleted where they aren't written again.

  A study is a mapping:
    id, generated: text.
    images: grayscale JPEGs, one a view, of any size; the model saw the whole of each.
    views: what each of them shows: frontal, lateral, other.
    reference: the report as it was written; None or absent where there is none.
    scores: {metric: number} of this study; may be absent, as may all that follows.
    labels, reference_labels: {finding: label} of the generated report and of the reference.
    mentions, reference_mentions: where the reports name findings: objects with finding, label, start, end (characters).
    warnings: texts, for the reader to see before the report.
    why: a `why.Why`.

  Args:
    path: of the file, *.html.
    scores: as `scoring.score_reports` gives them; None: the page has no scores.
    studies: are iterated over once, and asked for their number.
    findings: that are marked, and filtered by.
    slots: what each slot of the memory stands for, `why.describe_slots`.
    train_reports: that the neighbours of `why` are numbers of.
    restricted: the data set is; its studies are left out then
    show_restricted: unless this is True.
  """
  path = epath.Path(path)
  left_out = restricted and not show_restricted
  if left_out:
    studies = ()
  folder, save_image = path.parent / f"{path.stem}_images", None
  delete_images(folder)
  if len(studies) > MAX_EMBEDDED:
    folder.mkdir(parents=True, exist_ok=True)
    save_image = lambda name, jpeg: (folder / name).write_bytes(jpeg)
  columns = page_data.columns_of(map(_with_small_images, studies), findings, save_image, slots, train_reports)
  columns.data["imageFolder"] = folder.name if save_image else None

  scores = scores or {}
  titles, rows = page_scores.main_table(scores)
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                   lstrip_blocks=True)
  environment.filters["score"] = lambda value: "–" if value is None or math.isnan(value) else f"{value:.3f}"
  template = environment.from_string(part("page.html"))
  atomic_write(path, template.render(
      title=title, subtitle=subtitle, titles=titles, rows=rows, averages=page_scores.averages(scores),
      per_finding=page_scores.per_finding(scores), facts=page_scores.facts(scores),
      notes=sorted(map(str, (scores.get("notes") or {}).values())), num_studies=len(studies), left_out=left_out,
      restricted=restricted, with_intervals=any(cell.interval for row in rows for cell in row.cells),
      data=page_data.to_json(columns.data), lumps=columns.lumps, style=part("page.css"),
      script="\n".join(map(part, SCRIPTS))).encode("utf-8", "replace"))


def delete_images(folder: epath.Path) -> None:
  """Deletes the images that a page has written beside itself, and their folder where nothing else is in it."""
  if not folder.is_dir():
    return
  files = list(folder.iterdir())
  images = [file for file in files if re.fullmatch(r"\d+-\d+\.jpg", file.name)]
  if len(images) == len(files):
    folder.rmtree()
  else:
    for file in images:
      file.unlink()


def _with_small_images(study: Mapping) -> dict:
  """Returns a study whose images are no larger than the page shows them."""
  return {**study, "images": [_smaller(jpeg) for jpeg in study["images"]]}


def _smaller(jpeg: bytes) -> bytes:
  with PIL.Image.open(io.BytesIO(jpeg)) as image:
    scale = MAX_SIDE / min(image.size)
    if scale >= 1:
      return jpeg
    image.draft("L", [2 * MAX_SIDE] * 2)              # decoded at a half, a quarter or an eighth: faster
    small = image.convert("L").resize([round(side * MAX_SIDE / min(image.size)) for side in image.size],
                                      PIL.Image.Resampling.BILINEAR)
  encoded = io.BytesIO()
  small.save(encoded, "JPEG", quality=88)
  return encoded.getvalue()


def part(name: str) -> str:
  """Returns the text of a file of `assets`."""
  return (PARTS / name).read_text(encoding="utf-8")
