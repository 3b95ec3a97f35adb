"""The sampled weight gradient equals the dense one, gathered: every dtype, shape and layout of memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import gossamer as gs
from gossamer.tunable import sampled as module
from gossamer.tunable.sampled import Layout, dense_then_gather, sampled
from tests import tiny
from tests.tiny import batches, classifier

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def compare(grad: Tensor, x: Tensor, flat: Tensor, bias: Tensor | None = None, *, turned: bool = False) -> None:
    wide, inputs = grad.reshape(-1, grad.shape[-1]).double(), x.reshape(-1, x.shape[-1]).double()
    product = inputs.t() @ wide if turned else wide.t() @ inputs
    with torch.no_grad():
        found, shifts = sampled(grad, x, Layout(flat, bias, turned))
    assert found is not None and found.shape == flat.shape
    few = flat.numel() <= module.DENSE * grad.shape[-1] * x.shape[-1]
    rounding = 1e-5 if few and module._library() and {grad.dtype, x.dtype} <= {torch.float32, torch.bfloat16} else 1e-2
    torch.testing.assert_close(found.double(), product.reshape(-1)[flat], rtol=rounding, atol=rounding * 10)
    assert (shifts is None) == (bias is None)
    if bias is not None and shifts is not None:
        torch.testing.assert_close(shifts.double(), wide.sum(0)[bias], rtol=rounding, atol=rounding * 10)


@given(st.data())
def test_equals_dense_then_gather(data: st.DataObject) -> None:
    tokens, rows, columns = (data.draw(st.integers(1, top), label=name) for name, top in
                             (("tokens", 150), ("rows", 40), ("columns", 40)))  # fmt: skip
    a_dtype, b_dtype = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    a, b = torch.randn(tokens, rows).to(a_dtype), torch.randn(tokens, columns).to(b_dtype)
    count = data.draw(st.integers(1, rows * columns), label="k")
    shifts = data.draw(st.integers(0, rows), label="k of the bias")
    bias = torch.randperm(rows)[:shifts].sort().values if shifts else None
    compare(a, b, torch.randperm(rows * columns)[:count].sort().values, bias, turned=data.draw(st.booleans()))


def test_any_layout_of_memory_and_leading_shape() -> None:
    torch.manual_seed(0)
    flat = torch.arange(0, 17 * 24, 3)
    plain = torch.randn(5, 13, 17), torch.randn(5, 13, 24)
    compare(*plain, flat)
    compare(plain[0].transpose(0, 1), plain[1].transpose(0, 1), flat)
    compare(torch.randn(17, 65).t(), torch.randn(24, 65).t(), flat)
    compare(torch.ones(()).expand(65, 17), torch.randn(65, 24), flat)
    compare(torch.randn(1, 17).expand(65, 17), torch.randn(130, 48)[::2, 5:29], flat)
    found, _ = sampled(torch.zeros(0, 17), torch.zeros(0, 24), Layout(flat))
    assert found is not None and found.eq(0).all()


def test_a_bias_alone_needs_no_input() -> None:
    grad = torch.randn(3, 5, 4)
    found, shifts = sampled(grad, None, Layout(None, torch.tensor([1, 3])))
    assert found is None and shifts is not None
    torch.testing.assert_close(shifts, grad.sum((0, 1))[[1, 3]])


def test_threads_and_repetitions_do_not_change_the_bits() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1000, 33), torch.randn(1000, 65)
    layout = Layout(torch.randperm(33 * 65)[:200].sort().values, torch.arange(33))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                found = [torch.cat(sampled(a, b, layout)) for _ in range(5)]  # type: ignore[arg-type]
            assert all(torch.equal(found[0], other) for other in found)
            torch.testing.assert_close(found[0], torch.cat(dense_then_gather(a, b, layout)), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


def test_without_the_kernel_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    a, b, layout = torch.randn(70, 5), torch.randn(70, 6), Layout(torch.tensor([0, 7, 29]))
    with torch.no_grad():
        compiled, _ = sampled(a, b, layout)
        monkeypatch.setattr(module, "_library", lambda: None)
        assert "dense" in module.build()
        torch.testing.assert_close(sampled(a, b, layout)[0], compiled, rtol=1e-5, atol=1e-5)


class Uses(nn.Module):
    """Products in every manner: twice in one forward, changed in place afterwards, called by keyword, transposed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.turned = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), Conv1D(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first(x).relu_()) + self.second(input=x)
        return self.turned(self.second(x).mul_(2.0)).square().mean()


def gradients(dense: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    if dense:
        monkeypatch.setattr("gossamer.tunable.sparse.use", lambda owner: None)
    model = Uses()
    with gs.tune(model, "random", k=40, head=False) as tuned:
        torch.manual_seed(1)
        model(torch.randn(3, 5, 6)).backward()
        return tiny.gradients(tuned)


def test_a_tapped_output_gives_the_gradient_of_an_aliased_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    tapped = gradients(False, monkeypatch)
    aliased = gradients(True, monkeypatch)
    assert tapped.keys() == aliased.keys() and len(tapped) >= 3
    assert any("bias" in name for name in tapped)
    for name in tapped:
        torch.testing.assert_close(tapped[name], aliased[name], rtol=1e-5, atol=1e-6)


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = Uses()
    with gs.tune(model, "random", k=40, head=False) as tuned:
        with pytest.raises(RuntimeError):
            model.first(torch.zeros(2, 5))
        assert type(model.first.weight) is nn.Parameter
        model(torch.randn(2, 3, 6)).backward()
        assert all(leaf.grad is not None for leaf in tuned.parameters())


def test_second_backward_through_a_tap() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), torch.randn(7, 4).double()
    with gs.tune(model, "random", k=10, head=False) as tuned:
        leaves = list(tuned.parameters())
        with torch.enable_grad():
            first = torch.autograd.grad(model(x).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        step, numeric = 1e-6, []
        for leaf in leaves:
            found = torch.zeros_like(leaf)
            for i in range(leaf.numel()):
                sums = []
                for sign in (1, -1):
                    leaf.data[i] += sign * step
                    tuned.leaves.write(list(tuned.leaves.leaves), force=True)  # type: ignore[attr-defined]
                    grads = torch.autograd.grad(model(x).square().sum(), leaves)
                    sums.append(sum(float(g.square().sum()) for g in grads))
                    leaf.data[i] -= sign * step
                found[i] = (sums[0] - sums[1]) / (2 * step)
            numeric.append(found)
    for got, expected in zip(second, numeric, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_no_dense_gradient_of_a_linear_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> Tensor:
        raise AssertionError("a dense gradient was formed")

    model = classifier()
    with gs.tune(model, "random", density=0.05, exclude="*LayerNorm*") as tuned:
        monkeypatch.setattr("gossamer.tunable.bridge.gather", refuse)
        model(**batches(1)[0]).loss.backward()
        assert all(leaf.grad is not None for leaf in tuned.leaves.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_defaults_of_dtype_and_device_do_not_matter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b, layout = torch.randn(70, 33), torch.randn(70, 65), Layout(torch.arange(0, 33 * 65, 7), torch.arange(33))
    with torch.no_grad():
        expected = torch.cat(sampled(a, b, layout))  # type: ignore[arg-type]
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                found = torch.cat(sampled(a, b, layout))  # type: ignore[arg-type]
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
