"""Priming: its gradients against finite differences, its limits, and what it must leave alone."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import gossamer as gs
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, Diverged
from gossamer.prime.evaluate import evaluator
from gossamer.prime.inner import Inner, adapt
from gossamer.prime.maml import prime
from gossamer.prime.plot import plot
from gossamer.prime.ways import theta_of, way
from tests.prime.family import Net, episodes, squared
from tests.tiny import batches, bits, classifier, same_bits

SUPPORT = Support({"up.weight": torch.arange(0, 24, 3), "down.weight": torch.arange(0, 36, 5)})


def hypergradient(how: Inner, method: str = "random", shift: dict[str, torch.Tensor] | None = None) -> Any:
    """The query loss after the inner loop, and its gradient by θ."""
    model = Net()
    episode = episodes(how.steps).at(0)[0]
    settings = {"random": {"support": SUPPORT}, "lora": {"options": {"r": 2, "targets": ["up", "down"]}}}.get(
        method, {}
    )
    with way(model, method, head=["out"], **settings) as w:  # type: ignore[arg-type]
        loss = evaluator(model, w, squared, "fp32")
        theta = {n: (t + (shift or {}).get(n, 0)).clone().requires_grad_() for n, t in theta_of(model, ["out"]).items()}
        phi = {
            **_moved(w.start),
            **{f"head/{n}": p.detach().clone() for n, p in model.named_parameters() if n.startswith("out")},
        }
        phi = {n: p.requires_grad_() for n, p in phi.items()}
        reached, losses = adapt(loss, theta, phi, episode.support, how, "t")
        value = loss(theta, reached, episode.query)
    found = torch.autograd.grad(value, list(theta.values()))
    return value.detach(), dict(zip(theta, found, strict=True)), losses


def _moved(start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """φ off its start, where LoRA's B = 0 would hide half of the mixed derivatives."""
    rng = torch.Generator().manual_seed(2)
    return {n: p + 0.2 * torch.randn(p.shape, generator=rng, dtype=p.dtype) for n, p in start.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["random", "full", "lora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_second_order_is_finite_differences(optimizer: str, method: str, recompute: bool) -> None:
    how = Inner(3, 0.05, optimizer, "second", recompute, eps=0.1)
    _, grads, _ = hypergradient(how, method)
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        way_ = {n: torch.randn(g.shape, generator=rng, dtype=g.dtype) for n, g in grads.items()}
        plus, minus = (hypergradient(how, method, {n: s * 1e-5 * d for n, d in way_.items()})[0] for s in (1, -1))
        expected = (plus - minus) / 2e-5
        along = torch.stack([(grads[n] * way_[n]).sum() for n in grads]).sum()
        assert torch.allclose(along, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["random", "lora"])
@pytest.mark.parametrize(("eps", "h"), [(1e-2, 2e-5), (1e-3, 2e-6)])
def test_with_a_small_eps_of_adam_differences_approach_the_gradient(method: str, eps: float, h: float) -> None:
    """Adam bends sharply where |g| is near ε: the error of a central difference is its own, falls as h², and Richardson's
    step takes it away."""
    how = Inner(3, 0.05, "adam", "second", eps=eps)
    _, grads, _ = hypergradient(how, method)
    rng = torch.Generator().manual_seed(1)
    way_ = {n: torch.randn(g.shape, generator=rng, dtype=g.dtype) for n, g in grads.items()}
    along = torch.stack([(grads[n] * way_[n]).sum() for n in grads]).sum()

    def difference(h: float) -> torch.Tensor:
        plus, minus = (hypergradient(how, method, {n: s * h * d for n, d in way_.items()})[0] for s in (1, -1))
        return (plus - minus) / (2 * h)

    wide, narrow = difference(2 * h), difference(h)
    assert 3.8 < (wide - along) / (narrow - along) < 4.2
    assert torch.allclose((4 * narrow - wide) / 3, along, rtol=1e-7, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recomputed_steps_give_the_same(optimizer: str) -> None:
    plain, again = (hypergradient(Inner(4, 0.1, optimizer, "second", r)) for r in (False, True))
    assert plain[0] == again[0] and plain[2] == again[2]
    assert all(torch.allclose(plain[1][n], again[1][n], rtol=1e-12, atol=1e-14) for n in plain[1])


def test_without_inner_rate_both_orders_are_equal() -> None:
    first, second = (hypergradient(Inner(3, 0.0, "sgd", order)) for order in ("first", "second"))
    assert all(torch.equal(first[1][n], second[1][n]) for n in first[1])
    moving = (hypergradient(Inner(3, 0.1, "sgd", order)) for order in ("first", "second"))
    a, b = (each[1]["up.weight"] for each in moving)
    assert not torch.allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize("order", ["first", "second"])
def test_without_inner_steps_it_is_the_multi_task_gradient(order: str) -> None:
    model, drawn = Net(), episodes(0)
    made = prime(model, "random", support=SUPPORT, head=["out"], episodes=drawn, steps=1, order=order, loss=squared, clip=0,
                 optimizer=lambda p: torch.optim.SGD(p, 0.1))  # fmt: skip
    sum(squared(model, episode.query) for episode in drawn.at(0)).div(2).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if name in made.delta.terms:
            ((_, patch),) = made.delta.terms[name]
            assert torch.allclose(patch.values, -0.1 * parameter.grad, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]
        else:
            assert torch.allclose(made.start.head[name], parameter - 0.1 * parameter.grad)  # type: ignore[operator]


def test_fine_tuning_takes_every_batch_once() -> None:
    model, drawn = Net(), episodes(2)
    made = prime(model, "random", support=SUPPORT, head=["out"], episodes=drawn, steps=1, control="ft", loss=squared, clip=0,
                 optimizer=lambda p: torch.optim.SGD(p, 0.1))  # fmt: skip
    all_batches = [b for e in drawn.at(0) for b in (*e.support, e.query)]
    (sum(squared(model, b) for b in all_batches) / len(all_batches)).backward()  # type: ignore[union-attr]
    ((_, patch),) = made.delta.terms["up.weight"]
    assert torch.allclose(patch.values, -0.1 * model.up.weight.grad, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("order", ["first", "second"])
def test_theta_is_left_alone_by_the_inner_loop(order: str) -> None:
    model = Net()
    before = bits(model)
    with way(model, "random", support=SUPPORT, head=["out"]) as w:
        theta = {n: t.clone().requires_grad_() for n, t in theta_of(model, ["out"]).items()}
        copies = {n: t.detach().clone() for n, t in theta.items()}
        loss = evaluator(model, w, squared, "fp32")
        head = {f"head/{n}": p.detach() for n, p in model.out.named_parameters(prefix="out")}
        adapt(loss, theta, {**w.start, **head}, episodes(3).at(0)[0].support, Inner(3, 0.1, order=order))
    assert all(torch.equal(theta[n], copies[n]) for n in theta) and all(t.grad is None for t in theta.values())
    assert same_bits(model, before)


class Batches:
    """Ready-made batches as episodes."""

    inner_steps = 2
    facts: ClassVar[dict[str, Any]] = {}

    def at(self, step: int) -> list[Any]:
        from gossamer.prime.episodes import Episode

        a, b, c = batches(3, 4, step)
        return [Episode("one", [a, b], c), Episode("two", [b, c], a)]


ROWS = {"full": {}, "random": {"k": 40}, "magnitude": {"k": 40}, "bitfit": {}, "head": {}, "houlsby": {"bottleneck": 4},
        "pfeiffer": {"bottleneck": 4, "invertible": True}, "lora": {"r": 2}}  # fmt: skip


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("method", ROWS)
def test_every_way_on_a_tiny_bert(method: str, order: str, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier().train()
    before = bits(model)
    made = prime(model, method, episodes=Batches(), steps=2, order=order, recompute=True, lr=1e-3, **ROWS[method])  # type: ignore[arg-type]
    assert same_bits(model, before)
    assert made.delta.norm() > 0 and len(made.history) == 4 and len(made.history[0]["support"]) == 2
    assert ("eager" in caplog.text) == (order == "second")  # the trap of fused attention, and it is said
    gs.merge(model, made.delta)
    with gs.applied(model, made.start):  # the start belongs to the primed base
        assert model(**batches(1)[0]).loss.isfinite()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_controls_heads_and_precision(precision: str) -> None:
    for extra in (
        {"control": "ft"},
        {"control": "maml-all"},
        {"head_start": "fresh", "head_warmup": 2},
        {"head_start": "kept"},
    ):
        made = prime(
            classifier(), "pfeiffer", episodes=Batches(), steps=1, precision=precision, order="second", **extra
        )  # type: ignore[arg-type]
        assert made.delta.norm() > 0


@pytest.mark.parametrize("order", ["first", "second"])
def test_going_on_is_the_same_run(order: str, tmp_path: Any) -> None:
    def run(**more: Any) -> Any:
        torch.manual_seed(3)  # dropout draws from it
        return prime(classifier().train(), "pfeiffer", episodes=Batches(), steps=4, order=order, save_every=1,  # type: ignore[arg-type]
                     schedule=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 4), **more)  # fmt: skip

    class Stop(Exception): ...

    def stop(seen: Any) -> None:
        if seen["step"] == 2:
            raise Stop

    whole = run()
    with pytest.raises(Stop):
        run(checkpoint=tmp_path, watch=stop)
    again = run(checkpoint=tmp_path, resume=True)
    assert again.delta == whole.delta and again.start == whole.start and again.history == whole.history
    with pytest.raises(BadPlan, match="lr changed"):
        run(checkpoint=tmp_path, resume=True, lr=1.0)


def test_a_task_that_diverges_is_named_and_can_be_skipped() -> None:
    def broken(model: Any, batch: Any) -> torch.Tensor:
        return squared(model, batch) * (torch.nan if batch[0][0, 0] == poison else 1.0)

    drawn = episodes(2)
    poison = drawn.at(0)[1].support[1][0][0, 0]
    settings: dict[str, Any] = {"support": SUPPORT, "head": ["out"], "episodes": drawn, "steps": 1, "loss": broken}
    with pytest.raises(Diverged, match=f"outer step 1: task '{drawn.at(0)[1].task}'.*inner step 2"):
        prime(Net(), "random", **settings)
    made = prime(Net(), "random", bad_tasks="skip", **settings)
    assert "skipped" in made.history[1] and made.delta.norm() > 0


def test_a_gradient_that_is_not_finite_and_nothing_but_skipped_tasks() -> None:
    def steep(model: Any, batch: Any) -> torch.Tensor:  # 0, with a derivative that is not a number
        return squared(model, batch) + (model(batch[0]).sum() * 0).sqrt()

    settings: dict[str, Any] = {"support": SUPPORT, "head": ["out"], "episodes": episodes(0), "steps": 2, "loss": steep}
    with pytest.raises(Diverged, match=r"outer step 1: task 't\d': its gradient is not finite"):
        prime(Net(), "random", **settings)
    with pytest.raises(Diverged, match="every task of every step was skipped"):
        prime(Net(), "random", bad_tasks="skip", **settings)


def test_the_picture_of_a_run_with_a_task_that_was_always_skipped(tmp_path: Any) -> None:
    rows = [{"step": s, "task": t, "support": [2.0, 1.0] if t == "b" else [], "query": 1.0 if t == "b" else None}
            for s in range(3) for t in "ab"]  # fmt: skip
    plot(rows, tmp_path / "plot.png")
    plot(rows[::2], tmp_path / "none.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000 and (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lt-sft", {}, "lt-sft cannot be differentiated.*pfeiffer"),
        ("nonsense", {}, "unknown method"),
        ("pfeiffer", {"order": "third"}, "order 'third'"),
        ("pfeiffer", {"control": "x"}, "control='x'"),
        ("pfeiffer", {"inner_lr": float("nan")}, "inner_lr"),
        ("pfeiffer", {"steps": 0}, "steps=0"),
        ("pfeiffer", {"norms": True}, "norms"),
        ("pfeiffer", {"resume": True}, "needs checkpoint="),
        ("head", {"head": False}, "there is none"),
    ],
)
def test_settings_that_make_no_sense(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadPlan, match=message):
        prime(classifier(), method, episodes=Batches(), **settings)  # type: ignore[arg-type]
