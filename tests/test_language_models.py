"""Language models: counts against dictionaries, probabilities that sum to 1, parity with NLTK, no look into the future, no padding that counts."""
import math
import random
from collections import Counter

import nltk.lm
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from klue_course.data import stream
from klue_course.language_models import (
    CODAS, NFD, ONSETS, VOWELS, AddK, AttentiveLM, Encoder, KneserNey, NgramCounts, RecurrentLM, Seq2Seq, SortedCounts, accuracy_by_length, attend,
    character_accuracy, edit_distance, estimate_discount, fit, generate, learning_rate, next_token_loss, ngram_windows, pack, pair_batches, pair_loss,
    padded, perplexity, phrases, reverse_rows, romanization_tokenizers, romanize, split_documents, stream_batches, stream_log_probs, stream_text,
    token_stream, train_romanizer, transliterate)
from klue_course.runtime import InputError, seed_everything
from klue_course.tokenization import SEP, UNK, build_vocab

SIZE = 6
STREAM = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=60).map(lambda ids: np.array(ids, np.int64))
ORDER = st.integers(1, 5)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [line for document in stream("corpus", "mini") for line in document][:3_000]


# ---------------------------------------------------------------- counting


@settings(max_examples=100, deadline=None)
@given(STREAM, ORDER)
def test_sorted_counts_as_a_dictionary(ids, order):
    windows = ngram_windows(ids, order, 0)
    counts, table = Counter(map(tuple, windows.tolist())), SortedCounts(pack(windows, SIZE))
    assert table.of(pack(np.array(list(counts)), SIZE)).tolist() == list(counts.values())
    assert len(table.keys) == len(counts) and table.counts.sum() == len(ids) and table.nbytes == 8 * (2 * len(counts) + 1)
    unseen = [gram for gram in np.ndindex(*[SIZE] * min(order, 3)) if order <= 3 and gram not in counts]
    assert not unseen or not table.of(pack(np.array(unseen), SIZE)).any()


@settings(max_examples=100, deadline=None)
@given(STREAM, ORDER)
def test_contexts_lie_side_by_side(ids, order):
    windows = ngram_windows(ids, order, 0)
    table, keys = SortedCounts(pack(windows, SIZE)), pack(windows, SIZE)
    kinds, total = table.between(keys - keys % SIZE, keys - keys % SIZE + SIZE)
    contexts = [tuple(row[:-1]) for row in windows.tolist()]
    after = {context: [row[-1] for row, own in zip(windows.tolist(), contexts) if own == context] for context in contexts}
    assert kinds.tolist() == [len(set(after[context])) for context in contexts]
    assert total.tolist() == [len(after[context]) for context in contexts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1_399), min_size=6, max_size=6), st.lists(st.integers(0, 1_399), min_size=6, max_size=6))
def test_keys_keep_order_and_never_collide(one, other):
    first, second = pack(np.array([one, other]), 1_400).tolist()
    assert (first < second) == (one < other) and (first == second) == (one == other)


def test_bad_counting():
    for ngrams, size in [(np.zeros((1, 7)), 1_400), (np.array([[0, 5]]), 5), (np.array([[-1, 0]]), 5)]:
        with pytest.raises(InputError):
            pack(ngrams, size)
    counts = NgramCounts(np.array([1, 2, 3]), 2, SIZE, 0)
    for wrong in (lambda: NgramCounts(np.array([1]), 0, SIZE, 0), lambda: NgramCounts(np.array([], int), 2, SIZE, 0), lambda: AddK(counts, 0),
                  lambda: AddK(counts, -1), lambda: KneserNey(counts, 1.0), lambda: KneserNey(counts, 0.0), lambda: KneserNey(counts).next_probs([SIZE])):
        with pytest.raises(InputError):
            wrong()


# ---------------------------------------------------------------- n-gram models


