"""Draws batches as a picture: the images that the model sees, augmented, above the reports that it learns to write.

Shapes: B studies, V views, S image size in pixels.
"""

from collections.abc import Callable, Iterator
import io
import itertools
import textwrap

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin

from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.pipeline import eval_batches, train_batches
from input_pipeline.shuffle import choose_versions
from input_pipeline.splits import open_split
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.findings import VIEWS
from mcsam_jax.models.augment import augment, CACHE_SEED

SHEET_MARK = "mcsam data: contact sheet"  # in the metadata of every sheet
IMAGE_SIZE = 192                         # pixels per side of an image on the sheet
FONT_SIZE, LINE_HEIGHT, GAP = 12, 15, 8  # pixels
LETTER_WIDTH = 6.2                       # pixels, mean
REPORT_LINES = 8                         # longer reports are cut
INK, PAPER, GRAY = 0, 255, 110


def write_contact_sheet(config: ConfigDict, split_name: str, path: epath.PathLike, num_batches: int,
                        studies_per_batch: int, start_step: int = 0, log: Callable[[str], None] = print) -> None:
  """Writes a PNG with a row for each of the first batches of a split, as training or evaluation reads them.

  Args:
    config: its data must be prepared.
    split_name: train (in the order of training, augmented as in training), val or test (in order).
    path: the PNG.
    num_batches: rows.
    studies_per_batch: studies that are shown of each batch, from its first on.
    start_step: completed steps of training before the first row; ignored for val and test.
    log: receives a line that names the file.

  Raises:
    UserError: the data is restricted and `data.contact_sheet_restricted` is not set, or it isn't prepared.
  """
  if config.data.restricted and not config.data.contact_sheet_restricted:
    raise UserError("the data set is restricted, and a contact sheet shows its images and reports: set "
                    "--config.data.contact_sheet_restricted=true, and don't share the file")
  check_output("--out", path, SHEET_MARK)
  split, tokenizer = open_split(config, split_name), load_or_build_tokenizer(config)
  is_train = split_name == "train"
  batches = (train_batches(split, tokenizer, config, start_step, num_batches) if is_train else
             eval_batches(split, tokenizer, config, config.decode.batch_size))
  num_versions = config.encoder.cached_augmentations
  augmented = is_train and (num_versions > 0 if config.encoder.frozen else config.data.augment)
  rows = []
  for number, batch in enumerate(itertools.islice(batches, num_batches), start_step if is_train else 0):
    images = batch["images"]
    if augmented:
      seed, epoch = config.seed, batch["epoch"]
      if config.encoder.frozen:                        # the cached version of that epoch
        seed, epoch = CACHE_SEED, choose_versions(seed, batch["record"], epoch, num_versions, len(split))
      images = np.asarray(jax.jit(augment, static_argnums=1)(images, seed, batch["record"], epoch))
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    title = f"{f'step {number + 1}' if is_train else f'batch {number + 1}'}, {int(batch['valid'].sum())} studies"
    rows.append((title, list(itertools.islice(_draw_studies(batch, images, tokenizer), studies_per_batch))))
  sheet = _join_rows(rows)
  buffer = io.BytesIO()
  mark = PIL.PngImagePlugin.PngInfo()
  mark.add_text("Software", SHEET_MARK)
  sheet.save(buffer, "PNG", pnginfo=mark)
  atomic_write(path, buffer.getvalue())
  log(f"{len(rows)} batches of {split_name}{', augmented' if augmented else ''}: {path}")


def _draw_studies(batch: dict, images: np.ndarray, tokenizer: Tokenizer) -> Iterator[PIL.Image.Image]:
  """Yields a picture of each study of a batch: its views beside each other, and its report as the decoder sees it."""
  font = PIL.ImageFont.load_default(FONT_SIZE)
  num_views = images.shape[1]
  width = num_views * (IMAGE_SIZE + GAP) - GAP
  height = IMAGE_SIZE + (REPORT_LINES + 1) * LINE_HEIGHT + GAP
  for row in np.flatnonzero(batch["valid"]):
    picture = PIL.Image.new("L", (width, height), PAPER)
    draw = PIL.ImageDraw.Draw(picture)
    for view in np.flatnonzero(batch["view_mask"][row]).tolist():
      pixels = PIL.Image.fromarray(images[row, view, ..., 0]).resize((IMAGE_SIZE, IMAGE_SIZE))
      picture.paste(pixels, (view * (IMAGE_SIZE + GAP), 0))
    views = ", ".join(VIEWS[view] for view in batch["view_ids"][row][batch["view_mask"][row]])
    caption = f"record {batch['record'][row]}, epoch {batch['epoch'][row]}: {views or 'no image'}"
    draw.text((0, IMAGE_SIZE + 2), caption, GRAY, font)
    text = "\n".join(textwrap.wrap(tokenizer.decode(batch["tokens"][row]), int(width / LETTER_WIDTH),
                                   max_lines=REPORT_LINES, placeholder=" ..."))
    draw.multiline_text((0, IMAGE_SIZE + 2 + LINE_HEIGHT), text, INK, font, spacing=LINE_HEIGHT - FONT_SIZE)
    yield picture


def _join_rows(rows: list[tuple[str, list[PIL.Image.Image]]]) -> PIL.Image.Image:
  """Returns one picture with a titled row of study pictures for each batch."""
  font = PIL.ImageFont.load_default(FONT_SIZE)
  width, height = rows[0][1][0].size
  columns = max(len(studies) for _, studies in rows)
  row_height = height + LINE_HEIGHT + GAP
  sheet = PIL.Image.new("L", (GAP + columns * (width + 2 * GAP), GAP + len(rows) * row_height), PAPER)
  draw = PIL.ImageDraw.Draw(sheet)
  for number, (title, studies) in enumerate(rows):
    top = GAP + number * row_height
    draw.text((GAP, top), title, INK, font)
    for column, study in enumerate(studies):
      sheet.paste(study, (GAP + column * (width + 2 * GAP), top + LINE_HEIGHT + 2))
  return sheet
