"""Lipschitz certificates of whole fields: never violated, sharp where they say so, and what Euler's stability makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lipschitz_search import D, N, check_never_violated, measure, states, worst

import pdejax as pj
from pdejax.analysis.stability import field_lipschitz
from pdejax.terms import AbstractTerm
from pdejax.terms._constants import Lipschitz


def field(key, stabilization, boundary="neumann", **norms):
    keys = jax.random.split(key, 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, 2, key=keys[0], leak=True, **norms),
        reaction=pj.FeedForward(D, 7, key=keys[1], leak=True, strength=0.5, **norms),
        diffusion=pj.Diffusion(pj.Grid(N, boundary=boundary), 0.02),
        stabilization=stabilization,
    )


FIELDS = {
    "damping": lambda key: field(key, pj.LinearDamping(jnp.array([0.1, 0.4, 1.5, 0.2, 0.3])), "periodic"),
    "spatial": lambda key: field(key, pj.SpatialNorm(0.4, eps=0.05)),
    "spatial, dirichlet": lambda key: field(
        key, pj.SpatialNorm(0.4, eps=0.05, grid=pj.Grid(N, boundary="dirichlet")), "dirichlet"
    ),
    "relaxation": lambda key: field(key, pj.LayerNormRelaxation(D, 0.8, norm=pj.LayerNorm(D, eps=0.1))),
    "pre-LN": lambda key: field(key, None, norm=pj.LayerNorm(D, eps=0.1)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_field_certificate_is_never_violated(name):
    equation = FIELDS[name](jax.random.key(5))
    check_never_violated(equation, 1.5)
    if name == "pre-LN":
        check_never_violated(equation, 3.0, spread=0.7)


def test_stabilization_certificates_are_sharp():
    """v2 (9) at σ = 0 in the Frobenius norm; relaxation to LayerNorm and linear damping anywhere."""
    u = jnp.ones((N, 1)) * jnp.array([[0.3, -0.3, 0.3, -0.3]])
    for term, at in (
        (pj.SpatialNorm(0.7, eps=0.01), u),
        (pj.LayerNormRelaxation(D, 0.7, norm=pj.LayerNorm(D, eps=0.01)), 0 * u + 1),
        (pj.LayerNormRelaxation(D, 0.7), 9 * u),
        (pj.LinearDamping(0.7), u),
    ):
        equation = pj.MasterEquation(stabilization=term)
        spread = 2.7 if at is not u and float(jnp.std(at)) > 1 else 0.0
        bound = field_lipschitz(equation, N, 10.0, norm="frobenius", spread=spread).bound
        local, _ = worst(term, at[None])
        assert local["frobenius"] == pytest.approx(bound, rel=1e-9)


def test_spatial_norm_in_the_token_norm():
    """The largest token-max Jacobian over σ, at the field that is worst for the radial part, comes within a factor of 2."""
    term = pj.SpatialNorm(1.0, eps=0.01)
    bound = field_lipschitz(pj.MasterEquation(stabilization=term), 16, 10.0).bound
    spike = jnp.zeros((16, 1)).at[0, 0].set(1.0)
    sizes = jnp.geomspace(1e-3, 10, 60)
    us = sizes[:, None, None] * spike[None]
    jacobians = measure(term, us, us, None)[2]
    rows = np.abs(np.asarray(jacobians)[:, :, 0, :, 0]).sum(-1).max()  # the exact token-max norm for one feature
    assert 0.5 * bound < rows <= bound


def test_parts_name_decay_and_rest():
    equation = FIELDS["damping"](jax.random.key(5))
    found = field_lipschitz(equation, N, 1.0)
    assert set(found.parts) == {
        "interaction", "interaction leak", "reaction", "reaction leak", "diffusion", "stabilization leak",
    }  # fmt: skip
    assert found.decay == pytest.approx(1 + 0.5 + 1.5)
    assert found.parts["diffusion"] == pytest.approx(4 * 0.02 * N**2)
    assert found.rest == pytest.approx(found.parts["interaction"] + found.parts["reaction"])
    assert found.bound == pytest.approx(found.decay + found.rest + found.parts["diffusion"])


@pytest.mark.parametrize("boundary", ["neumann", "dirichlet", "periodic"])
def test_euler_is_as_stable_as_the_corrected_bound_says(boundary):
    """κ = max(1 + h(G − c), h(4D/Δx² + c + G) − 1) bounds every step of Euler, in steps from small to far too large; for
    N = −Gu on an even periodic grid it is attained. For one feature the token-max norm is the largest row sum."""
    grid = pj.Grid(6, boundary=boundary)
    matrix = np.asarray(jax.jit(jax.jacfwd(pj.Laplacian(grid)))(jnp.zeros((6, 1))))[:, 0, :, 0]
    rng = np.random.default_rng(0)
    for d, c, g in rng.uniform(0, 2, (20, 3)) * [0.1, 1, 1]:
        rest = rng.standard_normal((6, 6))
        rest *= g / np.abs(rest).sum(1).max()
        stiff = 4 * d / float(grid.spacing) ** 2
        for h in np.geomspace(0.05, 3, 8) / (stiff + c + g):
            kappa = max(1 + h * (g - c), h * (stiff + c + g) - 1)
            step = np.eye(6) + h * (d * matrix - c * np.eye(6))
            assert np.abs(step + h * rest).sum(1).max() <= kappa * (1 + 1e-12)
            if boundary == "periodic" and h * (stiff + c + g) > 2:
                fastest = np.abs(np.linalg.eigvals(step - h * g * np.eye(6))).max()
                assert fastest == pytest.approx(h * (stiff + c + g) - 1, rel=1e-12)


def test_euler_contracts_pairs_of_a_damped_field():
    """The constants of a certificate in that bound: pairs of fields approach at the step it allows."""
    equation = field(jax.random.key(5), pj.LinearDamping(60.0))
    found = field_lipschitz(equation, N, 1.0)
    us, vs = states(1.0)
    fu, fv, _ = measure(equation, us, vs, None)
    assert found.rest < found.decay
    limit = 2 / (found.parts["diffusion"] + found.decay + found.rest)

    def distance(x):
        return np.linalg.norm(np.asarray(x), axis=2).max(1)

    for h in (0.3 * limit, limit):
        kappa = max(1 + h * (found.rest - found.decay), h * (found.bound) - 1)
        assert np.all(distance(us + h * fu - vs - h * fv) <= kappa * distance(us - vs) * (1 + 1e-12))


class Swirl(AbstractTerm):
    """A user's own term, κ·sin(u) − c·u, which says what it knows."""

    kappa: float
    leak: float

    def __call__(self, t, u, args):
        return self.kappa * jnp.sin(u) - self.leak * u

    def damping(self):
        return jnp.asarray(self.leak)

    def check(self, n, d):
        pass

    def lipschitz(self, radius, n, norm="token_max", spread=0.0):
        return Lipschitz(self.kappa, leak=self.leak)


