"""Tasks of diffusion models: what is preferred, what judges, folders of images that cannot be used."""

import json

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.tasks.diffusion import ring8
from anypolicy.tasks.diffusion.image_folder import read
from anypolicy.tasks.diffusion.load import load_pictures
from anypolicy.tasks.diffusion.small_images import Pictures, ink, medians, preferred, sharpness


def test_ring8_and_its_judge():
    task = load_pictures("ring8")
    assert len(task.winners) == len(task.losers) == 200 and len(task.heldout) == 1500
    near = torch.cdist(task.winners.points, ring8.centres()).argmin(1)
    assert set(near.tolist()) == {0, 1, 2}
    assert set(torch.cdist(task.losers.points, ring8.centres()).argmin(1).tolist()) == {3, 4, 5, 6, 7}
    rng = torch.Generator().manual_seed(0)
    perfect = ring8.judge(ring8.points(1500, 0, 3, rng), task.heldout.points)
    assert perfect["eval/distance"] < 0.02 and perfect["eval/preferred"] > 0.97 and perfect["eval/balance"] > 0.85
    one = ring8.judge(ring8.points(1500, 0, 1, rng), task.heldout.points)
    assert one["eval/balance"] == 0 and one["eval/distance"] > 0.3 and one["eval/preferred"] > 0.97
    none = ring8.judge(ring8.points(1500, 4, 7, rng), task.heldout.points)
    assert none["eval/preferred"] == none["eval/balance"] == 0
    assert not torch.equal(load_pictures("ring8:base=1").winners.points, task.winners.points)


def test_digits_and_their_judge():
    task = load_pictures("digits")
    assert task.winners.images.shape[1:] == (1, 8, 8) and len(task.winners) == len(task.losers)
    assert task.winners.labels == task.losers.labels and set(task.winners.labels) == set(range(10))
    for i in range(len(task.winners)):
        assert ink(task.winners.images[i : i + 1]) > ink(task.losers.images[i : i + 1])
    good = task.judge(task.winners.images, task.winners.labels)
    bad = task.judge(task.losers.images, task.losers.labels)
    assert good["eval/preferred"] == 1 and bad["eval/preferred"] == 0
    assert good["eval/recognised"] > 0.99 and good["eval/distance"] < bad["eval/distance"]
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wrong = task.judge(noise, [i % 10 for i in range(200)])
    assert wrong["eval/recognised"] < 0.3 and wrong["eval/distance"] > 5 * good["eval/distance"]
    said = task.judged_by()
    assert "right on 9" in said and "more ink" in said
    assert len(load_pictures("digits:winners=1").winners) == 1


def test_photos():
    task = load_pictures("photos")
    assert task.winners.images.shape[1:] == (3, 16, 16) and set(task.winners.labels) == {0, 1}
    assert task.winners.images.min() >= 0 and task.winners.images.max() <= 1
    assert (sharpness(task.winners.images) > sharpness(task.losers.images)).all()


def test_scores_and_halves():
    flat, edge = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1
    assert ink(flat) == 0.5 and sharpness(flat) == 0 and sharpness(edge) == 1
    rows = Pictures(torch.arange(6.0).view(6, 1, 1, 1), [0, 0, 0, 1, 1, 1])
    middle = medians(rows, ink)
    assert middle.tolist() == [1, 4]
    assert preferred(rows, middle, ink).images.flatten().tolist() == [2, 5]
    assert preferred(rows, middle, ink, above=False).labels == [0, 0, 1, 1]


def image(path, size=(12, 8)):
    from PIL import Image

    Image.new("RGB", size, (255, 128, 0)).save(path)


def test_a_folder_of_images(tmp_path):
    for i in range(4):
        image(tmp_path / f"{i}.png")
    rows = [{"text": f"p{i % 2}", "file_name": f"{i}.png"} for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_pictures(f"{tmp_path}:size=8,heldout=0.5")
    assert len(task.winners) == len(task.heldout) == 2 and task.losers is None and task.labels == ["p0", "p1"]
    samples, labels = task.winners.take([1, 0])
    assert samples.shape == (2, 3, 8, 8) and labels == ["p1", "p0"]
    assert torch.allclose(samples[0, :, 0, 0], torch.tensor([1.0, 128 / 255, 0.0]))


BAD = [
    ("not json", "line 2"),
    ('{"text": "a"}', "'file_name'"),
    ('{"text": "", "file_name": "0.png"}', "'text'"),
    ('{"text": "a", "file_name": "gone.png"}', "not in the folder"),
    ('{"text": "a", "chosen": "0.png", "rejected": "0.png"}', "same image"),
    ('{"text": "a", "chosen": "0.png", "rejected": "1.png"}', "all lines"),
    ('{"text": "a", "chosen": "0.png"}', "'rejected'"),
    ("[1]", "line 2"),
    ("", "less than 2 lines"),
]


@pytest.mark.parametrize(("line", "match"), BAD)
def test_folders_that_cannot_be_used(tmp_path, line, match):
    image(tmp_path / "0.png")
    image(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"text": "a", "file_name": "0.png"}\n' + line)
    with pytest.raises(InputError, match=match):
        load_pictures(str(tmp_path))


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_pictures("digit")
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        load_pictures(str(tmp_path))
    with pytest.raises(InputError, match="at least 1"):
        load_pictures("digits:winners=0")
    with pytest.raises(InputError, match="winners"):
        load_pictures("ring8:size=3")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "x.png", 8)
