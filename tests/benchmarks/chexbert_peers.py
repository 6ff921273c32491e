"""Compares the speed and logits of CheXbert in Flax with the same network in PyTorch, with random weights.

    pip install -c launch/constraints.txt -e .[bench]
    python tests/benchmarks/chexbert_peers.py [--reports 64] [--repeats 5] [--json FILE]

The PyTorch network is transformers' BertModel with 14 linear heads. Both implementations use the same weights (the Flax
one imports them from a .pth file, as a user would) and start from the same token ids. PyTorch is timed with three ways
of batching: like the authors' label.py (18 reports per batch in the given order, padded to the longest of the batch),
all reports in one batch, and 16 reports per batch, sorted by length. Each contestant runs in its own process, and they
are called alternately; compilation and first calls are not counted. All logits are compared before anything is timed.
"""

import argparse
from collections.abc import Callable
import json
import multiprocessing
import os
import statistics
import tempfile
import time

import numpy as np

# Name -> (reports per batch, whether reports are sorted by length).
TORCH_BATCHING = {"label.py's batches of 18": (18, False), "one batch": (10_000, False),
                  "sorted, batches of 16": (16, True)}


def sample_token_ids(num_reports: int) -> list[list[int]]:
  """Returns random token ids of `num_reports` reports, from [CLS] (101) to [SEP] (102).

  The number of WordPiece tokens is log-normal with a median of 56 and quartiles of 40 and 78, like that of chest X-ray
  reports.
  """
  rng = np.random.default_rng(0)
  lengths = rng.lognormal(np.log(56), 0.5, num_reports).round().astype(int).clip(4, 510)
  return [[101, *rng.integers(1000, 30000, length).tolist(), 102] for length in lengths]


def make_torch_model(seed: int = 0):
  """Returns CheXbert in PyTorch, with random weights."""
  import torch
  from transformers import BertConfig, BertModel
  torch.manual_seed(seed)
  torch.set_num_threads(os.cpu_count())

  class TorchCheXbert(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.bert = BertModel(BertConfig())
      self.linear_heads = torch.nn.ModuleList([torch.nn.Linear(768, 4 if index < 13 else 2) for index in range(14)])

    def forward(self, ids, mask):
      cls_state = self.bert(ids, attention_mask=mask)[0][:, 0]
      return [head(cls_state) for head in self.linear_heads]
  model = TorchCheXbert().eval()
  # Biases start at 0 and norm scales at 1: without noise, an import that drops them would go unnoticed.
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


def make_torch_classifier(token_ids: list[list[int]], batch_size: int,
                          sort_by_length: bool) -> Callable[[], np.ndarray]:
  """Returns a function that computes the logits of all B reports with PyTorch: float32 [B, 14, 4]."""
  import torch
  model = make_torch_model()
  order = list(range(len(token_ids)))
  if sort_by_length:
    order.sort(key=lambda index: len(token_ids[index]))

  @torch.inference_mode()
  def classify():
    all_logits = np.full((len(token_ids), 14, 4), -np.inf, np.float32)
    for start in range(0, len(token_ids), batch_size):
      indices = order[start:start + batch_size]
      longest = max(len(token_ids[index]) for index in indices)
      padding = [longest - len(token_ids[index]) for index in indices]
      ids = torch.tensor([token_ids[index] + [0] * count for index, count in zip(indices, padding)])
      mask = torch.tensor([[1.] * (longest - count) + [0.] * count for count in padding])
      for head, logits in enumerate(model(ids, mask)):
        all_logits[indices, head, :logits.shape[1]] = logits.numpy()
    return all_logits
  return classify


def make_flax_classifier(weights_path: str, token_ids: list[list[int]]) -> Callable[[], np.ndarray]:
  """Returns a function that computes the logits of all B reports with JAX: float32 [B, 14, 4]."""
  from mcsam_jax.labelers.chexbert import CheXbertClassifier, load_chexbert
  variables, vocabulary, config = load_chexbert(weights_path)
  classifier = CheXbertClassifier(variables, vocabulary, config)
  return lambda: classifier.compute_logits_from_ids(token_ids)


def serve_timings(make_classifier: Callable, arguments: tuple, pipe) -> None:
  """Sends the logits of the first call, then the seconds of one more call for each True received; stops at False."""
  classify = make_classifier(*arguments)
  pipe.send(classify())
  while pipe.recv():
    start = time.perf_counter()
    classify()
    pipe.send(time.perf_counter() - start)


def write_flax_weights(path: str) -> None:
  """Imports the weights of the PyTorch network, with a made-up vocabulary, and writes them to `path`."""
  import torch

  from mcsam_jax.pretrained.chexbert import import_chexbert
  state = {f"module.{name}": tensor for name, tensor in make_torch_model().state_dict().items()}
  with tempfile.TemporaryDirectory() as folder:
    torch.save({"epoch": 1, "model_state_dict": state}, f"{folder}/chexbert.pth")
    with open(f"{folder}/vocab.txt", "w") as file:
      file.write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(30518))]) + "\n")
    import_chexbert(f"{folder}/chexbert.pth", path, f"{folder}/vocab.txt", log=lambda line: None)


