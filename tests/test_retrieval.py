"""Retrieval: ranking against brute force, batches against single texts, the cache under every mishap, thresholds, the bot."""
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import csr_matrix
from sklearn.metrics.pairwise import cosine_similarity
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from klue_course import bench, retrieval
from klue_course.checks.lab_03_1 import group_mrr, nearest
from klue_course.data import load
from klue_course.retrieval import (BertEncoder, SimilarityBot, TfidfEncoder, cached_vectors, calibrate, choose_threshold, digest, embed,
                                   group_ranks, half_known, load_encoder, make_similarity_bot, merge_pairs, model_key, mrr, read_pairs, similarity,
                                   top_k, trial, unit)
from klue_course.runtime import InputError
from klue_course.tokenization import train_wordpiece

TEXTS = ["안녕", "오늘 날씨가 어때요?", "배고프다", "", "어제 산 우산을 또 잃어버렸는데 어떻게 하면 좋을까요", "ㅋㅋㅋ", "비", "안녕"]
SMALL = st.integers(1, 4).flatmap(lambda dim: st.tuples(*[
    arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(dim)), elements=st.integers(-2, 2).map(float)) for _ in range(2)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "A tiny random BERT with a WordPiece tokenizer."
    trained = train_wordpiece(load("chatbot", "mini")["train"]["Q"][:], 800, min_frequency=1)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64))
    place = tmp_path_factory.mktemp("모델")
    tokenizer.save_pretrained(place)
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def encoder(folder) -> BertEncoder:
    return load_encoder(str(folder))


# ---------------------------------------------------------------- ranking


@settings(max_examples=80, deadline=None)
@given(SMALL, st.integers(1, 10), st.integers(1, 4))
def test_top_k_is_brute_force(pair, k, block):
    queries, vectors = pair
    values, rows = top_k(unit(queries), unit(vectors), k, block)
    for query, found_values, found_rows in zip(queries.tolist(), values, rows):
        expected, by_row = nearest(query, vectors.tolist(), k), dict(nearest(query, vectors.tolist(), len(vectors)))
        assert found_values == pytest.approx([score for _, score in expected], abs=2e-6)
        assert [by_row[row] for row in found_rows.tolist()] == pytest.approx([score for _, score in expected], abs=2e-6)
        assert len(set(found_rows.tolist())) == len(found_rows)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.randoms())
def test_equal_rows_come_in_their_order_wherever_they_stand(pair, rng):
    queries, vectors = map(unit, pair)
    places = [i for i in range(len(vectors)) for _ in range(3)]
    rng.shuffle(places)
    values, rows = top_k(queries, vectors[places], len(places))
    for found_values, found_rows in zip(values, rows):
        for (a, b), (i, j) in zip(zip(found_values, found_values[1:]), zip(found_rows, found_rows[1:])):
            assert a > b or i < j


def test_many_equal_rows_in_a_large_matrix_tie_exactly():
    g = np.random.default_rng(0)
    base = unit(g.normal(size=(7, 384)))
    order = g.permutation(np.repeat(np.arange(7), 501))
    scores = similarity(base, base[order])
    assert all(len(set(scores[q, order == row].tolist())) == 1 for q in range(7) for row in range(7))


def test_top_k_as_torch_and_scikit_learn():
    g = np.random.default_rng(1)
    queries, vectors = g.normal(size=(40, 16)), g.normal(size=(500, 16))
    values, rows = top_k(unit(queries), unit(vectors), 10, block=7)
    torch_values, torch_rows = torch.tensor(cosine_similarity(queries, vectors)).topk(10)
    np.testing.assert_allclose(values, torch_values, atol=1e-6)
    assert (rows == torch_rows.numpy()).all()


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 5))
def test_sparse_rows_rank_as_dense_ones(pair, k):
    queries, vectors = map(unit, pair)
    for one, other in zip(top_k(queries, vectors, k), top_k(csr_matrix(queries), csr_matrix(vectors), k)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("queries,vectors,k", [
    (np.ones((1, 3)), np.ones((2, 4)), 1), (np.ones((1, 3)), np.ones((2, 3)), 0), (np.ones((1, 3)), np.ones((0, 3)), 1),
    (np.array([[np.nan, 0.0]]), np.ones((2, 2)), 1), (np.ones((1, 2)), np.array([[np.inf, 0.0]]), 1)])
def test_top_k_refuses(queries, vectors, k):
    with pytest.raises(InputError):
        top_k(queries, vectors, k)


def test_no_queries_and_zero_vectors():
    assert top_k(np.ones((0, 2), np.float32), np.ones((3, 2), np.float32), 2)[0].shape == (0, 2)
    assert unit([[0, 0], [3, 4]]).tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]
    assert top_k(unit([[0, 0]]), unit([[1, 0], [0, 0]]), 2)[1].tolist() == [[0, 1]]