@settings(max_examples=100, deadline=None)
@given(STREAM, ORDER, st.lists(st.integers(0, SIZE - 1), max_size=7), st.sampled_from([None, 0.1, 0.75]), st.sampled_from([2.0, 0.01]))
def test_probabilities_sum_to_one(ids, order, context, discount, k):
    counts = NgramCounts(ids, order, SIZE, 0)
    for model in (KneserNey(counts, discount), KneserNey(counts, discount, uniform=False), AddK(counts, k)):
        probs = model.next_probs(context)
        assert probs.shape == (SIZE,) and math.isclose(probs.sum(), 1, abs_tol=1e-9) and (probs >= 0).all()
    assert (KneserNey(counts, discount).next_probs(context) > 0).all()


@settings(max_examples=50, deadline=None)
@given(STREAM, ORDER)
def test_log_probs_are_those_of_next_probs(ids, order):
    model = KneserNey(NgramCounts(ids, order, SIZE, 0))
    expected = [math.log(model.next_probs(ids[:place].tolist())[token]) for place, token in enumerate(ids)]
    assert np.allclose(model.log_probs(ids), expected)


def as_nltk(ids, order: int) -> list[tuple[str, ...]]:
    "All n-grams up to a length that end in a token of the stream."
    return [tuple(map(str, row[-n:])) for row in ngram_windows(ids, order, 0) for n in range(1, order + 1)]


def same_as_nltk(train, test, order: int, discount: float, k: float) -> None:
    longest = [gram for gram in as_nltk(test, order) if len(gram) == order]
    counts = NgramCounts(train, order, int(max(train.max(), test.max())) + 1, 0)
    library = nltk.lm.Lidstone(k, order, vocabulary=nltk.lm.Vocabulary(map(str, range(counts.size)), unk_label="0"))
    library.fit([as_nltk(train, order)])
    assert math.isclose(perplexity(AddK(counts, k * len(library.vocab) / counts.size).log_probs(test)), library.perplexity(longest), rel_tol=1e-9) \
        or len(library.vocab) != counts.size
    if order > 1:
        library = nltk.lm.KneserNeyInterpolated(order, discount=discount)
        library.fit([as_nltk(train, order)], list(map(str, train)))
        ours = KneserNey(counts, discount, uniform=False)
        assert np.allclose(np.exp(ours.log_probs(test)), [library.score(gram[-1], gram[:-1]) for gram in longest], atol=1e-12)
        assert math.isclose(perplexity(ours.log_probs(test)), library.perplexity(longest), rel_tol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, SIZE - 1), min_size=2, max_size=50), st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9]), st.randoms(use_true_random=False))
def test_random_streams_as_nltk(ids, order, discount, rng):
    test = rng.choices(ids, k=12)
    same_as_nltk(np.array(ids), np.array(test), order, discount, 0.3)


def test_sentences_as_nltk(sentences):
    vocab = build_vocab(map(list, sentences[:40]))
    train = token_stream(sentences[:40], vocab)
    test = token_stream(sentences[40:43], vocab)
    for order in (2, 3, 5):
        same_as_nltk(train, test[np.isin(test, train)], order, 0.1, 0.5)


def test_longer_contexts_do_no_harm(sentences):
    train_texts, held_out_texts = split_documents([[text] for text in dict.fromkeys(sentences)])
    vocab = build_vocab(map(list, train_texts), 1_400)
    train, held_out = token_stream(train_texts, vocab), token_stream(held_out_texts, vocab)
    values = [perplexity(KneserNey(NgramCounts(train, order, len(vocab), vocab[SEP])).log_probs(held_out)) for order in range(1, 7)]
    assert values[0] > values[1] > values[2] and values[5] < 1.05 * min(values)
    assert perplexity(KneserNey(NgramCounts(train, 3, len(vocab), vocab[SEP])).log_probs(train)) < values[2]


def test_discount_and_perplexity():
    assert estimate_discount(np.array([1, 1, 2, 5])) == 0.5 and estimate_discount(np.array([3, 4])) == 0.5
    assert estimate_discount(np.array([1] * 6 + [2] * 1)) == 0.75
    assert perplexity([math.log(0.5)] * 3) == pytest.approx(2)
    with pytest.raises(InputError):
        perplexity([])


