"""A masked-diffusion policy: its scores beside the model's own pass, other classes, what it refuses, folders."""

import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.masked_diffusion import MaskedDiffusionLM, small_denoiser
from tests.helpers import segment

MASK, EOS = 10, 9
OWN_CODE = '''
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TinyConfig(PretrainedConfig):
    model_type = "tiny-own"

    def __init__(self, d_model=16, vocab_size=11, mask_token_id=10, max_sequence_length=20, **more):
        super().__init__(**more)
        self.d_model, self.vocab_size, self.mask_token_id = d_model, vocab_size, mask_token_id
        self.max_sequence_length = max_sequence_length


class TinyModelLM(PreTrainedModel):
    """As LLaDA's class: bidirectional, logits at the token's own place, and no attention mask whatever is given."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.place = nn.Embedding(config.max_sequence_length, config.d_model)
        self.block = nn.TransformerEncoderLayer(config.d_model, 2, 32, dropout=0.0, batch_first=True)
        self.out = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def forward(self, input_ids, attention_mask=None, **more):
        x = self.wte(input_ids) + self.place(torch.arange(input_ids.shape[1]))
        return CausalLMOutput(logits=self.out(self.block(x)))
'''


@pytest.fixture
def own_code(tmp_path):
    """The module with classes of its own, and its file."""
    path = tmp_path / "modeling_tiny.py"
    path.write_text(OWN_CODE)
    spec = importlib.util.spec_from_file_location("modeling_tiny", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["modeling_tiny"] = module
    spec.loader.exec_module(module)
    yield module, path
    del sys.modules["modeling_tiny"]


def modern():
    return small_denoiser(
        vocabulary=11, layers=2, width=16, heads=2, context_length=20, seed=0, eos_id=EOS, mask_id=MASK
    )


def bert():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=20, eos_token_id=EOS)  # fmt: skip
    config.mask_token_id = MASK
    return MaskedDiffusionLM(BertForMaskedLM(config), None)


def ragged(targets=False):
    """Rows with contexts and responses of different length."""
    rng, groups = np.random.default_rng(0), []
    for g, (c, sizes) in enumerate([(3, (4, 2)), (6, (5,)), (1, (3, 3))]):
        prompt = rng.integers(0, 9, c).tolist()
        ts = [
            Trajectory(f"{g}/{n}", [segment(rng.integers(0, 9, n).tolist(), prompt)], 0.0, target=targets)
            for n in sizes
        ]
        groups.append(Group(str(g), Prompt(str(g)), ts))
    return from_groups(groups, torch.float64)


def one_by_one(policy, batch, masked, temperature, hidden=None):
    """The definition, row by row, without padding."""
    out = torch.zeros(masked.shape, dtype=torch.float64)
    for i in range(batch.rows):
        c = batch.context_index[i]
        seen = batch.context_valid[c]
        context = batch.context[c] if hidden is None else torch.where(hidden[i], MASK, batch.context[c])
        context, response = context[seen], batch.response[i][batch.valid[i]]
        ids = torch.cat([context, torch.where(masked[i][batch.valid[i]], MASK, response)])
        z = policy.module(input_ids=ids[None]).logits[0, len(context) :]
        z = z.index_fill(-1, torch.tensor(MASK), -torch.inf)
        logp = torch.log_softmax(z / temperature, -1).gather(1, response[:, None]).squeeze(1)
        out[i, : len(response)] = torch.where(masked[i][batch.valid[i]], logp, 0)
    return out


