"""`plot` draws every record by its own picture."""

import importlib
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.spectra import amplitude_spectrum
from pdejax.analysis.tokens import token_clustering
from pdejax.plot import plot
from pdejax.plot._plot import PICTURES

RNG = np.random.default_rng(0)


def curves(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


def test_every_picture_has_its_record_and_every_record_its_picture():
    drawn = {address for pictures in PICTURES.values() for address in pictures.values()}
    there = {
        (module, name)
        for module in ("_states", "_attention", "_dynamics", "_loops", "_information")
        for name, thing in vars(importlib.import_module(f"pdejax.plot.{module}")).items()
        if inspect.isfunction(thing) and thing.__module__ == f"pdejax.plot.{module}" and not name.startswith("_")
    }
    assert drawn == there - {("_attention", "attention_maps")}
    for record, pictures in PICTURES.items():
        for module, name in pictures.values():
            picture = getattr(importlib.import_module(f"pdejax.plot.{module}"), name)
            parameters = list(inspect.signature(picture).parameters.values())
            assert record in str(parameters[0].annotation), name
            assert parameters[-1].name == "ax" or "ax" in [p.name for p in parameters], name


def test_a_figure_beside_its_nulls():
    value = jnp.asarray([0.9, 0.8, 0.7])
    null = pj.Figure(0.1 * value, 0.05 * value, 0.15 * value)
    ax = plot(pj.Figure(value, value - 0.1, value + 0.1, {"untrained": null, "uniform": 0.0}), label="cosine")
    assert ax.get_xlabel() == "layer" and ax.get_ylabel() == "cosine"
    np.testing.assert_array_equal(curves(ax)["cosine"], value)
    np.testing.assert_array_equal(curves(ax)["untrained"], null.value)
    np.testing.assert_array_equal(curves(ax)["uniform"], 0 * value)
    assert len(ax.collections) == 2
    with pytest.raises(ValueError, match=r"figure: record has shape \(3, 1\)"):
        plot(pj.Figure(value[:, None]))


def test_pictures_by_name_and_several_records():
    found = token_clustering(RNG.normal(size=(2, 3, 5, 4)), resamples=20)
    assert len(plot(found)) == 4
    assert "cosine" in plot(found, picture="cosines").get_xlabel()
    assert "distance" in plot(found, picture="distances").get_ylabel()
    with pytest.raises(ValueError, match=r"plot: picture='cosine' must be one of .*cosines"):
        plot(found, picture="cosine")
    spectra = {name: amplitude_spectrum(RNG.normal(size=(1, 3, 8, 4)), resamples=20) for name in ("A", "B")}
    left, _ = plot(spectra, layer=0)
    assert {"A", "B", "A, tokens shuffled"} <= set(curves(left))
    maps = plot(np.eye(3), np.full((3, 3), 1 / 3), names=("p", "q"))
    assert [axis.get_title() for axis in maps] == ["p", "q", "q − p"]


def test_what_has_no_picture_is_refused():
    for thing in (np.eye(3), {}, pj.LinearDamping(0.1)):
        with pytest.raises(TypeError, match="which has no picture"):
            plot(thing)
