"""The input pipeline against the way of R2Gen and R2GenCMN: PyTorch's DataLoader with two workers, on the same images.

    pip install -c launch/constraints.txt -e .[bench]
    python tests/benchmarks/input_peers.py --config iu_xray [--config.data.source_dir=...] [--repeats 5] [--json FILE]

The peer reads JPEG files (the bytes that our records hold, written to a temporary folder), decodes them with Pillow to
RGB, and transforms them as R2Gen does in training: shorter side to 256, random crop of 224, random flip, to float,
normalised; batches are stacked by the DataLoader. Its transforms are what torchvision does with Pillow images, in the
same calls. Both give 224 x 224 pixels, take turns, and each figure is the median of its turns.
"""

import argparse
import itertools
import json
import pathlib
import random
import statistics
import tempfile
import time

import numpy as np
import PIL.Image
import torch

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
RESIZED, CROPPED, WORKERS = 256, 224, 2


class Peer(torch.utils.data.Dataset):
  """Studies as lists of image files, each study as R2Gen gives it: float32 [V, 3, 224, 224]."""

  def __init__(self, studies: list[list[str]]):
    self.studies = studies

  def __len__(self) -> int:
    return len(self.studies)

  def __getitem__(self, index: int) -> torch.Tensor:
    return torch.stack([transform(PIL.Image.open(path).convert("RGB")) for path in self.studies[index]])


def transform(image: PIL.Image.Image) -> torch.Tensor:
  scale = RESIZED / min(image.size)
  if scale != 1:
    image = image.resize([round(side * scale) for side in image.size], PIL.Image.Resampling.BILINEAR)
  left, top = (random.randint(0, side - CROPPED) for side in image.size)
  image = image.crop((left, top, left + CROPPED, top + CROPPED))
  if random.random() < .5:
    image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
  return pixels.clone().sub_(MEAN).div_(STD)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="iu_xray")
  parser.add_argument("--steps", type=int, default=30, help="batches a turn")
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json")
  args, overrides = parser.parse_known_args()

  from input_pipeline.pipeline import open_split, train_batches
  from input_pipeline.prepare import load_or_build_tokenizer
  from mcsam_jax.benchmark.input import bare_decoder
  from mcsam_jax.cli import quiet
  from mcsam_jax.config import load_config
  quiet()
  config = load_config(args.config, [*overrides, f"--config.train.batch_size={args.batch_size}",
                                     f"--config.data.image_size={CROPPED}"])
  split, tokenizer = open_split(config, "train"), load_or_build_tokenizer(config)
  views, steps = config.data.num_views, itertools.count(0, args.steps)

  with tempfile.TemporaryDirectory() as folder:
    # Of one shape a batch, as R2Gen has it: studies with all views.
    jpegs = [record["images"][:views] for record in split if len(record["images"]) >= views]
    studies = []
    for number, images in enumerate(jpegs):
      studies.append([f"{folder}/{number}_{view}.jpg" for view in range(views)])
      for path, jpeg in zip(studies[-1], images):
        pathlib.Path(path).write_bytes(jpeg)
    loader = torch.utils.data.DataLoader(Peer(studies), args.batch_size, shuffle=True, num_workers=WORKERS)
    bare = bare_decoder([jpeg for images in jpegs for jpeg in images][:2000])

    def ours() -> int:
      batches = train_batches(split, tokenizer, config, next(steps), args.steps)
      return sum(int(batch["view_mask"].sum()) for batch in batches)

    def peer() -> int:
      return sum(batch.shape[0] * batch.shape[1] for batch in itertools.islice(loader, args.steps))

    turns = {"peer": peer, "ours": ours, "bare_decoder": bare}
    rates = {name: [] for name in turns}
    for name, turn in turns.items():
      turn()
    for _ in range(args.repeats):
      for name, turn in turns.items():
        started = time.perf_counter()
        count = turn()
        rates[name].append(round(count / (time.perf_counter() - started), 1))
  medians = {name: statistics.median(found) for name, found in rates.items()}
  print(f"images a second: DataLoader {medians['peer']:,.0f}, ours {medians['ours']:,.0f} "
        f"({medians['ours'] / medians['peer']:.2f} x), TensorFlow's decoder alone {medians['bare_decoder']:,.0f} "
        f"({medians['ours'] / medians['bare_decoder']:.0%})")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps({"images_per_second": medians, "all": rates}, indent=2) + "\n")


if __name__ == "__main__":
  main()
