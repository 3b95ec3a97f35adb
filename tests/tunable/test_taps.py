"""Tapped outputs: look-ups, what is made again, and the same under `torch.compile`."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import gossamer as gs
from gossamer.delta.base import base_parameters
from gossamer.delta.support import Support
from gossamer.errors import BadPlan
from gossamer.tunable.remade import remade
from gossamer.tunable.taps import looked
from gossamer.tunable.tuned import Tuned
from tests.contracts.test_methods import build, data
from tests.tiny import batches, classifier, gradients


@given(st.data())
def test_looked_entries_are_those_of_the_dense_gradient(draws: st.DataObject) -> None:
    rows, width = draws.draw(st.integers(1, 12)), draws.draw(st.integers(1, 6))
    ids = torch.tensor(draws.draw(st.lists(st.integers(0, rows - 1), max_size=20)), dtype=torch.int64)
    padding = draws.draw(st.none() | st.integers(0, rows - 1))
    torch.manual_seed(draws.draw(st.integers(0, 99)))
    count = draws.draw(st.integers(1, rows * width))
    indices, grad = torch.randperm(rows * width)[:count].sort().values, torch.randn(ids.numel(), width)
    table = torch.randn(rows, width, requires_grad=True)
    (functional.embedding(ids, table, padding) * grad).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(looked(grad, ids, indices, padding), table.grad.reshape(-1)[indices])


class Feedforward(nn.Module):
    """A gated feed-forward block behind an embedding."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.act = nn.Embedding(9, 6, padding_idx=2), act
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.down(self.act(self.gate(x)) * self.up(x)) + self.down(self.act(self.up(x)))


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ReLU(), nn.Tanh()])
def test_what_is_made_again_gives_the_gradients_of_what_is_kept(act: nn.Module) -> None:
    found = []
    for hooked in (False, True):  # hooks on saved tensors: everything is kept
        model, ids = Feedforward(act).double(), torch.arange(8).view(2, 4)
        dense = copy.deepcopy(model)
        dense(ids).square().mean().backward()
        tuned = Tuned(model, Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()}))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t) if hooked else torch.enable_grad():
            loss = model(ids).square().mean()
        loss.backward()
        found.append(gradients(tuned))
        for name, grad in found[-1].items():
            expected = dense.get_parameter(name).grad
            assert expected is not None
            torch.testing.assert_close(grad, expected.reshape(-1))
        tuned.detach()
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name])


def test_the_same_bits_are_made_again_and_nothing_is_kept_twice() -> None:
    x = torch.randn(5, 7, requires_grad=True) * 2
    for made in (functional.gelu(x), functional.silu(x), x * x.exp()):
        kept, again = remade(made)
        assert made.data_ptr() not in [part.data_ptr() for part in kept]
        assert torch.equal(again(*kept), made)
    for other in (x * 2.0, x + 1.0, x.detach()):  # a constant factor: only the tensor itself will do
        assert remade(other)[0][0] is other


@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU()])
def test_second_backward_through_what_is_made_again_and_a_look_up(act: nn.Module) -> None:
    model, ids = Feedforward(act).double(), torch.arange(8).view(2, 4)
    every = Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()})
    dense = copy.deepcopy(model)

    def second(trained: list[nn.Parameter], loss: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(loss, trained, create_graph=True)
        return list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), trained))

    expected = second(list(dense.parameters()), dense(ids).square().mean())
    tuned = Tuned(model, every)
    (found,) = second(list(tuned.parameters()), model(ids).square().mean())
    by_name = dict(zip([n for n, _ in dense.named_parameters()], expected, strict=True))
    for name, part in tuned.leaves.by_weight([("values", found)]).items():  # type: ignore[attr-defined]
        torch.testing.assert_close(part, by_name[name].reshape(-1))
    tuned.detach()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated", "ignore:The .grad attribute")  # the compiler's doing
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_compiled_without_a_graph_break_it_trains_alike(name: str) -> None:
    batch, losses = data(name)[0], []
    for compiled in (False, True):
        torch.compiler.reset()
        model = build(name).eval()
        with gs.tune(model, "random", density=0.1) as tuned:
            run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
            optimizer = torch.optim.SGD(tuned.parameters(), lr=0.5)
            found = []
            for _ in range(3):
                loss = run(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.detach())
            losses.append(torch.stack(found))
    assert len(set(losses[0].tolist())) == 3
    torch.testing.assert_close(losses[1], losses[0])


