"""One wording for every refusal: who was called, which argument, what it was, what is allowed, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import _check


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: _check.integer("f", "k", 0), ValueError, "f: k=0 must be an integer of at least 1."),
        (lambda: _check.integer("f", "k", 9, 1, 4), ValueError, "f: k=9 must be an integer in 1 … 4."),
        (lambda: _check.integer("f", "k", True), TypeError, "f: k=True must be an integer of at least 1."),
        (lambda: _check.integer("f", "k", 2.0), TypeError, "f: k=2.0 must be an integer of at least 1."),
        (lambda: _check.integer("f", "k", "2", advice="give 2"), TypeError, "at least 1; give 2."),
        (lambda: _check.number("f", "h", float("nan")), ValueError, "f: h=nan must be one finite number."),
        (lambda: _check.number("f", "h", np.inf), ValueError, "must be one finite number."),
        (lambda: _check.number("f", "h", "1"), TypeError, "f: h='1' must be one finite number."),
        (lambda: _check.number("f", "h", [1.0]), TypeError, "f: h=[1.0] must be one finite number."),
        (lambda: _check.number("f", "h", 0, above=0), ValueError, "f: h=0 must be one finite number > 0."),
        (lambda: _check.number("f", "h", 3, least=0, most=2), ValueError, "one finite number ≥ 0 and ≤ 2."),
        (lambda: _check.probability("f", "level", 1), ValueError, "f: level=1 must be one finite number > 0 and < 1."),
        (lambda: _check.boolean("f", "leak", 1), TypeError, "f: leak=1 must be True or False."),
        (lambda: _check.choice("f", "norm", "prre", ("pre", "post")), ValueError, "'post'; did you mean 'pre'?"),
        (lambda: _check.choice("f", "flag", 1, (True, False)), ValueError, "f: flag=1 must be one of True, False"),
        (lambda: _check.instance("f", "x", 3, (str, list), "give text"), TypeError, "f: x has type int; it must be an"),
        (lambda: _check.instance("f", "x", int, str), TypeError, "f: x is the class int; it must be an object of str."),
        (lambda: _check.real_array("f", "u", [1, 2]), TypeError, "f: u has type int"),
        (lambda: _check.real_array("f", "u", [1.0], "(n, d)", 2), ValueError, "f: u has shape (1,); it must be real"),
        (lambda: _check.finite("f", "u", np.asarray([1.0, np.nan])), ValueError, "f: u has 1 NaN or infinite"),
        (lambda: _check.token_mask("f", np.ones(3), 3), TypeError, "f: mask has type float64"),
        (lambda: _check.token_mask("f", np.ones(2, bool), 3), ValueError, "f: mask has shape (2,); it must be 3"),
        (lambda: _check.token_mask("f", np.zeros(3, bool), 3), ValueError, "f: mask hides every token"),
    ],
)
def test_refusals(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)


def test_what_fits_comes_back():
    assert _check.integer("f", "k", np.int32(3)) == 3
    assert _check.number("f", "h", jnp.asarray(0.5), above=0) == 0.5
    assert _check.choice("f", "norm", "pre", ("pre", "post")) == "pre"
    assert _check.token_mask("f", None, 3) is None
    assert _check.token_mask("f", [True, False], 2).shape == (2,)


def test_traced_values_pass():
    @jax.jit
    def look(u, mask):
        _check.finite("f", "u", u)
        return _check.token_mask("f", mask, 2)

    assert bool(look(jnp.asarray([jnp.nan, 1.0]), jnp.asarray([False, False])).any()) is False


def test_constants_are_looked_at_inside_a_trace():
    constant = jnp.asarray([jnp.nan])
    with pytest.raises(ValueError, match="1 NaN"):
        jax.jit(lambda x: _check.finite("f", "u", constant) or x)(1.0)
