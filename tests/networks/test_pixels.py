"""Image files as pixels: closed forms, the image processors of transformers, and what is refused by name."""

import json

import numpy as np
import pytest
import stored
from PIL import Image

import pdejax as pj
from pdejax.analysis.depth import layer_field
from pdejax.networks import CheckpointError
from pdejax.networks.families._pixels import Pixels, pixels_of, read_pixels
from pdejax.studies.audit import AuditConfig
from pdejax.studies.audit._found import Found
from pdejax.studies.audit._judge import identity
from pdejax.studies.audit._measure import identity as measure_identity
from pdejax.studies.audit._subject import load_subject

VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "image_size": 8,
    "patch_size": 4,
}
PLAIN = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 0,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}
BIT = PLAIN | {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 12},
    "resample": 3,
    "crop_size": {"height": 8, "width": 8},
}


def numbers(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def written(path, array):
    Image.fromarray(array if array.shape[2] > 1 else array[:, :, 0]).save(path)
    return path


def normalized(array):
    return ((array / 255 - PLAIN["image_mean"]) / PLAIN["image_std"]).transpose(2, 0, 1)


def test_pixels_are_those_of_the_file(tmp_path):
    """Nearest neighbours of a picture of twice the size are every other pixel; a middle is a slice."""
    array = numbers(8, 8)
    doubled = array.repeat(2, axis=0).repeat(2, axis=1)
    path = written(tmp_path / "a.png", doubled)
    np.testing.assert_allclose(pixels_of(PLAIN, "net", 3)(path), normalized(array), rtol=1e-14, atol=1e-14)
    cut = PLAIN | {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 8, "width": 6}}
    np.testing.assert_allclose(pixels_of(cut, "net", 3)(path), normalized(doubled[4:12, 5:11]), rtol=1e-14, atol=1e-14)
    bare = {"image_processor_type": "ViTImageProcessor"} | dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize"), False
    )
    np.testing.assert_array_equal(pixels_of(bare, "net", 3)(path), doubled.transpose(2, 0, 1))


