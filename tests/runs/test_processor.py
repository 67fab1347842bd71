"""The choice of the matrix library."""

import pytest
import torch

from anypolicy.families import language as training
from anypolicy.runs import processor


@pytest.mark.parametrize(
    ("seconds", "error", "want"),
    [((2.0, 1.0), (1e-5, 2e-5), True), ((2.0, 1.0), (1e-5, 1e-2), False), ((1.1, 1.0), (1e-5, 1e-5), False)],
    ids=["faster and exact", "rounds to bfloat16", "hardly faster"],
)
def test_only_much_faster_and_as_exact(seconds, error, want):
    names = ("highest", "medium")
    assert processor.better(dict(zip(names, seconds)), dict(zip(names, error))) is want


def test_the_same_library_is_chosen_again_however_busy_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    answers = iter([True, False])
    monkeypatch.setattr(processor, "better", lambda *_: next(answers))
    try:
        for _ in range(2):
            processor.choose_products.cache_clear()
            assert processor.choose_products() == "onednn"
        [kept] = (tmp_path / "home").iterdir()
        kept.write_text("half a wo")
        processor.choose_products.cache_clear()
        assert processor.choose_products() == "default"
    finally:
        processor.choose_products.cache_clear()


def test_products_stay_exact_whatever_is_chosen():
    before = torch.get_float32_matmul_precision()
    try:
        chosen = processor.measure_products()
        assert torch.get_float32_matmul_precision() == before
        processor.use_products(chosen, torch.device("cpu"))
        a = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
        assert float((a @ a - a.double() @ a.double()).abs().max()) < 5e-4
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_gpu_rounds_no_product():
    before = torch.get_float32_matmul_precision()
    try:
        processor.use_products("onednn", torch.device("cuda", 0))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_run_goes_on_with_the_library_it_began_with(monkeypatch):
    before = torch.get_float32_matmul_precision()
    choice = iter(["onednn", "default"])
    monkeypatch.setattr(training, "choose_products", lambda: next(choice))
    try:
        written = training.plan("grpo", training.Settings("tabular-lock")).written()
        training.world_of(training.plan_from(written))
        assert torch.get_float32_matmul_precision() == "medium"
        training.world_of(training.plan("grpo", training.Settings("tabular-lock")))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
