"""BERT against transformers on padded batches, its loss, its vectors, and what bad input is told."""
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from klue_course import bert as module
from klue_course.bert import (HEAD_NAMES, IGNORED, POOLINGS, Bert, bert_from_transformers, draw_heads, draw_inputs, explore_attention, garble,
                              mean_cosine, pool, pretraining_loss)
from klue_course.runtime import InputError, assets_dir, use_korean_font
from klue_course.tokenization import decompose
from klue_course.transformer import TransformerConfig, attention_maps, to_batch

from .test_transformer import SENTENCES, assert_near, backbone, lively

SHAPE = {"vocab_size": 90, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 24}
SMALL = TransformerConfig(90, hidden_size=48, max_length=24, type_vocab_size=2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def theirs() -> BertForPreTraining:
    return lively(BertForPreTraining(BertConfig(initializer_range=0.2, **SHAPE)))


def batch(lengths=(11, 3, 7, 1)) -> dict[str, torch.Tensor]:
    ids, mask = to_batch([torch.randint(5, 90, (length,)).tolist() for length in lengths])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(2, ids.shape)}


def targets(inputs: dict) -> dict[str, torch.Tensor]:
    left_out = (torch.rand(inputs["input_ids"].shape) < 0.7) | (inputs["attention_mask"] == 0)
    left_out[0, 0] = False
    return {"labels": inputs["input_ids"].masked_fill(left_out, IGNORED), "next_sentence_label": torch.randint(2, (len(left_out),))}


@torch.no_grad()
def assert_same(ours: Bert, theirs: BertForPreTraining, inputs: dict, tolerance: float = 1e-4):
    "Hidden states and scores where there is no padding, the pooler, and the loss."
    real, wanted = inputs["attention_mask"].bool(), targets(inputs)
    got, expected, body = ours(**inputs, **wanted), theirs(**inputs, **wanted), theirs.bert(**inputs)
    assert_near(got.last_hidden_state[real], body.last_hidden_state[real], tolerance)
    assert_near(got.pooler_output, body.pooler_output, tolerance)
    assert_near(got.prediction_logits[real], expected.prediction_logits[real], tolerance)
    assert_near(got.seq_relationship_logits, expected.seq_relationship_logits, tolerance)
    assert_near(got.loss, expected.loss, tolerance)


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("lengths", [(11, 3, 7, 1), (5,), (24, 2), (6, 6, 6)])
def test_as_transformers(theirs, lengths):
    assert_same(bert_from_transformers(theirs), theirs, batch(lengths))


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_activations_reach_the_head(activation):
    theirs = lively(BertForPreTraining(BertConfig(initializer_range=0.2, hidden_act=activation, **SHAPE)))
    assert_same(bert_from_transformers(theirs), theirs, batch())


@torch.no_grad()
def test_positions_as_transformers(theirs):
    inputs = batch((9, 9)) | {"position_ids": torch.stack([torch.randperm(9), torch.randperm(9)])}
    assert_near(bert_from_transformers(theirs)(**inputs).prediction_logits, theirs(**inputs).prediction_logits, 1e-4)


@pytest.mark.skipif(backbone() is None, reason="no directory with a real BERT (KLUE_COURSE_BACKBONE)")
def test_as_a_real_bert():
    theirs = BertForPreTraining.from_pretrained(backbone(), dtype=torch.float32, local_files_only=True).eval()
    inputs = AutoTokenizer.from_pretrained(backbone(), local_files_only=True)(SENTENCES, padding=True, return_tensors="pt")
    assert len(set(inputs["attention_mask"].sum(dim=1).tolist())) > 2
    assert_same(bert_from_transformers(theirs), theirs, {"token_type_ids": torch.zeros_like(inputs["input_ids"]), **inputs})


