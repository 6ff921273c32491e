"""The uncased WordPiece tokenizer: known answers, and agreement with Hugging Face's Python tokenizer."""

import json
import random

import pytest

from input_pipeline.wordpiece import read_vocabulary, split_words, WordPiece
from mcsam_jax.errors import UserError

PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
          *("the lung ##s lungs are cl ##ear . , < > un ##k e ##f ##fus "
            "##ion x ##x / $ 1 2 ##2 cm 中 s i ß ##i ##c").split()]


def test_words_are_split_from_left_to_right_into_the_longest_pieces():
  tokenizer = WordPiece(PIECES)
  assert tokenizer.tokenize("The lungs are\nCLEAR.") == ["the", "lungs", "are", "cl", "##ear", "."]
  assert tokenizer.tokenize("lung effusions") == ["lung", "e", "##f", "##fus", "##ion", "##s"]
  assert tokenizer.tokenize("xxxx <unk> 12/2cm") == ["x", "##x", "##x", "##x", "<", "un", "##k", ">", "1", "##2", "/",
                                                   "[UNK]"]          # "2cm" begins with "2", but "##cm" is no piece
  assert tokenizer.tokenize("lung" + "s" * 97) == ["[UNK]"] != tokenizer.tokenize("lung" + "s" * 96)
  assert tokenizer.tokenize("[SEP]the[MASK]") == ["[SEP]", "the", "[MASK]"] and tokenizer.tokenize(" \n") == []


def test_accents_punctuation_and_control_characters():
  assert split_words("Éff\u00fcsion\u00a0a\u0301 b\x00c\u200bd \ufffd") == ["effusion", "a", "bcd"]
  assert split_words("5.2x7-cm $3^2") == ["5", ".", "2x7", "-", "cm", "$", "3", "^", "2"]
  assert split_words("\u201cclear\u201d 中文x") == ["\u201c", "clear", "\u201d", "中", "文", "x"]


def test_truncated_report_keeps_its_separator():
  tokenizer = WordPiece(PIECES)
  assert tokenizer.encode("") == [3, 4]
  assert tokenizer.encode("the lungs are", 5) == [3, 6, 9, 10, 4]
  assert tokenizer.encode("the lungs are .", 5) == [3, 6, 9, 10, 4]


def test_both_formats_of_vocabulary_files(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  assert read_vocabulary(tmp_path / "vocab.txt") == PIECES
  (tmp_path / "vocab.txt").write_bytes("\r\n".join(PIECES).encode("utf-8-sig"))
  assert read_vocabulary(tmp_path / "vocab.txt") == PIECES
  marked_pieces = ["\u2581" if piece == "[unused0]" else piece if piece.startswith("[") else
            piece[2:] if piece.startswith("##") else "\u2581" + piece for piece in PIECES]
  (tmp_path / "vocab.json").write_text(json.dumps(marked_pieces))
  assert read_vocabulary(tmp_path / "vocab.json") == PIECES


@pytest.mark.parametrize("name, content, message", [
    ("vocab.txt", b"the\nlung\n", r"\[PAD\]"), ("vocab.txt", b"\xff\xfe", "UTF-8"),
    ("vocab.json", b"{", "list"), ("vocab.json", b"[" * 3000, "list"),
    ("vocab.txt", b"a\n[PAD]\n[UNK]\n[CLS]\n[SEP]", "first piece .*a"), ("vocab.json", b"[1]", "list"),
    ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na", "1 of 6 pieces")])
def test_files_that_are_no_vocabulary_are_errors(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    read_vocabulary(tmp_path / name)
  with pytest.raises(UserError, match="nowhere.txt"):
    read_vocabulary(tmp_path / "nowhere.txt")


def test_tokenizer_agrees_with_transformers(tmp_path):
  legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy",
                               reason="needs transformers (extra bench)")
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
  theirs, ours = legacy.BertTokenizerLegacy(str(tmp_path / "vocab.txt")), WordPiece(PIECES)
  letters = "lungstheclearfusion 12\t\n.,<>$^`~'\u2019éİıßΣς\u0301\u0308\x00\x85\xa0\u200b\u2028\ufffd中\uf900한ﬁ"
  rng = random.Random(0)
  texts = ["".join(rng.choice(letters) for _ in range(rng.randint(0, 40))) for _ in range(2000)]
  texts += [" ".join(rng.choice(["the", "Lungs", "clear.", "effusions", "[SEP]", "12cm", "x"]) for _ in range(20))
            for _ in range(50)]
  assert [ours.tokenize(text) for text in texts] == [theirs.tokenize(text) for text in texts]
  for text in texts[:200]:
    assert ours.encode(text) == theirs.encode(text, truncation=True, max_length=512)
