"""Figures from arrays, with matplotlib."""

import matplotlib

from vit_jax.plots.inside import (
    save_attention_distances,
    save_comparison,
    save_feature_maps,
    save_filters,
    save_heat_maps,
    save_position_similarity,
    save_scores,
)
from vit_jax.plots.results import (
    save_bars,
    save_confusion,
    save_contact_sheet,
    save_curves,
    save_kernel_magnitudes,
    save_narrow_curves,
    save_optimization,
    save_prediction,
)

# Names of classes and files are no formulas, even if they hold dollars.
matplotlib.rcParams["text.parse_math"] = False
