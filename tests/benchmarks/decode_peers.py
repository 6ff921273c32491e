"""Beam search of MCSAM, memory and all, against a BART decoder of equal size in Hugging Face transformers.

    pip install -c launch/constraints.txt -e .[bench]
    python tests/benchmarks/decode_peers.py [--studies 8 32] [--views 2] [--repeats 7] [--json FILE]

Each contestant lives in a process of its own, so that neither's threads and memory are the other's; the parent lets
them run in turn. All write 100 tokens a report with 3 beams in float32, from encoder states on. Compilation and first
calls are not counted.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time

CONFIG = "mimic_cxr"
SIZES = {"layers": 3, "width": 512, "feedforward": 512, "heads": 8}
VOCABULARY, PATCHES_A_VIEW, TOKENS, BEAMS = 761, 49, 100, 3


def mcsam(query: str, num_studies: int, num_views: int):
  """Returns a function that decodes once with our model: 2,048 memory slots, `top_k` 32, and 8 memory tokens."""
  from mcsam_jax.benchmark.decode import make_run
  from mcsam_jax.cli.main import silence_libraries
  from mcsam_jax.config import load_config
  silence_libraries()
  fields = {"train.compute_dtype": "float32", "memory.query": query, "memory.num_slots": 2048, "memory.top_k": 32,
            "data.num_views": num_views, "decode.beam_size": BEAMS, "tokenizer.max_length": TOKENS}
  config = load_config(CONFIG, [f"--config.{name}={value}" for name, value in fields.items()])
  assert SIZES == {"layers": config.model.decoder_layers, "width": config.model.width,
                   "feedforward": config.model.feedforward_width, "heads": config.model.num_heads}
  run, _ = make_run(config, VOCABULARY, num_studies)
  ids = run().ids
  assert ids.shape == (num_studies, BEAMS, TOKENS) and (ids != 2).all()
  return run


def hugging_face(num_studies: int, num_views: int):
  """Returns a function that decodes once with `generate`: no memory, no memory tokens."""
  import torch
  from transformers import BartConfig, BartForConditionalGeneration
  from transformers.modeling_outputs import BaseModelOutput
  torch.set_num_threads(os.cpu_count())
  sizes = {f"{side}_{name}": SIZES[field] for side in ("encoder", "decoder") for name, field in
           (("layers", "layers"), ("ffn_dim", "feedforward"), ("attention_heads", "heads"))}
  model = BartForConditionalGeneration(BartConfig(
      vocab_size=VOCABULARY, d_model=SIZES["width"], max_position_embeddings=TOKENS + 2, pad_token_id=0, bos_token_id=1,
      eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, **sizes)).eval()
  states = torch.randn(num_studies, num_views * PATCHES_A_VIEW, SIZES["width"])
  mask = torch.ones(*states.shape[:2], dtype=torch.long)

  @torch.inference_mode()
  def run():
    ids = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                         num_beams=BEAMS, min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False)
    assert ids.shape == (num_studies, TOKENS + 1)
  run()
  return run


def live(make, arguments, pipe):
  """Runs when asked, and answers with the seconds it took."""
  run = make(*arguments)
  pipe.send("ready")
  while pipe.recv():
    start = time.perf_counter()
    run()
    pipe.send(time.perf_counter() - start)


def compare(num_studies: int, num_views: int, repeats: int) -> dict:
  """Returns the seconds of each contestant, called in turn."""
  contestants = {"transformers generate": (hugging_face, (num_studies, num_views)),
                 "mcsam, word": (mcsam, ("word", num_studies, num_views)),
                 "mcsam, word_position": (mcsam, ("word_position", num_studies, num_views))}
  context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
  for name, (make, arguments) in contestants.items():
    pipes[name], theirs = context.Pipe()
    processes.append(context.Process(target=live, args=(make, arguments, theirs), daemon=True))
    processes[-1].start()
    theirs.close()
    pipes[name].recv()                                  # one at a time, also while they get ready
  seconds = {name: [] for name in contestants}
  for _ in range(repeats):
    for name, pipe in pipes.items():
      pipe.send(True)
      seconds[name].append(pipe.recv())
  for pipe, process in zip(pipes.values(), processes):
    pipe.send(False)
    process.join()
  return seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--studies", type=int, nargs="+", default=[8, 32])
  parser.add_argument("--views", type=int, default=2, help="of a study, 49 patches each")
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--json", help="file for all figures")
  args = parser.parse_args()
  figures = []
  for num_studies in args.studies:
    seconds = compare(num_studies, args.views, args.repeats)
    theirs = seconds["transformers generate"]
    print(f"{num_studies} studies of {args.views} views, beam {BEAMS}, {TOKENS} tokens, "
          f"medians of {args.repeats} alternating calls")
    for name, ours in seconds.items():
      median = statistics.median(ours)
      ratio = statistics.median(their / our for their, our in zip(theirs, ours))
      print(f"  {name:24} {median:7.3f} s  {num_studies * TOKENS / median:8.0f} tokens/s  {ratio:5.2f} x", flush=True)
      figures.append({"studies": num_studies, "views": args.views, "name": name, "median": median, "ratio": ratio,
                      "seconds": ours})
  if args.json:
    with open(args.json, "w") as file:
      json.dump(figures, file, indent=1)


if __name__ == "__main__":
  main()
