"""Conversations in files: what is trained is what the line means, or the line is refused."""

import json

import pytest

from anypolicy.errors import InputError
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.preferences import load_pairs


def said(role, content):
    return {"role": role, "content": content}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return str(path)


U, V = said("user", "what is 1+1?"), said("user", "what is 1+2?")
TWO, THREE, AND = said("assistant", "2"), said("assistant", "3"), said("user", "and now?")
KIND = said("system", "be kind")
OTHER = {"prompt": "other", "chosen": "a", "rejected": "b"}
REFUSED = [
    ({"chosen": [U, TWO], "rejected": [V, THREE]}, "'rejected' is not the prompt"),
    ({"chosen": [U, TWO, AND, TWO], "rejected": [U, THREE, AND, THREE]}, "part at message 1"),
    ({"chosen": [U, TWO], "rejected": [said("system", "be kind"), U, THREE]}, "part at message 0"),
    ({"chosen": [U, TWO], "rejected": [U, THREE, AND, THREE]}, "part at message 1"),
    ({"chosen": [U, TWO, AND], "rejected": [U, TWO, V]}, "ends with a message of the user"),
    ({"prompt": "what is 1+1?", "chosen": [TWO, AND, TWO], "rejected": [THREE]}, "'chosen' is not the prompt"),
    ({"prompt": "what is 1+1?", "chosen": [U, TWO], "rejected": [V, THREE]}, "'rejected' is not the prompt"),
    ({"prompt": [V], "chosen": [U, TWO], "rejected": [U, THREE]}, "'chosen' is not the prompt"),
    ({"prompt": [U], "chosen": "2", "rejected": [V, THREE]}, "'rejected' is not the prompt"),
    ({"chosen": [U, TWO], "rejected": "3"}, "only chosen is a conversation"),
    ({"chosen": [U, TWO, THREE], "rejected": [U, TWO, TWO]}, "ends with the assistant's message"),
    ({"prompt": [U, TWO], "chosen": "4", "rejected": "5"}, "ends with the assistant's message"),
    ({"prompt": [1, 2], "chosen": [U, TWO], "rejected": [U, THREE]}, "'chosen' is not the prompt"),
    ({"chosen": [U, TWO | {"tool_calls": [{"name": "f"}]}], "rejected": [U, THREE]}, "assistant has tool_calls"),
    ({"chosen": [U, TWO], "rejected": [U, THREE | {"images": ["a.png"]}]}, "assistant has images"),
    ({"prompt": "a", "chosen": "2", "rejected": "3", "tools": [{"name": "f"}]}, "'tools' is not given"),
    ({"prompt": "a", "chosen": "2", "rejected": "3", "margin": 1e19}, "'margin' is 1e\\+19"),
    ({"prompt": "a", "chosen": "2", "rejected": "3", "margin": 10**400}, "line 2|308 digits"),
    ({"prompt": "what is 1+1?", "chosen": [KIND, U, TWO], "rejected": [U, THREE]}, "'chosen' is not the prompt"),
    ({"prompt": "what is 1+1?", "chosen": [KIND, U, TWO], "rejected": "3"}, "'chosen' is not the prompt"),
    ({"prompt": "what is 1+3?", "chosen": [KIND, U, TWO], "rejected": [KIND, U, THREE]}, "'chosen' is not the prompt"),
    ({"prompt": "2", "chosen": [U, TWO, AND, TWO], "rejected": [U, TWO, AND, THREE]}, "'chosen' is not the prompt"),
    ({"prompt": [U], "chosen": [KIND, U, TWO], "rejected": [KIND, U, THREE]}, "'chosen' is not the prompt"),
    ({"chosen": [U | {"name": "Ada"}, TWO], "rejected": [U | {"name": "Bob"}, THREE]}, "part at message 0"),
    ({"prompt": "", "chosen": [U, TWO], "rejected": "3"}, "only chosen is a conversation"),
    ({"prompt": "", "chosen": "2", "rejected": "3"}, "'prompt' is"),
    ({"prompt": "q", "chosen": " \n", "rejected": "3"}, "'chosen' is ' .n': write the text"),
    ({"prompt": "q", "chosen": "2", "rejected": "\t"}, "'rejected' is '.t': write the text"),
    ({"chosen": [U, TWO], "rejected": [U, said("assistant", " ")]}, "'rejected' is ' ': write the text"),
    ({"prompt": "q", "chosen": "2", "rejected": "2\n"}, "the same"),
    ({"chosen": [U, TWO], "rejected": [U, said("assistant", "2  ")]}, "the same"),
    (
        {"prompt": "q", "chosen": "2", "rejected": "3", "score_chosen": 1.5, "score_rejected": 8},
        "below 'score_rejected'",
    ),
    (
        {"prompt": "q", "chosen": "2", "rejected": "3", "chosen-rating": 1, "rejected-rating": 2},
        "below 'rejected-rating'",
    ),
]


