"""Every rule of selection against a reference of a few lines, and the scoring pass against autograd by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gossamer.delta.support import Support
from gossamer.delta.topk import apportion
from gossamer.errors import BadData, BadPlan
from gossamer.select.bias import bias
from gossamer.select.change import change
from gossamer.select.fisher import fisher
from gossamer.select.gradient import gradient
from gossamer.select.magnitude import magnitude
from gossamer.select.scoring import accumulate
from gossamer.select.uniform import uniform

Named = dict[str, Tensor]


@st.composite
def toys(draw: st.DrawFn) -> Named:
    """A few tensors of small integers, so that there are ties and zeros."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shapes = draw(st.lists(st.sampled_from([(3, 4), (5,), (2, 3, 2), (1,)]), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return {f"p{9 - i}": torch.randint(-5, 6, shape, generator=rng).to(dtype) for i, shape in enumerate(shapes)}


def largest(score: Named, k: int) -> Support:
    """The reference: (−score, place) in order, the first k."""
    every = [(-s, i, n, j) for i, (n, t) in enumerate(score.items()) for j, s in enumerate(t.reshape(-1).tolist())]
    best = sorted(every, key=lambda entry: entry[:2] + entry[3:])[:k]
    return Support({n: torch.tensor(sorted(j for _, _, m, j in best if m == n), dtype=torch.int64) for n in score})


@given(toys(), st.integers(1, 40), st.booleans())
def test_rules_that_rank(named, k, per_tensor):
    sizes = {n: t.numel() for n, t in named.items()}
    k = min(k, sum(sizes.values()))
    shares = apportion(sizes, k)

    def reference(score: Named) -> Support:
        if not per_tensor:
            return largest(score, k)
        return Support({n: largest({n: t}, shares[n])[n] for n, t in score.items() if shares[n]})

    magnitudes = {n: t.abs() for n, t in named.items()}
    squares = {n: t.square() for n, t in named.items()}
    assert magnitude(named, k, per_tensor=per_tensor) == reference(magnitudes)
    assert magnitude(named, k, smallest=True, per_tensor=per_tensor) == reference(
        {n: -t for n, t in magnitudes.items()}
    )
    assert gradient(named, k, per_tensor=per_tensor) == reference(magnitudes)
    assert fisher(squares, k, per_tensor=per_tensor) == reference(squares)


def test_magnitude_sees_every_bit_of_float64():
    assert magnitude({"w": torch.tensor([1.0, 1.0 + 2.0**-50, 1.0], dtype=torch.float64)}, 1)["w"].tolist() == [1]


def test_bias_takes_every_bias_and_nothing_else():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "norm": nn.LayerNorm(4), "bias": nn.Linear(2, 2, bias=False)})
    found = bias(dict(model.named_parameters()))
    assert {n: i.tolist() for n, i in found.items()} == {"a.bias": [0, 1, 2], "norm.bias": [0, 1, 2, 3]}
    with pytest.raises(BadPlan, match="has none"):
        bias(dict(nn.Linear(2, 2, bias=False).named_parameters()))


# change ---------------------------------------------------------------------------------------------------------------


@given(toys(), st.integers(1, 40), st.integers(0, 20))
def test_change_ranks_what_moved_outside_the_earlier_choice(differences, k, already):
    sizes = {n: d.numel() for n, d in differences.items()}
    without = uniform(differences, min(already, sum(sizes.values())), seed=k) if already else None
    moved = {n: d.abs() for n, d in differences.items()}
    for name in without or ():
        moved[name].view(-1)[without[name]] = 0.0
    if sum(int(m.count_nonzero()) for m in moved.values()) < k:
        with pytest.raises(BadPlan, match="moved in the first phase"):
            change(differences, k, without=without)
    else:
        assert change(differences, k, without=without) == largest(moved, k)


@given(toys(), st.integers(1, 40), st.integers(1, 20))
def test_change_per_tensor_never_takes_what_did_not_move(differences, k, already):
    sizes = {n: d.numel() for n, d in differences.items()}
    k, without = min(k, sum(sizes.values())), uniform(differences, min(already, sum(sizes.values())))
    shares, moved = apportion(sizes, k), {n: d.abs() for n, d in differences.items()}
    for name in without:
        moved[name].view(-1)[without[name]] = 0.0
    if any(moved[n].count_nonzero() < share for n, share in shares.items()):
        with pytest.raises(BadPlan, match="moved in the first phase"):
            change(differences, k, without=without, per_tensor=True)
    else:
        wanted = Support({n: largest({n: m}, shares[n])[n] for n, m in moved.items() if shares[n]})
        assert change(differences, k, without=without, per_tensor=True) == wanted


