"""The GPU kernel computes the chosen entries; in Triton's interpreter, where no GPU is needed. Choosing needs one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from gossamer.tunable import sampled_triton

WITHIN = """
import torch
from gossamer.tunable.sampled_triton import entries
torch.manual_seed(0)
for tokens, rows, columns, k in ((1, 1, 1, 1), (7, 5, 3, 15), (130, 40, 24, 100), (2050, 17, 33, 65), (9, 3, 9, 0), (0, 3, 4, 2)):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = torch.randn(tokens, rows).to(dtype), torch.randn(columns, tokens).to(dtype).t()
        flat = torch.randperm(rows * columns)[:k].sort().values
        found, expected = entries(a, b, flat), (a.double().t() @ b.double()).reshape(-1)[flat]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
        assert torch.equal(found, entries(a, b, flat)) and found.dtype is torch.float32
print("agreed")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton comes with torch's GPU builds only")
def test_entries_equal_the_dense_product_in_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", WITHIN], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.stdout.strip() == "agreed", done.stderr


def test_it_is_never_chosen_unasked() -> None:
    a, b, flat = torch.ones(2, 3), torch.ones(2, 4), torch.tensor([1])
    assert not sampled_triton.faster(a, b, flat, lambda: torch.zeros(1))


def test_a_result_that_disagrees_is_said_and_refused() -> None:
    assert sampled_triton.agree(torch.tensor([1.0, 2.0]), torch.tensor([1.001, 2.0]))
    with pytest.warns(UserWarning, match="is not used"):
        assert not sampled_triton.agree(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]))
