"""Alignment at v2's step: what is built, and what is said of planted cosines, both ways."""

import numpy as np
import pytest

from pdejax.studies.papers import STUDIES
from pdejax.studies.papers._alignment_step import QUANTITIES, scaled, simulators
from pdejax.studies.papers._experiment import Models

STUDY = STUDIES["alignment-step"]


def test_a_layer_is_a_step_of_a_fifth_and_the_fitted_field_has_the_transformers_embedding(tmp_path):
    settings, models = STUDY.presets["standard"], Models(tmp_path)
    assert scaled(STUDY.presets["paper"], "√d").train["options"] == {"embedding_scale": 128**0.5}
    own = scaled(settings, "√d")
    assert scaled(settings, "1") == settings and own.train["options"] == {"embedding_scale": 32**0.5}
    for setting in (settings, own):
        for name, config in simulators(setting, 3, models).items():
            assert (config.model, config.solver, config.steps_per_layer, config.norm) == ("bare", "euler", 1, "none")
            assert config.options["t1"] == pytest.approx(6 * 0.2)
            assert config.options.get("embedding_scale", 1.0) == setting.train.get("options", {}).get(
                "embedding_scale", 1.0
            )
            assert (config.teacher is None) == (name == "independent") and config.seed == (
                3 if config.teacher else 1003
            )
    folders = [models._folder(c).name for s in (settings, own) for c in simulators(s, 3, models).values()]
    assert len(set(folders)) == 4


def judged(fitted, fresh, own):
    """What is said where all cosines are these, give or take a thousandth, the embedding as drawn and times √d."""
    rng = np.random.default_rng(0)
    evidence = []
    for _ in range(5):
        one = {}
        for kind, (drawn, times) in (("", fitted), ("null_", fresh), ("own_", own)):
            shape = (2, 3) if kind == "own_" else (2, 2, 3)
            values = np.reshape([drawn, times], (2,) + (1,) * (len(shape) - 1)) + 1e-3 * rng.standard_normal(shape)
            one |= {f"{kind}{name}": values for name in QUANTITIES}
        evidence.append(one)
    return STUDY.judge(STUDY.presets["standard"], evidence)


def test_what_reaches_the_cosine_is_named_and_a_fit_is_needed_only_where_none_has_it_without():
    found = judged((0.9, 0.98), (0.5, 0.6), (0.4, 0.7))
    assert "0.97 is surely reached by distilled, embedding × √d; independent, embedding × √d (" in found.sentence
    assert found.sentence.endswith("(interval over seeds): none of them has it without a fit.")
    free = judged((0.9, 0.98), (0.5, 0.6), (0.4, 0.98))
    assert "reached by one of the Transformer's own form at h = 1, embedding × √d (" in free.sentence
    assert free.sentence.endswith("a cosine as high does not need a fit.")
    assert judged((0.9, 0.9), (0.5, 0.97), (0.4, 0.5)).sentence.endswith("whether it needs a fit is not decided.")
    rows = {row.quantity: row for row in free.rows}
    both = rows["cosine of tokens, distilled, h = 0.2"], rows["cosine of tokens, distilled, h = 0.2, embedding × √d"]
    assert [round(float(row.ours), 1) for row in both] == [0.9, 1.0]
    assert [round(float(row.null), 1) for row in both] == [0.5, 0.6]
    assert all(row.paper is None for name, row in rows.items() if "untrained" in name)