def test_change_leaves_its_input_alone():
    differences = {"w": torch.tensor([3.0, -4.0, 1.0])}
    change(differences, 1, without=Support({"w": torch.tensor([1])}))
    assert differences["w"].tolist() == [3.0, -4.0, 1.0]


# uniform --------------------------------------------------------------------------------------------------------------


@given(toys(), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_uniform_draws_outside(named, k, already, per_tensor):
    total = sum(t.numel() for t in named.values())
    without = uniform(named, min(already, total), seed=1)
    if without.k == total:
        with pytest.raises(BadPlan, match="more than the 0"):
            uniform(named, 1, without=without)
        return
    k = min(k, total - without.k)
    found = uniform(named, k, seed=2, per_tensor=per_tensor, without=without)
    assert found.k == k
    assert not (found & without).k
    everything = Support({n: torch.arange(t.numel()) for n, t in named.items()})
    assert uniform(named, total - without.k, without=without, per_tensor=per_tensor) == everything - without


@given(toys(), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_uniform_draws_exactly_k_sorted_and_seeded(named, k, seed, per_tensor):
    sizes = {n: t.numel() for n, t in named.items()}
    k = min(k, sum(sizes.values()))
    found = uniform(named, k, seed=seed, per_tensor=per_tensor)
    assert found.k == k
    assert all((i.diff() > 0).all() and i[0] >= 0 and i[-1] < sizes[n] for n, i in found.items())
    assert found == uniform(named, k, seed=seed, per_tensor=per_tensor)
    if per_tensor:
        assert {n: i.numel() for n, i in found.items()} == {
            n: share for n, share in apportion(sizes, k).items() if share
        }


@pytest.mark.parametrize("k", [2, 9, 11, 18])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_uniform_takes_every_entry_and_every_pair_equally_often(k, per_tensor):
    named, draws = {"a": torch.zeros(2, 5), "b": torch.zeros(10)}, 3000
    taken = np.zeros((draws, 20))
    for seed in range(draws):
        found = uniform(named, k, seed=seed, per_tensor=per_tensor)
        taken[seed, [start + i for n, start in (("a", 0), ("b", 10)) if n in found for i in found[n].tolist()]] = 1
    rate = k / 20 if not per_tensor or k % 2 == 0 else None
    expected = np.repeat([k - k // 2, k // 2], 10) / 10 if rate is None else np.full(20, rate)
    noise = 5 * np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(taken.mean(0) - expected) <= noise).all()
    if not per_tensor:
        pairs = (taken.T @ taken / draws)[~np.eye(20, dtype=bool)]
        wanted = k * (k - 1) / (20 * 19)
        assert (np.abs(pairs - wanted) <= 6 * np.sqrt(wanted * (1 - wanted) / draws)).all()


@pytest.mark.parametrize("k", [0, -1, 8])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_uniform_refuses_impossible_numbers(k, per_tensor):
    with pytest.raises(BadPlan, match="k = "):
        uniform({"a": torch.zeros(7)}, k, per_tensor=per_tensor)


# scoring --------------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Dropout and batch statistics, so that the mode matters; returns a mean loss as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.BatchNorm1d(5))
        self.head = nn.Linear(5, 2)
        self.head.weight.grad = torch.ones(2, 5)
        self.body[0].bias.requires_grad_(False)
        self.body[2].eval()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.head(self.body(x))
        return SimpleNamespace(logits=logits, loss=None if labels is None else cross_entropy(logits, labels))


def batches(sizes: tuple[int, ...] = (4, 3, 4)) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(n, 3, generator=rng), "labels": torch.randint(2, (n,), generator=rng)} for n in sizes]


def snapshot(model: nn.Module) -> list[object]:
    found: list[object] = [
        (n, p.detach().clone().numpy().tobytes(), p.requires_grad, p.grad) for n, p in model.named_parameters()
    ]
    found += [(n, b.clone().numpy().tobytes()) for n, b in model.named_buffers()]
    return found + [(n, m.training, len(m._forward_hooks)) for n, m in model.named_modules()]


def scored(model: Toy) -> dict[str, nn.Parameter]:
    return dict(model.body.named_parameters())


def by_hand(model: Toy, data: list[dict[str, Tensor]], *, squared: bool) -> Named:
    """Σ over single examples of g, or of g²."""
    model.eval()
    parameters = {n: p.requires_grad_(True) for n, p in scored(model).items()}
    found = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for x, label in ((x, y) for batch in data for x, y in zip(batch["x"], batch["labels"], strict=True)):
        grads = torch.autograd.grad(model(x[None], label[None]).loss, list(parameters.values()))
        for name, grad in zip(parameters, grads, strict=True):
            found[name] += grad.square() if squared else grad
    return found


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(
    ("examples", "used"), [(1024, (4, 3, 4)), (11, (4, 3, 4)), (7, (4, 3)), (5, (4, 1)), (1, (1,))]
)
def test_scores_are_those_of_autograd(squared, examples, used):
    model = Toy()
    before = snapshot(model)
    found = accumulate(model, scored(model), batches(), squared=squared, examples=examples)
    assert snapshot(model) == before
    whole = batches()
    first = [{n: v[:size] for n, v in batch.items()} for batch, size in zip(whole, used, strict=False)]
    for name, wanted in by_hand(Toy(), first, squared=squared).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-7)


