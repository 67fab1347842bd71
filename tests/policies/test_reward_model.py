"""The reward model itself: padding, families, what it reads."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, ByT5Tokenizer

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.reward_model import Calibration, RewardModel, rescale
from tests.policies.test_causal_lm import CONFIGS, policy

SEQUENCES = [[5, 6, 7, 8, 9, 2], [10, 11], [12, 13, 14, 15, 2, 2, 2]]


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_padding_changes_no_score_and_the_trunk_is_the_policys(family):
    p = policy(family)
    model = RewardModel.from_policy(p, 0)
    together = model.scores(SEQUENCES)
    alone = torch.cat([model.scores([s]) for s in SEQUENCES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    state = p.model.base_model(input_ids=torch.tensor([SEQUENCES[0]])).last_hidden_state[0, -1]
    assert float(model.module.score(state)) == pytest.approx(float(together[0]), abs=1e-5)
    again, other = RewardModel.from_policy(p, 0), RewardModel.from_policy(p, 1)
    assert torch.equal(again.module.score.weight, model.module.score.weight)
    assert not torch.equal(other.module.score.weight, model.module.score.weight)


def test_the_policy_stays_as_it_was():
    p = policy("llama")
    before = [x.clone() for x in p.module.parameters()]
    model = RewardModel.from_policy(p, 0)
    with torch.no_grad():
        for x in model.module.parameters():
            x.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, p.module.parameters(), strict=True))
    assert p.model.config.num_labels == 2


def test_what_it_reads():
    ids = RewardModel.from_policy(policy("gpt2"), 0)
    assert ids.encode(Prompt("p", tokens=(3, 4)), "5 6 2") == [3, 4, 5, 6, 2]
    tokenizer = ByT5Tokenizer(extra_ids=0)
    small = load_policy("transformer:layers=1,width=16,heads=2,context=64")
    model = RewardModel.from_policy(small, 0)
    assert isinstance(small, CausalLM)
    user = {"role": "user", "content": "hi"}
    want = [*tokenizer.encode("hi")[:-1], *tokenizer.encode("yo")]
    assert model.encode(Prompt("p", (user,)), "yo") == want
    assert model.encode(Prompt("p", tokens=(9, 9)), "yo") == [9, 9, *tokenizer.encode("yo")]
    with pytest.raises(InputError, match="chat template"):
        model.encode(Prompt("p", (user, user)), "yo")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
    talk = RewardModel(model.module, tokenizer)
    assert tokenizer.decode(talk.encode(Prompt("p", (user,)), "yo")) == "<user>hi;<assistant>yo;"
    with pytest.raises(InputError, match="holds 64"):
        model(Prompt("p", (user,)), ["x" * 70])


def test_scales():
    score = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    c = Calibration(0.5, 2.0)
    assert torch.equal(rescale(score, c, "none"), score)
    assert rescale(score, c, "standard").tolist() == [-1.25, 0, 1.25]
    assert rescale(score, c, "unit").tolist() == pytest.approx([-0.848284, 0, 0.848284], abs=1e-6)


def test_what_is_no_reward_model_is_refused(tmp_path):
    tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    AutoModelForSequenceClassification.from_config(tiny).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="one linear output"):
        RewardModel.load(tmp_path / "bert")
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "policy")
    with pytest.raises(InputError, match="score"):
        RewardModel.load(tmp_path / "policy")
    with pytest.raises(InputError, match=r"config\.json"):
        RewardModel.load(tmp_path / "nothing")
