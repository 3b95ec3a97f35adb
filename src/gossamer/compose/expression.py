"""Expressions over deltas and numbers: 't + 0.8*l', 'a - b + c', '0.5*(a + b)', 'x*t + y*l'.

Read as Python's syntax tree, never run: names, numbers, + − * / and parentheses are all that there is. The value is
a linear form, one coefficient a delta; what is not linear is an error that says so.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Mapping

from gossamer.errors import BadPlan

Form = float | dict[str, float]  # a number, or name of a delta → coefficient
LONGEST = 1000


def names(text: str) -> list[str]:
    """The names in an expression, in order, each once. Raises BadPlan if it is none."""
    found = [(node.lineno, node.col_offset, node.id) for node in ast.walk(_tree(text)) if isinstance(node, ast.Name)]
    return list(dict.fromkeys(name for *_, name in sorted(found)))


def coefficients(text: str, deltas: Collection[str], numbers: Mapping[str, float] = {}) -> dict[str, float]:
    """The coefficient of each delta in an expression.

    Args:
        text: the expression.
        deltas: names of deltas; each must occur.
        numbers: values of the other names.

    Raises:
        BadPlan: no expression, an unknown or an unused name, a product of deltas, a number added to a delta, a
            coefficient that is not finite.

    >>> coefficients("0.5*(a + b) - x*c", {"a", "b", "c"}, {"x": 2.0})
    {'a': 0.5, 'b': 0.5, 'c': -2.0}
    """
    present = names(text)
    unknown = [name for name in present if name not in deltas and name not in numbers]
    if unknown:
        known = ", ".join([*sorted(deltas), *sorted(numbers)]) or "nothing"
        raise BadPlan(
            f"{text!r} names {unknown[0]!r}, which is neither a delta nor a number here (known: {known}); bind it, as in "
            f"{unknown[0]}=FILE or {unknown[0]}=0.5, or have it searched for"
        )
    unused = [name for name in [*deltas, *numbers] if name not in present]
    if unused:
        raise BadPlan(f"{unused[0]!r} is given but does not occur in {text!r}; use it or leave it out")
    try:
        value = _Reader(text, deltas, numbers).value(_tree(text).body)
    except RecursionError:
        raise BadPlan(f"{text!r} is nested too deeply") from None
    if not isinstance(value, dict):
        raise BadPlan(f"{text!r} is a number and names no delta; expected a sum of deltas, like 't + 0.8*l'")
    bad = [name for name, coefficient in value.items() if not math.isfinite(coefficient)]
    if bad:
        raise BadPlan(f"the coefficient of {bad[0]!r} in {text!r} is {value[bad[0]]}; expected a finite number")
    return value


def _tree(text: str) -> ast.Expression:
    if len(text) > LONGEST:
        raise BadPlan(f"the expression has {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadPlan(f"{text!r} is no expression ({error}); expected one like 't + 0.8*l'") from None


class _Reader:
    def __init__(self, text: str, deltas: Collection[str], numbers: Mapping[str, float]) -> None:
        self.text, self.deltas, self.numbers = text, deltas, numbers

    def value(self, node: ast.expr) -> Form:
        if isinstance(node, ast.Name):
            return {node.id: 1.0} if node.id in self.deltas else self.number(self.numbers[node.id], node.id)
        if isinstance(node, ast.Constant):
            return self.number(node.value, str(node.value)[:20])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            value = self.value(node.operand)
            return value if isinstance(node.op, ast.UAdd) else _times(-1.0, value)
        if isinstance(node, ast.BinOp):
            return self.joined(node, self.value(node.left), self.value(node.right))
        raise self.wrong("holds something else than names, numbers, + - * / and parentheses")

    def joined(self, node: ast.BinOp, a: Form, b: Form) -> Form:
        if isinstance(node.op, ast.Add | ast.Sub):
            if isinstance(a, dict) != isinstance(b, dict):
                raise self.wrong("adds a number to a delta; multiply it, as in 0.8*l")
            b = b if isinstance(node.op, ast.Add) else _times(-1.0, b)
            if isinstance(a, dict) and isinstance(b, dict):
                return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in dict.fromkeys([*a, *b])}
            return a + b  # type: ignore[operator]
        if isinstance(node.op, ast.Mult):
            if isinstance(a, dict) and isinstance(b, dict):
                raise self.wrong("multiplies deltas with each other; only sums of deltas times numbers are deltas")
            return _times(b, a) if not isinstance(b, dict) else _times(a, b)  # type: ignore[arg-type]
        if isinstance(node.op, ast.Div):
            if isinstance(b, dict):
                raise self.wrong("divides by a delta; only numbers divide")
            if b == 0:
                raise self.wrong("divides by zero")
            return {name: c / b for name, c in a.items()} if isinstance(a, dict) else a / b
        raise self.wrong("holds something else than names, numbers, + - * / and parentheses")

    def number(self, given: object, shown: str) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise self.wrong(f"holds {shown}, which is neither a number nor a delta")
        try:
            value = float(given)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.wrong(f"has {shown} = {value} as a coefficient; expected a finite number")
        return value

    def wrong(self, what: str) -> BadPlan:
        return BadPlan(f"{self.text!r} {what}")


def _times(number: float, value: Form) -> Form:
    return {name: number * c for name, c in value.items()} if isinstance(value, dict) else number * value