# ---------------------------------------------------------------- texts and generation


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text("가나다", min_size=1, max_size=3), max_size=4), max_size=12), st.sampled_from([0.1, 0.5]))
def test_held_out_lines_are_new(documents, share):
    train, held_out = split_documents(documents, share)
    assert set(train) | set(held_out) == {line for document in documents for line in document}
    assert len(set(train) | set(held_out)) == len(train) + len(held_out)
    assert (train, held_out) == split_documents(documents, share)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("가나 다", max_size=6), max_size=5))
def test_streams_come_back(texts):
    vocab = build_vocab([list("가나 다")])
    assert stream_text(token_stream(texts, vocab), vocab) == "".join(f"{text}\n" for text in texts)
    assert token_stream(["라"], vocab).tolist() == [vocab[UNK], vocab[SEP]]


def test_generation():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    draw = lambda **options: Counter(generate(lambda ids: probs, 2_000, np.random.default_rng(0), **options))
    plain = draw()
    assert np.allclose([plain[i] / 2_000 for i in range(4)], probs, atol=0.04)
    assert set(draw(top_k=2)) == {0, 1} and set(draw(top_k=9)) == {0, 1, 2, 3}
    assert draw(temperature=0.3)[0] > 1_500 and draw(temperature=5.0)[0] < 750
    assert generate(lambda ids: np.eye(4)[(ids[-1] + 1) % 4], 5, np.random.default_rng(0), [2]) == [2, 3, 0, 1, 2, 3]
    for options in ({"temperature": 0}, {"top_k": 0}):
        with pytest.raises(InputError):
            generate(lambda ids: probs, 1, np.random.default_rng(0), **options)


def test_bad_texts():
    rng, vocab = random.Random(0), build_vocab([list("가나")])
    for wrong in (lambda: token_stream(["가"], {"가": 0}), lambda: split_documents([["가"]], share=1), lambda: phrases(["latin"], 1, 5, rng),
                  lambda: phrases(["가나다라마"], 4, 4, rng), lambda: next(stream_batches(np.arange(10), 4, 8, np.random.default_rng(0))),
                  lambda: stream_log_probs(Bigram(), token_stream([], vocab), 0), lambda: stream_log_probs(Bigram(), np.array([1]), 0, 4, 5)):
        with pytest.raises(InputError):
            wrong()


# ---------------------------------------------------------------- neural models


class Bigram(nn.Module):
    "Logits that depend on the last token only: what a window can't change."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(SIZE, SIZE)

    def forward(self, ids):
        return self.table(ids)


@settings(max_examples=60, deadline=None)
@given(STREAM, st.integers(1, 9), st.data())
def test_windows_predict_every_token_once(ids, length, data):
    torch.manual_seed(0)
    model, stride = Bigram(), data.draw(st.integers(1, length))
    logits = model(torch.from_numpy(np.concatenate([[0], ids[:-1]]))).log_softmax(-1)
    expected = logits[torch.arange(len(ids)), torch.from_numpy(ids)].detach().numpy()
    assert np.allclose(stream_log_probs(model, ids, 0, length, stride, batch=3), expected, atol=1e-5)


def test_batches_shift_by_one_and_cover_the_stream():
    ids = np.arange(1_000)
    seen = set()
    for _, (inputs, targets) in zip(range(200), stream_batches(ids, 4, 8, np.random.default_rng(0))):
        assert inputs.shape == targets.shape == (4, 8) and (targets == inputs + 1).all() and (inputs.diff(dim=1) == 1).all()
        seen |= set(targets.flatten().tolist())
    assert seen >= set(range(8, 992))


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("kind", [RecurrentLM, AttentiveLM])
def test_no_look_into_the_future(kind, cell):
    torch.manual_seed(0)
    model, ids = kind(SIZE, 8, cell, layers=2).eval(), torch.randint(SIZE, (3, 9))
    for place in range(9):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % SIZE
        one, other = model(ids), model(changed)
        torch.testing.assert_close(one[:, :place], other[:, :place])
        assert not torch.allclose(one[:, place], other[:, place], atol=1e-6)
    assert model.out.weight is model.embed.weight