@pytest.mark.parametrize(("row", "why"), REFUSED)
@pytest.mark.parametrize("load", [load_pairs, load_task])
def test_pairs_that_answer_different_prompts_are_refused_with_their_line(tmp_path, row, why, load):
    path = write(tmp_path / "x.jsonl", OTHER, row)
    with pytest.raises(InputError, match=why) as error:
        load(path)
    assert (error.value.field, error.value.value) == (path, "line 2")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [U, TWO], "rejected": [U, THREE]},
        {"prompt": "what is 1+1?", "chosen": [U, TWO], "rejected": [U, THREE]},
        {"prompt": "what is 1+1?", "chosen": [TWO], "rejected": [THREE]},
        {"prompt": [U], "chosen": [U, TWO], "rejected": "3"},
        {"prompt": "", "chosen": [U, TWO], "rejected": [U, THREE]},
        {"prompt": " \n", "chosen": [U, TWO], "rejected": [U, THREE]},
        {"prompt": [], "chosen": [U, TWO], "rejected": [U, THREE]},
        {"prompt": "what is 1+1?\n", "chosen": [U, TWO], "rejected": [U, THREE]},
        {"chosen": [U | {"time": 1}, TWO], "rejected": [U | {"time": 2}, THREE]},
        {"chosen": [U, TWO], "rejected": [U | {"tool_calls": None, "id": "x"}, THREE]},
        {"prompt": [U], "chosen": [U | {"time": 1}, TWO], "rejected": [U | {"time": 2}, THREE]},
        {
            "chosen": [U, TWO],
            "rejected": [U, THREE],
            "score_chosen": 2,
            "score_rejected": 2,
            "chosen_tokens": 1,
            "rejected_tokens": 9,
        },
    ],
)
def test_ways_to_write_one_pair(tmp_path, row):
    train, held = load_pairs(write(tmp_path / "x.jsonl", OTHER, row))
    [pair] = [p for p in train + held if p.chosen == "2"]
    assert (pair.prompt.messages, pair.rejected) == ((U,), "3")


@pytest.mark.parametrize("load", [load_pairs, load_task])
@pytest.mark.parametrize("before", [[KIND], [V, THREE], [KIND, V, THREE]], ids=len)
def test_a_text_that_is_one_of_the_user_s_messages_says_nothing_more(tmp_path, load, before):
    """The histories are the prompt, whichever end of them the text repeats."""
    asked = [*before, U]
    both = {"chosen": [*asked, TWO], "rejected": [*asked, THREE]}
    ends = [m["content"] for m in asked if m["role"] == "user"]
    rows = [{"prompt": text, **both} for text in {ends[0], ends[-1]}]
    found = load(write(tmp_path / "x.jsonl", OTHER, *rows))
    prompts = [*found[0], *found[1]] if load is load_pairs else [*found.train, *found.heldout]
    messages = [p.prompt.messages if load is load_pairs else p.messages for p in prompts]
    assert [m for m in messages if len(m) > 1] == [tuple(asked)] * (len(rows) if load is load_pairs else 1)


