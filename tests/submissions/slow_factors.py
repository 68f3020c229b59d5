"""Kronecker factors by loops over examples and positions: the reference of the fast ones."""

import numpy as np

from submissions.kfac import Sharing

Rows = dict[str, np.ndarray]  # layer name -> `[R_n, d]`, one row for each of an example's positions


def slow_factors(examples: list[tuple[Rows, Rows]], sharing: Sharing, n_terms: float) -> dict[str, tuple]:
    """(input rows, output gradient rows) of each real example -> layer name -> (A, B), every layer having a bias."""
    factors = {}
    for name in examples[0][0]:
        a, b, n_rows = 0.0, 0.0, 0
        for inputs, gradients in examples:
            x = [np.append(row, 1.0) for row in np.asarray(inputs[name], np.float64)]
            g = list(np.asarray(gradients[name], np.float64))
            if not x:
                continue
            if sharing is Sharing.REDUCE:
                x, g = [sum(x) / len(x)], [sum(g)]
            a = a + sum(np.outer(row, row) for row in x)
            b = b + sum(np.outer(row, row) for row in g)
            n_rows += len(x)
        factors[name] = a / n_rows, b / n_terms
    return factors


def assert_close(got: dict[str, tuple], expected: dict[str, tuple]) -> None:
    """The same layers, and each factor within 1e-5 of its largest entry."""
    assert set(got) == set(expected)
    for name in got:
        for factor, reference in zip(got[name], expected[name], strict=True):
            atol = max(1e-5 * np.abs(reference).max(), 1e-10)
            np.testing.assert_allclose(factor, reference, rtol=1e-5, atol=atol, err_msg=name)
