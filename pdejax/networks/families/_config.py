"""A checkpoint's configuration, asked key by key: what is missing, of another type or not supported is refused by name."""

import sys
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pdejax.networks.families._checkpoint import fault, listed

T = TypeVar("T")
_NONE: Any = object()
# Shapes and ids are 32-bit integers.
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000
# What no network's output depends on: names, versions, training, generation and what transformers returns.
_WORDS = (
    "_attn_implementation_autoset _name_or_path _num_labels adapters architectures auto_map bad_words_ids "
    "begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id "
    "diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id "
    "exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing "
    "id2label initializer_range label2id language length_penalty mask_token_id max_length min_length model_max_length "
    "model_type name no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions "
    "output_hidden_states output_past output_scores pad_token_id prefix problem_type remove_invalid_values "
    "repetition_penalty return_dict return_dict_in_generate sentence_transformers sep_token_id suppress_tokens "
    "task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript "
    "transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache "
    "xla_device "
)
_IRRELEVANT = frozenset(_WORDS.split())
# Options of all models that no family here has, each with the value that turns it off.
_OFF: Mapping[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "per_layer_config": None,
    "pruned_heads": {},
    "quantization_config": None,
    "rope_scaling": None,
    "tie_encoder_decoder": False,
    # Which state is shown last.
    "tie_last_hidden_states": None,
}

# Of these null is what transformers takes where nothing is given.
_NULL_IS_DEFAULT = (
    *(
        "attention_bias",
        "max_window_layers",
        "mlp_bias",
        "position_embedding_type",
        "pretraining_tp",
        "rope_interleaved",
    ),
    *("tie_word_embeddings", "use_sliding_window"),
)


# How the names of models with a head end, whose tensors these families know.
HEADED = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForImageClassification")


# Of classes of texts and tokens and of answers: heads that are not read.
_TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def is_bare(architectures: Collection[str]) -> bool:
    """Whether these are names of a model without a head that is read, such as `GPT2Model` or `LlamaForSequenceClassification`."""
    return bool(architectures) and all(
        name.endswith(_TASKS) or (name.endswith("Model") and not name.endswith("LMHeadModel")) for name in architectures
    )


class Config:
    """Values by key, and which of them were asked for. `family` and `file` are for messages."""

    def __init__(self, values: Mapping[str, Any], where: str, family: str, file: str = "config.json"):
        self.values, self.where, self.family, self.file = values, where, family, file
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = _NONE) -> Any:
        """Return the value of a key; a missing one, and null where that is the default, is `default`, or an error without it."""
        self.asked.add(key)
        if key in self.values and not (self.values[key] is None and key in _NULL_IS_DEFAULT):
            return self.values[key]
        if default is _NONE:
            raise fault(
                self.where,
                f"{self.file} has no {key!r}, which a {self.family} model needs; is it the configuration of another family?",
            )
        return default

    def integer(self, key: str, default: Any = _NONE, least: int = 1, most: int = _MOST) -> int:
        """Return a whole number of at least `least`."""
        value = self.get(key, default)
        if type(value) is not int or not least <= value <= most:
            limit = f"of at least {least}" if most == _MOST else f"from {least} to {most}"
            raise self.wrong(key, value, f"an integer {limit}")
        return value

    def layers(self, key: str) -> int:
        """Return a number of layers; a huge one would be counted before it is found to be damage."""
        return self.integer(key, most=_MOST_LAYERS)

    def number(self, key: str, default: Any = _NONE) -> float:
        """Return a positive finite number."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(key, value, "one positive number")
        return float(value)

    def boolean(self, key: str, default: Any = _NONE) -> bool:
        """Return True or False."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def choice(self, key: str, table: Mapping[str, T], default: Any = _NONE) -> T:
        """Return what the table has for the value: the options that are supported."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in table:
            raise self.wrong(key, value, f"one of {', '.join(map(repr, table))}")
        return table[value]

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse an option by name unless it is missing or has one of the values that are supported."""
        value = self.get(key, allowed[0])
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise self.wrong(key, value, " or ".join(repr(one) for one in allowed))

    def architectures(self) -> list[str]:
        """Return the names of what is stored; none where the configuration does not say."""
        names = self.get("architectures", None) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.wrong("architectures", names, "a list of names")
        return names

    def tied_head(self, default: bool) -> bool:
        """Return whether logits are made with the table of the embedding: it is tied, and the model is not a bare one."""
        return self.boolean("tie_word_embeddings", default) and not is_bare(self.architectures())

    def width_and_heads(self, width: str, heads: str) -> tuple[int, int]:
        """Return d and H, which divides it."""
        d, count = self.integer(width), self.integer(heads)
        if d % count:
            raise self.wrong(heads, count, f"a divisor of {width}={d}")
        return d, count

    def wrong(self, key: str, value: Any, wanted: str) -> Exception:
        """The error of an option that is not supported."""
        return fault(
            self.where, f"{self.file} has {key}={value!r}; of {self.family} models it must be {wanted}: not supported."
        )

    def finish(self, irrelevant: Collection[str], ignore: Collection[str] | None) -> None:
        """Refuse what nobody asked for, unless it is null, is known to change nothing, is off as `_OFF` says, or is in `ignore`;
        None where the user cannot name what is to be ignored."""
        known = self.asked | _IRRELEVANT | set(irrelevant) | set(ignore or ())
        given = {key: value for key, value in self.values.items() if value is not None}
        for key, value in _OFF.items():
            if key in given and key not in known:
                self.only(key, value)
        # Of an option that is not known nobody knows what turns it off: False may be the other function. Null is none.
        rest = {key: value for key, value in given.items() if key not in known | _OFF.keys()}
        if rest:
            hint = "Take out those that change nothing."
            if ignore is not None:
                hint = f"Name those that change nothing: ignore={tuple(sorted(rest))!r}."
            raise fault(
                self.where,
                f"{self.file} has options that are not known of {self.family} models: "
                f"{listed(f'{key}={value!r}' for key, value in rest.items())}. {hint}",
            )
