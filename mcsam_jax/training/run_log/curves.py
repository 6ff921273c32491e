"""metrics.png of a workdir: losses, and the scores on val, over the steps of the run so far."""

from collections.abc import Callable, Mapping, Sequence
import io

from etils import epath
import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.checkpoint import find_best_step

NAME = "metrics.png"
LOSSES = (("train/token_loss", "token loss, train", "C0", "-"), ("val/token_loss", "token loss, val", "C0", "o--"),
          ("train/align_loss", "alignment loss, train", "C1", "-"))
SCORES = (("val/CIDEr", "CIDEr", "C2", "o-"), ("val/micro_F1", "micro-F1", "C3", "o-"),
          ("val/macro_F1", "macro-F1", "C4", "o-"), ("val/BLEU_4", "BLEU-4", "C5", "o-"))


def draw_curves(rows: Mapping[int, Mapping], workdir: epath.Path, best_metric: str, log: Callable[[str], None]) -> None:
  """Draws the rows of metrics.jsonl, by step. A figure that can't be drawn or written is logged and stops nothing.

  Args:
    rows: metrics of each logged step, None where a value is not finite.
    workdir: where the figure is written.
    best_metric: val metric whose best step is marked; "" for none.
    log: receives a line if that fails.
  """
  try:
    figure = matplotlib.figure.Figure(figsize=(10, 3.6))
    figure.subplots_adjust(0.05, 0.13, 0.99, 0.92, wspace=0.12)       # "constrained" would take twice as long
    losses, scores = figure.subplots(1, 2)
    key = f"val/{best_metric}"
    best_step = find_best_step({step: {best_metric: row[key]} for step, row in rows.items()
                                if row.get(key) is not None}, best_metric)
    if best_step is not None:
      scores.axvline(best_step, color="0.6", linestyle=":", label=f"best {best_metric} (step {best_step})")
    for axes, title, curves in ((losses, "losses", LOSSES), (scores, "scores on val", SCORES)):
      for key, label, color, style in curves:
        _draw(axes, rows, key, label, color, style)
      axes.set_title(title, loc="left", fontsize=10)
      axes.set_xlabel("step")
      axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
      axes.grid(alpha=0.3)
      axes.spines[["top", "right"]].set_visible(False)
      if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    scores.set_ylim(bottom=0)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    atomic_write(workdir / NAME, png.getvalue())
  except Exception as error:
    log(f"{workdir / NAME} can't be written ({' '.join(str(error).split())[:200]}); the run goes on")


def _draw(axes: matplotlib.axes.Axes, rows: Mapping[int, Mapping], key: str, label: str, color: str,
          style: str) -> None:
  """Draws one curve, if the run has it."""
  points: Sequence[tuple[int, float]] = [(step, row[key]) for step, row in sorted(rows.items())
                                         if row.get(key) is not None]
  if points:
    steps, values = zip(*points)
    axes.plot(steps, values, "o" if len(points) == 1 else style, color=color, label=label, markersize=3.5,
              linewidth=1.4)
