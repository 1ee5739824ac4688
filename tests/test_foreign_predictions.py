"""Converted models see the pixels and have the classes of their libraries."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDEN, copy
from PIL import Image
from tiny_configs import make_config
from tiny_weights import save_weights

import vit_jax
from vit_jax import config as settings
from vit_jax import plots, pretrained
from vit_jax.augment import augment, preprocess
from vit_jax.cli import convert, evaluate, predict
from vit_jax.explanation import analysis, inspection
from vit_jax.explanation.model import Model
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")

PREPROCESSED = GOLDEN / "preprocessed"
NAMES = [f"class {i}" for i in (1, 2, 10, 11, 100, 20, 3)]  # in the order of timm


def source_of(tmp_path, name):
    """Copy the golden model `name` of preprocessed/; return its weight file and given settings."""
    weights = "timm" if name == "timm_squash" else name
    files = [f"preprocessed/{weights}/model.safetensors"]
    files += [str(p.relative_to(GOLDEN)) for p in (PREPROCESSED / name).glob("*.json")]
    return copy(tmp_path, *files), {"num_heads": 3} if name == "torchvision" else {}


def photos():
    return list(np.load(PREPROCESSED / "photos.npz").values())


def test_each_of_two_models_reads_the_images_itself(tmp_path):
    models = []
    for mode in ("squash", "shorter_side"):
        options = {"num_heads": 3, "gelu": "erf", "pool": "cls", "image_size": 12}
        options |= {"resize_mode": mode, "eval_crop": 1.0}
        given = pretrained.settings_of(options)
        weights = pretrained.convert(GOLDEN / "timm/model.safetensors", given)
        pretrained.save(weights, tmp_path / mode)
        models.append(Model(tmp_path / mode))
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        pixels = np.random.default_rng(len(str(file))).integers(0, 256, (12, 60, 3), np.uint8)
        Image.fromarray(np.roll(pixels, int(file.stem))).save(file)
    first, second = (inspection.Request(model, files) for model in models)
    inspection.draw_pair(first, second, tmp_path)
    found = json.loads((tmp_path / "layer_similarity.json").read_text())["cka"]
    np.testing.assert_allclose(found, analysis.similarity(models[0], files, models[1]), atol=1e-6)
    assert np.abs(np.diag(found) - 1).max() > 0.01


def images_of_folder(folder, names, count=2):
    """Write an image folder with one level of grey per class."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            pixels = np.random.default_rng([i, j]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{j}.png")
    return folder


def test_maps_lie_over_what_the_model_sees(tmp_path, monkeypatch):
    """Of an image with a red frame, which the crop leaves out."""
    options = {"num_heads": 3, "gelu": "erf", "pool": "cls", "image_size": 12, "eval_crop": 0.5}
    options |= {"resize_mode": "shorter_side"}
    weights = pretrained.convert(GOLDEN / "timm/model.safetensors", pretrained.settings_of(options))
    pretrained.save(weights, tmp_path / "w")
    image = np.full((24, 24, 3), (255, 0, 0), np.uint8)
    image[4:20, 4:20] = (0, 255, 0)
    Image.fromarray(image).save(tmp_path / "x.png")
    model = vit_jax.load_model(tmp_path / "w")
    assert (model.crop_images(image) == (0, 255, 0)).all()
    assert model.crop_images(image).shape == (1, 12, 12, 3)
    drawn = []
    monkeypatch.setattr(plots, "save_prediction", lambda *args: drawn.append(args))
    monkeypatch.setattr(plots, "save_heat_maps", lambda path, title, *args, **_: drawn.append(args))
    for method in ("rollout", "chefer"):
        words = [str(tmp_path / "x.png"), f"--overlay={tmp_path}", f"--explain={method}"]
        assert predict.main([str(tmp_path / "w"), *words]) == 0
    (_, _, shown, top, (title, _)), (*_, (other, _)) = drawn
    assert (shown == (0, 255, 0)).all() and title == "rollout"
    assert other == f"chefer of {next(iter(top))}"
    drawn.clear()
    request = inspection.Request(model, [tmp_path / "x.png"])
    for kind in ("token_norms", "logit_lens"):
        inspection.draw(request, kind, tmp_path)
    assert all((shown == (0, 255, 0)).all() for shown, *_ in drawn) and len(drawn) == 2


