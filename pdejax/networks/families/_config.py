"""A checkpoint's configuration, asked key by key: what is missing, of another type or not supported is refused by name."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pdejax.networks.families._checkpoint import fault, listed

T = TypeVar("T")
_NONE: Any = object()
# What no network's output depends on: names, versions, training, generation and what transformers returns.
_WORDS = (
    "_name_or_path _attn_implementation_autoset architectures auto_map bos_token_id chunk_size_feed_forward "
    "decoder_start_token_id diversity_penalty do_sample dtype early_stopping eos_token_id finetuning_task "
    "forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range label2id language "
    "length_penalty max_length min_length model_type name no_repeat_ngram_size num_beams num_return_sequences "
    "output_attentions output_hidden_states output_past pad_token_id prefix problem_type repetition_penalty "
    "return_dict return_dict_in_generate sep_token_id task_specific_params temperature tokenizer_class top_k "
    "top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache "
)
_IRRELEVANT = frozenset(_WORDS.split())


class Config:
    """Values by key, and which of them were asked for."""

    def __init__(self, values: Mapping[str, Any], where: str, family: str):
        self.values, self.where, self.family = values, where, family
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = _NONE) -> Any:
        """Return the value of a key; a missing one is `default`, or an error without it."""
        self.asked.add(key)
        if key in self.values:
            return self.values[key]
        if default is _NONE:
            raise fault(
                self.where,
                f"config.json has no {key!r}, which a {self.family} model needs; is it the configuration of another family?",
            )
        return default

    def integer(self, key: str, default: Any = _NONE, least: int = 1) -> int:
        """Return a whole number of at least `least`."""
        value = self.get(key, default)
        if type(value) is not int or value < least:
            raise self.wrong(key, value, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: Any = _NONE) -> float:
        """Return a positive finite number."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
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

    def tied_head(self, default: bool) -> bool:
        """Return whether logits are made with the table of the embedding: it is tied, and the model is not stored without a head,
        such as a `GPT2Model`."""
        names = self.get("architectures", None) or ["ForCausalLM"]
        headless = all(str(name).endswith("Model") and not str(name).endswith("LMHeadModel") for name in names)
        return self.boolean("tie_word_embeddings", default) and not headless

    def wrong(self, key: str, value: Any, wanted: str) -> Exception:
        """The error of an option that is not supported."""
        return fault(
            self.where, f"config.json has {key}={value!r}; of {self.family} models it must be {wanted}: not supported."
        )

    def finish(self, irrelevant: Collection[str], ignore: Collection[str]) -> None:
        """Refuse what nobody asked for, unless it is known to change nothing, is off (None, False, empty), or is in `ignore`."""
        known = self.asked | _IRRELEVANT | set(irrelevant) | set(ignore)
        rest = {
            key: value
            for key, value in self.values.items()
            if key not in known and value not in (None, False, "", [], {})
        }
        if rest:
            raise fault(
                self.where,
                f"config.json has options that are not known of {self.family} models: "
                f"{listed(f'{key}={value!r}' for key, value in rest.items())}. Name those that change nothing: "
                f"ignore={tuple(sorted(rest))!r}.",
            )