def test_a_loaded_state_is_written_at_once() -> None:
    model = classifier().eval()
    with gs.tune(model, "random", density=0.1) as tuned:
        state = {n: t.clone() for n, t in model.state_dict().items()}
        state["gossamer.values"] += 1.0
        before = model(**batches(1)[0]).logits
        model.load_state_dict(state)
        name, indices = next(iter(tuned.leaves.support.items()))
        weight = base_parameters(model)[name].detach().reshape(-1)[indices]
        kept = tuned.stack.sites[name].kept
        assert torch.equal(weight, kept + 1.0)
        assert not torch.equal(model(**batches(1)[0]).logits, before)


class Reads(nn.Module):
    """Two layers with whatever happens between them, and the embedding before."""

    def __init__(self, between: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b, self.between = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6), between

    def forward(self, ids: Tensor, depth: int = 1) -> Tensor:
        h = self.embed(ids)
        if depth and self.between == "itself":
            h = h + self(ids, 0)
            return functional.linear(h, self.a.weight[:, :6]) + self.a(h)
        h = functional.gelu(self.a(h))
        if self.between == "in place":
            with torch.no_grad():
                h.mul_(2)
        return self.b(h)


def hooked(model: Reads) -> None:
    model.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def patched(model: Reads) -> None:
    old = model.a.forward
    model.a.forward = lambda x: old(x) * 3  # type: ignore[method-assign]


@pytest.mark.parametrize("change", ["none", "in place", "itself", hooked, patched])
def test_whatever_else_is_done_to_a_module_its_gradient_is_the_dense_one(change: object) -> None:
    model, ids = Reads(change).double(), torch.arange(8).view(2, 4)
    dense = copy.deepcopy(model)
    tuned = Tuned(model, Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()}))
    for one in (model, dense):
        if callable(change):
            change(one)
        one(ids).square().mean().backward()
    for name, grad in gradients(tuned).items():
        expected = dense.get_parameter(name).grad
        assert expected is not None
        torch.testing.assert_close(grad, expected.reshape(-1))
    tuned.detach()


def test_gradients_below_a_forward_that_records_none() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).double()
    inner, x = model[1].forward, torch.randn(2, 3, 8).double()

    def recorded(*args: Tensor, **kwargs: object) -> Tensor:
        with torch.enable_grad():
            return inner(*args, **kwargs)

    model[1].forward = recorded  # type: ignore[method-assign]
    found: list[dict[str, Tensor]] = []
    for tune in (False, True):
        tuned = (
            Tuned(model, Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()}))
            if tune
            else None
        )
        with torch.no_grad():
            out = model(x)
        out.square().sum().backward()
        if tuned:
            found.append(gradients(tuned))
            tuned.detach()
        else:
            found.append({n: p.grad.reshape(-1).clone() for n, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)


def test_ids_that_are_written_over_before_the_backward_are_noticed() -> None:
    model, ids = nn.Embedding(9, 6), torch.arange(4)
    with gs.tune(model, "random", k=20):
        out = model(ids)
        ids.fill_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_a_tuple_from_an_earlier_hook_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with gs.tune(model, "random", k=20):
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: (output,) if module is model[0] else None
        )
        try:
            with pytest.raises(BadPlan, match="another hook"):
                model[0](torch.randn(2, 4))
        finally:
            hook.remove()
        model(torch.randn(2, 4)).sum().backward()