def compare(weights_path: str, token_ids: list[list[int]],
            repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
  """Times all contestants alternately and compares their logits.

  Returns:
    The seconds of each contestant's calls, and the largest absolute difference of its logits from those of the first
    contestant.
  """
  contestants: dict[str, tuple[Callable, tuple]] = {
      f"transformers, {name}": (make_torch_classifier, (token_ids, *batching))
      for name, batching in TORCH_BATCHING.items()}
  contestants["mcsam"] = (make_flax_classifier, (weights_path, token_ids))
  context, pipes, logits = multiprocessing.get_context("spawn"), {}, {}
  for name, (make_classifier, arguments) in contestants.items():
    pipes[name], child_pipe = context.Pipe()
    context.Process(target=serve_timings, args=(make_classifier, arguments, child_pipe), daemon=True).start()
    child_pipe.close()
    logits[name] = pipes[name].recv()                   # waits, so that only one process at a time is busy
  reference = next(iter(logits.values()))
  finite = np.isfinite(reference)
  assert all((np.isfinite(array) == finite).all() for array in logits.values()) and reference[finite].std() > 0.01
  differences = {name: float(np.abs(array[finite] - reference[finite]).max()) for name, array in logits.items()}
  seconds = {name: [] for name in contestants}
  for _ in range(repeats):
    for name, pipe in pipes.items():
      pipe.send(True)
      seconds[name].append(pipe.recv())
  for pipe in pipes.values():
    pipe.send(False)
  return seconds, differences


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--reports", type=int, default=64, help="number of reports (default: 64)")
  parser.add_argument("--repeats", type=int, default=5, help="timed calls per contestant (default: 5)")
  parser.add_argument("--json", help="also write all results to this file")
  args = parser.parse_args()
  token_ids = sample_token_ids(args.reports)
  with tempfile.TemporaryDirectory() as folder:
    write_flax_weights(f"{folder}/chexbert.npz")
    seconds, differences = compare(f"{folder}/chexbert.npz", token_ids, args.repeats)
  print(f"{len(token_ids)} reports, {sum(map(len, token_ids))} tokens, float32, medians of {args.repeats} "
        "alternating calls")
  results = []
  for name, times in seconds.items():
    median = statistics.median(times)
    speedup = statistics.median(other / mcsam for other, mcsam in zip(times, seconds["mcsam"]))
    print(f"  {name:38} {median:7.3f} s  {len(token_ids) / median:6.2f} reports/s  mcsam is {speedup:5.2f} x as fast  "
          f"logits within {differences[name]:.1e}", flush=True)
    results.append({"name": name, "median_seconds": median, "mcsam_speedup": speedup,
                    "max_logit_difference": differences[name], "seconds": times})
  if args.json:
    with open(args.json, "w") as file:
      json.dump(results, file, indent=1)


if __name__ == "__main__":
  main()
