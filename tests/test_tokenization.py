"""Properties of tokenization on arbitrary text, and parity with hgtk and tokenizers on real sentences."""
import random
import unicodedata

import hgtk
import pytest
from hypothesis import assume, given, settings, strategies as st
from tokenizers import Tokenizer as LibraryTokenizer, models, normalizers, pre_tokenizers, trainers

from klue_course.data import load
from klue_course.runtime import InputError
from klue_course.tokenization import (JAMO, PAD, SPECIALS, SYLLABLE, UNK, Tokenizer, Unit, bert_words, bpe_encode, build_vocab, compose,
                                      count_words, decompose, frequent_letters, glued_morphemes, inner_letters, length_statistics, letters_of,
                                      oov_rate, pad, train_subwords, train_wordpiece, wordpiece_encode, wordpiece_unit)

from .conftest import real_data

HANGUL = st.text(st.sampled_from("가각갂값나다힣ㄱㄲㅏㅋㅢᴥ a.大😀\u200b\u1100\u1161"), max_size=30)
TEXT = st.one_of(st.text(max_size=40), HANGUL)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    "Real sentences: 10,000 where there is a data directory, else the bundled ones."
    bundled = [*load("corpus", "mini")["train"]["text"], *(line for page in load("webpages", "mini")["train"]["keep"] for line in page)]
    if real_data() is None:
        return list(dict.fromkeys(bundled))
    news = [line for line in (real_data() / "corpus" / "wikinews.txt").read_text(encoding="utf-8").splitlines() if line]
    reviews = [line for line in (real_data() / "corpus" / "reviews_1.txt").read_text(encoding="utf-8").splitlines() if line]
    return [*random.Random(0).sample(news, 4_000), *random.Random(0).sample(reviews, 6_000)]


@pytest.fixture(scope="module")
def wordpiece(sentences):
    return train_wordpiece(sentences[::2], 4_000, limit_alphabet=1_000)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_jamo_come_back(text):
    assert compose(decompose(text)) == text
    assert JAMO.join(JAMO.split(text)) == text


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT)
def test_different_texts_have_different_jamo(one, other):
    assert (decompose(one) == decompose(other)) == (one == other)


def test_all_syllables_as_hgtk():
    syllables = [chr(code) for code in range(ord("가"), ord("힣") + 1)]
    assert len({decompose(syllable) for syllable in syllables}) == 11_172
    for syllable in syllables:
        assert decompose(syllable) == hgtk.text.decompose(syllable)
        assert compose(decompose(syllable)) == syllable == unicodedata.normalize("NFC", unicodedata.normalize("NFD", syllable))


def test_sentences_as_hgtk(sentences):
    for text in sentences:
        assert decompose(text) == hgtk.text.decompose(text, latin_filter=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=5), st.sampled_from([SYLLABLE, JAMO]), st.booleans(), st.integers(3, 20))
def test_batches(texts, unit, special, length):
    "Input untouched, equal rows, truncation before padding, and padding that statistics do not see."
    before = list(texts)
    tokenizer = Tokenizer(unit, build_vocab(map(unit.split, texts)), length)
    rows = tokenizer.batch_tokenize(texts, special, padding=True)
    assert texts == before and len(rows) == len(texts)
    assert all(len(row) == length for row in rows)
    assert all(len(ids) == length for ids in tokenizer.batch_encode(texts, special, padding=True))
    if texts:
        assert length_statistics(rows) == length_statistics(tokenizer.batch_tokenize(texts, special))
    if special:
        assert all(row[0] == "[CLS]" and [token for token in row if token != PAD][-1] == "[SEP]" for row in rows)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.sampled_from([SYLLABLE, JAMO]), st.booleans())
def test_decode_undoes_encode(text, unit, special):
    assume(not set(unit.split(text)) & set(SPECIALS))
    tokenizer = Tokenizer(unit, build_vocab([unit.split(text)]), 1_000)
    assert tokenizer.decode(tokenizer.encode(text, special)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5))
def test_pad(rows):
    before = [list(row) for row in rows]
    padded = pad(rows, value=-1)
    assert rows == before and len({len(row) for row in padded}) <= 1
    assert [[value for value in row if value != -1] for row in padded] == rows
    assert all(new is not old for new, old in zip(padded, rows))


def test_bad_lengths_and_empty_input():
    with pytest.raises(InputError):
        pad([[1, 2, 3]], length=2)
    assert pad([]) == [] and pad([], 4) == []
    assert oov_rate([], ["가"]) == 0.0
    assert build_vocab([["나", "가", "가"], ["다"]], size=7) == {token: i for i, token in enumerate([*SPECIALS, "가", "나"])}


def test_wordpiece_as_tokenizers(sentences, wordpiece):
    "The hand-made encoder against tokenizers on every sentence, none left out."
    vocab = wordpiece.get_vocab()
    library = [encoding.tokens for encoding in wordpiece.encode_batch(sentences, add_special_tokens=False)]
    ours = [[piece for word in bert_words(text) for piece in wordpiece_encode(word, vocab)] for text in sentences]
    assert ours == library
    assert any(UNK in row for row in ours) and len(sentences) >= (10_000 if real_data() else 2_000)


@settings(max_examples=300, deadline=None)
@given(text=HANGUL)
def test_wordpiece_on_odd_text(text, wordpiece):
    pieces = [piece for word in bert_words(text) for piece in wordpiece_encode(word, wordpiece.get_vocab())]
    assert pieces == wordpiece_unit(wordpiece).split(text)


def test_trainers_as_tokenizers(sentences):
    "Every merge in order (BPE) and every token with its id (WordPiece)."
    part = sentences[::3]
    library = LibraryTokenizer(models.BPE(unk_token=UNK))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False), pre_tokenizers.BertPreTokenizer()
    library.train_from_iterator(part, trainers.BpeTrainer(vocab_size=4_000, min_frequency=2, special_tokens=[UNK], show_progress=False))
    words = count_words(part)
    vocab, merges = train_subwords(words, [UNK, *letters_of(words)], 4_000)
    assert {token: i for i, token in enumerate(vocab)} == library.get_vocab()

    ranks, known = {pair: i for i, pair in enumerate(merges)}, set(vocab)
    for text in sentences:
        pieces = [piece for word in bert_words(text) for piece in bpe_encode(word, ranks)]
        assert [piece if piece in known else UNK for piece in pieces] == library.encode(text).tokens

    letters = frequent_letters(part, 1_000)
    ours, _ = train_subwords(count_words(part, "##", letters), [*SPECIALS, *inner_letters(letters), *letters], 4_000, prefix="##")
    assert {token: i for i, token in enumerate(ours)} == train_wordpiece(part, 4_000, limit_alphabet=1_000).get_vocab()


def test_training_is_repeatable(sentences):
    assert train_wordpiece(sentences[:2_000], 2_000).get_vocab() == train_wordpiece(sentences[:2_000], 2_000).get_vocab()


def test_glued_morphemes_come_back(sentences):
    for text in sentences[:2_000]:
        assert " ".join(glued_morphemes(text)).replace(" ##", "") == " ".join(bert_words(text))


def test_units_say_whether_they_are_exact():
    assert SYLLABLE.exact and JAMO.exact and not Unit(str.split, " ".join).exact
