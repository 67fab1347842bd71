"""Images that rows of data sets show."""

import json

import numpy as np
import pytest
from PIL import Image

from anypolicy.errors import InputError
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.tasks.language.pictures import Shown
from anypolicy.tasks.language.prompts import PromptTask, from_jsonl
from anypolicy.tasks.language.recorded import from_pairs


def file_of(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def saved(folder, name, value, size=(6, 4)):
    Image.new("RGB", size, value).save(folder / name)
    return name


def test_rows_show_images_beside_their_file(tmp_path):
    for i in range(4):
        saved(tmp_path, f"{i}.png", (i, 2 * i, 3))
    rows = [{"prompt": "what?", "image": f"{i}.png", "answer": str(i)} for i in range(3)]
    rows.append({"prompt": "which <image> <image>?", "images": ["0.png", "3.png"], "answer": "x"})
    task = from_jsonl(file_of(tmp_path, rows))
    every = {p.answer: p for p in [*task.train, *task.heldout]}
    assert len(every) == 4
    first = every["2"].media["images"][0]
    assert first.shape == (4, 6, 3)
    assert first.dtype == np.uint8
    assert first[0, 0].tolist() == [2, 4, 3]
    assert [int(x[0, 0, 0]) for x in every["x"].media["images"]] == [0, 3]
    assert isinstance(every["x"].media["images"][1:], Shown)
    assert "image" not in every["2"].info


def test_images_in_other_modes_become_colours(tmp_path):
    Image.new("L", (3, 3), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (3, 3), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    rows = [{"prompt": "?", "image": f, "answer": f} for f in ("grey.png", "clear.png")]
    task = from_jsonl(file_of(tmp_path, rows))
    for p in [*task.train, *task.heldout]:
        assert p.media["images"][0].shape == (3, 3, 3)


def test_an_image_that_goes_away_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    shown = Shown([path])
    path.unlink()
    with pytest.raises(InputError, match=r"a\.png.*cannot be unpacked now"):
        shown[0]


def test_a_data_set_may_hold_the_images_itself():
    rows = [
        (f"row {i}", {"prompt": "?", "image": Image.new("RGB", (2, 2), (i, 0, 0)), "answer": str(i)}) for i in range(2)
    ]
    task = PromptTask(
        "set", rows, prompt="prompt", answer="answer", verifier_name="exact", heldout=0.5, max_tokens=4, instruction=""
    )
    assert sorted(int(p.media["images"][0][0, 0, 0]) for p in [*task.train, *task.heldout]) == [0, 1]


@pytest.mark.parametrize(
    ("row", "told"),
    [({"image": "none.png"}, "no image"), ({"image": 3}, "path of a file"), ({"image": "rows.jsonl"}, "can be read"),
     ({"image": "0.png", "images": ["0.png"]}, "put all into"), ({"images": ["0.png", 4]}, "path of a file")],
)  # fmt: skip
def test_bad_images_are_named_with_their_line(tmp_path, row, told):
    saved(tmp_path, "0.png", (1, 1, 1))
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2", **row}]
    with pytest.raises(InputError, match=told) as error:
        from_jsonl(file_of(tmp_path, rows))
    assert "line 2" in str(error.value)


def test_pairs_show_images_and_a_reward_model_of_text_refuses_them(tmp_path):
    for i in range(2):
        saved(tmp_path, f"{i}.png", (i, i, i))
    rows = [{"prompt": "what?", "image": f"{i}.png", "chosen": "a", "rejected": "b"} for i in range(2)]
    task = from_pairs(file_of(tmp_path, rows), heldout=0)
    assert sorted(int(p.media["images"][0][0, 0, 0]) for p in task.train) == [0, 1]
    assert len({p.id.partition("/")[0] for p in task.train}) == 2
    with pytest.raises(InputError, match="reads text alone"):
        RewardModel.encode(RewardModel.__new__(RewardModel), task.train[0], "a")