@pytest.mark.skipif(not (assets_dir() / "models/bert-mini/config.json").is_file(), reason="bert-mini is not bundled")
def test_as_the_bundled_bert():
    folder = assets_dir() / "models/bert-mini"
    theirs = BertForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same(bert_from_transformers(theirs), theirs, dict(AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")))


def test_gradients_as_transformers(theirs):
    ours, inputs = bert_from_transformers(theirs), batch()
    wanted = targets(inputs)
    ours(**inputs, **wanted).loss.backward()
    theirs(**inputs, **wanted).loss.backward()
    assert_near(ours.encoder.embeddings.tokens.weight.grad, theirs.bert.embeddings.word_embeddings.weight.grad, 1e-4)
    assert_near(ours.mlm.bias.grad, theirs.cls.predictions.bias.grad, 1e-4)
    assert_near(ours.nsp.weight.grad, theirs.cls.seq_relationship.weight.grad, 1e-4)


def test_every_weight_is_carried_over_once(theirs):
    ours = bert_from_transformers(theirs)
    assert sum(weight.numel() for weight in ours.parameters()) == sum(weight.numel() for weight in theirs.parameters())
    assert len(HEAD_NAMES) == 5 and not ours.training
    with torch.no_grad():
        before = ours(**batch((4,))).prediction_logits
        for weight in theirs.parameters():
            weight.zero_()
        torch.manual_seed(0)
    assert before.abs().max() > 0 and ours.mlm.bias.abs().max() > 0


# ---------------------------------------------------------------- the loss


def test_loss_of_one_task_or_none(theirs):
    ours, inputs = bert_from_transformers(theirs), batch()
    wanted = targets(inputs)
    words, pairs = (ours(**inputs, **{name: target}).loss for name, target in wanted.items())
    assert_near(words + pairs, ours(**inputs, **wanted).loss)
    assert ours(**inputs).loss is None
    assert pretraining_loss(torch.zeros(1, 3, 7), torch.zeros(1, 2), torch.full((1, 3), IGNORED)).isnan()


def test_loss_is_float32_under_autocast(theirs):
    ours, inputs = bert_from_transformers(theirs), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(**inputs, **targets(inputs)).loss.dtype == torch.float32


# ---------------------------------------------------------------- padding and devices


@torch.no_grad()
def test_padding_changes_nothing(theirs):
    ours, inputs = bert_from_transformers(theirs), batch()
    expected = ours(**inputs)
    wider = {name: F.pad(tensor, (0, 6), value=1 if name == "token_type_ids" else 0) for name, tensor in inputs.items()}
    for how in POOLINGS:
        vectors = pool(expected, inputs["attention_mask"], how)
        assert vectors.dtype == torch.float32 and vectors.shape == (4, 48)
        assert_near(pool(ours(**wider), wider["attention_mask"], how), vectors)
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            alone = {name: tensor[row:row + 1, :length] for name, tensor in inputs.items()}
            assert_near(pool(ours(**alone), alone["attention_mask"], how)[0], vectors[row])


def test_forward_on_meta():
    "A tensor left on the CPU would fail here."
    model, ids = Bert(SMALL).to("meta"), torch.zeros(2, 7, dtype=torch.long, device="meta")
    output = model(ids, ids, ids, ids, labels=ids, next_sentence_label=ids[:, 0])
    assert output.prediction_logits.shape == (2, 7, 90) and output.loss.device.type == "meta"
    assert all(pool(output, ids, how).shape == (2, 48) for how in POOLINGS)


@torch.no_grad()
def test_pool_takes_what_transformers_returns(theirs):
    inputs = batch()
    output, mask = theirs.bert(**inputs), inputs["attention_mask"]
    assert torch.equal(pool(output, mask, "cls"), output.last_hidden_state[:, 0])
    assert torch.equal(pool(output, mask, "pooler"), output.pooler_output)
    half = SimpleNamespace(last_hidden_state=output.last_hidden_state.bfloat16(), pooler_output=output.pooler_output.bfloat16())
    assert {pool(half, mask, how).dtype for how in POOLINGS} == {torch.float32}


def test_mean_pool_survives_what_stands_at_padding():
    hidden = torch.tensor([[[1.0], [3.0], [float("nan")]], [[float("inf")], [2.0], [5.0]]])
    output, mask = SimpleNamespace(last_hidden_state=hidden, pooler_output=None), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert pool(output, mask).tolist() == [[2.0], [0.0]]


# ---------------------------------------------------------------- vectors, text, pictures


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_mean_cosine_as_by_pairs(rows, size, seed):
    vectors = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    table = F.cosine_similarity(vectors[:, None].double(), vectors[None].double(), dim=-1)
    assert abs(mean_cosine(vectors) - table[~torch.eye(rows, dtype=torch.bool)].mean().item()) < 1e-6
    assert -1 - 1e-6 <= mean_cosine(vectors) <= 1 + 1e-6 and abs(mean_cosine(3 * vectors) - mean_cosine(vectors)) < 1e-6


def test_mean_cosine_with_a_zero_row():
    assert mean_cosine(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])) == pytest.approx(1 / 3)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("가각까힣뷁ㅋㅏ aZ9.大😀"), max_size=20), st.floats(0, 1), st.integers(0, 999))
