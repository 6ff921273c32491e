"""CheXbert is imported with its vocabulary; every name is accounted for, and mismatches are reported."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mcsam_jax.cli import main
from mcsam_jax.errors import UserError
from mcsam_jax.labelers.chexbert import CheXbertClassifier, load_chexbert
from mcsam_jax.models.text_labeler.bert import BertConfig
from mcsam_jax.pretrained.chexbert import import_chexbert

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "lung", "##s", "are", "clear", "."]
SIZES = BertConfig(vocab_size=len(PIECES), width=32, num_layers=2, num_heads=4, feedforward_width=48, max_length=64)
LAYER = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32),
         "attention.output.dense": (32, 32), "attention.output.LayerNorm": (32,), "intermediate.dense": (48, 32),
         "output.dense": (32, 48), "output.LayerNorm": (32,)}


def state_dict() -> dict[str, np.ndarray]:
  """Returns random tensors with the names and shapes of `transformers` 2.5 and of the authors' heads."""
  shapes = {"bert.embeddings.word_embeddings.weight": (10, 32), "bert.embeddings.position_embeddings.weight": (64, 32),
            "bert.embeddings.token_type_embeddings.weight": (2, 32)}
  modules = {"bert.embeddings.LayerNorm": (32,), "bert.pooler.dense": (32, 32)}
  modules |= {f"bert.encoder.layer.{number}.{name}": shape for number in range(2) for name, shape in LAYER.items()}
  modules |= {f"linear_heads.{number}": (2 if number == 13 else 4, 32) for number in range(14)}
  for name, shape in modules.items():
    shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
  rng = np.random.default_rng(0)
  return {f"module.{name}": rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def files(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")

  def paths(state):
    save_file(state, str(tmp_path / "chexbert.safetensors"))
    return [str(tmp_path / name) for name in ("chexbert.safetensors", "chexbert.npz", "vocab.txt")]
  return paths


def test_every_tensor_is_converted_or_ignored(files):
  state, lines = state_dict(), []
  state["module.bert.embeddings.position_ids"] = np.arange(64)[None]
  source, target, vocabulary = files(state)
  report = import_chexbert(source, target, vocabulary, lines.append, SIZES)
  assert report.is_complete and len(report.converted) + len(report.ignored) == len(state)
  assert set(report.ignored) == {
      "bert.embeddings.position_ids", "bert.pooler.dense.bias", "bert.pooler.dense.weight"}
  assert f"--config.eval.chexbert={target}" in lines[-1]

  variables, pieces, sizes = load_chexbert(target)
  assert pieces == PIECES and sizes == SIZES
  params = variables["params"]
  ours, theirs = params["bert"]["layer_1"], "module.bert.encoder.layer.1."
  np.testing.assert_array_equal(ours["hidden"]["kernel"], state[theirs + "intermediate.dense.weight"].T)
  np.testing.assert_array_equal(ours["output_norm"]["scale"], state[theirs + "output.LayerNorm.weight"])
  np.testing.assert_array_equal(params["bert"]["embeddings"]["position"],
                                state["module.bert.embeddings.position_embeddings.weight"])
  np.testing.assert_array_equal(params["head_13"]["kernel"], state["module.linear_heads.13.weight"].T)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "a.model."])
def test_wrappers_are_removed(files, wrapper):
  state = {f"{wrapper}{name.removeprefix('module.')}": tensor for name, tensor in state_dict().items()}
  source, target, vocabulary = files(state)
  assert import_chexbert(source, target, vocabulary, lambda line: None, SIZES).is_complete
  np.testing.assert_array_equal(load_chexbert(target)[0]["params"]["head_13"]["kernel"],
                                state[f"{wrapper}linear_heads.13.weight"].T)


def test_mismatches_are_listed_and_nothing_is_written(files, tmp_path):
  state, lines = state_dict(), []
  del state["module.bert.encoder.layer.1.output.dense.bias"]
  state["module.linear_heads.3.weight"] = np.zeros((1, 32), np.float32)          # VisualCheXbert's heads have one class
  state["module.cls.predictions.bias"] = np.zeros(10, np.float32)
  source, target, vocabulary = files(state)
  with pytest.raises(UserError, match="nothing was written"):
    import_chexbert(source, target, vocabulary, lines.append, SIZES)
  assert "missing     params/bert/layer_1/output/bias" in lines
  line, = [line for line in lines if line.startswith("mismatched")]
  assert "linear_heads.3.weight" in line and line.index("[1, 32]") < line.index("[4, 32]")
  assert "unexpected  cls.predictions.bias" in lines and not (tmp_path / "chexbert.npz").exists()


def test_invalid_files_are_named(files, tmp_path, capsys):
  source, target, vocabulary = files(state_dict())
  with pytest.raises(UserError, match="vocab.txt.* 10 .* 30522"):
    import_chexbert(source, target, vocabulary)
  with pytest.raises(UserError, match="chexbert.safetensors.*linear_heads"):
    import_chexbert(*files({"fc.weight": np.zeros((2, 2), np.float32)}), sizes=SIZES)
  with pytest.raises(UserError, match="nowhere.npz.*import-weights chexbert .*--vocabulary"):
    load_chexbert(str(tmp_path / "nowhere.npz"))
  with pytest.raises(UserError, match="eval.labeler=chexbert.*import-weights chexbert"):
    load_chexbert("")
  source, *_ = files(state_dict())
  assert main(["import-weights", "encoder", source, target]) == 2
  assert "import-weights chexbert" in capsys.readouterr().err
  with pytest.raises(SystemExit) as stopped:
    main(["import-weights", "chexbert", source, target])
  assert stopped.value.code == 2 and "--vocabulary" in capsys.readouterr().err


@pytest.mark.slow
def test_logits_agree_with_transformers(tmp_path):
  """A .pth file as the authors' script saves it, with its optimizer, gives the logits that PyTorch computes."""
  torch = pytest.importorskip("torch", reason="needs torch and transformers (extra bench)")
  transformers = pytest.importorskip("transformers", reason="needs torch and transformers (extra bench)")
  torch.manual_seed(0)
  bert = transformers.BertModel(transformers.BertConfig(
      vocab_size=10, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
      max_position_embeddings=64, hidden_dropout_prob=0, attention_probs_dropout_prob=0))
  heads = torch.nn.ModuleList([torch.nn.Linear(32, 4 if number < 13 else 2) for number in range(14)])
  model = torch.nn.DataParallel(torch.nn.ModuleDict({"bert": bert, "linear_heads": heads})).eval()
  optimizer = torch.optim.Adam(model.parameters(), 1e-2)
  ids = torch.tensor([[2, 4, 5, 6, 7, 8, 9, 3]])
  bert(ids)[0].square().mean().backward()                # norms, biases and moments leave their initial values
  optimizer.step()
  torch.save({"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
             tmp_path / "chexbert.pth")
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
  import_chexbert(str(tmp_path / "chexbert.pth"), str(tmp_path / "c.npz"), str(tmp_path / "vocab.txt"),
                  lambda line: None, SIZES)
  found = CheXbertClassifier(*load_chexbert(str(tmp_path / "c.npz"))).compute_logits(["The lungs are clear.", "clear"])
  with torch.inference_mode():
    wanted = [head(bert(ids)[0][:, 0])[0].numpy() for head in heads]
  for logits, head in zip(found[0], wanted):
    np.testing.assert_allclose(logits[:len(head)], head, atol=1e-5)