def test_no_more_data_is_drawn_than_is_needed():
    drawn = []

    def stream():
        for batch in batches():
            drawn.append(1)
            yield batch

    model = Toy()
    accumulate(model, scored(model), stream(), squared=False, examples=7)
    assert len(drawn) == 2


def test_the_head_is_warmed_up_for_scoring_only():
    model, seen = Toy(), []
    before = snapshot(model)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        assert not any(module.training for module in model.modules())
        seen.append(({n: p.detach().clone() for n, p in model.named_parameters()}, len(batch["x"])))
        return model(**batch).loss

    head = dict(model.head.named_parameters())
    cold = accumulate(model, scored(model), batches(), squared=False)
    warm = accumulate(model, scored(model), batches(), squared=False, loss=loss, head=head, warmup=5)
    assert snapshot(model) == before
    assert [size for _, size in seen] == [4, 3, 4, 4, 3, 4, 3, 4]  # 5 steps, then one pass
    states = [state for state, _ in seen]
    assert not torch.equal(states[0]["head.weight"], states[4]["head.weight"])
    assert all(torch.equal(state["head.weight"], states[5]["head.weight"]) for state in states[6:])
    assert all(torch.equal(state["body.0.weight"], states[0]["body.0.weight"]) for state in states)
    reference = Toy()
    reference.load_state_dict(states[5], strict=False)
    for name, wanted in by_hand(reference, batches(), squared=False).items():
        torch.testing.assert_close(warm[name], wanted, rtol=1e-4, atol=1e-7)
    unwarmed = accumulate(model, scored(model), batches(), squared=False, head=head, warmup=0)
    assert torch.equal(unwarmed["0.weight"], cold["0.weight"])


@pytest.mark.parametrize("failing", ["loss", "step", "nan"])
def test_a_failure_leaves_the_model_as_it_was(failing):
    model, calls = Toy(), []
    before = snapshot(model)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) > (1 if failing == "step" else 6):
            if failing == "nan":
                return model(**batch).loss * float("nan")
            raise ZeroDivisionError
        return model(**batch).loss

    with pytest.raises(BadPlan if failing == "nan" else ZeroDivisionError):
        accumulate(
            model, scored(model), batches(), squared=True, loss=loss, head=dict(model.head.named_parameters()), warmup=4
        )
    assert snapshot(model) == before
    accumulate(model, scored(model), batches(), squared=True)  # no hook is left behind


def test_a_tied_weight_gets_its_whole_gradient():
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([2.0, 3.0]))
    data = [{"x": torch.tensor([[1.0, 10.0], [100.0, 1000.0]])}]
    for squared, wanted in ((False, [303.0, 3030.0]), (True, [9.0 + 90000.0, 900.0 + 9000000.0])):
        found = accumulate(model, {"w": model.weight}, data, squared=squared,
                           loss=lambda m, b: (b["x"] @ m.weight + 2 * (b["x"] @ m.weight)).mean())  # fmt: skip
        assert found["w"].tolist() == wanted


@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        ([], {}, BadData, "no examples"),
        (batches(), {"examples": 0}, BadPlan, "examples=0"),
        ([{"x": torch.ones(2, 3)}], {}, BadData, "no loss"),
        ([{"x": torch.ones(2, 3), "labels": torch.ones(3)}], {}, BadData, "share dimension 0"),
    ],
)
def test_data_that_cannot_be_scored(data, options, error, match):
    model = Toy()
    before = snapshot(model)
    with pytest.raises(error, match=match):
        accumulate(model, scored(model), data, squared=True, **options)
    assert snapshot(model) == before
