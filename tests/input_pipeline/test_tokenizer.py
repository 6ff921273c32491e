"""The word tokenizer agrees with R2Gen; both kinds round-trip, truncate as documented, and can be saved and loaded."""

import hashlib
import json

from etils import epath
import pytest

from configs import default
from input_pipeline import tokenizer as tokenizers
from mcsam_jax.errors import UserError

REPORTS = [f"The {side} lung is clear. No {finding}, or effusion.\n\nHeart  size is {size}."
           for side in ("left", "right") for finding in ("nodule", "pneumothorax", "mass-like opacity")
           for size in ("normal", "enlarged", "upper normal")]
KINDS = ("word", "sentencepiece")


def build(kind, reports=REPORTS, **fields):
  config = default.get_config()
  config.tokenizer.update({"kind": kind, "threshold": 1, "vocab_size": 80, **fields})
  return tokenizers.build_tokenizer(config, reports)


def clean(tokenizer, report):
  return " ".join(tokenizer.clean(report).split())


def test_ids_agree_with_r2gen(shared):
  parity = json.loads(shared("parity/r2gen_text.json").read_text())
  words = tokenizers.WordTokenizer(parity["vocab"], "iu_xray", shared_special_ids=True)
  assert words.get_vocabulary()[1:] == parity["vocab"] and words.vocab_size == 761
  for row in parity["rows"]:
    assert [0, *words.encode(row["raw"]), 0] == row["iu_ids"]


def test_vocabulary_of_iu_xray_agrees_with_r2gen(shared):
  parity = json.loads(shared("parity/r2gen_text.json").read_text())
  reports = [entry["report"] for entry in json.loads(shared("iu_xray/annotation.json").read_text())["train"]]
  words = build("word", reports, threshold=parity["threshold"], shared_special_ids=True)
  assert words.get_vocabulary()[1:] == parity["vocab"] and len(parity["vocab"]) == 760


