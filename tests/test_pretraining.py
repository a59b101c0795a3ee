"""Pre-training: its parts against transformers' and a plain reading; killed and resumed; bad input."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, DataCollatorForLanguageModeling, pipeline

from klue_course import data
from klue_course.pretraining import (CONFIGS, Corpus, MaskedBert, Pretrainer, Recipe, Steps, encode_corpus, fill_mask, heldout_loss, hold_out, mask_tokens,
                                     new_model, nsp_spans, pack_blocks, pair_batch, pretrain, pseudo_log_likelihood, ready_backbone, save_model,
                                     select, train_tokenizer, warm_start, word_numbers)
from klue_course.runtime import InputError
from tests.conftest import ROOT, command, environment

SMALL = dict(vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    return list(data.stream("corpus", "mini"))[:200]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_tokenizer([line for document in documents for line in document], 600, 64)


@pytest.fixture(scope="module")
def corpus(documents, tokenizer) -> Corpus:
    return encode_corpus(documents, tokenizer, batch=300)


@pytest.fixture(scope="module")
def model(corpus, tokenizer) -> MaskedBert:
    torch.manual_seed(0)
    return new_model(BertConfig(**SMALL | {"vocab_size": len(tokenizer)}), corpus).eval()


# ---------------------------------------------------------------- text becomes numbers


def test_corpus_is_what_the_tokenizer_makes_line_by_line(documents, tokenizer, corpus):
    lines = [line for document in documents for line in document]
    rows = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert corpus.ids.tolist() == [number for row in rows for number in row]
    assert np.diff(corpus.sentences).tolist() == list(map(len, rows))
    assert np.diff(corpus.documents).tolist() == list(map(len, documents))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30).filter(lambda text: "\n" not in text), min_size=1, max_size=5))
def test_odd_text_too(tokenizer, lines):
    if sum(len(row) for row in tokenizer(lines, add_special_tokens=False)["input_ids"]):
        assert encode_corpus([lines], tokenizer).ids.tolist() == [n for row in tokenizer(lines, add_special_tokens=False)["input_ids"] for n in row]


def test_selected_documents_are_whole(documents, tokenizer, corpus):
    chosen = np.arange(len(corpus)) % 3 == 1
    other = encode_corpus([document for document, kept in zip(documents, chosen) if kept], tokenizer)
    mine = select(corpus, chosen)
    assert all(np.array_equal(getattr(mine, name), getattr(other, name)) for name in ("ids", "sentences", "documents"))
    train, held = hold_out(corpus, 10)
    assert len(train.ids) + len(held.ids) == len(corpus.ids) and len(held) == 20


def test_blocks_hold_every_token_once(tokenizer, corpus):
    blocks = pack_blocks(corpus, 32, tokenizer)
    text = blocks[:, 1:-1].ravel()
    assert (blocks[:, 0] == tokenizer.cls_token_id).all() and (blocks[:, -1] == tokenizer.sep_token_id).all()
    assert text[text != tokenizer.sep_token_id].tolist() == corpus.ids[: (text != tokenizer.sep_token_id).sum()].tolist()


# ---------------------------------------------------------------- sentence pairs


def document_of(corpus: Corpus, token: int) -> int:
    sentence = np.searchsorted(corpus.sentences, token, side="right") - 1
    return int(np.searchsorted(corpus.documents, sentence, side="right") - 1)


@pytest.mark.parametrize("length", [16, 64])
def test_pairs_are_of_one_document_or_of_two(corpus, length):
    spans = nsp_spans(corpus, length, np.random.default_rng(0))
    for a, a_end, b, b_end, other in spans:
        assert 0 < a_end - a and 0 < b_end - b and (a_end - a) + (b_end - b) <= length - 3
        documents = {document_of(corpus, token) for token in (a, a_end - 1)}, {document_of(corpus, token) for token in (b, b_end - 1)}
        assert len(documents[0]) == len(documents[1]) == 1
        assert (documents[0] == documents[1]) == (not other)
        if not other:
            assert b in corpus.sentences and b >= a_end
    assert 0.45 < spans[:, 4].mean() < 0.55
    assert {document_of(corpus, a) for a in spans[:, 0]} == set(range(len(corpus)))


def test_share_of_short_pairs(corpus):
    many = select(corpus, np.diff(corpus.documents) > 5)
    sizes = lambda short: np.diff(nsp_spans(many, 32, np.random.default_rng(0), short)[:, :4], axis=1)[:, ::2].sum(axis=1)
    assert (sizes(1.0) < 20).mean() > (sizes(0.1) < 20).mean() > (sizes(0.0) < 20).mean()


def test_pair_batch_is_what_the_tokenizer_would_write(documents, tokenizer, corpus):
    lines = [line for document in documents for line in document]
    ends = corpus.sentences
    spans = np.array([(ends[i], ends[i + 1], ends[i + 7], ends[i + 8], i % 2) for i in range(0, 120, 4)])
    theirs = tokenizer([lines[i] for i in range(0, 120, 4)], [lines[i + 7] for i in range(0, 120, 4)], padding=True, return_tensors="pt")
    batch = pair_batch(corpus, spans, tokenizer)
    assert all(torch.equal(batch[name], theirs[name]) for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert batch["next_sentence_label"].tolist() == spans[:, 4].tolist()


def test_one_document_cannot_make_pairs(corpus):
    with pytest.raises(InputError, match="문서"):
        nsp_spans(select(corpus, np.arange(len(corpus)) == 0), 32, np.random.default_rng(0))


# ---------------------------------------------------------------- masks and losses, beside transformers


def test_masks_equal_the_collator(tokenizer, corpus):
    blocks = torch.from_numpy(pack_blocks(corpus, 32, tokenizer)[:50].astype(np.int64))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=7)
    theirs = collator([{"input_ids": row} for row in blocks])
    inputs, labels = mask_tokens(blocks, tokenizer, torch.Generator().manual_seed(7))
    assert torch.equal(inputs, theirs["input_ids"]) and torch.equal(labels, theirs["labels"])


def test_whole_words_are_hidden_whole(tokenizer, corpus):
    blocks = torch.from_numpy(pack_blocks(corpus, 64, tokenizer).astype(np.int64))
    _, labels = mask_tokens(blocks, tokenizer, torch.Generator().manual_seed(0), whole_words=True)
    words, chosen = word_numbers(blocks, tokenizer), labels != -100
    special = torch.isin(blocks, torch.tensor(tokenizer.all_special_ids))
    for row in range(20):
        for word in words[row].unique():
            inside = (words[row] == word) & ~special[row]
            assert chosen[row][inside].float().mean() in (0, 1) or not inside.any()
    assert abs(chosen.sum() / (~special).sum() - 0.15) < 0.01 and not chosen[special].any()


@pytest.mark.parametrize("nsp", [False, True])
def test_loss_and_gradients_equal_transformers(tokenizer, corpus, model, nsp):
    batch = Steps(corpus, tokenizer, Recipe(steps=2, batch_size=8, length=48, nsp=nsp))[1]
    theirs = BertForPreTraining(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    both = BertForPreTraining.forward(theirs, **batch | ({} if nsp else {"next_sentence_label": torch.zeros(8, dtype=torch.long)}))
    model.zero_grad()
    mine = model(**batch)
    expected = both.loss if nsp else torch.nn.functional.cross_entropy(both.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    assert torch.allclose(mine["loss"], expected, atol=1e-6)
    mine["loss"].backward()
    expected.backward()
    for (name, ours), other in zip(model.named_parameters(), theirs.parameters()):
        if ours.grad is not None:
            assert torch.allclose(ours.grad, other.grad, atol=1e-6), name


def test_meta_device(model):
    moved = MaskedBert(model.config).to("meta")
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    assert moved.bert(ids).last_hidden_state.device.type == "meta"


# ---------------------------------------------------------------- what a model knows


def test_fill_mask_equals_the_pipeline(tokenizer, model, tmp_path):
    folder = save_model(model, tokenizer, tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["BertForPreTraining"]
    reader = pipeline("fill-mask", model=folder, tokenizer=folder, top_k=3)
    mine = fill_mask(BertForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), "나는 [MASK] 간다.", 3)
    theirs = reader("나는 [MASK] 간다.")
    assert [piece for piece, _ in mine] == [tokenizer.convert_ids_to_tokens(row["token"]) for row in theirs]
    assert np.allclose([share for _, share in mine], [row["score"] for row in theirs], atol=1e-6)
    assert fill_mask(model, tokenizer, "나는 [MASK] 간다.", 3) == mine  # before it is saved, too
    with pytest.raises(InputError, match="MASK"):
        fill_mask(model, tokenizer, "가린 곳이 없다")


def test_pseudo_log_likelihood_one_by_one(tokenizer, model):
    texts = ["나는 학교에 간다.", "비가 온다", "아침에 밥을 먹고 산책을 했다."]
    plain = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        total = 0.0
        for place in range(1, ids.size(1) - 1):
            masked = ids.clone()
            masked[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                total += model.cls.predictions(model.bert(masked).last_hidden_state)[0, place].log_softmax(0)[ids[0, place]].item()
        plain.append(total)
    assert np.allclose(pseudo_log_likelihood(model, tokenizer, texts, batch_size=5), plain, atol=1e-3)


# ---------------------------------------------------------------- from a teacher


@pytest.fixture(scope="module")
def teacher() -> str:
    folder = os.environ.get("KLUE_COURSE_BACKBONE") or str(ROOT.parent / "shared/models/multilingual-e5-small-ko")
    if not Path(folder).is_dir():
        pytest.skip("no pretrained encoder (KLUE_COURSE_BACKBONE)")
    return folder


def test_warm_start_borrows_pieces_layers_and_positions(tokenizer, teacher):
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1536, max_position_embeddings=64)
    student, theirs, names = warm_start(teacher, tokenizer, config), AutoModel.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    ours, vectors = student.bert.embeddings.word_embeddings.weight, theirs.get_input_embeddings().weight
    assert torch.equal(ours[tokenizer.mask_token_id], vectors[names.mask_token_id])
    known = names.get_vocab()
    piece = next(piece for piece in tokenizer.get_vocab() if "▁" + piece in known)
    assert torch.equal(ours[tokenizer.convert_tokens_to_ids(piece)], vectors[names.convert_tokens_to_ids("▁" + piece)])
    for mine, their in zip(student.bert.encoder.layer, theirs.encoder.layer[2::3]):
        assert torch.equal(mine.attention.self.query.weight, their.attention.self.query.weight)
    assert torch.equal(student.bert.embeddings.position_embeddings.weight, theirs.embeddings.position_embeddings.weight[:64])
    with pytest.raises(InputError, match="384"):
        warm_start(teacher, tokenizer, BertConfig(**SMALL))


# ---------------------------------------------------------------- a whole training


def write_corpus(documents, folder: Path) -> Path:
    path = folder / "글.txt"
    path.write_text("\n\n".join("\n".join(document) for document in documents), encoding="utf-8")
    return path


SCRIPT = """
import sys
from klue_course import pretraining
from klue_course.pretraining import Recipe, pretrain
pretraining.CONFIGS["small"] = {config}
pretrain(sys.argv[1], sys.argv[2], "small", Recipe(steps=40, batch_size=4, length=32), save_every=5, resume=len(sys.argv) > 3)
"""


def run_script(folder: Path, *arguments) -> subprocess.Popen:
    script = folder / "train.py"
    script.write_text(SCRIPT.format(config=SMALL), encoding="utf-8")
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], cwd=ROOT, env=environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_and_resumed_ends_with_the_same_weights(documents, tmp_path):
    text, seed = write_corpus(documents[:60], tmp_path), np.random.default_rng()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said = run_script(tmp_path, text, whole).communicate(timeout=200)[0]
    assert (whole / "model/model.safetensors").is_file(), said
    process = run_script(tmp_path, text, cut)
    least = int(seed.integers(1, 7)) * 5
    while process.poll() is None and not list((cut / "checkpoints").glob(f"checkpoint-{least}")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "model").exists()
    said = run_script(tmp_path, text, cut, "resume").communicate(timeout=200)[0]
    assert (cut / "model/model.safetensors").is_file(), said
    assert (whole / "model/model.safetensors").read_bytes() == (cut / "model/model.safetensors").read_bytes(), f"killed at checkpoint {least}"
    histories = [json.loads((out / "pretraining.json").read_text(encoding="utf-8"))["history"] for out in (whole, cut)]
    assert [[row["step"], row["mlm_loss"], row["nsp_loss"]] for row in histories[0]] == [[row["step"], row["mlm_loss"], row["nsp_loss"]] for row in histories[1]]
    assert sorted(path.name for path in cut.iterdir()) == ["model", "pretraining.json"]


def test_pretrain_refuses_what_it_would_lose(documents, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", SMALL)
    text, recipe = write_corpus(documents[:60], tmp_path), Recipe(steps=2, batch_size=2, length=32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("내 글", encoding="utf-8")
    for out, more, words in [(tmp_path / "mine", {}, "다른 파일"), (tmp_path / "new", {"resume": True}, "이어서"), (tmp_path / "new", {"config": "huge"}, "huge")]:
        with pytest.raises(InputError, match=words):
            pretrain(text, out, **{"config": "small", "recipe": recipe} | more)
    with pytest.raises(InputError, match="64"):
        pretrain(text, tmp_path / "long", "small", Recipe(steps=2, length=65))
    pretrain(text, tmp_path / "done", "small", recipe)
    with pytest.raises(InputError, match="끝난"):
        pretrain(text, tmp_path / "done", "small", recipe)
    again = pretrain(text, tmp_path / "more", recipe=recipe, start=tmp_path / "done/model")
    assert len(again["history"]) == 2 and AutoTokenizer.from_pretrained(tmp_path / "more/model").mask_token == "[MASK]"


def test_bad_corpus_is_one_line(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "cp949.txt").write_bytes("한글".encode("cp949"))
    for path in (tmp_path / "empty.txt", tmp_path / "cp949.txt", tmp_path / "none.txt"):
        with pytest.raises(InputError) as found:
            pretrain(path, tmp_path / "out", "tiny")
        assert "\n" not in str(found.value)


def test_ready_backbone_loads_in_plain_transformers(tmp_path, monkeypatch):
    folder = ready_backbone()
    assert ready_backbone() == folder
    found = BertForPreTraining.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == found.config.vocab_size


# ---------------------------------------------------------------- the command line


def test_pretrain_from_the_command_line(documents, tmp_path):
    (tmp_path / "a").mkdir()
    one, other = write_corpus(documents[:60], tmp_path), write_corpus(documents[60:90], tmp_path / "a")
    words = ["pretrain", "bert", "--corpus", one, other, "--out", "나의 BERT", "--config", "tiny", "--steps", "3", "--batch-size", "4", "--length", "32"]
    done = command(*words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "MLM" in done.stderr and done.stdout == "", done.stderr
    result = json.loads((tmp_path / "나의 BERT/pretraining.json").read_text(encoding="utf-8"))
    assert result["recipe"]["steps"] == 3 and len(result["history"]) == 3 and result["heldout"]["mlm_loss"] > 0
    assert BertForPreTraining.from_pretrained(tmp_path / "나의 BERT/model").config.vocab_size == result["vocab_size"]


@pytest.mark.parametrize("words, said", [
    (["gpt"], "gpt"), (["bert", "--steps", "0"], "steps"), (["bert", "--minutes", "1", "--steps", "2"], "--minutes"), (["bert", "--config", "huge"], "huge"),
    (["bert", "--mask-rate", "1.5"], "mask_rate"), (["bert", "--from", "없는 모델"], "없는 모델"), (["bert", "--resume"], "이어서"), (["elmo"], "elmo")])
def test_wrong_pretraining_is_one_line(documents, tmp_path, words, said):
    done = command("pretrain", *words, "--corpus", write_corpus(documents[:60], tmp_path), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_chat_answers_and_refuses(tmp_path):
    (tmp_path / "pairs.csv").write_text("Q,A,label\n배고파,밥부터 드세요.,0\n여행 가고 싶다,어디로 가고 싶으세요?,0\n", encoding="utf-8")
    words = ["chat", "similarity", "--model", "tfidf", "--data", tmp_path / "pairs.csv"]
    assert command(*words, "--ask", "여행 가고 싶다").stdout == "어디로 가고 싶으세요?\n"
    (tmp_path / "bad.csv").write_text("Q,A\n배고파,밥\n", encoding="utf-8")
    for arguments, said in [(["similarity", "--data", tmp_path / "bad.csv"], "bad.csv"), (["similarity", "--model", "없는 모델"], "없는 모델"), (["irqa"], "irqa")]:
        done = command("chat", *arguments, "--ask", "안녕")
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr, done.stderr
