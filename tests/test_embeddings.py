"""Word vectors: parity with gensim and autograd, properties of the batcher, the data, and bad input."""
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gensim.models import KeyedVectors, Word2Vec
from gensim.models.fasttext import compute_ngrams
from hypothesis import given, settings as hypothesis_settings, strategies as st

from klue_course import bench
from klue_course.checks.lab_01_0 import context_weights, key_typos
from klue_course.data import load
from klue_course.embeddings import (ANALOGIES, MAP, SIMILARITY, TYPOS, Batch, PieceTable, Settings, Vocabulary, WordTable, WordVectors, analogy,
                                    cbow_step, char_ngrams, count_vocabulary, draw_noise, encode_corpus, jamo_pieces, keep_probability, make_batches,
                                    measure_embeddings, neighbour_overlap, noise_steps, rank_of, shuffled, skipgram_step, syllable_pieces, to_jamo,
                                    to_plane, train_gensim, train_vectors, typo_ranks, typo_scores, word_rows)
from klue_course.runtime import InputError
from klue_course.tokenization import split_syllable

WORDS = st.text(st.sampled_from("가각값나다힣ㄱㅏaZ1<>- "), min_size=0, max_size=8)
ROWS = st.lists(st.lists(st.sampled_from("가나다라마"), max_size=9), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    return word_rows(shuffled(list(dict.fromkeys(load("corpus", "mini")["train"]["text"])), 0)[:2_500])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the batcher


def batches(rows, settings, seed=0):
    vocab = Vocabulary(list("가나다라마"), torch.ones(5))
    return vocab, list(make_batches(*encode_corpus(rows, vocab), noise_steps(vocab.counts), settings, generator(seed)))


@hypothesis_settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([1, 2, 7, 32]), st.integers(1, 3))
def test_batches_hold_every_pair_of_neighbours_once(rows, block, blocks):
    vocab, found = batches(rows, Settings(window=1, block=block, blocks=blocks))
    pairs = Counter()
    for batch in found:
        place = batch.mask.nonzero(as_tuple=True)
        pairs.update(zip(batch.centers[place[:2]].tolist(), batch.spans[place[0], place[2]].tolist()))
    wanted = Counter((a, b) for row in rows for a, b in [*zip(row, row[1:]), *zip(row[1:], row)] if a != b)
    assert pairs == Counter({(vocab.index[a], vocab.index[b]): times for (a, b), times in wanted.items()})


def test_windows_are_drawn_evenly():
    rows = [list("가나다라마"), list("마다가")]
    pairs, rounds = Counter(), 1_500
    for seed in range(rounds):
        vocab, found = batches(rows, Settings(window=4, block=4, blocks=2), seed)
        for batch in found:
            place = batch.mask.nonzero(as_tuple=True)
            pairs.update(zip(batch.centers[place[:2]].tolist(), batch.spans[place[0], place[2]].tolist()))
    for (a, b), weight in context_weights(rows, 4).items():
        assert pairs[vocab.index[a], vocab.index[b]] / rounds == pytest.approx(weight, abs=0.06)


