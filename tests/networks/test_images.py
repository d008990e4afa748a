"""Networks of images against `transformers`: ViT and DINOv2, and the interpolation of positions against torch."""

import json

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import DIM, HEADS, LAYERS, Case

import pdejax as pj
from pdejax.networks.families._images import bicubic

SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 12,
    "patch_size": 4,
}
CASES = {
    "ViT": Case("ViTForImageClassification", SIZES | {"intermediate_size": 20, "num_labels": 5}, logits=True),
    "ViT without a head": Case(
        "ViTModel", SIZES | {"intermediate_size": 20, "qkv_bias": False, "hidden_act": "gelu_new", "num_channels": 1}
    ),
    "DINOv2": Case("Dinov2Model", SIZES | {"mlp_ratio": 2}),
    "DINOv2, gated": Case(
        "Dinov2ForImageClassification", SIZES | {"mlp_ratio": 2, "use_swiglu_ffn": True}, logits=True
    ),
}


@pytest.fixture(scope="module")
def double():
    with oracle.in_float64():
        yield


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory, double):
    folder = tmp_path_factory.mktemp("model")
    case = CASES[request.param]
    return case, folder, oracle.make(case, folder)


def image_of(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height + width).standard_normal((channels, height, width))


def run(model, case, image):
    """States `(L + 1, n, d)`, maps, the normalized last state and the scores of classes."""
    import torch

    options = {"interpolate_pos_encoding": True} if case.model.startswith("ViT") else {}
    with torch.no_grad():
        given = torch.as_tensor(image)[None]
        out = model(given, output_hidden_states=True, output_attentions=True, **options)
    found = {
        "states": np.stack([state[0].numpy() for state in out.hidden_states]),
        "maps": np.stack([maps[0].numpy() for maps in out.attentions]),
    }
    return found | {"output": (out.logits if case.logits else out.last_hidden_state)[0].numpy()}


@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_states_maps_and_scores_are_those_of_transformers(made, relative, dtype, error):
    """An image of the size of the positions, and a larger one that is not square."""
    case, folder, model = made
    net = pj.load_pretrained(folder, dtype=dtype)
    for height, width in ((12, 12), (20, 16)):
        image = image_of(height, width, model.config.num_channels)
        expected = run(model, case, image)
        out, states, maps = net.observe(image)
        assert states.dtype == dtype and states.shape == (LAYERS + 1, 1 + height * width // 16, DIM)
        for name, found in (("states", states), ("maps", maps), ("output", out)):
            assert relative(found, expected[name].astype(dtype)) < error, (name, height)


def test_layer_scale_is_part_of_the_field(tmp_path, relative):
    """Folded into weights that are stored in float32 it loses nothing in float64; without it states are far off."""
    numpy = pytest.importorskip("safetensors.numpy")
    case, image = CASES["DINOv2"], image_of(12, 12)
    model = oracle.make(case, tmp_path)
    for parameter in model.parameters():
        parameter.data.numpy()[...] = parameter.data.numpy().astype(np.float32)
    file = tmp_path / "model.safetensors"
    numpy.save_file({name: x.astype(np.float32) for name, x in numpy.load_file(file).items()}, file)
    net = pj.load_pretrained(tmp_path, dtype="float64")
    assert net.discretization.field.stacked.interaction.wq.dtype == jnp.float32
    assert relative(net.hidden_states(image), run(model, case, image)["states"]) < 1e-12
    for layer in model.encoder.layer:
        layer.layer_scale2.lambda1.data.fill_(1.0)
    assert relative(net.hidden_states(image), run(model, case, image)["states"]) > 1e-2


@pytest.mark.parametrize(("size", "wanted"), [(3, 5), (5, 3), (4, 4), (7, 16), (1, 3)])
def test_bicubic_is_that_of_torch(size, wanted):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((1, 1, size, size))
    options = {"size": (wanted, wanted), "mode": "bicubic", "align_corners": False}
    expected = torch.nn.functional.interpolate(torch.tensor(values), **options)[0, 0].numpy()
    matrix = bicubic(size, wanted)
    np.testing.assert_allclose(matrix @ values[0, 0] @ matrix.T, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-13)


def test_bad_input(double, tmp_path):
    oracle.make(CASES["ViT"], tmp_path)
    net = pj.load_pretrained(tmp_path)
    for image, error, words in (
        (jnp.zeros((3, 12, 12), int), TypeError, "type int64; it must be real numbers"),
        (jnp.zeros((12, 12, 3)), ValueError, r"shape \(12, 12, 3\); it must be real numbers \(3, height, width\)"),
        (jnp.zeros((2, 3, 12, 12)), ValueError, "one image; batches by jax.vmap"),
        (jnp.zeros((3, 12, 13)), ValueError, "12 × 13 pixels is no whole number of patches of 4 × 4"),
    ):
        with pytest.raises(error, match=words):
            net(image)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for changes, words in (
        ({"image_size": [12, 16]}, r"image_size=\[12, 16\]; .* two that are equal"),
        ({"num_attention_heads": 5}, "num_attention_heads=5; .* a divisor of hidden_size=12"),
        ({"image_size": 16}, r"position_embeddings \(1, 10, 12\) instead of \(1, 17, 12\)"),
        ({"distilled": True}, "distilled=True"),
    ):
        file.write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=words):
            pj.load_pretrained(tmp_path)