class Silent(AbstractTerm):
    """A user's own term that knows nothing."""

    def __call__(self, t, u, args):
        return u**2

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        pass


class Number(AbstractTerm):
    """A user's own term that knows a plain number."""

    def __call__(self, t, u, args):
        return 2 * jnp.tanh(u)

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        pass

    def lipschitz(self, radius, n, norm="token_max", spread=0.0):
        return 2.0


def test_a_users_own_term_takes_part():
    equation = pj.MasterEquation(
        reaction=Number(), stabilization=Swirl(0.3, 1.5), diffusion=pj.Diffusion(pj.Grid(N), 0.02)
    )
    found = field_lipschitz(equation, N, 1.0)
    assert found.parts == pytest.approx(
        {"reaction": 2, "stabilization": 0.3, "stabilization leak": 1.5, "diffusion": 2}
    )
    assert (found.decay, found.rest, found.diffusion) == pytest.approx((1.5, 2.3, 2.0))
    check_never_violated(equation, 2.0)
    assert field_lipschitz(Number(), N, 1.0).parts == {"Number": 2.0}
    with pytest.raises(ValueError, match="Silent knows no Lipschitz bound"):
        field_lipschitz(pj.MasterEquation(reaction=Silent()), N, 1.0)


def test_conditions_are_named_once():
    uniform = pj.Attention(D, 2, key=jax.random.key(0), kernel="uniform")
    equation = pj.MasterEquation(uniform, stabilization=pj.SpatialNorm(1.0))
    assert len(field_lipschitz(equation, N, 1.0, norm="frobenius").conditions) == 2
    assert len(field_lipschitz(equation, N, 1.0).conditions) == 1


def test_diffusion_part_is_the_spectral_radius_in_the_frobenius_norm():
    matrix = jnp.array([[1.0, 0.2], [0.0, 0.5]])
    term = pj.Diffusion(pj.Grid(6, boundary="dirichlet"), matrix)
    found = field_lipschitz(pj.MasterEquation(diffusion=term), 6, 1.0, norm="frobenius")
    dense = np.asarray(jax.jit(jax.jacfwd(lambda u: term(0.0, u, None)))(jnp.zeros((6, 2)))).reshape(12, 12)
    assert found.bound == pytest.approx(np.linalg.norm(dense, 2), rel=1e-12)


def test_layers_get_the_certificate_of_the_worst():
    layers = [FIELDS["spatial"](jax.random.key(i)) for i in range(3)]
    stacked = pj.DepthVarying.from_layers(layers, 3.0)
    found = field_lipschitz(stacked, N, 1.0)
    assert found.bound == pytest.approx(max(field_lipschitz(layer, N, 1.0).bound for layer in layers), rel=1e-14)
    with pytest.raises(TypeError, match=r"equation.at\(t\)"):
        field_lipschitz(pj.DepthVarying.from_layers(layers, 3.0, "linear"), N, 1.0)
