"""Chat templates and tokenizers: where a turn ends, and what they leave out or refuse."""

import json

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from anypolicy.data.preferences import Preference
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.loops.reward_model import fit_pairs
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.policies.language.text import chat_end
from anypolicy.policies.language.transformer import small_transformer

CHATML = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
U, S, A = ({"role": r, "content": f"words of the {r}"} for r in ("user", "system", "assistant"))


def policy_with(template):
    tokenizer = ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<|im_end|>", "<|im_end|>more"])
    tokenizer.chat_template = template
    return small_transformer(
        vocabulary=len(tokenizer), layers=1, width=16, heads=2, context_length=128, seed=0,
        eos_id=int(tokenizer.eos_token_id), pad_id=int(tokenizer.pad_token_id), tokenizer=tokenizer,
    )  # fmt: skip


def test_a_base_model_learns_and_stops_at_the_end_of_its_template(tmp_path, capsys):
    policy = policy_with(None)
    policy.tokenizer.chat_template = CHATML
    (tmp_path / "model").mkdir()
    policy.save(tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    assert json.loads(config.read_text())["eos_token_id"] == policy.tokenizer.eos_token_id
    loaded = load_policy(str(tmp_path / "model"))
    end = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == loaded.turn_end != loaded.tokenizer.eos_token_id
    assert set(loaded.stop_ids) == {loaded.tokenizer.eos_token_id, end}
    assert "ends a turn with <|im_end|>" in capsys.readouterr().err
    spoken = loaded.encode_reference(Prompt("p", (U,), reference="a"))
    whole = loaded.tokenizer.apply_chat_template([U, {"role": "assistant", "content": "a"}], return_dict=False)
    assert [*loaded.encode(Prompt("p", (U,))), *spoken] == whole[: whole.index(end, -3) + 1]
    assert loaded.encode_reference(Prompt("p", tokens=(5, 6), reference=(7,)))[-1] == loaded.tokenizer.eos_token_id
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    assert load_policy(str(tmp_path / "again")).stop_ids == loaded.stop_ids
    assert "ends a turn" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (CHATML.replace("<|im_end|>\n", " </s>"), "</s>"), (DEAF, None), (NO_SYSTEM, "<|im_end|>"),
     ("{{ raise_exception('no') }}", None), ("{{ messages[0].content }}", None), (None, None)],
)  # fmt: skip
def test_where_a_turn_ends(template, end):
    tokenizer = policy_with(template).tokenizer
    found = chat_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end


@pytest.mark.parametrize(
    ("template", "messages", "why"),
    [
        (NO_SYSTEM, (S, U), "System role not supported"),
        (DEAF, (S, U), "leaves out the words of its message of the system"),
        (CHATML, (U, A), "its last message is the assistant's"),
        (CHATML, (), "no message"),
        (CHATML, ({"role": "user", "content": "\ud83d"},), "refuses it"),
        (None, ({"role": "user", "content": "\ud83d"},), "refuses it"),
        (CHATML, (U | {"images": ["a.png"]},), "does not read 'images' of its message 0"),
        (CHATML, (U, A | {"tool_calls": [{"name": "f"}]}, U), "does not read 'tool_calls' of its message 1"),
        (None, (U | {"image": "a.png"},), "does not read 'image'"),
    ],
)
def test_what_a_template_cannot_say_is_refused(template, messages, why):
    with pytest.raises(InputError, match=why):
        policy_with(template).encode(Prompt("p", messages))
    assert len(policy_with(template).encode(Prompt("p", (U,))))


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("{{ 1 // 0 }}", "division"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "range"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages", "refuses it"),
    ],
)
def test_whatever_a_template_raises_is_one_error(program, why):
    policy = policy_with(program + CHATML)
    assert chat_end(policy.tokenizer) is None
    for read in (policy.encode, lambda prompt: RewardModel.from_policy(policy, 0).encode(prompt, "a")):
        with pytest.raises(InputError, match=why):
            read(Prompt("p", (U,)))


def test_calls_of_tools_that_a_template_renders_are_read():
    template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    called = A | {"tool_calls": [{"name": "f"}]}
    with_call, without = (policy_with(template).encode(Prompt("p", (U, m, U))) for m in (called, A))
    assert len(with_call) > len(without)


@pytest.mark.parametrize("ids", [(1, 10**6), (-1, 2), (2**70,)])
def test_token_ids_beyond_the_vocabulary_are_refused(ids):
    policy = policy_with(CHATML)
    model = RewardModel.from_policy(policy, 0)
    for read in (lambda: policy.encode(Prompt("p", tokens=ids)),
                 lambda: policy.encode_reference(Prompt("p", (U,), reference=ids)),
                 lambda: model.encode(Prompt("p", tokens=ids), "a")):  # fmt: skip
        with pytest.raises(InputError, match=f"token ids are 0 to {policy.vocabulary - 1}"):
            read()


def test_a_reward_model_without_tokenizer_reads_ids_alone():
    policy = policy_with(None)
    model = RewardModel.from_policy(policy, 0)
    model.tokenizer = None
    assert model.encode(Prompt("p", tokens=(1, 2)), "3 4") == [1, 2, 3, 4]
    for prompt, response in ((Prompt("p", (U,)), "3"), (Prompt("p", tokens=(1, 2)), "three")):
        with pytest.raises(InputError, match="the model has no tokenizer"):
            model.encode(prompt, response)


@pytest.mark.parametrize(
    ("cut", "chosen", "rejected"),
    [("{{ m.content.split('</think>')[-1] }}", "<think>a</think>4", "<think>b</think>4"), ("{{ m.content | trim }}", "4 ", "4")],
)  # fmt: skip
def test_responses_that_a_template_makes_the_same_are_no_pair(cut, chosen, rejected):
    own = policy_with(CHATML.replace("{{ m.content }}", cut))
    for policy, alike in ((own, True), (policy_with(CHATML), False)):
        given = RewardModel.from_policy(policy, 0), [Preference(Prompt("p", (U,)), chosen, rejected)], []
        if alike:
            with pytest.raises(InputError, match="same tokens"):
                fit_pairs(*given, "refuse")
        else:
            assert fit_pairs(*given, "refuse")[0] == given[1]


def test_the_template_of_a_reward_model_says_all_of_it_too():
    model = RewardModel.from_policy(policy_with(DEAF), 0)
    assert model.encode(Prompt("p", (U,)), "a")
    for messages, why in (((S, U), "message of the system"), (({"role": "user", "content": "\ud83d"},), "refuses it")):
        with pytest.raises(InputError, match=why):
            model.encode(Prompt("p", messages), "a")


def test_only_the_last_tokens_are_kept():
    policy = policy_with(CHATML)
    for prompt in (Prompt("p", (U,)), Prompt("p", tokens=(3, 4, 5))):
        whole, cut = policy.encode(prompt), policy.encode(Prompt("p", prompt.messages, prompt.tokens, keep=2))
        assert np.array_equal(cut, whole[-2:])
