"""Names that a training run is put together from, without JAX: the command line reads them."""

from typing import Literal

DatasetName = Literal["listops", "mnist", "newsgroups", "digits"]
ModelName = Literal["transformer", "simulator", "bare", "full", "multilayer"]
TaskName = Literal["classification", "lm"]
Precision = Literal["float32", "bfloat16"]
OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["constant", "cosine", "linear", "inverse_sqrt"]
Estimate = Literal["infonce", "club", "barber_agakov", "paper"]
Signs = Literal["v1 (14)", "v1 (3)", "algorithm 1"]
