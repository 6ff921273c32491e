"""The full model memorizes 16 real studies, which shows that images, memory and decoder are connected correctly."""

import json

import pytest

from input_pipeline.builder.prepare import prepare
from mcsam_jax import config as configs
from mcsam_jax.evaluation.evaluate import evaluate
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from mcsam_jax.training.train import train


@pytest.mark.slow
def test_sixteen_real_studies_are_memorized_word_for_word(tmp_path, shared):
  source = shared("iu_xray/annotation.json").parent
  annotation = json.loads((source / "annotation.json").read_text())
  (tmp_path / "source").mkdir()
  (tmp_path / "source" / "images").symlink_to(source / "images")
  few = {"train": annotation["train"][:16], "val": annotation["val"][:4], "test": annotation["test"][:4]}
  (tmp_path / "source" / "annotation.json").write_text(json.dumps(few))
  import_image_encoder("efficientnet-lite0", str(tmp_path / "lite0.npz"), log=lambda line: None)
  fields = {
      "data.source_dir": tmp_path / "source", "data.data_dir": tmp_path / "data",
      "encoder.weights": tmp_path / "lite0.npz",
      "tokenizer.threshold": 1, "memory_init.kind": "random", "memory.num_slots": 64, "memory.top_k": 16,
      "model.dropout": 0.0, "optimizer.label_smoothing": 0.0, "optimizer.weight_decay": 0.0,
      "optimizer.learning_rate": 2e-3, "optimizer.warmup_steps": 20, "train.batch_size": 16, "train.num_steps": 200,
      "train.eval_every": 200, "train.log_every": 200, "train.eval_studies": 4, "decode.batch_size": 16,
      "decode.beam_size": 3}
  config = configs.load_config("iu_xray", [f"--config.{field}={value}" for field, value in fields.items()])
  lines = []
  prepare(config, log=lines.append)
  train(config, str(tmp_path / "run"), log=lines.append)
  loss = float(next(line for line in lines if line.startswith("step 200/200")).split("token ")[1].split()[0])
  assert loss < 0.1
  scores = evaluate(str(tmp_path / "run"), "train", log=lines.append)
  assert scores["nlg"]["r2gen"]["BLEU_4"] > 0.999
  rows = [json.loads(line) for line in (tmp_path / "run" / "eval" / "train-200.jsonl").read_text().splitlines()]
  assert len(rows) == 16 and all(row["scores"]["BLEU_4"] > 0.999 for row in rows)