@pytest.mark.parametrize("name", ["timm", "timm_squash", "hf", "torchvision"])
def test_a_converted_model_sees_the_pixels_of_its_library(tmp_path, name):
    file, options = source_of(tmp_path, name)
    pretrained.save(
        pretrained.convert(file, pretrained.settings_of(options)), tmp_path / "converted"
    )
    model = vit_jax.load_model(tmp_path / "converted")
    golden = np.load(PREPROCESSED / name / "golden.npz")
    pixels = np.asarray(preprocess(jnp.asarray(model.read_images(photos())), model.config))
    level = 1.01 / 255 / np.min(model.config.data.std)  # implementations round differently
    np.testing.assert_allclose(pixels, golden["images"], rtol=0, atol=level)
    assert np.abs(pixels - golden["images"]).mean() < level / 10
    expected = np.exp(golden["logits"]) / np.exp(golden["logits"]).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict(photos()), expected, atol=2e-3)


def test_preprocessing_is_adopted_by_fine_tuning_unless_overridden(tmp_path):
    file, _ = source_of(tmp_path, "timm_squash")
    weights = pretrained.convert(file, {}).info["settings"]
    base = {"init_from": "w", "data.image_size": 0, "train.steps": 1}
    config = settings.with_overrides(settings.get_config(), base, "a")
    data = settings.resolve(config, weights).data
    assert (data.eval_crop, data.resize_mode, data.interpolation) == (0.8, "squash", "bilinear")
    other = settings.with_overrides(config, {"data.interpolation": "lanczos"}, "a")
    data = settings.resolve(other, weights, {"data.eval_crop"}).data
    assert (data.eval_crop, data.resize_mode, data.interpolation) == (1.0, "squash", "lanczos")
    # Without augmentation, training images are those of evaluation.
    config = settings.resolve(config, weights)
    config.augment.kind = "none"
    model = vit_jax.load_model(file)
    images = jnp.asarray(model.read_images(photos()))
    for how in ("squash", "fit"):
        config.data.resize_mode = how
        trained, _ = augment(None, images, jnp.zeros(4, int), 7, config)  # pyright: ignore
        np.testing.assert_array_equal(trained, preprocess(images, config))


@pytest.mark.parametrize("name", ["timm", "timm_squash", "hf", "torchvision"])
@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_exported_preprocessing_is_read_back(tmp_path, name, kind):
    file, options = source_of(tmp_path, name)
    weights = pretrained.convert(file, pretrained.settings_of(options))
    notes = pretrained.export(weights, kind, tmp_path / "out")
    assert not any("data." in note for note in notes)
    back = pretrained.convert(tmp_path / "out" / "model.safetensors", {})
    for key in settings.PREPROCESSING:
        assert back.info["settings"][key] == weights.info["settings"][key], key
    if kind == "hf":
        processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        expected = {
            "timm": ({"shortest_edge": 35}, True, 3),
            "timm_squash": ({"height": 40, "width": 40}, True, 2),
            "hf": ({"height": 32, "width": 32}, False, 2),
            "torchvision": ({"shortest_edge": 36}, True, 2),
        }[name]
        found = tuple(processor[key] for key in ("size", "do_center_crop", "resample"))
        assert found == expected and processor["crop_size"] == {"height": 32, "width": 32}


def test_a_default_run_is_exported_with_a_crop_and_stored_size_is_noted(tmp_path):
    file, _ = source_of(tmp_path, "timm")
    weights = pretrained.convert(file, {"data.resize_mode": "fit", "data.eval_crop": 1.0})
    weights.info["stored_size"] = 48
    notes = pretrained.export(weights, "hf", tmp_path / "out")
    assert any("data.stored_size=48" in note for note in notes)
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 32} and processor["do_center_crop"]