def test_models_run_on_the_meta_device():
    meta = torch.device("meta")
    ids = torch.ones(2, 5, dtype=torch.long, device=meta)
    for model in (RecurrentLM(SIZE, 8), AttentiveLM(SIZE, 8)):
        assert model.to(meta)(ids).shape == (2, 5, SIZE)
    assert Encoder(SIZE, 4, 8).to(meta)(ids)[0].shape == (2, 5, 8)
    for attention in (True, False):
        assert Seq2Seq(SIZE, 7, attention, 4, 8).to(meta)(ids, ids).shape == (2, 5, 7)


def test_learning_rate_and_repeatable_training():
    rates = [learning_rate(step, 100, 1.0, warmup=10) for step in range(100)]
    assert rates[9] == max(rates) == 1.0 and sorted(rates[10:], reverse=True) == rates[10:] and 0 < rates[-1] < 0.01
    ids, histories = np.tile(np.arange(SIZE), 100), []
    for _ in range(2):
        seed_everything(1)
        model = RecurrentLM(SIZE, 16, dropout=0.0)
        histories.append(fit(model, stream_batches(ids, 4, 8, np.random.default_rng(0)), next_token_loss, 60, 0.02, watch=lambda model: model.training, every=20))
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert [row["step"] for row in histories[0]] == [20, 40, 60] and histories[0][-1]["loss"] < 0.3 < histories[0][0]["loss"]
    assert perplexity(stream_log_probs(model, ids[:50], SIZE - 1)) < 1.3 and not model.training


# ---------------------------------------------------------------- sequence to sequence


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_turn_within_their_length(lengths):
    rows = torch.zeros(len(lengths), max(lengths), 1)
    for row, length in zip(rows, lengths):
        row[:length, 0] = torch.arange(1, length + 1)
    turned = reverse_rows(rows, torch.tensor(lengths))
    assert [row[:length, 0].tolist() for row, length in zip(turned, lengths)] == [list(range(length, 0, -1)) for length in lengths]
    assert torch.equal(reverse_rows(turned, torch.tensor(lengths)), rows)


def test_encoder_as_a_bidirectional_lstm():
    torch.manual_seed(0)
    encoder, library = Encoder(9, 4, 10), nn.LSTM(4, 5, batch_first=True, bidirectional=True)
    library.load_state_dict({**encoder.forth.state_dict(), **{f"{name}_reverse": value for name, value in encoder.back.state_dict().items()}})
    ids = padded([[1, 2, 3, 4, 5], [6, 7], [8]])
    packed = nn.utils.rnn.pack_padded_sequence(encoder.embed(ids), torch.tensor([5, 2, 1]), batch_first=True)
    expected, (last, _) = library(packed)
    states, summary = encoder(ids)
    mask = (ids != 0)[..., None]
    torch.testing.assert_close(states * mask, nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)[0] * mask)
    torch.testing.assert_close(summary[0], torch.cat([last[0], last[1]], dim=-1))


def test_attention_as_scaled_dot_product_attention():
    torch.manual_seed(0)
    queries, memory = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()[:, None]
    context, weights = attend(queries, memory, mask)
    torch.testing.assert_close(context, F.scaled_dot_product_attention(queries, memory, memory, mask, scale=1.0))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))
    assert not weights.masked_select(~mask.expand_as(weights)).any()


@pytest.mark.parametrize("attention", [True, False])
def test_padding_changes_nothing_and_writing_agrees_with_training(attention):
    torch.manual_seed(0)
    model = Seq2Seq(9, 7, attention, 8, 16).eval()
    sources, targets = padded([[1, 2, 3, 4], [5, 6]]), torch.randint(1, 7, (2, 6))
    torch.testing.assert_close(model(sources[1:, :2], targets[1:]), model(sources, targets)[1:])
    torch.testing.assert_close(model(F.pad(sources, (0, 3)), targets), model(sources, targets))
    written, weights = model.translate(sources, start=2, length=6)
    inputs = torch.cat([torch.full((2, 1), 2), written[:, :-1]], dim=1)
    assert torch.equal(model(sources, inputs).argmax(-1), written)
    assert (weights is None) == (not attention) and (weights is None or not weights[1, :, 2:].any())