# ---------------------------------------------------------------- embedding


@pytest.mark.parametrize("how", ["cls", "pooler", "mean"])
@settings(max_examples=10, deadline=None)
@given(texts=st.lists(st.one_of(st.sampled_from(TEXTS), st.text(st.sampled_from("가나다라 ?ㅋa"), max_size=40)), max_size=9), batch_size=st.integers(1, 5))
def test_batches_equal_single_texts(encoder, how, texts, batch_size):
    together = embed(texts, encoder.tokenizer, encoder.model, how, batch_size, 64)
    assert together.shape == (len(texts), 32) and together.dtype == np.float32
    for text, vector in zip(texts, together):
        np.testing.assert_allclose(embed([text], encoder.tokenizer, encoder.model, how, 1, 64)[0], vector, atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_long_texts_are_truncated_and_training_mode_comes_back(encoder):
    model = encoder.model.train()
    try:
        once, again = (embed(["가 " * 500], encoder.tokenizer, model, max_length=64) for _ in range(2))
        np.testing.assert_array_equal(once, again)
        assert model.training
    finally:
        model.eval()


def test_a_vector_of_zeros_stays_zeros(encoder, monkeypatch):
    monkeypatch.setattr(retrieval, "pool", lambda output, mask, how: torch.zeros(len(mask), 32))
    assert (embed(TEXTS, encoder.tokenizer, encoder.model, max_length=64) == 0).all()


@pytest.mark.parametrize("texts,how", [("안녕", "mean"), (["안녕"], "max")])
def test_embed_refuses(encoder, texts, how):
    with pytest.raises(InputError):
        embed(texts, encoder.tokenizer, encoder.model, how)


def test_tfidf_of_unknown_text_is_zero():
    encode = TfidfEncoder(["가나다", "다라마"])
    assert encode(["QQ", ""]).nnz == 0
    with pytest.raises(InputError):
        TfidfEncoder([])


# ---------------------------------------------------------------- models


def test_model_without_pooler(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "tiny-e5-ko")
    BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "tiny-e5-ko")
    encoder = load_encoder(str(tmp_path / "tiny-e5-ko"))
    assert encoder.prefix == "query: " and encoder.model.pooler is None
    assert load_encoder(str(tmp_path / "tiny-e5-ko")).key == encoder.key
    np.testing.assert_array_equal(encoder(["안녕"]), replace(encoder, prefix="")(["query: 안녕"]))
    with pytest.raises(InputError, match="풀러"):
        load_encoder(str(tmp_path / "tiny-e5-ko"), "pooler")


def test_broken_model_is_one_line(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "상한 모델")
    (broken / "model.safetensors").write_bytes(b"nothing")
    for place in (broken, tmp_path):
        with pytest.raises(InputError) as caught:
            load_encoder(str(place))
        assert "\n" not in str(caught.value) and str(place) in str(caught.value)


def test_key_follows_the_content_not_the_place(folder, encoder, tmp_path):
    moved = load_encoder(str(shutil.copytree(folder, tmp_path / "다른 이름")))
    moved(TEXTS[:3])
    moved.tokenizer(TEXTS, padding=True, truncation=True, max_length=9)
    assert moved.key == encoder.key
    assert len({replace(encoder, **change).key for change in ({}, {"how": "cls"}, {"prefix": "q "}, {"max_length": 9})}) == 4
    with torch.no_grad():
        moved.model.encoder.layer[1].output.dense.bias[3] += 1e-3
    assert moved.key != encoder.key == replace(encoder).key
    moved.tokenizer.add_tokens(["새말"])
    assert model_key(moved.tokenizer, encoder.model) != model_key(encoder.tokenizer, encoder.model)


# ---------------------------------------------------------------- the cache


