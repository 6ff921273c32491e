"""Compares the speed of MCSAM's beam search with a BART decoder of equal size in Hugging Face transformers.

    pip install -c launch/constraints.txt -e .[bench]
    python tests/benchmarks/decode_peers.py [--studies 8 32] [--views 2] [--repeats 7] [--json FILE]

MCSAM also queries its memory bank. Each contestant runs in its own process, so that they share neither threads nor
memory, and the parent process calls them alternately. All start from encoder states and generate 100 tokens per report
with 3 beams in float32. Compilation and first calls are not counted.
"""

import argparse
from collections.abc import Callable
import json
import os
import statistics

from mcsam_jax.benchmark.alternate import time_alternately

CONFIG = "mimic_cxr"
DECODER_SIZE = {"layers": 3, "width": 512, "feedforward": 512, "heads": 8}
VOCAB_SIZE, PATCHES_PER_VIEW, NUM_TOKENS, BEAM_SIZE = 761, 49, 100, 3


def make_mcsam_decoder(memory_query: str, num_studies: int, num_views: int) -> Callable:
  """Returns a function that decodes one batch with MCSAM: 2,048 memory slots, `top_k` 32, and 8 memory tokens."""
  from mcsam_jax.benchmark.decode import make_run
  from mcsam_jax.cli.main import silence_libraries
  from mcsam_jax.config import load_config
  silence_libraries()
  fields = {"train.compute_dtype": "float32", "memory.query": memory_query, "memory.num_slots": 2048,
            "memory.top_k": 32, "data.num_views": num_views, "decode.beam_size": BEAM_SIZE,
            "tokenizer.max_length": NUM_TOKENS}
  config = load_config(CONFIG, [f"--config.{name}={value}" for name, value in fields.items()])
  assert DECODER_SIZE == {"layers": config.model.decoder_layers, "width": config.model.width,
                          "feedforward": config.model.feedforward_width, "heads": config.model.num_heads}
  decode, _ = make_run(config, VOCAB_SIZE, num_studies)
  ids = decode().ids
  assert ids.shape == (num_studies, BEAM_SIZE, NUM_TOKENS) and (ids != 2).all()
  return decode


def make_transformers_decoder(num_studies: int, num_views: int, device: str = "cpu", dtype: str = "float32",
                              vocab_size: int = VOCAB_SIZE) -> Callable:
  """Returns a function that decodes one batch with BART's `generate`, without memory bank and memory tokens."""
  import torch
  from transformers import BartConfig, BartForConditionalGeneration
  from transformers.modeling_outputs import BaseModelOutput
  torch.set_num_threads(os.cpu_count())
  sizes = {f"{side}_{name}": DECODER_SIZE[field] for side in ("encoder", "decoder") for name, field in
           (("layers", "layers"), ("ffn_dim", "feedforward"), ("attention_heads", "heads"))}
  model = BartForConditionalGeneration(BartConfig(
      vocab_size=vocab_size, d_model=DECODER_SIZE["width"], max_position_embeddings=NUM_TOKENS + 2, pad_token_id=0,
      bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, **sizes))
  model = model.eval().to(device, getattr(torch, dtype))
  states = torch.randn(num_studies, num_views * PATCHES_PER_VIEW, DECODER_SIZE["width"], device=device,
                       dtype=getattr(torch, dtype))
  mask = torch.ones(*states.shape[:2], dtype=torch.long, device=device)

  @torch.inference_mode()
  def decode():
    ids = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                         num_beams=BEAM_SIZE, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS, do_sample=False)
    assert ids.shape == (num_studies, NUM_TOKENS + 1)
    if device == "cuda":
      torch.cuda.synchronize()
  decode()
  return decode


def compare(num_studies: int, num_views: int, repeats: int) -> dict[str, list[float]]:
  """Returns the seconds of each contestant's calls; the contestants are called alternately."""
  contestants: dict[str, tuple[Callable, tuple]] = {
      "transformers generate": (make_transformers_decoder, (num_studies, num_views)),
      "mcsam, word": (make_mcsam_decoder, ("word", num_studies, num_views)),
      "mcsam, word_position": (make_mcsam_decoder, ("word_position", num_studies, num_views))}
  rounds = list(time_alternately(contestants, repeats))
  return {name: [seconds[name] for seconds in rounds] for name in contestants}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--studies", type=int, nargs="+", default=[8, 32], help="batch sizes (default: 8 32)")
  parser.add_argument("--views", type=int, default=2, help="views per study, 49 patches each (default: 2)")
  parser.add_argument("--repeats", type=int, default=7, help="timed calls per contestant (default: 7)")
  parser.add_argument("--json", help="also write all results to this file")
  args = parser.parse_args()
  results = []
  for num_studies in args.studies:
    seconds = compare(num_studies, args.views, args.repeats)
    baseline = seconds["transformers generate"]
    print(f"{num_studies} studies, {args.views} views each, {BEAM_SIZE} beams, {NUM_TOKENS} tokens, "
          f"medians of {args.repeats} alternating calls")
    for name, times in seconds.items():
      median = statistics.median(times)
      speedup = statistics.median(reference / own for reference, own in zip(baseline, times))
      print(f"  {name:24} {median:7.3f} s  {num_studies * NUM_TOKENS / median:8.0f} tokens/s  {speedup:5.2f} x",
            flush=True)
      results.append({"studies": num_studies, "views": args.views, "name": name, "median_seconds": median,
                      "speedup": speedup, "seconds": times})
  if args.json:
    with open(args.json, "w") as file:
      json.dump(results, file, indent=1)


if __name__ == "__main__":
  main()
