"""`states`: what other frameworks have written, in every form, is the same states; analyses run on them; faults in words."""

import numpy as np
import pytest
import stored

import pdejax as pj

L, B, N, D, H = 3, 2, 5, 4, 2
RNG = np.random.default_rng(0)
U = RNG.standard_normal((L + 1, B, N, D)).astype(np.float32)
MAPS = RNG.dirichlet(np.ones(N), (L, B, H, N)).astype(np.float32)
MASK = np.arange(N)[None] < np.asarray([[5], [3]])


def npz(path):
    np.savez(path / "x.npz", hidden=U, attention=MAPS, mask=MASK)
    return path / "x.npz", {"name": "hidden", "maps": "attention", "mask": "mask"}


def npy(path):
    np.save(path / "x.npy", U)
    return path / "x.npy", {}


def other_order(path):
    np.savez(path / "x.npz", u=U.transpose(1, 0, 3, 2), a=MAPS.transpose(1, 0, 2, 3, 4), m=MASK.astype(np.int64))
    return path / "x.npz", {"name": "u", "maps": "a", "mask": "m", "layout": "batch layers d n"}


def by_layer(path):
    arrays = {f"layer.{l}": U[l] for l in range(L + 1)} | {f"maps.{l}": MAPS[l] for l in range(L)}
    stored.write(path / "x.safetensors", arrays)
    return path / "x.safetensors", {"name": "layer.{l}", "maps": "maps.{l}"}


def mapping(path):
    return {"u": U, "maps": MAPS, "real": MASK}, {"name": "u", "maps": "maps", "mask": "real"}


def listed(path):
    return list(U), {}


def an_array(path):
    return U, {}


def torch_tensors(path):
    torch = pytest.importorskip("torch", reason="states of PyTorch need torch")
    return tuple(torch.as_tensor(u) for u in U), {}


def a_zarr(path):
    zarr = pytest.importorskip("zarr", reason="Zarr folders need zarr: pip install zarr")
    root = zarr.open_group(path / "x.zarr", mode="w")
    for name, array in (("u", U), ("maps", MAPS)):
        root.create_array(name, shape=array.shape, dtype=array.dtype)[...] = array
    return path / "x.zarr", {"name": "u", "maps": "maps"}


FORMS = (npz, npy, other_order, by_layer, mapping, listed, an_array, torch_tensors, a_zarr)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same(tmp_path, form):
    source, options = form(tmp_path)
    found = pj.states(source, **options)
    np.testing.assert_array_equal(found.u, U)
    assert found.u.dtype == np.float32
    assert (found.maps is None) == ("maps" not in options) and (found.mask is None) == ("mask" not in options)
    if found.maps is not None:
        np.testing.assert_array_equal(found.maps, MAPS)
    if found.mask is not None:
        assert found.mask.dtype == bool
        np.testing.assert_array_equal(found.mask, MASK)