def test_vocabulary_by_hand():
  reports = ["B a a. B b", "b A"]                         # cleaned: "b a a . b b ." and "b a ."
  shared = build("word", reports, threshold=3, shared_special_ids=True)
  assert shared.get_vocabulary() == ["<pad>", ".", "<unk>", "a", "b"]
  assert (shared.pad_id, shared.bos_id, shared.eos_id, shared.unk_id) == (0, 0, 0, 2)
  separate = build("word", reports, threshold=4)
  assert separate.get_vocabulary() == ["<pad>", "<bos>", "<eos>", "<unk>", "b"]
  assert separate.encode("B? a") == [4, 3, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", ["", "0.5 cm $#`|~ qxzj (A/B)."])
def test_decoding_the_ids_of_a_report_gives_the_cleaned_report(kind, extra):
  tokenizer = build(kind, REPORTS + [extra] * (kind == "word"))     # SentencePiece falls back to characters
  for report in [*REPORTS, extra]:
    assert tokenizer.decode(tokenizer.encode(report)) == clean(tokenizer, report)


@pytest.mark.parametrize("kind,shared", [("word", True), ("word", False), ("sentencepiece", False)])
def test_training_ids_are_truncated_and_padded(kind, shared):
  tokenizer = build(kind, shared_special_ids=shared)
  ids = tokenizer.encode(REPORTS[0])
  for max_length in (len(ids) + 3, len(ids) + 1, len(ids), 4):
    padded = tokenizer.encode_for_training(REPORTS[0], max_length)
    length = min(len(ids), max_length - 1)
    assert padded.shape == (max_length + 1,) and padded.dtype == "int32"
    assert padded.tolist() == [tokenizer.bos_id, *ids[:length], tokenizer.eos_id,
                               *[tokenizer.pad_id] * (max_length - 1 - length)]
    assert tokenizer.decode(padded) == tokenizer.decode(ids[:length])
  assert tokenizer.decode([ids[0], tokenizer.eos_id, ids[1]]) == tokenizer.decode(ids[:1])
  assert tokenizer.decode([]) == tokenizer.decode([tokenizer.bos_id, tokenizer.eos_id]) == ""


@pytest.mark.parametrize("kind,shared", [("word", True), ("word", False), ("sentencepiece", False)])
def test_saved_tokenizer_is_loaded_unchanged(kind, shared, tmp_path):
  tokenizer = build(kind, shared_special_ids=shared)
  tokenizer.save(epath.Path(tmp_path))
  loaded = tokenizers.load_tokenizer(epath.Path(tmp_path))
  assert loaded.get_vocabulary() == tokenizer.get_vocabulary()
  for attribute in ("kind", "cleaning", "pad_id", "bos_id", "eos_id", "unk_id", "vocab_size"):
    assert getattr(loaded, attribute) == getattr(tokenizer, attribute), attribute
  assert loaded.encode(REPORTS[3]) == tokenizer.encode(REPORTS[3])


def test_sentencepiece_is_deterministic_and_may_have_fewer_pieces_than_asked():
  first, second = build("sentencepiece", vocab_size=5000), build("sentencepiece", vocab_size=5000)
  assert first.get_vocabulary() == second.get_vocabulary() and 50 < first.vocab_size < 500
  assert first.get_vocabulary()[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_invalid_settings_are_named():
  for fields, message in [({"kind": "sentencepiece", "vocab_size": 10}, "vocab_size=10"),
                          ({"kind": "bpe"}, "tokenizer.kind=bpe"),
                          ({"kind": "sentencepiece", "shared_special_ids": True}, "shared_special_ids")]:
    with pytest.raises(UserError, match=message):
      build(**fields)


def test_a_threshold_above_every_count_is_refused():
  for shared_special_ids in (False, True):
    with pytest.raises(UserError, match="threshold 99.*2 times"):       # full stops alone are no vocabulary
      tokenizers.WordTokenizer.train(["Heart big. Heart small."] + ["..."] * 100, "iu_xray", 99, shared_special_ids)
  tokenizer = tokenizers.WordTokenizer.train(["Heart big. Heart small."], "iu_xray", 2, False)
  assert tokenizer.get_vocabulary()[4:] == [".", "heart"]


def test_the_fraction_of_unknown_words():
  tokenizer = tokenizers.WordTokenizer.train(["heart big", "heart"], "iu_xray", 2, False)  # knows "heart" and "."
  assert tokenizers.measure_unk_fraction(tokenizer, ["heart big", "a heart"]) == pytest.approx(2 / 6)
  assert tokenizers.measure_unk_fraction(tokenizer, []) == 0


@pytest.mark.parametrize("change", [
    {"kind": "bpe"}, {"kind": []}, {"cleaning": "none"}, {"cleaning": {}}, {"words": "abc"}, {"words": [1, 2]},
    {"words": ["a", "a"]}, {"words": None}, {"words": [""]}, {"words": [["a"]]}, {"shared_special_ids": "no"},
    {"shared_special_ids": True}, {"words": ["<pad>"]}])
def test_fields_of_another_type_are_named(change, tmp_path):
  build("word").save(epath.Path(tmp_path))
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=f"tokenizer.json .*{next(iter(change))}"):
    tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 3000, b"[]", b"null", b"\xff", b"{}", b'"word"', b"1"])
def test_a_tokenizer_that_is_no_description_is_named(content, tmp_path):
  (tmp_path / "tokenizer.json").write_bytes(content)
  with pytest.raises(UserError, match="tokenizer.json .*damaged"):
    tokenizers.load_tokenizer(tmp_path)


def test_a_model_that_is_none_of_sentencepiece_is_named(tmp_path):
  (tmp_path / "sentencepiece.model").write_bytes(b"no model")
  (tmp_path / "tokenizer.json").write_text(json.dumps({
      "kind": "sentencepiece", "cleaning": "iu_xray", "model_sha256": hashlib.sha256(b"no model").hexdigest()}))
  with pytest.raises(UserError, match="sentencepiece.model"):
    tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind,name", [("word", "tokenizer.json"), ("sentencepiece", "tokenizer.json"),
                                       ("sentencepiece", "sentencepiece.model")])
def test_missing_and_truncated_files_are_named(kind, name, tmp_path):
  build(kind).save(epath.Path(tmp_path))
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(UserError, match=f"{name} .*damaged"):
    tokenizers.load_tokenizer(tmp_path)
  path.unlink()
  with pytest.raises(UserError, match=f"{name} not found"):
    tokenizers.load_tokenizer(tmp_path)
