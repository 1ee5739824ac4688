"""Figures from arrays, with matplotlib."""

from vit_jax.plots.analysis import (
    save_ablation,
    save_layer_similarity,
    save_lens,
    save_lens_classes,
    save_probes,
    save_token_norms,
)
from vit_jax.plots.inside import (
    dark_ground,
    save_attention_distances,
    save_comparison,
    save_feature_maps,
    save_filters,
    save_heat_maps,
    save_position_similarity,
    save_scores,
)
from vit_jax.plots.results import (
    QUANTITIES,
    save_accuracies,
    save_confusion,
    save_contact_sheet,
    save_curves,
    save_kernel_magnitudes,
    save_narrow_curves,
    save_prediction,
    save_reliability,
)