def test_what_only_one_history_says_beside_its_words_is_no_part_of_the_prompt(tmp_path):
    row = {"chosen": [U | {"time": 1, "id": 7}, TWO], "rejected": [U | {"time": 2, "id": 7}, THREE]}
    train, held = load_pairs(write(tmp_path / "x.jsonl", OTHER, row))
    assert [p.prompt.messages for p in train + held if p.chosen == "2"] == [(U | {"id": 7},)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "q", "completion": " ", "label": False}, "'completion' is ' ': write the text"),
        ({"prompt": "what is 1+2?", "completion": [U, TWO], "label": True}, "'completion' is not the prompt"),
        ({"prompt": "what is 1+1?", "completion": [TWO, AND], "label": True}, "ends with a message of the user"),
        ({"prompt": [U, TWO], "completion": "3", "label": False}, "ends with the assistant's message"),
        ({"completion": [U, TWO | {"reasoning_content": "1 and 1"}], "label": False}, "has reasoning_content"),
        ({"prompt": "a", "completion": "3", "label": False, "tools": [{"name": "f"}]}, "'tools' is not given"),
        ({"prompt": "a", "completion": "3", "label": "false"}, "'label' is 'false'"),
        ({"prompt": "a", "completion": "3", "label": 2}, "'label' is 2"),
        ({"prompt": "a", "completion": "3", "label": None}, "'label' is None"),
    ],
)
def test_labelled_conversations(tmp_path, row, why):
    good = {"completion": [U, TWO], "label": True}, {"prompt": "b", "completion": "c", "label": False}
    task = load_task(write(tmp_path / "good.jsonl", *good))
    assert ((U,), ["2"]) in [(p.messages, p.info["responses"]) for p in task.train + task.heldout]
    for more in ({"prompt": ""}, {"prompt": "what is 1+1?", "completion": [KIND, U, TWO]}):
        task = load_task(write(tmp_path / "good.jsonl", good[0] | more, good[1]))
        want = tuple(more.get("completion", [U, TWO])[:-1])
        assert (want, ["2"]) in [(p.messages, p.info["responses"]) for p in task.train + task.heldout]
    with pytest.raises(InputError, match=why):
        load_task(write(tmp_path / "x.jsonl", *good, row))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [U, TWO], "response": "3"}, "not what 'messages' ends with"),
        ({"prompt": [U, TWO], "response": "3"}, "ends with the assistant's message"),
        ({"messages": [U, TWO, THREE]}, "ends with the assistant's message"),
        ({"messages": [U, TWO | {"tool_calls": [{"name": "f"}]}]}, "assistant has tool_calls"),
        ({"messages": [U, TWO], "tools": [{"name": "f"}]}, "'tools' is not given"),
    ],
)
def test_prompts_and_references_of_messages(tmp_path, row, why):
    good = {"messages": [U, TWO]}, {"messages": [V, THREE]}
    task = load_task(write(tmp_path / "good.jsonl", *good))
    found = [(p.messages, p.reference) for p in task.train + task.heldout]
    assert sorted(found, key=str) == [((U,), "2"), ((V,), "3")]
    with pytest.raises(InputError, match=why) as error:
        load_task(write(tmp_path / "x.jsonl", *good, row))
    assert error.value.value == "line 3"


def test_what_a_logged_message_says_beside_its_content_is_refused(tmp_path):
    asked = {"conversation": [U, TWO, {"role": "user", "content": "wrong", "satisfied": False}]}
    shown = {"conversation": [U | {"images": ["a.png"]}, TWO]}
    assert load_task(write(tmp_path / "good.jsonl", asked, asked | {"conversation": [V, *asked["conversation"][1:]]}))
    with pytest.raises(InputError, match="user has images"):
        load_task(write(tmp_path / "x.jsonl", asked, shown))


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00", "answer": "b"}\n{"prompt": "\\ud83d", "answer": "b"}\n')
    with pytest.raises(InputError, match="half a surrogate pair") as error:
        load_task(str(path))
    assert error.value.value == "line 2"