def test_kinds_of_files(tmp_path):
    """Grey pictures have three equal channels, transparency is left out, and a camera's turn is undone."""
    bare = {"image_processor_type": "ViTImageProcessor"} | dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize"), False
    )
    grey, colours = numbers(8, 8, 1), numbers(8, 8, 4)
    found = pixels_of(bare, "net", 3)(written(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(found, np.broadcast_to(grey[:, :, 0], (3, 8, 8)))
    found = pixels_of(bare, "net", 1)(written(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(found, grey.transpose(2, 0, 1))
    found = pixels_of(bare, "net", 3)(written(tmp_path / "four.png", colours))
    np.testing.assert_array_equal(found, colours[:, :, :3].transpose(2, 0, 1))
    picture = Image.fromarray(numbers(4, 8))
    turn = picture.getexif()
    turn[0x0112] = 3
    picture.save(tmp_path / "turned.png", exif=turn)
    found = pixels_of(bare, "net", 3)(tmp_path / "turned.png")
    np.testing.assert_array_equal(found, numbers(4, 8)[::-1, ::-1].transpose(2, 0, 1))


# A file as it is stored, what it is read by beside the numbers in it, and the same said in full.
SHORT = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
    "size": 8,
}
NULLS = dict.fromkeys(
    (
        "data_format",
        "device",
        "disable_grouping",
        "do_pad",
        "input_data_format",
        "pad_size",
        "return_tensors",
        "crop_size",
    )
)
FILES = {
    "an old ViT": (SHORT, "vit", PLAIN | {"resample": 2}),
    "an old DINOv2": (SHORT | {"crop_size": 8}, "dinov2", BIT | {"size": {"shortest_edge": 8}}),
    "a ViT with nulls": (
        PLAIN | NULLS | {"image_processor_type": "ViTImageProcessorFast", "resample": None, "do_center_crop": None},
        "vit",
        PLAIN | {"resample": 2},
    ),
    "a Bit with nulls": (
        BIT | {k: v for k, v in (NULLS | {"resample": None}).items() if k != "crop_size"},
        "vit",
        BIT,
    ),
    "options of a call": (
        PLAIN | {"device": "cpu", "disable_grouping": True, "return_tensors": "pt"},
        "vit",
        PLAIN,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_leaves_out_is_that_of_its_kind(name):
    given, model_type, full = FILES[name]
    assert pixels_of(given, "net", 3, model_type) == pixels_of(full, "net", 3)


def test_the_kind_of_an_old_file_is_that_of_the_checkpoint(network):
    (network / "vit" / "preprocessor_config.json").write_text(json.dumps(SHORT))
    found = read_pixels(network / "vit", pj.load_pretrained(network / "vit"))
    assert found == Pixels((8, 8), 2, None, 1 / 255, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (16, 16)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTImageProcessorPil", PLAIN | {"resample": 2}),
        ("ViTImageProcessorPil", PLAIN | {"resample": 1, "size": 8}),
        ("BitImageProcessorPil", BIT),
        ("BitImageProcessorPil", BIT | {"size": 13, "crop_size": 7, "resample": 2}),
    ],
)
def test_pixels_are_those_of_transformers(tmp_path, name, options, height, width):
    transformers = pytest.importorskip("transformers", reason="the oracle: pip install 'pdejax[oracle]'")
    processor = getattr(transformers, name, None)
    if processor is None:
        pytest.skip(f"this version of transformers has no {name}")
    path = written(tmp_path / "a.png", numbers(height, width))
    given = {key: value for key, value in options.items() if key != "image_processor_type"}
    theirs = processor(**given)(Image.open(path), return_tensors="np")["pixel_values"][0]
    ours = pixels_of(options, "net", 3)(path)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image_processor_type='CLIPImageProcessor'; .* one of 'ViTImage",
        ),
        ({"image_processor_type": None}, "has no 'image_processor_type'"),
        ({"resample": 9}, "resample=9; .* filters of Pillow"),
        ({"resample": "3"}, "resample='3'"),
        ({"size": {"longest_edge": 8}}, "size=.*height and width, or shortest_edge"),
        ({"size": {"height": 8, "width": 8, "max": 3}}, "size="),
        ({"size": "8"}, "size='8'"),
        ({"size": [8, 8]}, r"size=\[8, 8\]"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 8}}, "crop_size="),
        ({"do_center_crop": True}, "has no 'crop_size'"),
        ({"do_pad": True}, "do_pad=True"),
        (
            {"do_thumbnail": False},
            r"not known of image models: do_thumbnail=False\. Take out those that change nothing\.$",
        ),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\]; .* 3 numbers"),
        ({"image_std": [0.5, 0.5, 0]}, r"image_std=\[0.5, 0.5, 0.0\]; .* positive"),
        ({"image_std": 0}, "image_std="),
    ],
    ids=str,
)
def test_options_that_are_not_supported_are_refused_by_name(changes, words):
    with pytest.raises(CheckpointError, match=f"net: preprocessor_config.json has .*{words}|net: .*{words}"):
        pixels_of(PLAIN | changes, "net", 3)


