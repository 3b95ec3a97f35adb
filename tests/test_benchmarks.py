"""The ways of training that benchmarks compare do what they are said to do; the scaling plot is drawn from its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import lt_sft, scale, scaling
from benchmarks.common import VARIANTS, Figure, training

from tests.tiny import bits, classifier

SHAPE = {"vocab_size": 30522, "hidden_size": 16, "max_position_embeddings": 80}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between peft and transformers
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of SHiRA
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_moves_what_the_way_trains(variant: str) -> None:
    model = classifier(0, **SHAPE)
    before = bits(model)
    with training(variant, model, density=0.001, examples=4, tokens=8) as run:
        run()
        assert all(p.grad is None for p in run.trained)
        moved = {n: int((p.detach() != before[n]).sum()) for n, p in model.named_parameters() if n in before}
    base = sum(count for name, count in moved.items() if not name.startswith("classifier"))
    m = sum(p.numel() for n, p in before.items() if not n.startswith("classifier"))
    assert 0 < base <= run.k if variant not in ("lora", "shira", "super") else base == 0 < run.k
    if variant in ("dense-mask", "sparse"):
        assert run.k == pytest.approx(0.001 * m, rel=0.1)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before) == (
        variant in ("lora", "shira", "super", "sparse")
    )


def test_points_and_plot_come_from_the_figures(tmp_path: Path) -> None:
    figures = [
        Figure(f"{scaling._at(axis, x)}: {way}", 2.0 * i, "ms")
        for axis, places in (("density", (0.0005, 0.2)), ("tokens", (128, 4096)), ("weights", (1_000_000, 2_500_000)))
        for x in places
        for i, way in enumerate(scaling.WAYS)
    ]
    points = scaling.points_of(figures)
    assert [x for x, _ in points["density"]] == [0.0005, 0.2]
    assert points["weights"][1] == (2_500_000, {"floor": 0.0, "full": 2.0, "sparse": 4.0})
    scaling.draw(figures, tmp_path)
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_a_llama_built_from_its_shape_has_a_finite_loss() -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 100}  # fmt: skip
    model = scale.build("1 billion", **small)
    ids = torch.arange(16)[None]
    assert 3.0 < float(model(input_ids=ids, labels=ids).loss.detach()) < 8.0


def test_without_a_checkout_there_is_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(lt_sft.CHECKOUT, raising=False)
    assert lt_sft.measure(quick=True) == []
    assert lt_sft.CHECKOUT in capsys.readouterr().err