class Counted:
    "An encoder that counts its calls."

    def __init__(self, key="모델"):
        self.key, self.calls = key, 0

    def __call__(self, texts):
        self.calls += 1
        return unit([[len(text) + 1, text.count("가")] for text in texts])


@settings(max_examples=80, deadline=None)
@given(*[st.lists(st.text("a가\0\x01", max_size=3), max_size=3)] * 2)
def test_different_lists_have_different_keys(one, other):
    assert (digest(*one) == digest(*other)) == (one == other)


def test_cache_is_used_only_for_the_same_model_and_texts(tmp_path):
    counted = Counted()
    first = cached_vectors(TEXTS, counted, tmp_path / "새 폴더")
    np.testing.assert_array_equal(cached_vectors(TEXTS, counted, tmp_path / "새 폴더"), first)
    assert counted.calls == 1
    for texts in (TEXTS[1:], TEXTS[::-1], [*TEXTS, "더"], ["".join(TEXTS)]):
        cached_vectors(texts, counted, tmp_path / "새 폴더")
    cached_vectors(TEXTS, other := Counted("다른 모델"), tmp_path / "새 폴더")
    assert (counted.calls, other.calls) == (5, 1)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "text": lambda path: path.write_text("이것은 벡터가 아닙니다"),
    "other rows": lambda path: path.write_bytes(retrieval.save({"vectors": np.ones((3, 2), np.float32)}, {"sha256": digest(np.ones((3, 2), np.float32).tobytes())})),
    "no stamp": lambda path: path.write_bytes(retrieval.save({"vectors": np.ones((len(TEXTS), 2), np.float32)})),
    "other name": lambda path: path.write_bytes(retrieval.save({"rows": np.ones((len(TEXTS), 2), np.float32)})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_computed_again_with_one_line(damage, tmp_path, capsys):
    counted = Counted()
    first = cached_vectors(TEXTS, counted, tmp_path)
    path, = tmp_path.iterdir()
    DAMAGE[damage](path)
    np.testing.assert_array_equal(cached_vectors(TEXTS, counted, tmp_path), first)
    said = capsys.readouterr()
    assert counted.calls == 2 and said.out == "" and len(said.err.splitlines()) == 1 and path.name in said.err
    np.testing.assert_array_equal(cached_vectors(TEXTS, counted, tmp_path), first)
    assert counted.calls == 2 and capsys.readouterr().err == ""


def test_unwritable_folder_is_no_reason_to_stop(tmp_path, capsys, monkeypatch):
    (tmp_path / "파일").write_text("폴더가 아님")

    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    counted = Counted()
    assert len(cached_vectors(TEXTS, counted, tmp_path / "파일")) == len(TEXTS)
    monkeypatch.setattr(retrieval, "write_atomic", refuse)
    assert len(cached_vectors(TEXTS, counted, tmp_path)) == len(TEXTS)
    assert "Permission denied" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["파일"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("klue_course.runtime.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_vectors(TEXTS, Counted(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- measures


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.booleans()), max_size=12), st.sampled_from([0.5, 0.75, 0.9, 1.0]))
def test_threshold_is_the_lowest_that_will_do(pairs, precision):
    good = [score for score in {score for score, _ in pairs}
            if np.mean([right for other, right in pairs if other >= score]) >= precision]
    scores, correct = [score for score, _ in pairs], [right for _, right in pairs]
    assert choose_threshold(scores, correct, precision) == min(good, default=math.inf)


@pytest.mark.parametrize("scores,correct,precision", [([0.1], [True, False], 0.9), ([math.nan], [True], 0.9), ([0.1], [True], 0), ([0.1], [True], 1.1)])
def test_threshold_refuses(scores, correct, precision):
    with pytest.raises(InputError):
        choose_threshold(scores, correct, precision)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 9), st.randoms())
