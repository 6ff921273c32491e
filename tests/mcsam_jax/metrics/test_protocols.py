"""Each protocol does to references and hypotheses what its name promises."""

import shutil

import pytest

from input_pipeline.tokenizer import SentencePieceTokenizer, WordTokenizer
from mcsam_jax.metrics.protocols import apply_protocol

TRAIN = ["The heart is normal. No effusion.", "The heart is big. No effusion.",
         "The lungs are clear. No effusion."]
RAW = "1. The heart is HUGE. No effusion/pneumothorax."
CLEANED = "the heart is huge . no effusionpneumothorax ."


@pytest.fixture(params=[False, True], ids=["separate ids", "shared ids"])
def tokenizer(request):
  return WordTokenizer.train(TRAIN, "iu_xray", threshold=2, shared_special_ids=request.param)


def test_r2gen_replaces_rare_words_and_cuts(tokenizer):
  references, hypotheses = apply_protocol("r2gen", [RAW], [RAW], tokenizer, "iu_xray", 60)
  assert references == ["the heart is <unk> . no <unk> ."]
  assert hypotheses == [CLEANED]                            # a rare word that was written is not excused
  references, hypotheses = apply_protocol("r2gen", [RAW], [RAW], tokenizer, "iu_xray", 4)
  assert references == ["the heart is"]
  assert hypotheses == ["the heart is"]


def test_clean_only_cleans(tokenizer):
  assert apply_protocol("clean", [RAW], [RAW], tokenizer, "iu_xray", 4) == ([CLEANED], [CLEANED])


@pytest.mark.parametrize("protocol", ["r2gen", "clean"])
def test_hypotheses_keep_unknown_words_and_stay_empty(protocol, tokenizer):
  written = ["the heart is <unk> .", "", " ", "the unk is <unk> ."]
  _, hypotheses = apply_protocol(protocol, written, written, tokenizer, "iu_xray", 60)
  assert hypotheses == ["the heart is <unk> .", "", "", "the unk is <unk> ."]


def test_a_cut_report_gets_no_stop_under_r2gen(tokenizer):
  written = "the heart is"                                  # all that 3 tokens and eos allow
  _, hypotheses = apply_protocol("r2gen", [RAW], [written], tokenizer, "iu_xray", 4)
  assert hypotheses == [written]


def test_what_a_perfect_model_would_write_is_the_reference(tokenizer):
  references, _ = apply_protocol("r2gen", [*TRAIN, RAW], [""] * 4, tokenizer, "iu_xray", 6)
  _, hypotheses = apply_protocol("r2gen", references, references, tokenizer, "iu_xray", 6)
  assert hypotheses == references


def test_sentencepiece_references_are_cut_by_pieces():
  tokenizer = SentencePieceTokenizer.train(TRAIN * 20, "iu_xray", vocab_size=60)
  whole, _ = apply_protocol("r2gen", TRAIN, TRAIN, tokenizer, "iu_xray", 60)
  clean, _ = apply_protocol("clean", TRAIN, TRAIN, tokenizer, "iu_xray", 60)
  assert whole == clean
  short, _ = apply_protocol("r2gen", TRAIN, TRAIN, tokenizer, "iu_xray", 5)
  assert all(long.startswith(cut) and 0 < len(cut) < len(long) for cut, long in zip(short, whole))


@pytest.mark.skipif(not shutil.which("java"), reason="PTB tokens: Java is not installed")
def test_raw_is_lower_case_tokens_without_punctuation(tokenizer):
  references, hypotheses = apply_protocol(
      "raw", ["The heart's size is 3.5 cm (large).\nNo effusion.", ""], ["Heart <unk>, naïve.", "ok"],
      tokenizer, "iu_xray", 4)
  assert references == ["the heart 's size is 3.5 cm -lrb- large -rrb- no effusion", ""]
  assert hypotheses == ["heart <unk> naïve", "ok"]


@pytest.mark.skipif(not shutil.which("java"), reason="PTB tokens: Java is not installed")
def test_raw_is_what_pycocoevalcap_gives(tokenizer):
  from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
  reports = [*TRAIN, RAW, "No acute disease; \"stable\" - T1-T2 [x] & 50%..."]
  expected = PTBTokenizer().tokenize({i: [{"caption": report}] for i, report in enumerate(reports)})
  references, _ = apply_protocol("raw", reports, [], tokenizer, "iu_xray", 4)
  assert references == [expected[i][0] for i in range(len(reports))]


def test_unknown_name(tokenizer):
  with pytest.raises(ValueError, match="r2gen, clean, raw"):
    apply_protocol("r2", TRAIN, TRAIN, tokenizer, "iu_xray", 60)