def test_pair_batches():
    pairs = [([1] * length, [2] * length) for length in range(1, 41)]
    batches = pair_batches(pairs, 4, 3, 4, random.Random(0), easy=50)
    sizes = []
    for _, (sources, inputs, targets) in zip(range(300), batches):
        assert len(sources) == len(inputs) == len(targets) == 4 and inputs.shape == targets.shape
        assert (inputs[:, 0] == 3).all() and ((targets == 4).sum(1) == 1).all()
        sizes.append(sources.shape[1])
    assert max(sizes[:10]) <= 24 and max(sizes) == 40
    assert next(pair_batches(pairs[:2], 4, 3, 4, random.Random(0)))[0].shape[0] == 2
    model = Seq2Seq(9, 9, True, 4, 8)
    wider = [F.pad(tensor, (0, 2)) for tensor in (sources, inputs, targets)]
    torch.testing.assert_close(pair_loss(model, *wider), pair_loss(model, sources, inputs, targets))


def test_a_few_phrases_can_be_learnt_by_heart():
    texts = ["신라", "종로", "독립문"]
    source, target = romanization_tokenizers(texts)
    model, history = train_romanizer(texts, source, target, True, steps=150, hidden=32, peak=0.02)
    assert transliterate(model, texts[::-1], source, target, 15) == ["dongnimmun", "jongno", "silla"]
    assert history[-1]["loss"] < 0.1


# ---------------------------------------------------------------- romanisation and its measure


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣")), min_size=1, max_size=8), st.sampled_from(["", " ", "!", " A1 "]))
def test_romanisation_of_any_hangul(word, between):
    letters = romanize(word)
    assert letters.isascii() and letters.isalpha() and letters == letters.lower()
    assert sum(letter in "aeiou" for letter in letters) >= len(word)
    assert romanize(word + between + "가") == (letters + between + "ga" if between else romanize(word + "가"))


def test_romanisation_of_each_syllable():
    assert all(romanize(chr(code)).startswith(ONSETS["ㄱ"] + VOWELS["ㅏ"]) for code in range(ord("가"), ord("개")))
    assert {romanize(chr(code))[2:] for code in range(ord("가"), ord("개"))} == set(CODAS.values())
    cases = "닭 dak 값 gap 읽다 ikda 맑음 malgeum 묻히다 muchida 붙이다 buchida 핥이다 halchida 음력 eumnyeok 협력 hyeomnyeok 난로 nallo 칼날 kallal 꽃하고 kkotago 싫어 sireo 끓네 kkeulle"
    words = cases.split()
    assert [romanize(word) for word in words[::2]] == words[1::2]


def slow_distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(slow_distance(one[1:], other) + 1, slow_distance(one, other[1:]) + 1, slow_distance(one[1:], other[1:]) + (one[0] != other[0]))


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance(one, other):
    assert edit_distance(one, other) == edit_distance(other, one) == slow_distance(one, other)
    assert not other or 0 <= character_accuracy(one, other) <= 100


def test_accuracy_by_length():
    rows = accuracy_by_length(["ga", "nana", "gada"], ["가", "나나", "가나"], [1, 2, 3, 9])
    assert [(row["letters"], row["n"], row["exact"], row["characters"]) for row in rows] == [("1–1", 1, 100.0, 100.0), ("2–2", 2, 50.0, 87.5)]


def test_phrases(sentences):
    found = phrases(sentences, 300, 12, random.Random(0))
    lengths = Counter(map(len, found))
    assert set(lengths) <= set(range(2, 13)) and max(lengths.values()) < 4 * min(lengths[length] for length in range(2, 12))
    assert all(NFD.join(NFD.split(phrase)) == phrase and phrase == " ".join(phrase.split()) for phrase in found)
    assert found == phrases(sentences, 300, 12, random.Random(0))