@pytest.mark.parametrize("kind", ["modern", "bert", "own"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_the_models_own_pass(kind, temperature, own_code):
    module, _ = own_code
    torch.manual_seed(1)
    policy = {
        "modern": modern,
        "bert": bert,
        "own": lambda: MaskedDiffusionLM(module.TinyModelLM(module.TinyConfig()), None),
    }[kind]()
    policy.module.double()
    assert policy.pads == (kind != "own")
    batch = ragged()
    rng = torch.Generator().manual_seed(0)
    for share in (0.5, 1.0):
        masked = batch.valid & (torch.rand(batch.valid.shape, generator=rng) < share)
        got = policy.score_masked(batch, masked, temperature)
        torch.testing.assert_close(got, one_by_one(policy, batch, masked, temperature), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(policy.score(batch, temperature).logp, got)
    seen = batch.context_valid[batch.context_index]
    hidden = seen & (torch.rand(seen.shape, generator=rng) < 0.4)
    torch.testing.assert_close(policy.score_masked(batch, batch.valid, 1.0, hidden),
                               one_by_one(policy, batch, batch.valid, 1.0, hidden), atol=1e-10, rtol=1e-8)  # fmt: skip


def test_entropy_hidden_states_and_logits():
    policy = modern()
    policy.module.double()
    batch = ragged(targets=True)
    scores = policy.score(batch, 0.8, entropy=True, hidden=True, logits=True)
    z = scores.logits.states
    p = z.softmax(-1)
    torch.testing.assert_close(scores.entropy[batch.target], torch.special.entr(p).sum(-1))
    torch.testing.assert_close(scores.logp[batch.target],
                               z.log_softmax(-1).gather(1, batch.response[batch.target][:, None]).squeeze(1))  # fmt: skip
    assert (p[:, MASK] == 0).all()
    assert scores.hidden.shape == (*batch.response.shape, 16)
    (scores.logp.sum() + scores.entropy.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.module.parameters() if p.grad is not None)


def test_tokens_that_the_policy_did_not_choose_are_seen():
    policy, batch = modern(), ragged()
    chosen = batch.chosen.clone()
    chosen[:, 0] = False
    forced = replace(batch, chosen=chosen, mask=chosen)
    other = replace(forced, response=torch.cat([(batch.response[:, :1] + 1) % 9, batch.response[:, 1:]], 1))
    a, b = policy.score(forced, 1.0).logp, policy.score(other, 1.0).logp
    assert (a[:, 0] == 0).all()
    assert (a[chosen] != b[chosen]).any()


def test_a_causal_model_is_refused():
    config = GPT2Config(
        vocab_size=11, n_positions=20, n_embd=16, n_layer=1, n_head=2, eos_token_id=EOS, bos_token_id=EOS
    )
    config.mask_token_id = MASK
    with pytest.raises(InputError, match="causal"):
        MaskedDiffusionLM(GPT2LMHeadModel(config), None)


def test_a_model_without_a_mask_token_is_refused():
    model = bert().module
    model.config.mask_token_id = None
    with pytest.raises(InputError, match="mask token") as error:
        MaskedDiffusionLM(model, None)
    assert "\n" not in str(error.value)
    model.config.mask_token_id = 11
    with pytest.raises(InputError, match="has 11 tokens"):
        MaskedDiffusionLM(model, None)


def test_the_tokenizers_mask_token_counts_where_the_config_has_none():
    policy = load_policy("masked-diffusion:layers=1,width=16,heads=2,context=32")
    assert policy.mask_id == policy.tokenizer.mask_token_id == 259
    policy.config.mask_token_id = None
    assert MaskedDiffusionLM(policy.module, policy.tokenizer).mask_id == 259
    tokens = policy.encode(Prompt("a", ({"role": "user", "content": "hi"},)))
    assert tokens.tolist() == [107, 108]
    assert policy.decode(np.array([107, 108, 1, 259])) == "hi"
    assert policy.encode_reference(Prompt("a", reference="hi")).tolist() == [107, 108, 1]


def test_a_saved_policy_is_the_same_policy(tmp_path):
    for policy in (modern(), load_policy("masked-diffusion:layers=1,width=16,heads=2,context=32", seed=3)):
        folder = tmp_path / str(policy.vocabulary)
        folder.mkdir()
        policy.save(folder)
        for spec in (str(folder), f"masked-diffusion:{folder}"):
            again = load_policy(spec)
            assert isinstance(again, MaskedDiffusionLM)
            assert (again.mask_id, again.stop_ids) == (policy.mask_id, policy.stop_ids)
            batch = ragged()
            assert torch.equal(again.score(batch, 1.0).logp, policy.score(batch, 1.0).logp)
        assert (again.tokenizer is None) == (policy.tokenizer is None)


def test_classes_in_a_folder_of_their_own(own_code, tmp_path, monkeypatch):
    module, path = own_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    model = module.TinyModelLM(module.TinyConfig())
    model.save_pretrained(folder)
    (folder / "modeling_tiny.py").write_text(path.read_text())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModelLM"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="own-code=true"):
        load_policy(f"masked-diffusion:{folder}")
    policy = load_policy(f"masked-diffusion:{folder},own-code=true", trust=True)
    assert not policy.pads and policy.context_length == 20
    batch = ragged()
    assert torch.equal(policy.score(batch, 1.0).logp, MaskedDiffusionLM(model, None).score(batch, 1.0).logp)
    [[(answer, _)]] = engine_for(policy).generate([Request(np.array([1, 2]))], Sampling(4), torch.Generator())
    assert len(answer.response) == 4


@pytest.mark.parametrize(
    ("spec", "more", "says"),
    [
        ("masked-diffusion:layers=0", {}, "whole numbers"), ("masked-diffusion:width=10,heads=3", {}, "multiple"),
        ("masked-diffusion:nowhere", {}, "cannot|can be loaded"), ("masked-diffusion:x,yes", {}, "own-code"),
        ("masked-diffusion:", {"lora_rank": 4}, "trained whole"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(spec, more, says):
    with pytest.raises(InputError, match=says):
        load_policy(spec, **more)


def test_it_does_not_write_token_by_token_and_holds_so_many():
    policy = modern()
    with pytest.raises(InputError, match="DenoisingEngine"):
        policy.prefill([np.array([1])])
    batch = from_groups([Group("", Prompt(""), [Trajectory("", [segment([1] * 15, [2] * 6)], 0.0)])])
    with pytest.raises(InputError, match="holds 20"):
        policy.score(batch, 1.0)


def test_weights_come_from_the_seed_alone():
    a, b = modern(), modern()
    c = small_denoiser(vocabulary=11, layers=2, width=16, heads=2, context_length=20, seed=1, eos_id=EOS, mask_id=MASK)
    assert all(torch.equal(x, y) for x, y in zip(a.module.parameters(), b.module.parameters(), strict=True))
    assert not torch.equal(
        a.module.model.embeddings.tok_embeddings.weight, c.module.model.embeddings.tok_embeddings.weight
    )