def test_one_sequence_and_half_precision():
    one = pj.states({f"h{l}": U[l, 0].astype(np.float16) for l in range(L + 1)}, name="h{l}")
    assert one.u.shape == (L + 1, N, D) and one.u.dtype == np.float32
    np.testing.assert_array_equal(one.u, U[:, 0].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(pj.states(U[:, 0]).u, U[:, 0])


def test_the_states_of_a_network_come_back(tmp_path):
    """Written by NumPy, read here: an analysis of them is that of the network's own."""
    net = pj.load_pretrained(stored.bert(tmp_path))
    out, u, maps = net.observe(np.asarray([2, 9, 4, 17, 3], np.int32))
    np.savez(tmp_path / "x.npz", u=u, maps=maps, logits=out)
    found = pj.states(tmp_path / "x.npz", name="u", maps="maps")
    np.testing.assert_array_equal(found.u, u)
    np.testing.assert_array_equal(found.maps, maps)
    ours, theirs = (pj.analysis.token_clustering(v).cosine for v in (found.u, u))
    np.testing.assert_array_equal(np.asarray(ours.value), np.asarray(theirs.value))


TWO = {"a": U, "b": MAPS}
APART = {f"h.{l}": U[l] for l in range(L + 1)}
FAULTS = {
    "no name": (TWO, {}, ValueError, r"name is missing, and there are 'a' \(4, 2, 5, 4\), 'b'"),
    "another name": (TWO, {"name": "c"}, ValueError, r"name='c' is not there; there are 'a' \(4, 2, 5, 4\)"),
    "another pattern": (TWO, {"name": "h.{l}"}, ValueError, "'h.0' is not there; there are 'a'"),
    "a layer missing in the middle": (
        {key: u for key, u in APART.items() if key != "h.1"},
        {"name": "h.{l}"},
        ValueError,
        r"'h.1' is not there, and a layer 3 is; there are 'h.0'",
    ),
    "the first layer missing": (
        {key: u for key, u in APART.items() if key != "h.0"},
        {"name": "h.{l}"},
        ValueError,
        r"'h.0' is not there, and a layer 3 is",
    ),
    "maps of a layer missing": (
        {"a": U, "m0": MAPS[0], "m2": MAPS[2]},
        {"name": "a", "maps": "m{l}"},
        ValueError,
        "maps='m{l}': 'm1' is not there, and a layer 2 is",
    ),
    "maps of fewer layers": (
        {"a": U, "b": MAPS[:2]},
        {"name": "a", "maps": "b"},
        ValueError,
        "there are 4 states and maps of 2 layers; the embedding is a state without maps",
    ),
    "states without the embedding": (
        {"a": U[1:], "b": MAPS},
        {"name": "a", "maps": "b"},
        ValueError,
        "there are 3 states and maps of 3 layers; .* give the state before the first layer too",
    ),
    "another mask": (TWO, {"name": "a", "mask": "m"}, ValueError, "mask='m' is not there"),
    "no layout": (
        MAPS,
        {},
        ValueError,
        r"layout=None does not fit name='' of shape \(3, 2, 2, 5, 5\); .* layers n d among",
    ),
    "a short layout": (U, {"layout": "layers n d"}, ValueError, "it must name 4 axes"),
    "an unknown axis": (U, {"layout": "layers batch n features"}, ValueError, "out of layers batch n d"),
    "an axis twice": (U, {"layout": "layers n n d"}, ValueError, "it must name 4 axes"),
    "layers apart and named": (
        {"h0": U},
        {"name": "h{l}", "layout": "layers batch n d"},
        ValueError,
        "out of batch n d",
    ),
    "different shapes": (
        [U[0], U[1, :, :3]],
        {},
        ValueError,
        r"layers have different shapes, \[\(2, 3, 4\), \(2, 5, 4\)\]",
    ),
    "integers": (np.zeros((3, 4, 5), int), {}, TypeError, "has type int64; it must be real floating-point numbers"),
    "a word": ({"a": "text"}, {}, TypeError, "name='a' has type <U4"),
    "nothing": ([], {}, ValueError, "source is an empty list"),
    "no arrays": ({}, {}, ValueError, "source is an empty mapping"),
    "maps of other tokens": (
        {"a": U, "b": MAPS[..., :3, :3]},
        {"name": "a", "maps": "b"},
        ValueError,
        "sequences and tokens must match",
    ),
    "maps that are not square": ({"a": U, "b": MAPS[..., :3]}, {"name": "a", "maps": "b"}, ValueError, "heads, n, n"),
    "a mask of numbers": ({"a": U, "m": U[0]}, {"name": "a", "mask": "m"}, TypeError, "booleans, or 0 and 1"),
    "a mask of 2": ({"a": U, "m": np.full(N, 2)}, {"name": "a", "mask": "m"}, TypeError, "booleans, or 0 and 1"),
    "a mask of other tokens": (
        {"a": U, "m": np.ones(3, bool)},
        {"name": "a", "mask": "m"},
        ValueError,
        r"mask has shape \(3,\); it must be \(5,\) or \(2, 5\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_said(name):
    source, options, kind, words = FAULTS[name]
    with pytest.raises(kind, match=f"^states: .*{words}"):
        pj.states(source, **options)


def pickled(path):
    np.save(path / "x.npy", np.asarray([{"a": 1}], object), allow_pickle=True)
    return path / "x.npy"


def text(name, content):
    def make(path):
        (path / name).write_text(content)
        return path / name

    return make


def cut(path):
    stored.write(path / "x.safetensors", {"a": U})
    (path / "x.safetensors").write_bytes((path / "x.safetensors").read_bytes()[:-9])
    return path / "x.safetensors"


def stream(path):
    np.savez_compressed(path / "x.npz", a=U)
    data = bytearray((path / "x.npz").read_bytes())
    data[200:260] = bytes(60)
    (path / "x.npz").write_bytes(data)
    return path / "x.npz"


def npy_header(header):
    def make(path):
        text = header.encode().ljust(117) + b"\n"
        (path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        return path / "x.npy"

    return make


def huge(path):
    stored.write(path / "x.safetensors", {"a": U[:0]}, lambda h: h["a"].update(shape=[2**62, 2**62, 0]))
    return path / "x.safetensors"


FILES = {
    "a damaged stream": (stream, ValueError, "x.npz holds no arrays"),
    "a huge shape of NumPy": (
        npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}"),
        ValueError,
        "x.npy holds no arrays",
    ),
    "a nested header of NumPy": (npy_header("(" * 90), ValueError, "x.npy holds no arrays"),
    "a huge shape": (huge, ValueError, "x.safetensors: tensor 'a' has shape .* more than any memory holds"),
    "not there": (lambda path: path / "x.npz", FileNotFoundError, "there is no file"),
    "pickled": (pickled, ValueError, "x.npy holds no arrays that can be read without pickle"),
    "no archive": (text("x.npz", "hello"), ValueError, "x.npz holds no arrays"),
    "PyTorch's": (text("x.pt", "hello"), ValueError, "ends in '.pt'; .* numpy.savez"),
    "cut off": (cut, ValueError, "x.safetensors: tensor 'a' should end at byte .* cut off"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read(tmp_path, name):
    make, kind, words = FILES[name]
    with pytest.raises(kind, match=f"^states: .*{words}"):
        pj.states(make(tmp_path))


def test_a_tensor_that_numpy_cannot_read():
    torch = pytest.importorskip("torch", reason="states of PyTorch need torch")
    with pytest.raises(TypeError, match=r"give x.detach\(\)"):
        pj.states(torch.ones((2, 3, 4), requires_grad=True))
    with pytest.raises(TypeError, match=r"give x.detach\(\)"):
        pj.states([torch.ones((3, 4), dtype=torch.bfloat16)])
