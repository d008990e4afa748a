"""Families of checkpoints, one file each: a map of its configuration and a map of its weights.

A family is one file `_name.py` that ends in `FAMILY = Family(...)` (`_family.py`), and a line of `FAMILIES` (`_load.py`):

- `settings(config)`: the configuration map. Every key is asked for through `Config`, whose methods refuse a missing key, a value
  of another type and an option that is not supported, by name. Keys that nobody asked for are refused too, unless they are in
  `Family.irrelevant` (dropout and the like) or in the list that all families share.
- `tensors(settings)`: the weight map, a list of `Tensor(name, place, shape, …)`: the stored name, with `{l}` for the layer; the
  place that its numbers get; the stored shape; and how it is reshaped, transposed or taken apart. `linear`, `heads_in` and
  `heads_out` make the usual ones. What is stored and not in the map is an error, unless `Family.unused` names it with a reason.
- `build(settings, weights, dtype)`: the `Network`, of `weights`, a mapping from place to array. `filled` (`_assemble.py`) makes a
  term or a norm of `pdejax.terms` with given numbers; `pre_norm` and `post_norm` make the discretization; `TextEmbedding` and
  `Logits` (`_ends.py`) are the usual ends.

A file is read by `_huggingface.py` or `_gguf.py` as a `Checkpoint` (`_checkpoint.py`): configuration, tensors by name that are
read one by one, tokenizer. GGUF files speak of themselves in words of their own, which `_gguf_names.py` translates.
Nothing here uses the network or unpickles anything.
"""
