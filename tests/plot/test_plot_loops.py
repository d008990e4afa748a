"""Plots of loops draw the numbers of their records."""

import jax.numpy as jnp
import numpy as np

import pdejax as pj
from pdejax.analysis.loops import classify_loop, loop_of, safe_range


def test_steps_and_eigenvalues_of_a_loop():
    found = classify_loop(loop_of(lambda u: 0.5 * u + 1, jnp.ones((2, 2))), loops=32)
    ax = pj.plot.plot(found)
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_array_equal(x, np.arange(1, 33))
    np.testing.assert_allclose(np.asarray(y)[:5], (found.steps / found.norms[:-1])[:5])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fixed point", "rate 0.5"]
    points = pj.plot.plot(found.spectrum).get_lines()[1].get_data()
    np.testing.assert_allclose(points, [found.eigenvalues.real, found.eigenvalues.imag])


def test_answers_that_stay():
    answers = np.zeros((6, 9), int)
    answers[:4, 5:] = 1
    ax = pj.plot.plot(safe_range(answers, trained=2))
    np.testing.assert_allclose(ax.get_lines()[0].get_data()[1], [1] * 5 + [1 / 3] * 4)
    assert [line.get_xdata()[0] for line in ax.get_lines()[1:]] == [2, 4]