def test_group_ranks_as_the_lab_and_in_any_order(pair, block, rng):
    vectors = unit(np.repeat(pair[0], 2, axis=0))
    groups = [i // 2 for i in range(len(vectors))]
    ranks = group_ranks(vectors, groups, block)
    assert mrr(ranks) == pytest.approx(group_mrr(similarity(vectors, vectors).tolist(), groups))
    order = rng.sample(range(len(vectors)), len(vectors))
    assert group_ranks(vectors[order], [groups[i] for i in order], block) == [ranks[i] for i in order]


def test_group_ranks_refuse_a_lonely_row():
    with pytest.raises(InputError):
        group_ranks(np.ones((3, 2), np.float32), [0, 0, 1])


def test_trial_on_the_bundled_paraphrases():
    sentences = load("parakqc", "mini")["train"]["sentence"][:]
    groups = [i // 10 for i in range(len(sentences))]
    encode = TfidfEncoder(sentences)
    exam = half_known(sentences, groups)
    scores, right, rows = trial(encode, *exam)
    known = np.array(exam[3]) % 2 == 0
    assert not right[~known].any() and right[known].mean() > 0.6 and len(exam[0]) == 50 and len(exam[2]) == 900
    assert scores[right].mean() > scores[~right].mean() + 0.1
    assert 0 < calibrate(encode) < 0.999


# ---------------------------------------------------------------- the bot


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["배고파", "배 고파", "배고파 ", "졸려", "심심해"]), st.sampled_from("가나다")), min_size=1, max_size=9), st.randoms())
def test_rows_in_another_order_answer_the_same(pairs, rng):
    encode = TfidfEncoder(["배고파 졸려 심심해"])
    mixed = rng.sample(pairs, len(pairs))
    bots = [SimilarityBot(*zip(*rows), encode) for rows in (pairs, mixed)]
    for text in ("배고파", "  배고파", "졸려요", "모름"):
        assert bots[0].ask(text) == bots[1].ask(text)


def test_bot_answers_declines_and_speaks_english(monkeypatch):
    bot = SimilarityBot(["배고파", "졸려"], ["먹어요", "자요"], TfidfEncoder(["배고파", "졸려"]), threshold=0.5)
    assert bot.ask("배고파")[:2] == ("먹어요", "배고파") and bot.ask("배고파").known
    assert [bot.ask(text).known for text in ("", "  ", "QQ", "주식")] == [False] * 4
    assert bot.ask("QQ").answer == retrieval.FALLBACK[0]
    monkeypatch.setenv("KLUE_COURSE_LANG", "en")
    assert SimilarityBot(["a"], ["b"], TfidfEncoder(["a b"]), 2.0).ask("a").answer == retrieval.FALLBACK[1]


def test_most_frequent_answer_wins():
    assert merge_pairs(["가", "가", "가", "나"], ["2", "1", "2", "3"]) == {"가": "2", "나": "3"}
    assert merge_pairs(["가", " 가 "], ["2", "1"]) == {"가": "1"}
    for pairs in (([], []), (["가"], [])):
        with pytest.raises(InputError):
            merge_pairs(*pairs)


BAD_FILES = {
    "missing": (None, "파일이 없습니다"),
    "empty": ("", "빈 파일"),
    "other columns": ("질문,답\n가,나\n", "1행"),
    "a row too short": ("Q,A,label\n가,나,0\n다\n", "3행"),
    "unknown label": ("Q,A,label\n가,나,9\n", "2행"),
    "cp949": ("Q,A,label\n안녕,반가워,0\n".encode("cp949"), "CP949"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_one_line_with_its_place(case, tmp_path):
    content, words = BAD_FILES[case]
    path = tmp_path / "대화.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        make_similarity_bot(path, "tfidf")
    assert words in str(caught.value) and "대화.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_bot_of_a_file_and_a_model(folder, tmp_path, capsys):
    path = tmp_path / "대화.csv"
    path.write_text('Q,A,label\n배고파,"먹어요, 얼른",0\n졸려,자요,0\n졸려,자요,0\n', encoding="utf-8")
    for model in (folder, "tfidf"):
        bot = make_similarity_bot(path, model, tmp_path / "캐시")
        assert bot.questions == ["배고파", "졸려"] and bot.ask("배고파").answer == "먹어요, 얼른" and bot.threshold <= 0.999
    assert len(list((tmp_path / "캐시").iterdir())) == 2 and capsys.readouterr().out == ""
    with pytest.raises(InputError):
        make_similarity_bot(path, tmp_path / "없는 모델")
    assert len(read_pairs(None)[0]) > 700


def test_bench_gives_the_same_matches(encoder):
    rows = bench.bench_similarity(60, 2, replace(encoder, max_length=64))
    assert [row["same"] for row in rows] == ["2/2", "2/2"] and all(row["milliseconds"] > 0 for row in rows)
