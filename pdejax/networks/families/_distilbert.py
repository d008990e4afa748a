"""DistilBERT: BERT without token types, under other names (Sanh et al., arXiv 1910.01108)."""

from pdejax.networks.families._bert import (
    TASKS,
    WORDS,
    Encoder,
    block_tensors,
    build_encoder,
    embedding_tensors,
    head_tensors,
)
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT
from pdejax.networks.families._family import PLACES, TASK, Family, Tensor

_BLOCK = {
    "q": "transformer.layer.{l}.attention.q_lin",
    "k": "transformer.layer.{l}.attention.k_lin",
    "v": "transformer.layer.{l}.attention.v_lin",
    "o": "transformer.layer.{l}.attention.out_lin",
    "norm1": "transformer.layer.{l}.sa_layer_norm",
    "up": "transformer.layer.{l}.ffn.lin1",
    "down": "transformer.layer.{l}.ffn.lin2",
    "norm2": "transformer.layer.{l}.output_layer_norm",
}


def _settings(config: Config) -> Encoder:
    # Sinusoidal positions are stored in the table like learned ones.
    config.only("sinusoidal_pos_embds", False, True)
    dim, heads = config.width_and_heads("dim", "n_heads")
    activation = config.choice("activation", HIDDEN_ACT, "gelu")
    return Encoder(
        dim=dim,
        heads=heads,
        ffn=config.integer("hidden_dim"),
        layers=config.layers("n_layers"),
        vocab=config.integer("vocab_size"),
        embedding=dim,
        positions=config.integer("max_position_embeddings"),
        types=0,
        eps=1e-12,
        activation=activation,
        head_activation=activation,
        tied=config.boolean("tie_word_embeddings", True),
    )


def _tensors(e: Encoder) -> list[Tensor]:
    head = head_tensors(e, "vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector")
    return [*embedding_tensors(e), *block_tensors(e, _BLOCK), *head]


FAMILY = Family(
    "DistilBERT",
    _settings,
    _tensors,
    build_encoder,
    lambda e: e.layers,
    prefixes=("distilbert.",),
    unused={r"embeddings\.position_ids": PLACES, TASKS: TASK},
    copies={"vocab_projector.weight": WORDS},
    irrelevant=("attention_dropout", "dropout", "tie_weights_", "qa_dropout", "seq_classif_dropout"),
)
