"""The hand-made Transformer against transformers and torch, and what padding, order and device must not change."""
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, GPT2Model,
                          RobertaConfig, RobertaModel)

from klue_course.runtime import InputError
from klue_course.transformer import (BERT_NAMES, GPT2_NAMES, INIT_STD, POSITIONS, TORCH_DECODER_NAMES, TORCH_ENCODER_NAMES, Attention, Block,
                                     EncoderDecoder, Transformer, TransformerConfig, TransformerLM, attention_maps, attention_weights, causal_mask,
                                     config_like, from_transformers, greedy, padding_mask, renamed, sinusoid, to_batch)

from .conftest import ROOT

SIZES = {"vocab_size": 90, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.2}
SMALL = TransformerConfig(90, hidden_size=48, max_length=20)
KINDS = {"BERT": SMALL, "GPT-2": replace(SMALL, norm_first=True, causal=True, activation="gelu_new"),
         "waves": replace(SMALL, positions="sinusoidal"), "no positions": replace(SMALL, positions="none", norm_first=True)}
SENTENCES = ["오늘은 날씨가 참 좋습니다.", "네.", "트랜스포머는 모든 토큰이 한꺼번에 모든 토큰을 보게 하는 신경망입니다.", "서울역에서 부산까지 얼마나 걸리나요?", "한글"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_bert(attention: str = "sdpa") -> BertModel:
    config = BertConfig(hidden_size=48, intermediate_size=80, max_position_embeddings=20, attn_implementation=attention, **SIZES)
    return lively(BertModel(config))


def make_gpt2(attention: str = "sdpa") -> GPT2Model:
    config = GPT2Config(n_embd=48, n_positions=20, bos_token_id=None, eos_token_id=None, attn_implementation=attention, **SIZES)
    return lively(GPT2Model(config))


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    "Weights as after training, biases and norms included: a difference would show."
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(lengths=(11, 3, 7, 1)) -> tuple[torch.Tensor, torch.Tensor]:
    return to_batch([torch.randint(1, 90, (length,)).tolist() for length in lengths])


def places(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def assert_near(got, expected, tolerance: float = 1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def assert_same(ours: Transformer, reference, mask: torch.Tensor, **inputs):
    "The hidden states of all layers wherever there is no padding."
    expected, real = reference(attention_mask=mask, output_hidden_states=True, **inputs), mask.bool()
    for got, state in zip(ours.layers(attention_mask=mask, **inputs), expected.hidden_states, strict=True):
        assert_near(got[real], state[real])
    assert_near(ours(attention_mask=mask, **inputs)[real], expected.last_hidden_state[real])


# ---------------------------------------------------------------- parity with transformers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_as_bert(attention):
    bert, (ids, mask) = make_bert(attention), batch()
    assert_same(from_transformers(bert), bert, mask, input_ids=ids)
    assert_same(from_transformers(bert), bert, mask, input_ids=ids, token_type_ids=torch.randint(2, ids.shape))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_as_gpt2(attention, side):
    gpt, (ids, mask) = make_gpt2(attention), batch()
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    assert_same(from_transformers(gpt), gpt, mask, input_ids=ids, position_ids=places(mask))


def test_without_a_mask_as_transformers():
    for reference in (make_bert(), make_gpt2()):
        ids, mask = batch((9, 9))
        with torch.no_grad():
            assert_near(from_transformers(reference)(ids), reference(ids).last_hidden_state)


def backbone() -> Path | None:
    "A directory with a real BERT, where there is one."
    directories = [os.environ.get("KLUE_COURSE_BACKBONE"), ROOT.parent / "shared" / "models" / "multilingual-e5-small-ko"]
    return next((Path(name) for name in directories if name and (Path(name) / "config.json").is_file()), None)


@pytest.mark.skipif(backbone() is None, reason="no directory with a real BERT (KLUE_COURSE_BACKBONE)")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_as_a_real_bert(attention):
    bert = AutoModel.from_pretrained(backbone(), attn_implementation=attention, dtype=torch.float32, local_files_only=True).eval()
    if bert.config.model_type != "bert":
        pytest.skip(f"{bert.config.model_type} is no BERT")
    inputs = AutoTokenizer.from_pretrained(backbone(), local_files_only=True)(SENTENCES, padding=True, return_tensors="pt")
    assert len(set(inputs["attention_mask"].sum(dim=1).tolist())) > 2
    assert_same(from_transformers(bert), bert, inputs["attention_mask"], input_ids=inputs["input_ids"])


def test_heads_are_left_out():
    bert = BertForMaskedLM(make_bert().config).eval()
    gpt = GPT2LMHeadModel(make_gpt2().config).eval()
    ids, mask = batch()
    assert_same(from_transformers(bert), bert.bert, mask, input_ids=ids)
    lm = TransformerLM(config_like(gpt.config)).eval()
    lm.decoder = from_transformers(gpt)
    with torch.no_grad():
        assert_near(lm(ids, mask)[mask.bool()], gpt(input_ids=ids, attention_mask=mask).logits[mask.bool()], 1e-4)


def test_name_tables_cover_every_weight():
    for reference, names in ((make_bert(), BERT_NAMES), (make_gpt2(), GPT2_NAMES)):
        weights = {name: weight for name, weight in reference.state_dict().items() if not name.startswith("pooler")}
        ours = renamed(weights, names)
        assert ours.keys() == from_transformers(reference).state_dict().keys()
        assert sum(weight.numel() for weight in ours.values()) == sum(weight.numel() for weight in weights.values())


def test_weights_are_copies():
    bert = make_bert()
    ours, (ids, mask) = from_transformers(bert), batch()
    with torch.no_grad():
        before = ours(ids, mask)
        for parameter in bert.parameters():
            parameter.zero_()
        assert torch.equal(ours(ids, mask), before)


@pytest.mark.parametrize("config", [BertConfig(is_decoder=True), GPT2Config(scale_attn_by_inverse_layer_idx=True), GPT2Config(scale_attn_weights=False),
                                    GPT2Config(add_cross_attention=True), BertConfig(hidden_act="silu"), RobertaConfig()])
def test_what_cannot_be_expressed_is_refused(config):
    with pytest.raises(InputError):
        config_like(config)


def test_roberta_is_refused():
    "Its positions begin at 2: the weights would fit, the results would not."
    with pytest.raises(InputError, match="bert, gpt2"):
        from_transformers(RobertaModel(RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)))


# ---------------------------------------------------------------- parity with torch


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_weights_as_sdpa(size, heads, targets, sources, share, seed):
    "Any mask, rows that may look at nothing included; values and gradients, which are never NaN."
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(size, heads, targets, 8, generator=generator, requires_grad=True)
    key, value = torch.randn(2, size, heads, sources, 8, generator=generator)
    mask = torch.rand(size, 1, targets, sources, generator=generator) < share
    ours, reference = attention_weights(query, key, mask) @ value, F.scaled_dot_product_attention(query, key, value, mask)
    assert_near(ours, reference)
    mine, theirs = (torch.autograd.grad(out.square().sum(), query)[0] for out in (ours, reference))
    assert_near(mine, theirs, 1e-4)
    sums = attention_weights(query, key, mask).sum(dim=-1)
    assert_near(sums, mask.any(dim=-1).float().expand_as(sums))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_blocks_as_torch(norm_first, activation):
    config = replace(SMALL, norm_first=norm_first, activation=activation, intermediate_size=80)
    shape = {"d_model": 48, "nhead": 4, "dim_feedforward": 80, "activation": activation, "norm_first": norm_first, "batch_first": True}
    encoder, decoder = lively(nn.TransformerEncoderLayer(**shape)), lively(nn.TransformerDecoderLayer(**shape))
    block, with_memory = Block(config).eval(), Block(replace(config, cross_attention=True)).eval()
    block.load_state_dict(renamed(encoder.state_dict(), TORCH_ENCODER_NAMES))
    with_memory.load_state_dict(renamed(decoder.state_dict(), TORCH_DECODER_NAMES))
    x, memory, mask = torch.randn(4, 6, 48), torch.randn(4, 11, 48), batch()[1]
    real = mask.bool()
    assert_near(block(memory, padding_mask(mask))[real], encoder(memory, src_key_padding_mask=~real)[real])
    expected = decoder(x, memory, tgt_mask=~causal_mask(6), memory_key_padding_mask=~real)
    assert_near(with_memory(x, causal_mask(6), memory, padding_mask(mask)), expected)


# ---------------------------------------------------------------- what must not change


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_padding_changes_nothing(config):
    model, (ids, mask) = lively(Transformer(config)), batch()
    real, expected = mask.bool(), model(ids, mask)
    assert_near(model(torch.where(real, ids, torch.randint(90, ids.shape)), mask)[real], expected[real], 1e-6)
    assert_near(model(F.pad(ids, (0, 6), value=5), F.pad(mask, (0, 6)))[:, :11][real], expected[real])
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        assert_near(model(ids[row:row + 1, :length])[0], expected[row, :length])
        assert_near(model(ids[row:row + 1, :length], mask[row:row + 1, :length])[0], expected[row, :length])


@torch.no_grad()
def test_padding_on_the_left_changes_nothing():
    model, (ids, mask) = lively(Transformer(KINDS["GPT-2"])), batch()
    left = model(ids.flip(1), mask.flip(1), position_ids=places(mask.flip(1)))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        assert_near(left[row, 11 - length:], model(ids[row:row + 1, :length].flip(1))[0])


@pytest.mark.parametrize("place", range(11))
@torch.no_grad()
def test_later_tokens_change_nothing_before(place):
    ids = batch((11, 11))[0]
    changed = ids.clone()
    changed[:, place:] = torch.randint(1, 90, changed[:, place:].shape)
    decoder, encoder = lively(Transformer(KINDS["GPT-2"])), lively(Transformer(SMALL))
    assert_near(decoder(changed)[:, :place], decoder(ids)[:, :place], 1e-6)
    assert (decoder(changed)[:, place:] - decoder(ids)[:, place:]).abs().max() > 1e-2
    assert not place or (encoder(changed)[:, :place] - encoder(ids)[:, :place]).abs().max() > 1e-4


def test_no_gradient_from_the_future():
    model = lively(Transformer(KINDS["GPT-2"]))
    model(torch.arange(10)[None])[0, 4].sum().backward()
    used = model.embeddings.positions.weight.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [place <= 4 for place in range(20)]


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_text_of_nothing_but_padding_stays_finite(config):
    model, (ids, mask) = lively(Transformer(config)), batch()
    mask[1] = 0
    out = model(ids.flip(1), mask.flip(1))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@torch.no_grad()
def test_encoder_decoder_sees_neither_padding_nor_future():
    model = lively(EncoderDecoder(SMALL, replace(SMALL, vocab_size=50)))
    (ids, mask), targets = batch(), torch.randint(50, (4, 6))
    logits = model(ids, mask, targets)
    assert logits.shape == (4, 6, 50)
    assert_near(model(torch.where(mask.bool(), ids, 7), mask, targets), logits, 1e-6)
    assert_near(model(F.pad(ids, (0, 5), value=3), F.pad(mask, (0, 5)), targets), logits)
    assert_near(model(ids, mask, torch.cat([targets[:, :3], targets[:, 3:] * 0], dim=1))[:, :3], logits[:, :3], 1e-6)
    assert (model(ids.roll(1, 1), mask, targets) - logits).abs().max() > 1e-2


@torch.no_grad()
def test_without_positions_order_is_lost():
    model, order = lively(Transformer(KINDS["no positions"])), torch.randperm(11)
    ids = batch((11,))[0]
    assert_near(model(ids[:, order]), model(ids)[:, order])
    for name in ("BERT", "waves"):
        ordered = lively(Transformer(KINDS[name]))
        assert (ordered(ids[:, order]) - ordered(ids)[:, order]).abs().max() > 1e-2


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("positions", POSITIONS)
def test_forward_on_meta(positions):
    "A tensor left on the CPU would fail here."
    config = replace(SMALL, positions=positions, type_vocab_size=2)
    ids = torch.zeros(2, 7, dtype=torch.long, device="meta")
    for kind in (config, replace(config, norm_first=True, causal=True)):
        assert Transformer(kind).to("meta")(ids, ids, ids, ids).shape == (2, 7, 48)
        assert Transformer(kind).to("meta")(ids).device.type == "meta"
    assert TransformerLM(config).to("meta")(ids).shape == (2, 7, 90)
    assert EncoderDecoder(config, config).to("meta")(ids, ids, ids[:, :3]).shape == (2, 3, 90)


def test_new_weights():
    model = Transformer(replace(SMALL, positions="sinusoidal"))
    assert torch.equal(model.embeddings.positions.weight, INIT_STD * sinusoid(20, 48)) and not model.embeddings.positions.weight.requires_grad
    assert abs(model.embeddings.tokens.weight.std() - INIT_STD) < 2e-3 and model.blocks[0].attention.layer.query.bias.abs().max() == 0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_sinusoid(size):
    waves = sinusoid(30, size)
    assert waves.shape == (30, size) and waves.abs().max() <= 1
    if size % 2 == 0:
        assert_near((waves @ waves.T).diagonal(), torch.full((30,), size / 2), 1e-4)


@torch.no_grad()
def test_dropout_only_in_training():
    model, (ids, mask) = Transformer(SMALL), batch()
    assert not torch.equal(model(ids, mask), model(ids, mask))
    assert torch.equal(model.eval()(ids, mask), model(ids, mask))


@torch.no_grad()
def test_attention_maps_as_transformers_and_nothing_stays_behind():
    bert, (ids, mask) = make_bert("eager"), batch()
    ours = from_transformers(bert)
    maps = attention_maps(ours, ids, mask)
    for got, expected in zip(maps.values(), bert(ids, mask, output_attentions=True).attentions, strict=True):
        assert_near(got.transpose(1, 2)[mask.bool()], expected.transpose(1, 2)[mask.bool()])
        assert (got * ~mask.bool()[:, None, None]).abs().max() == 0
    with pytest.raises(InputError):
        attention_maps(ours, torch.zeros(1, 21, dtype=torch.long))
    assert not any(module._forward_hooks for module in ours.modules())


@torch.no_grad()
def test_greedy_writes_what_forward_finds_likeliest():
    model, (ids, mask) = lively(EncoderDecoder(SMALL, SMALL)), batch()
    written = greedy(model, ids, mask, start=1, end=-1, max_length=9)
    assert written.shape == (4, 9)
    given = torch.cat([torch.ones(4, 1, dtype=torch.long), written[:, :-1]], dim=1)
    assert torch.equal(model(ids, mask, given).argmax(dim=-1), written)
    stop = written[0, 2].item()
    assert greedy(model, ids[:1], mask[:1], start=1, end=stop, max_length=9).shape[1] == written[0].tolist().index(stop) + 1
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        assert torch.equal(greedy(model, ids[row:row + 1, :length], mask[row:row + 1, :length], 1, -1, 9)[0], written[row])


def test_bad_input_is_refused():
    model, ids = Transformer(SMALL), torch.zeros(2, 5, dtype=torch.long)
    memory = torch.zeros(2, 3, 48)
    for inputs in ({"input_ids": torch.zeros(1, 21, dtype=torch.long)}, {"attention_mask": torch.ones(2, 4)}, {"attention_mask": torch.ones(2, 1, 5, 5)},
                   {"token_type_ids": ids}, {"memory": memory}):
        with pytest.raises(InputError):
            model(**{"input_ids": ids} | inputs)
    with pytest.raises(InputError, match="memory"):
        Transformer(replace(SMALL, cross_attention=True))(ids)
    for wrong in ({"num_heads": 5}, {"num_heads": 0}, {"hidden_size": 0}, {"vocab_size": 0}, {"max_length": 0}, {"positions": "rotary"}, {"activation": "swish"}):
        with pytest.raises(InputError):
            replace(SMALL, **wrong)


def test_attention_to_a_memory_of_another_length():
    attention, x, memory = Attention(SMALL).eval(), torch.randn(2, 4, 48), torch.randn(2, 9, 48)
    assert attention(x, None, memory).shape == (2, 4, 48) and attention.weights(x, None, memory).shape == (2, 4, 4, 9)
    assert_near(attention(x, None, x), attention(x))