@pytest.mark.parametrize("pieces", [None, syllable_pieces], ids=["words", "pieces"])
@pytest.mark.parametrize("cbow", [False, True], ids=["skipgram", "cbow"])
@pytest.mark.parametrize("block,window", [(4, 1), (9, 3), (32, 5)])
def test_steps_follow_autograd(pieces, cbow, block, window):
    words = ["학교", "학교장", "물", "불", "나무", "바다"]
    spans, g = torch.randint(6, (3, block + 2 * window), generator=generator(1)), generator(2)
    place = torch.arange(block + 2 * window)
    near = (place - torch.arange(block)[:, None] - window).abs()
    mask = (near <= window) & (near > 0) & (torch.rand(3, block, block + 2 * window, generator=g) < 0.7)
    batch = Batch(spans, mask, torch.randint(6, (3, 7), generator=g))
    inputs = PieceTable(words, pieces, 5, g) if pieces else WordTable(6, 5, g)
    outputs = WordTable(6, 5, g)
    before = [inputs.weight.clone(), outputs.weight.clone()]
    free = [weight.clone().requires_grad_() for weight in before]

    def look(ids):  # the value is the mean of the pieces, the gradient that of their sum
        if not pieces:
            return F.embedding(ids, free[0])
        mean, total = (F.embedding_bag(inputs.rows[ids.reshape(-1)], free[0], mode=mode, padding_idx=inputs.blank) for mode in ("mean", "sum"))
        return (mean.detach() + total - total.detach()).view(*ids.shape, -1)

    share, loss = 3 / 7, 0
    for n, i in mask.any(2).nonzero().tolist():
        around = spans[n, mask[n, i]]
        wrong = free[1][batch.noise[n]]
        if cbow:
            v = look(around).mean(0).detach() + look(around).sum(0) - look(around).sum(0).detach()
            loss -= F.logsigmoid(free[1][batch.centers[n, i]] @ v) + share * F.logsigmoid(-wrong @ v).sum()
        else:
            v = look(batch.centers[n, i][None])[0]
            loss -= F.logsigmoid(free[1][around] @ v).sum() + len(around) * share * F.logsigmoid(-wrong @ v).sum()
    loss.backward()
    (cbow_step if cbow else skipgram_step)(inputs, outputs, batch, 3, 0.01)
    for old, new, weight in zip(before, (inputs.weight, outputs.weight), free):
        torch.testing.assert_close(new.detach(), old - 0.01 * weight.grad, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- beside gensim


def test_subsampling_and_noise_are_gensims(sentences):
    model = Word2Vec(sentences, vector_size=4, min_count=5, sample=1e-3, epochs=1, workers=1)
    vocab = count_vocabulary(sentences, 5)
    assert sorted(vocab.words) == sorted(model.wv.index_to_key)
    kept = torch.tensor([model.wv.get_vecattr(word, "sample_int") / 2**32 for word in vocab.words], dtype=torch.float32)
    torch.testing.assert_close(keep_probability(vocab.counts), kept, atol=1e-4, rtol=1e-4)
    shares = torch.tensor(model.cum_table.astype("float64")).diff(prepend=torch.zeros(1, dtype=torch.float64)) / model.cum_table[-1]
    ours = vocab.counts.pow(0.75) / vocab.counts.pow(0.75).sum()
    theirs = torch.stack([shares[model.wv.key_to_index[word]] for word in vocab.words])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_neighbours_and_analogies_are_gensims(sentences):
    model = train_vectors(sentences, Settings(dim=16, epochs=1))
    keyed = KeyedVectors(16)
    keyed.add_vectors(model.words, model.matrix.numpy())
    for word in model.words[20:60]:
        assert [near for near, _ in model.nearest(word, 5)] == [near for near, _ in keyed.most_similar(word, topn=5)]
        assert rank_of(model, word, keyed.most_similar(word, topn=5)[3][0]) == 4
    for a, b, c in zip(model.words[20:40], model.words[50:70], model.words[80:100]):
        assert analogy(model, a, b, c) == [keyed.most_similar(positive=[b, c], negative=[a], topn=1)[0][0]]


@hypothesis_settings(max_examples=100, deadline=None)
@given(WORDS, st.integers(1, 4), st.integers(0, 3))
def test_ngrams_are_gensims(word, shortest, more):
    assert sorted(char_ngrams(f"<{word}>", shortest, shortest + more)) == sorted(compute_ngrams(word, shortest, shortest + more))


def test_training_is_repeatable_and_near_gensim(sentences):
    settings = Settings(dim=32, epochs=3)
    one, same, peer = train_vectors(sentences, settings), train_vectors(sentences, settings), train_gensim(sentences, settings)
    assert torch.equal(one.matrix, same.matrix) and one.words == same.words
    other = train_gensim(sentences, replace(settings, seed=1))
    probes = one.words[30:230:2]
    assert neighbour_overlap(one, peer, probes) > neighbour_overlap(peer, other, probes) / 2


@pytest.mark.parametrize("pieces", [None, jamo_pieces], ids=["words", "pieces"])
def test_one_line_of_a_repeated_word_ruins_nothing(sentences, pieces):
    settings = Settings(dim=32, epochs=3)
    clean, odd = (train_vectors(rows, settings, pieces) for rows in (sentences, [*sentences, ["ㅋ"] * 400]))
    assert odd.matrix.isfinite().all()
    size = lambda model: model.matrix[[model.index[word] for word in clean.words[:300]]].norm(dim=1).mean().item()
    assert size(odd) == pytest.approx(size(clean), rel=0.1)


@pytest.mark.parametrize("pieces", [None, syllable_pieces, jamo_pieces])
def test_small_corpora_train(pieces):
    rows = [line.split() for line in ("나는 밥을 먹었다", "너는 밥을 먹었다", "비가 많이 내렸다")] * 100
    model = train_vectors(rows, Settings(dim=8, epochs=20, sample=1.0), pieces)
    assert model.matrix.isfinite().all() and model.matrix.norm(dim=1).max() < 30


def test_tables_work_without_data():
    ids = torch.zeros(2, 3, dtype=torch.long, device="meta")
    for table in (WordTable(7, 4), PieceTable(["학교", "물"], syllable_pieces, 4)):
        assert table.to("meta")(ids).shape == (2, 3, 4)


# ---------------------------------------------------------------- jamo and the lists


@hypothesis_settings(max_examples=200, deadline=None)
@given(WORDS, WORDS)
def test_jamo_keep_words_apart(one, other):
    syllables = sum("가" <= char <= "힣" for char in one)
    assert len(to_jamo(one)) == len(one) + 2 * syllables
    if "-" not in one + other:
        assert (to_jamo(one) == to_jamo(other)) == (one == other)


KEYS = ["ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ", "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ", "ㅋㅌㅊㅍㅠㅜㅡ"]
PLACE = {key: (row, column + 0.5 * row) for row, keys in enumerate(KEYS) for column, key in enumerate(keys)}


def test_typos_are_what_their_kind_says():
    assert sum(map(len, TYPOS.values())) >= 40 and len({typo for words in TYPOS.values() for typo in words}) == sum(map(len, TYPOS.values()))
    for typo, word in TYPOS["받침 빠짐"].items():
        assert [(a, b) for a, b in zip(to_jamo(typo), to_jamo(word), strict=True) if a != b][0][0] == "-"
    near = {key: "".join(other for other in PLACE if other != key and abs(PLACE[key][0] - PLACE[other][0]) <= 1
                         and abs(PLACE[key][1] - PLACE[other][1]) <= 1.5) for key in PLACE}
    for typo, word in TYPOS["이웃 글쇠"].items():
        assert typo in key_typos(word, near), typo
    for typo, word in TYPOS["붙여 씀"].items():
        assert typo.endswith(word) and typo != word
    for typo, word in TYPOS["비슷한 소리"].items():
        assert len(typo) == len(word) and typo != word


def test_lists_have_no_repetition():
    pairs = [frozenset(row[:2]) for row in SIMILARITY]
    assert len(pairs) == len(set(pairs)) >= 40 and all(0 <= score <= 10 and len(pair) == 2 for pair, (*_, score) in zip(pairs, SIMILARITY))
    assert len(set(ANALOGIES)) == len(ANALOGIES) and all(len(set(row)) == 4 for row in ANALOGIES)
    assert len(sum(MAP.values(), [])) == len(set(sum(MAP.values(), [])))


def test_typo_scores_count_what_has_no_vector():
    model = WordVectors(["대답", "얘기"], torch.eye(2))
    scores = typo_scores(typo_ranks(model))
    assert scores["모두"] == {"count": 2, "top1": 0.0, "top10": 0.0, "median": None}


def test_plane_leaves_out_unknown_words():
    model = WordVectors(list("가나다라"), torch.randn(4, 5, generator=generator()))
    assert list(to_plane(model, list("가나다하"))) == list("가나다")


def test_noise_is_always_a_word():
    assert set(draw_noise(noise_steps(torch.tensor([1.0, 1e-9, 3.0])), (50_000,), generator()).tolist()) <= {0, 1, 2}


def test_bench_compares_like_with_like():
    rows = bench.bench_embeddings(count=1_200, epochs=3)
    assert len(rows) == 4 and all(row["ours"] > 0 and row["peer"] > 0 and row["unit"] == "words/s" for row in rows)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("call", [
    lambda: train_vectors([]), lambda: train_vectors([["가", "나"]]), lambda: train_vectors([[]] * 9), lambda: count_vocabulary([["가"]], 2),
    lambda: char_ngrams("가", 0, 2), lambda: char_ngrams("가", 3, 2), lambda: WordVectors(["가"], torch.ones(1, 2)).vector("나"),
    lambda: WordVectors(["가"], torch.ones(1, 2)).nearest("나"), *(lambda name=name: Settings(**{name: 0}) for name in ("dim", "window", "rate", "block")),
    lambda: Settings(sample=float("nan")),
])
def test_bad_input_is_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value)


def test_measuring_needs_data(monkeypatch, tmp_path):
    monkeypatch.delenv("KLUE_COURSE_DATA", raising=False)
    with pytest.raises(InputError):
        measure_embeddings(path=tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []
