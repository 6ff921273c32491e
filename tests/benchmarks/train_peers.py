"""Compares the speed of MCSAM's training step with the same network written plainly in PyTorch.

    pip install -c launch/constraints.txt -e .[bench]
    pip install torchvision --no-deps
    python tests/benchmarks/train_peers.py [--studies 8] [--repeats 9] [--encoder trained cached] [--json FILE]

Both train the network of configs/mimic_cxr.py in float32, with one view per study and reports of 100 tokens: ResNet-50
with frozen batch statistics (trained), or its cached features (cached), 3 layers over patches, 3 over words, 2,048
memory slots of which the best 32 are used, a text encoder, the contrastive loss, gradient clipping, and AdamW. Neither
augments its images. Each contestant runs in its own process, and the parent process calls them alternately.
Compilation and first calls are not counted. PyTorch runs without `torch.compile`, as such code usually does.
"""

import argparse
from collections.abc import Callable
import importlib
import json
import math
import os
import statistics
import sys

from mcsam_jax.benchmark.alternate import time_alternately

VOCAB_SIZE, NUM_TOKENS, PATCHES, CHANNELS = 4347, 100, 49, 2048


def make_config(encoder: str, num_studies: int):
  """Returns the config of both contestants."""
  from mcsam_jax.config import load_config
  fields = {"train.compute_dtype": "float32", "train.batch_size": num_studies, "data.num_views": 1,
            "data.augment": "false", "encoder.frozen": str(encoder == "cached").lower(),
            "tokenizer.max_length": NUM_TOKENS}
  return load_config("mimic_cxr", [f"--config.{name}={value}" for name, value in fields.items()])


def make_mcsam_step(encoder: str, num_studies: int) -> Callable:
  """Returns a function that trains MCSAM for one step."""
  import jax

  from mcsam_jax.benchmark.train import TrainStepRunner
  from mcsam_jax.cli.main import silence_libraries
  from mcsam_jax.distributed.mesh import make_mesh
  silence_libraries()
  config = make_config(encoder, num_studies)
  jax.set_mesh(make_mesh(config))
  runner = TrainStepRunner(config, VOCAB_SIZE)
  assert math.isfinite(runner.run()["loss"])
  return runner.run


def make_pytorch_step(encoder: str, num_studies: int) -> Callable:
  """Returns a function that trains the same network in PyTorch for one step."""
  import torch
  from torch import nn
  from torch.nn import functional
  torch.set_num_threads(os.cpu_count() or 1)
  config = make_config(encoder, num_studies)
  model, memory = config.model, config.memory
  width, heads = model.width, model.num_heads

  class Memory(nn.Module):
    """Multi-head attention to the best `top_k` slots."""

    def __init__(self):
      super().__init__()
      self.slots = nn.Parameter(torch.randn(memory.num_slots, memory.slot_width))
      self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
      self.key, self.value = nn.Linear(memory.slot_width, width), nn.Linear(memory.slot_width, width)

    def forward(self, x):
      split = lambda y: y.unflatten(-1, (memory.num_heads, -1)).transpose(-3, -2)
      query, key, value = split(self.query(x)), split(self.key(self.slots)), split(self.value(self.slots))
      scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
      best, index = scores.topk(memory.top_k)
      weights = torch.full_like(scores, -torch.inf).scatter(-1, index, best).softmax(-1)
      weights = functional.dropout(weights, model.dropout, self.training)
      return self.output((weights @ value).transpose(-3, -2).flatten(-2))

  sizes = {"d_model": width, "nhead": heads, "dim_feedforward": model.feedforward_width, "dropout": model.dropout,
           "batch_first": True, "norm_first": True}
  encode = lambda layers: nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes), layers, nn.LayerNorm(width),
                                                enable_nested_tensor=False)
  head = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

  class Network(nn.Module):
    """Images or features, and reports, to the loss."""

    def __init__(self):
      super().__init__()
      self.visual_encoder = make_resnet50() if encoder == "trained" else None
      self.project, self.memory = nn.Linear(CHANNELS, width), Memory()
      self.positions = nn.Parameter(torch.randn(PATCHES, width) / 50)
      self.patch_encoder, self.text_encoder = encode(model.encoder_layers), encode(model.text_encoder_layers)
      self.embedding, self.word_positions = nn.Embedding(VOCAB_SIZE, width), nn.Embedding(NUM_TOKENS, width)
      self.memory_tokens = nn.Parameter(torch.randn(model.num_memory_tokens, width))
      self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), model.decoder_layers,
                                           nn.LayerNorm(width))
      self.logits, self.condition = nn.Linear(width, VOCAB_SIZE), nn.Linear(width, width)
      self.image_head, self.report_head = head(), head()
      self.scale = nn.Parameter(torch.tensor(-math.log(model.align_temperature)))
      length = model.num_memory_tokens + NUM_TOKENS
      hidden = torch.ones(length, length).triu(1).bool()
      hidden[:, :model.num_memory_tokens] = False
      self.register_buffer("hidden", hidden)

    def forward(self, inputs, tokens):
      features = inputs if self.visual_encoder is None else self.visual_encoder(inputs).flatten(2).transpose(1, 2)
      patches = self.project(features) + self.positions
      retrieved = self.memory(patches)
      patches = self.patch_encoder(patches + retrieved)
      image_embedding = self.image_head(retrieved.mean(1))

      states = self.text_encoder(self.embedding(tokens[:, 1:]) * math.sqrt(width) + self.word_positions.weight)
      report_embedding = self.report_head(self.memory(states).mean(1))
      logits = self.scale.exp() * (functional.normalize(image_embedding, dim=-1)
                                   @ functional.normalize(report_embedding, dim=-1).T)
      targets = torch.arange(len(logits))
      alignment = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2

      words = self.embedding(tokens[:, :-1]) * math.sqrt(width) + self.word_positions.weight
      words = words + self.memory(words) + self.condition(image_embedding)[:, None]
      sequence = torch.cat([self.memory_tokens.expand(len(words), -1, -1), words], 1)
      decoded = self.decoder(sequence, patches, tgt_mask=self.hidden)[:, model.num_memory_tokens:]
      token_loss = functional.cross_entropy(self.logits(decoded).flatten(0, 1), tokens[:, 1:].flatten())
      return token_loss + model.align_weight * alignment

  network = Network().train()
  if network.visual_encoder is not None:
    network.visual_encoder.eval()                    # frozen batch statistics
  optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=config.optimizer.weight_decay)
  size = config.data.image_size
  inputs = torch.randn(num_studies, 3, size, size) if encoder == "trained" else torch.randn(
      num_studies, PATCHES, CHANNELS)
  tokens = torch.randint(4, VOCAB_SIZE, (num_studies, NUM_TOKENS + 1))

  def step():
    loss = network(inputs, tokens)
    optimizer.zero_grad()
    loss.backward()
    if config.optimizer.clip_norm:
      nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
    optimizer.step()
    assert math.isfinite(loss.item())
  step()
  return step


