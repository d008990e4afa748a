"""Step-size controllers that know their own first step.

`diffrax.diffeqsolve(dt0=…)` checks the sign of a first step by a callback to Python, which no compiled program can be stored
or exported with. A controller that is asked for the first step instead leaves no callback.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax.solvers._guard import AbstractAround


class EqualSteps(diffrax.AbstractStepSizeController[Any, Any]):
    """`steps` equal steps, of which the k-th ends at t0 + (t1 − t0)k/steps: no rounding adds up."""

    steps: Array

    def wrap(self, direction):
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        del terms, y0, dt0, args, func, error_order
        state = (t0, t1, jnp.ones_like(self.steps))
        return self._depth(state), state

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        del t0, y0, y1_candidate, args, y_error, error_order
        start, end, done = controller_state
        state = (start, end, done + 1)
        following = jnp.where(done + 1 >= self.steps, end, self._depth(state))
        return True, t1, following, False, state, diffrax.RESULTS.successful

    def _depth(self, state) -> Array:
        start, end, k = state
        return start + (end - start) * (k.astype(start.dtype) / self.steps.astype(start.dtype))


class StartingStep(AbstractAround):
    """An adaptive controller that begins with the step `first(terms, t0, t1, u, args)`."""

    controller: diffrax.AbstractAdaptiveStepSizeController
    first: Any

    def wrap(self, direction):
        # pyright takes the abstract properties of the base for fields of the constructor.
        return StartingStep(self.controller.wrap(direction), self.first)  # pyright: ignore[reportCallIssue]

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        del dt0
        dt0 = jax.lax.stop_gradient(self.first(terms, t0, t1, y0, args))
        return self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        return self.controller.adapt_step_size(t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state)
