"""CheXbert in Flax against the same network in PyTorch: transformers' BertModel and 14 linear heads, random weights.

    pip install -c launch/constraints.txt -e .[bench]
    python tests/benchmarks/chexbert_peers.py [--reports 64] [--repeats 5] [--json FILE]

Both get the same weights (ours by way of a .pth, as a user's would come) and the same token ids, and start from these.
PyTorch reads the reports in three ways: as the authors' label.py does (18 at once in their order, padded to the longest
of the 18), all at once, and sorted by length, 16 at once. Each contestant lives in a process of its own, and they run
in turn; compilation and first calls are not counted. Before that, all logits are compared.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time

import numpy as np

WAYS = {"label.py's batches of 18": (18, False), "one batch": (10_000, False), "sorted, batches of 16": (16, True)}


def draw_texts(count: int) -> list[list[int]]:
  """Returns token ids of `count` reports, [CLS] 101, [SEP] 102, as long as chest X-ray reports are.

  Their pieces have a log-normal distribution with a median of 56 and quartiles of 40 and 78.
  """
  draw = np.random.default_rng(0)
  sizes = draw.lognormal(np.log(56), 0.5, count).round().astype(int).clip(4, 510)
  return [[101, *draw.integers(1000, 30000, size).tolist(), 102] for size in sizes]


def make_torch(seed: int = 0):
  """Returns CheXbert in PyTorch."""
  import torch
  from transformers import BertConfig, BertModel
  torch.manual_seed(seed)
  torch.set_num_threads(os.cpu_count())

  class TorchCheXbert(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.bert = BertModel(BertConfig())
      self.linear_heads = torch.nn.ModuleList([torch.nn.Linear(768, 4 if number < 13 else 2) for number in range(14)])

    def forward(self, ids, mask):
      first = self.bert(ids, attention_mask=mask)[0][:, 0]
      return [head(first) for head in self.linear_heads]
  model = TorchCheXbert().eval()
  with torch.no_grad():                     # biases and norms start at 0 and 1, which would hide that they are lost
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


def theirs(path: str, texts, size: int, by_length: bool):
  """Returns a function that reads all texts with PyTorch and returns logits [n, 14, 4]."""
  import torch
  model = make_torch()
  order = sorted(range(len(texts)), key=lambda number: len(texts[number])) if by_length else list(range(len(texts)))

  @torch.inference_mode()
  def run():
    found = np.full((len(texts), 14, 4), -np.inf, np.float32)
    for start in range(0, len(texts), size):
      numbers = order[start:start + size]
      longest = max(len(texts[number]) for number in numbers)
      ids = torch.tensor([texts[number] + [0] * (longest - len(texts[number])) for number in numbers])
      mask = torch.tensor([[1.] * len(texts[number]) + [0.] * (longest - len(texts[number])) for number in numbers])
      for head, logits in enumerate(model(ids, mask)):
        found[numbers, head, :logits.shape[1]] = logits.numpy()
    return found
  return run


def ours(path: str, texts):
  """Returns a function that reads all texts with JAX and returns logits [n, 14, 4]."""
  from mcsam_jax.labelers.chexbert import CheXbertClassifier, load_chexbert
  variables, pieces, sizes = load_chexbert(path)
  classifier = CheXbertClassifier(variables, pieces, sizes)
  return lambda: classifier.compute_logits_from_ids(texts)


def live(make, arguments, pipe):
  """Answers with its logits, and then, whenever it is asked, with the seconds that it took."""
  run = make(*arguments)
  pipe.send(run())
  while pipe.recv():
    start = time.perf_counter()
    run()
    pipe.send(time.perf_counter() - start)


def write_weights(path: str) -> None:
  """Writes PyTorch's weights, with an invented vocabulary, as ours."""
  import torch

  from mcsam_jax.pretrained.chexbert import import_chexbert
  state = {f"module.{name}": tensor for name, tensor in make_torch().state_dict().items()}
  with tempfile.TemporaryDirectory() as folder:
    torch.save({"epoch": 1, "model_state_dict": state}, f"{folder}/chexbert.pth")
    with open(f"{folder}/vocab.txt", "w") as file:
      file.write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(30518))]) + "\n")
    import_chexbert(f"{folder}/chexbert.pth", path, f"{folder}/vocab.txt", log=lambda line: None)


def compare(path: str, texts, repeats: int) -> tuple[dict, dict]:
  """Returns the seconds of each contestant, called in turn, and how far each one's logits are from the first one's."""
  contestants = {f"transformers, {name}": (theirs, (path, texts, *way)) for name, way in WAYS.items()}
  contestants["mcsam"] = (ours, (path, texts))
  context, pipes, logits = multiprocessing.get_context("spawn"), {}, {}
  for name, (make, arguments) in contestants.items():
    pipes[name], end = context.Pipe()
    context.Process(target=live, args=(make, arguments, end), daemon=True).start()
    end.close()
    logits[name] = pipes[name].recv()                   # one at a time, also while they get ready
  first = next(iter(logits.values()))
  finite = np.isfinite(first)
  assert all((np.isfinite(array) == finite).all() for array in logits.values()) and first[finite].std() > 0.01
  distances = {name: float(np.abs(array[finite] - first[finite]).max()) for name, array in logits.items()}
  seconds = {name: [] for name in contestants}
  for _ in range(repeats):
    for name, pipe in pipes.items():
      pipe.send(True)
      seconds[name].append(pipe.recv())
  for pipe in pipes.values():
    pipe.send(False)
  return seconds, distances


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--reports", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json", help="file for all figures")
  args = parser.parse_args()
  texts = draw_texts(args.reports)
  with tempfile.TemporaryDirectory() as folder:
    write_weights(f"{folder}/chexbert.npz")
    seconds, distances = compare(f"{folder}/chexbert.npz", texts, args.repeats)
  print(f"{len(texts)} reports of {sum(map(len, texts))} pieces, float32, medians of {args.repeats} calls in turn")
  figures = []
  for name, taken in seconds.items():
    median = statistics.median(taken)
    ratio = statistics.median(their / our for their, our in zip(taken, seconds["mcsam"]))
    print(f"  {name:38} {median:7.3f} s  {len(texts) / median:6.2f} reports/s  ours is {ratio:5.2f} x as fast  "
          f"logits within {distances[name]:.1e}", flush=True)
    figures.append({"name": name, "median": median, "ratio": ratio, "distance": distances[name], "seconds": taken})
  if args.json:
    with open(args.json, "w") as file:
      json.dump(figures, file, indent=1)


if __name__ == "__main__":
  main()
