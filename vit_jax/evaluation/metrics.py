"""Sums over examples, divided once."""

import flax.struct
from clu import metrics as clu_metrics


@flax.struct.dataclass
class Sums(clu_metrics.Collection):
    """Sums of per-example loss and correctness, with the number of examples."""

    loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm]
    accuracy: clu_metrics.Accuracy
