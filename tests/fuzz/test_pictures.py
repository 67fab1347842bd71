"""Images and folders of images."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anypolicy.tasks.diffusion.load import load_pictures
from anypolicy.tasks.language.load import load_task
from tests.fuzz.harness import allowed, broken, broken_lines, cases, found, lines, npy, npy_of, npys

FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
    "TGA",
    "ICO",
    "EPS",
    "PDF",
    "DDS",
    "SGI",
    "PCX",
    "JPEG2000",
    "IM",
    "MSP",
    "XBM",
)


def picture(kind: str, mode: str = "RGB") -> bytes:
    out, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


PICTURES = {k: picture(k, {"MSP": "1", "XBM": "1"}.get(k, "RGB")) for k in FORMATS}


def bomb(kind: str, width: int, height: int) -> bytes:
    """A small file that claims many pixels."""
    if kind == "PPM":
        return f"P6 {width} {height} 255\n".encode()
    if kind == "BMP":
        data = bytearray(PICTURES["BMP"])
        data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
        return bytes(data)
    if kind == "GIF":
        data = bytearray(PICTURES["GIF"])
        data[6:10] = (width % 65536).to_bytes(2, "little") + (height % 65536).to_bytes(2, "little")
        return bytes(data)
    import zlib

    data = bytearray(PICTURES["PNG"])
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


images = (
    st.sampled_from(sorted(PICTURES)).flatmap(lambda k: broken(PICTURES[k]))
    | st.builds(
        bomb,
        st.sampled_from(("PNG", "PPM", "BMP", "GIF")),
        st.sampled_from((0, 1, 9000, 20_000, 65_535, 2**31 - 1)),
        st.sampled_from((0, 9000, 20_000, 65_535, 2**31 - 1)),
    )
    | st.binary(max_size=64)
)


def shown(task) -> None:
    """Every image of a task is looked at, as a run does."""
    for prompt in [*task.train, *task.heldout]:
        for one in prompt.media.get("images", ()):
            np.shape(one)


@pytest.fixture(scope="module")
def asked(place):
    (place / "p.jsonl").write_bytes(
        lines([{"prompt": "what?", "answer": "a", "image": "x"}, {"prompt": "who?", "answer": "b"}])
    )
    return str(place / "p.jsonl")


@given(images)
@found(
    b"",
    bomb("PNG", 9000, 20_000),
    bomb("PNG", 65_535, 65_535),
    bomb("PPM", 20_000, 20_000),
    bomb("BMP", 2**31 - 1, 9000),
    *(data[:-9] for data in PICTURES.values()),
    *(PICTURES.values()),
)
@cases(300)
def test_an_image_of_a_prompt(place, asked, data):
    (place / "x").write_bytes(data)

    def read():
        shown(load_task(asked))

    allowed(read)


@given(npys | broken(npy_of(np.ones((2, 2)))) | broken(npy_of(np.array([object()]))))
@found(
    b"",
    *(npy({"descr": "<f4", "fortran_order": False, "shape": shape}, b"") for shape in ((10**23,), (2**40,), (True,))),
)
@cases(150)
def test_an_array_as_image(place, data):
    (place / "n.jsonl").write_bytes(
        lines([{"prompt": "what?", "answer": "a", "image": "x.npy"}, {"prompt": "who?", "answer": "b"}])
    )
    (place / "x.npy").write_bytes(data)

    def read():
        shown(load_task(str(place / "n.jsonl")))

    allowed(read)


@pytest.fixture(scope="module")
def folder(place):
    made = place / "images"
    made.mkdir()
    for i in range(4):
        (made / f"{i}.png").write_bytes(PICTURES["PNG"])
    return made


PAIRS = [
    {"text": "a cat", "chosen": "0.png", "rejected": "1.png"},
    {"text": "a dog", "chosen": "2.png", "rejected": "3.png"},
]
SINGLE = [
    {"text": "a cat", "file_name": "0.png"},
    {"text": "a dog", "file_name": "1.png"},
    {"text": "é", "file_name": "2.png"},
]


def taken(spec: str) -> None:
    task = load_pictures(spec)
    for part in (task.winners, task.losers, task.heldout):
        if part is not None:
            part.take(range(len(part)))


@given(
    broken_lines(PAIRS) | broken_lines(SINGLE),
    st.sampled_from(("", ":size=8", ":size=99999999999", ":heldout=nan", ":size=x", ":heldout=0.999")),
)
@found(more=":size=99999999999", data=lines(PAIRS))
@found(more=":heldout=0.999", data=lines(SINGLE))
@found(more="", data=b"\xff")
@found(more="", data=b"3\n[]\n")
@cases(150)
def test_folders_of_images(folder, data, more):
    (folder / "0.png").write_bytes(PICTURES["PNG"])
    (folder / "metadata.jsonl").write_bytes(data)
    allowed(taken, f"{folder}{more or ':size=16'}")


@given(images)
@found(
    b"",
    bomb("PNG", 9000, 20_000),
    bomb("GIF", 65_535, 20_000),
    *(data[:-9] for data in PICTURES.values()),
    *(PICTURES.values()),
)
@cases(150)
def test_an_image_of_a_folder(folder, data):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in PAIRS))
    (folder / "0.png").write_bytes(data)
    allowed(taken, f"{folder}:size=16")