def test_garbled_text_keeps_its_shape(text, share, seed):
    spoiled = garble(text, random.Random(seed), share)
    assert len(spoiled) == len(text) and spoiled == garble(text, random.Random(seed), share)
    for old, new in zip(text, spoiled):
        assert ("가" <= new <= "힣") if "가" <= old <= "힣" else new == old
    assert garble(text, random.Random(seed), 0.0) == text
    if text and all("가" <= letter <= "힣" for letter in text):
        assert len(decompose(spoiled)) >= len(decompose(text))


def test_sliders_where_there_are_widgets_and_a_picture_where_not(theirs, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import ipywidgets

    use_korean_font()

    inputs, calls = batch((5,)), []
    maps = [weights[0] for weights in attention_maps(bert_from_transformers(theirs), **inputs).values()]
    tokens = list("가나다라마")
    assert len(draw_heads(maps, tokens, most=2).axes) == 4 and draw_inputs(tokens, [0, 0, 0, 1, 1]) is not None
    monkeypatch.setattr(ipywidgets, "interact", lambda show, **sliders: calls.append((show, sliders)))
    monkeypatch.setattr(module, "draw_heads", lambda *given: calls.append("picture"))
    monkeypatch.setenv("IN_TEST", "1")
    explore_attention(maps, tokens)
    assert calls == ["picture"]
    monkeypatch.delenv("IN_TEST")
    explore_attention(maps, tokens)
    show, sliders = calls[1]
    assert (sliders["layer"].max, sliders["head"].max) == (2, 3)
    show(2, 3)
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    explore_attention(maps, tokens)
    assert calls[2:] == ["picture"]


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused(theirs):
    ours, inputs = bert_from_transformers(theirs), batch()
    output, mask = ours(**inputs), inputs["attention_mask"]
    with pytest.raises(InputError, match="labels"):
        ours(**inputs, labels=inputs["input_ids"][:, :2])
    with pytest.raises(InputError, match="next_sentence_label"):
        ours(**inputs, next_sentence_label=torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(InputError, match="25"):
        ours(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(InputError, match="cls, pooler, mean"):
        pool(output, mask, "max")
    with pytest.raises(InputError, match="attention_mask"):
        pool(output, mask[:, :3])
    with pytest.raises(InputError, match="pooler"):
        pool(SimpleNamespace(last_hidden_state=output.last_hidden_state, pooler_output=None), mask, "pooler")
    with pytest.raises(InputError):
        mean_cosine(torch.zeros(1, 3))


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_model_without_both_heads_is_refused(kind):
    with pytest.raises(InputError, match="BertForPreTraining"):
        bert_from_transformers(kind(BertConfig(**SHAPE)))


def test_a_model_with_untied_weights_is_refused():
    with pytest.raises(InputError, match="tie_word_embeddings"):
        bert_from_transformers(BertForPreTraining(BertConfig(tie_word_embeddings=False, **SHAPE)))