# --- The audit of a network of images ---------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path):
    """A small ViT with five classes, and a folder of five pictures and a text."""
    arrays = stored.arrays(VIT | {"num_labels": 5})
    place = stored.folder(tmp_path / "vit", VIT | {"num_labels": 5}, arrays)
    (place / "preprocessor_config.json").write_text(json.dumps(PLAIN))
    (tmp_path / "pictures").mkdir()
    for seed, name in enumerate(("a.png", "b.PNG", "c.jpg", "d.jpeg", "e.png")):
        written(tmp_path / "pictures" / name, numbers(8 + seed, 9, seed=seed))
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_become_sequences(network):
    """The first by name, each with all its patches and the token of the class."""
    path, pictures = str(network / "vit"), network / "pictures"
    found = load_subject(AuditConfig(network=path, images=str(pictures), sequences=4))
    net = pj.load_pretrained(path)
    pixels = read_pixels(network / "vit", net)
    expected = [net.embed(pixels(pictures / name)) for name in ("a.png", "b.PNG", "c.jpg", "d.jpeg")]
    np.testing.assert_allclose(found.u0, expected, rtol=1e-6)
    assert found.u0.shape == (4, 5, 8) and found.mask.all() and found.mask.shape == (4, 5)
    assert (found.task, found.labels, found.data) == ("states", None, "pictures")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_checkpoint_is_the_network_at_the_precision_of_the_audit(network, precision):
    """Embedding, layers and their own states are of one type, so that they agree to its rounding."""
    options = {"images": str(network / "pictures"), "sequences": 4, "precision": precision}
    subject = load_subject(AuditConfig(network=str(network / "vit"), **options))
    assert subject.u0.dtype == subject.network.embed(subject.inputs[0]).dtype == precision
    seen, out = measure_identity(subject, layer_field(subject.network, length=subject.u0.shape[1])), Found()
    identity({"identity": seen}, precision, out)
    [verdict] = out.verdicts.values()
    assert (
        verdict.startswith("yes: ")
        and max(map(np.max, filter(np.size, seen.values()))) <= 100 * np.finfo(precision).eps
    )


def of_text(folder):
    stored.bert(folder / "vit")


def no_processor(folder):
    (folder / "vit" / "preprocessor_config.json").unlink()


def few(folder):
    (folder / "pictures" / "a.png").unlink(), (folder / "pictures" / "e.png").unlink()


def broken(folder):
    path = folder / "pictures" / "b.PNG"
    path.write_bytes(path.read_bytes()[:60])


def no_picture(folder):
    (folder / "pictures" / "a.png").write_text("hello")


def deep(folder):
    Image.fromarray(numbers(8, 8, 1)[:, :, 0].astype(np.uint16) * 200).save(folder / "pictures" / "a.png")


def as_it_is(folder):
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(PLAIN | {"do_resize": False}))


def small(folder):
    options = {"do_resize": False, "do_center_crop": True, "crop_size": 10}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(PLAIN | options))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (of_text, ValueError, "audit: vit: it is no network of images"),
        (no_processor, FileNotFoundError, "vit: there is no preprocessor_config.json"),
        (few, ValueError, r"audit: images=.*pictures' has 3 files that end in .png, .jpg, .jpeg; .* at least 4"),
        (broken, ValueError, r"audit: b\.PNG: it is no image that Pillow reads"),
        (no_picture, ValueError, r"audit: a\.png: it is no image that Pillow reads \(UnidentifiedImageError"),
        (deep, ValueError, r"audit: a\.png: its pixels are of the kind 'I;16'; they must have 8 bits"),
        (as_it_is, ValueError, r"b\.PNG is of another size than a\.png"),
        (small, ValueError, r"audit: a\.png: of \(8, 9\) pixels the middle of \(10, 10\) cannot be cut"),
    ],
)
def test_pictures_that_are_refused(network, damage, kind, words):
    damage(network)
    with pytest.raises(kind, match=words):
        load_subject(AuditConfig(network=str(network / "vit"), images=str(network / "pictures")))


def test_images_beside_other_input_are_refused(network):
    with pytest.raises(ValueError, match="text='a' and images='b' were given; give one of them"):
        AuditConfig(network="net", text="a", images="b")
    with pytest.raises(ValueError, match="give text=FILE, or images=DIR of a network of images"):
        load_subject(AuditConfig(network=str(network / "vit")))


@pytest.mark.slow
def test_the_audit_of_a_network_of_images(network, capsys):
    """The whole command, from files to a page's numbers."""
    from pdejax import cli

    out = network / "out"
    options = ["--halvings", "2", "--window", "1", "--derivatives", "1", "--tokens", "4", "--exponents", "2"]
    given = [str(network / "vit"), "--images", str(network / "pictures"), "--sequences", "4", "--out", str(out)]
    assert cli.main(["audit", *given, *options, "--quiet"]) in (0, 1)
    found = json.loads((out / "result.json").read_text())
    assert found["config"]["images"] == "pictures" and found["config"]["network"] == "vit"
    assert all(row["ours"] is not None for row in found["table"])