def make_resnet50():
  """Returns torchvision's ResNet-50 up to its feature map."""
  import torch
  # A torchvision built for another PyTorch lacks its compiled operators, which a ResNet doesn't use.
  torch.library.register_fake = lambda *_, **__: lambda function: function
  models = importlib.import_module("torchvision.models")      # no extra installs it: see the top of this file
  return torch.nn.Sequential(*list(models.resnet50().children())[:-2])


def compare(encoder: str, num_studies: int, repeats: int) -> dict[str, list[float]]:
  """Returns the seconds of each contestant's steps; the contestants are called alternately."""
  contestants = {name: (make_step, (encoder, num_studies))
                 for name, make_step in (("PyTorch", make_pytorch_step), ("MCSAM", make_mcsam_step))}
  rounds = []
  for seconds in time_alternately(contestants, repeats):
    rounds.append(seconds)
    print("  ".join(f"{name} {value:.3f} s" for name, value in seconds.items()), file=sys.stderr, flush=True)
  return {name: [seconds[name] for seconds in rounds] for name in contestants}


def main() -> None:
  from mcsam_jax.benchmark.machine import find_instruction_set
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--studies", type=int, default=8, help="batch size (default: 8)")
  parser.add_argument("--repeats", type=int, default=9, help="timed steps per contestant (default: 9)")
  parser.add_argument("--encoder", nargs="+", choices=["trained", "cached"], default=["trained", "cached"],
                      help="ResNet-50 trained, or its features cached (default: both)")
  parser.add_argument("--json", help="also write all results to this file")
  args = parser.parse_args()
  results = []
  for encoder in args.encoder:
    seconds = compare(encoder, args.studies, args.repeats)
    print(f"encoder {encoder}, {args.studies} studies, {os.cpu_count()} cores, {find_instruction_set()}, "
          f"medians of {args.repeats} alternating steps")
    for name, times in seconds.items():
      speedup = statistics.median(reference / own for reference, own in zip(seconds["PyTorch"], times))
      print(f"  {name:8} {statistics.median(times):7.3f} s  {speedup:5.2f} x", flush=True)
      results.append({"encoder": encoder, "studies": args.studies, "name": name, "seconds": times,
                      "median_seconds": statistics.median(times), "speedup": speedup})
  if args.json:
    with open(args.json, "w") as file:
      json.dump(results, file, indent=1)


if __name__ == "__main__":
  main()
