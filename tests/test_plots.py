"""Figures: fonts, colour scales, seeds and noise."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image
from tiny_weights import save_weights

from vit_jax import plots
from vit_jax.cli import visualize
from vit_jax.explanation import attribution


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_names_in_any_script_are_drawn_without_warnings(tmp_path, caplog):
    names = ["猫", "🐱 cat", "한국어", "עברית", "Ωmega", "plain"]
    title = "狗: " + "é" * 3
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        plots.save_confusion(tmp_path / "c.png", title, np.eye(6, dtype=int), names)
        plots.save_contact_sheet(tmp_path / "s.png", names, {"鸟": np.zeros((6, 1, 8, 8, 1), "u1")})
        plots.save_prediction(
            tmp_path / "p.png", title, np.zeros((8, 8)), dict.fromkeys(names, 0.1)
        )
    assert not caught and not caplog.records


def test_a_font_that_has_the_characters_is_used(tmp_path):
    """matplotlib's STIX font has both letters, its default font neither."""
    for i, letter in enumerate("\u1d81\u1d8d"):
        plots.save_accuracies(tmp_path / f"{i}.png", letter * 9, [row("a", [0.5])])
    assert (read(tmp_path / "0.png") != read(tmp_path / "1.png")).any()


def row(name, values):
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    test = {"mean": float(np.mean(values)), "std": std, "values": values}
    return {"variant": name, "test_accuracy": test}


def near(pixels, color):
    return int((np.abs(pixels - color).max(-1) <= 3).sum())


def test_each_seed_is_a_dot(tmp_path):
    for values in ([0.5, 0.6, 0.8], [0.6]):
        plots.save_accuracies(tmp_path / f"{len(values)}.png", "demo", [row("a", values)])
    orange = (213, 94, 0)
    assert near(read(tmp_path / "3.png"), orange) > 3 * 20
    assert near(read(tmp_path / "1.png"), orange) == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (4, 4, 1)])
def test_filters_of_any_size_are_drawn(tmp_path, shape):
    filters = np.linspace(0, 1, 5 * np.prod(shape)).reshape(5, *shape)
    plots.save_filters(tmp_path / "kernels.png", "demo", filters)
    assert len(np.unique(read(tmp_path / "kernels.png"))) > 5


def metrics(scale):
    return [
        {"epoch": i, "val/loss": scale / i, "train/loss": scale / i, "train/learning_rate": 0.1 / i}
        for i in range(1, 9)
    ]


def test_curves_show_the_range_over_seeds(tmp_path):
    blue_band = 255 - 0.25 * (255 - np.array([0, 114, 178]))
    for seeds in ([metrics(1), metrics(2)], [metrics(1)]):
        path = tmp_path / f"{len(seeds)}.png"
        plots.save_curves(path, "demo", {"a": seeds})
    assert near(read(tmp_path / "2.png"), blue_band) > 2000
    assert near(read(tmp_path / "1.png"), blue_band) < 200  # at the edges of lines


def test_slower_variants_reach_further_over_minutes_alone(tmp_path):
    slow = [row | {"wall_seconds": 60.0 * row["epoch"]} for row in metrics(1)]
    fast = [row | {"wall_seconds": 15.0 * row["epoch"]} for row in metrics(2)]
    ends = {}
    for over in ("epochs", "minutes"):
        path = tmp_path / f"{over}.png"
        plots.save_narrow_curves(path, "loss", {"slow": [slow], "fast": [fast]}, over)
        curves = read(path)[: read(path).shape[0] * 3 // 4]  # without the legend
        for name, color in (("slow", (0, 114, 178)), ("fast", (213, 94, 0))):
            ends[over, name] = np.nonzero((np.abs(curves - color).max(-1) <= 3).any(0))[0].max()
    assert abs(ends["epochs", "slow"] - ends["epochs", "fast"]) < 20
    assert ends["minutes", "fast"] < 0.5 * ends["minutes", "slow"]


def test_seeds_of_different_length_do_not_move_backwards(tmp_path):
    rows = [row | {"wall_seconds": 60.0 * row["epoch"]} for row in metrics(1)]
    slow = [row | {"wall_seconds": 180.0 * row["epoch"]} for row in metrics(1)[:4]]
    for over in ("minutes", "epochs"):
        for name, longer in (("stopped.png", rows), ("equal.png", rows[:4])):
            plots.save_narrow_curves(tmp_path / name, "loss", {"a": [longer, slow]}, over)
        assert (read(tmp_path / "stopped.png") == read(tmp_path / "equal.png")).all()


def test_weak_columns_have_their_own_colour_scale(tmp_path):
    pattern = np.indices((4, 4)).sum(0) % 2
    yellow = {}
    for weak in (1.0, 0.01):
        maps = np.stack([weak * pattern, pattern])[None]
        images = np.full((1, 8, 8, 3), 128, np.uint8)
        names = ["block 1", "block 2"]
        plots.save_heat_maps(tmp_path / "maps.png", "demo", images, ["cat"], maps, names)
        pixels = read(tmp_path / "maps.png")
        yellow[weak] = int(((pixels[..., 1] > 180) & (pixels[..., 2] < 100)).sum())
    assert yellow[0.01] > 0.7 * yellow[1.0]


def test_smoothness_separates_shapes_from_noise():
    rng = np.random.default_rng(0)
    assert attribution.smoothness(np.ones((4, 4, 3, 8))) == pytest.approx(1)
    assert abs(attribution.smoothness(rng.normal(size=(8, 8, 3, 64)))) < 0.05
    assert attribution.smoothness(np.indices((2, 2)).sum(0)[..., None, None] % 2 - 0.5) == -1
    assert np.isnan(attribution.smoothness(np.ones((1, 1, 3, 8))))


def test_noise_is_named_in_the_title(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "save_filters", lambda path, title, images: titles.append(title))
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    run = str(save_weights(tmp_path / "w", model__depth=1))
    assert visualize.main([run, "kernels", f"--out={tmp_path / 'f'}"]) == 0
    assert "Mostly noise: neighbouring weights are hardly correlated" in titles[0]


def test_names_with_the_same_start_remain_apart_where_they_are_shortened():
    names = [f"figure skating {who}" for who in ("men", "pairs", "women")]
    shortened = {plots.results.short(name, 16) for name in names}
    assert len(shortened) == 3 and {len(name) for name in shortened} == {16}
    assert plots.results.short("archery", 7) == "archery"


def test_a_head_without_a_distance_is_left_out(tmp_path):
    distances = np.array([[3.0, np.nan], [np.nan, np.nan]])
    plots.save_attention_distances(tmp_path / "d.png", "model", distances)
    plots.save_attention_distances(tmp_path / "e.png", "model", distances[:, :1])
    assert (read(tmp_path / "d.png") == read(tmp_path / "e.png")).all()