def test_names_of_the_files_are_kept_and_the_order_of_the_dataset_may_differ(tmp_path):
    for name in ("timm", "hf"):
        assert pretrained.convert(source_of(tmp_path, name)[0], {}).info["class_names"] == NAMES
    folder = images_of_folder(tmp_path / "photos", NAMES)
    model = vit_jax.load_model(PREPROCESSED / "timm" / "model.safetensors")
    report = model.evaluate(folder, "all")
    paths = sorted(folder.rglob("*.png"))
    best = [names[0][0] for names in model.top5(paths)]
    right = np.mean([found == path.parent.name for found, path in zip(best, paths, strict=True)])
    assert report["accuracy"] == right and set(report["classes"]) == set(NAMES)


def test_a_head_without_names_needs_them(tmp_path, capsys):
    file, _ = source_of(tmp_path, "torchvision")
    weights, folder = tmp_path / "converted", images_of_folder(tmp_path / "photos", NAMES)
    assert convert.main([str(file), str(weights), "--num-heads=3"]) == 0
    on_photos = ["--config.data.name=folder", f"--config.data.dir={folder}", "--split=all"]
    call = [str(weights), *on_photos, f"--out={tmp_path / 'out'}"]
    assert evaluate.main(call) == 1
    assert "records no class names for its 7 classes" in capsys.readouterr().err
    assert evaluate.main([*call, "--class-names=a,b"]) == 1
    assert "has 2 different names" in capsys.readouterr().err
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(NAMES) + "\n", encoding="utf-8-sig")  # of Windows
    assert evaluate.main([*call, f"--class-names={listed}"]) == 0
    report = json.loads((tmp_path / "out" / "test_report.json").read_text())
    # The same as with the names in the checkpoint.
    named = tmp_path / "named"
    names = f"--class-names={','.join(NAMES)}"
    assert convert.main([str(file), str(named), "--num-heads=3", names]) == 0
    found = vit_jax.load_model(named).evaluate(folder, "all")
    assert json.loads(json.dumps(found)) == report
    image = str(next(folder.rglob("*.png")))
    capsys.readouterr()
    assert predict.main([str(weights), image, f"--class-names={listed}"]) == 0
    assert "class 1" in capsys.readouterr().out


def test_fine_tuning_resets_a_head_without_names_unless_told_to_keep_it(tmp_path):
    file, options = source_of(tmp_path, "torchvision")
    weights = pretrained.convert(file, pretrained.settings_of(options))
    weights.info["checksum"] = 0
    shapes = pretrained.shapes(weights.info["settings"], 7)
    others = list("abcdefg")
    fitted = pretrained.fit(weights, shapes, others, True)
    rows = {what: (paths, why) for what, paths, why in fitted.rows}
    assert set(rows["reset"][0]) == {"head/kernel", "head/bias"}
    assert "record no class names" in rows["reset"][1]
    kept = pretrained.fit(weights, shapes, others, True, keep_head=True)
    assert [row[0] for row in kept.rows] == ["loaded"]
    fewer = pretrained.shapes(weights.info["settings"], 3)
    with pytest.raises(UserError, match="keep_head=True cannot be satisfied"):
        pretrained.fit(weights, fewer, others[:3], True, keep_head=True)
    config = settings.with_overrides(settings.get_config(), {"keep_head": True}, "a")
    config.train.steps = 1
    with pytest.raises(UserError, match="keep_head=True has no effect without init_from"):
        settings.rules.validate(config)


def test_an_untrained_head_is_not_evaluated_in_place_of_one_without_names(tmp_path):
    weights = save_weights(tmp_path / "weights", 10, model__depth=1, model__mlp_dim=32)
    config = make_config(init_from=str(weights), freeze="none_trained", data__name="digits")
    with pytest.raises(UserError, match="set keep_head=True to evaluate their own head"):
        vit_jax.train(config, workdir=tmp_path / "runs")


def test_class_names_given_twice_are_refused(tmp_path):
    weights = save_weights(tmp_path / "weights", 10, model__depth=1)
    names = [*"aabcdefghij"]  # 11 names, 10 different ones, for 10 classes
    with pytest.raises(UserError, match="class_names has 10 different names"):
        vit_jax.load_model(weights, class_names=names)
