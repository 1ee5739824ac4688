"""Weights of other projects are used as in their libraries, or refused with what is unknown."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from tiny_configs import make_config
from tiny_weights import save_weights

import vit_jax
from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.augment import augment, preprocess
from vit_jax.cli import convert, evaluate, predict
from vit_jax.models.vit import sincos_2d
from vit_jax.pretrained import architectures, resize, tables
from vit_jax.runtime.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"
PREPROCESSED = GOLDEN / "preprocessed"
NAMES = [f"class {i}" for i in (1, 2, 10, 11, 100, 20, 3)]  # in the order of timm
TIMM = {"model.num_heads": 3, "model.gelu": "erf", "model.pool": "cls", "data.image_size": 12}


def copy(tmp_path, *parts):
    """Copy golden files to a folder whose name says nothing; return the weight file."""
    folder = tmp_path / "w"
    folder.mkdir(exist_ok=True)
    for part in parts:
        shutil.copy(GOLDEN / part, folder)
    return next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".npz"))


def source_of(tmp_path, name):
    """Copy the golden model `name` of preprocessed/; return its weight file and given settings."""
    weights = "timm" if name == "timm_squash" else name
    files = [f"preprocessed/{weights}/model.safetensors"]
    files += [str(p.relative_to(GOLDEN)) for p in (PREPROCESSED / name).glob("*.json")]
    return copy(tmp_path, *files), {"num_heads": 3} if name == "torchvision" else {}


def change(path, **arrays):
    """Replace arrays of a .safetensors file; None removes one."""
    kept = {**safetensors.numpy.load_file(path), **arrays}
    safetensors.numpy.save_file({k: v for k, v in kept.items() if v is not None}, path)
    return path


def configured(path, **content):
    """Write a config.json next to a weight file."""
    path.with_name("config.json").write_text(json.dumps(content))
    return path


def photos():
    return list(np.load(PREPROCESSED / "photos.npz").values())


def images_of_folder(folder, names, count=2):
    """Write an image folder with one level of grey per class."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            pixels = np.random.default_rng([i, j]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{j}.png")
    return folder


# preprocessing


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


# class order


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
    listed.write_text("\n".join(NAMES) + "\n")
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


# architectures


def test_what_a_timm_file_does_not_record_is_asked_for(tmp_path):
    file = copy(tmp_path, "timm/model.safetensors")
    for key, option in (
        ("model.num_heads", "num_heads"),
        ("model.gelu", "gelu=erf|tanh|quick"),
        ("model.pool", "pool=cls"),
        ("data.image_size", "image_size=12"),
    ):
        with pytest.raises(UserError) as caught:
            pretrained.convert(file, {k: v for k, v in TIMM.items() if k != key})
        assert f"give {option}, if that is right" in str(caught.value), key
    with pytest.raises(UserError, match="other pooling is not supported"):
        pretrained.convert(file, TIMM | {"model.pool": "mean"})
    tanh = pretrained.convert(file, TIMM | {"model.gelu": "tanh"})
    assert tanh.info["settings"]["model.gelu"] == "tanh"
    with pytest.raises(UserError, match="vit_base_patch16_224 is not a plain ViT of timm with wid"):
        pretrained.convert(file, TIMM | {"architecture": "vit_base_patch16_224"})
    with pytest.raises(UserError, match="unsupported model_args scale_mlp_norm=True"):
        pretrained.convert(configured(file, model_args={"scale_mlp_norm": True}), TIMM)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("vit_base_patch16_224.augreg_in21k", 768, (12, "erf", "cls", 224)),
        ("vit_base_patch16_gap_224", 768, (16, "erf", "mean", 224)),
        ("vit_base_patch16_siglip_gap_256", 768, (12, "erf", "mean", 256)),
        ("models--timm--deit_tiny_patch16_224.fb_in1k", 192, (3, "erf", "cls", 224)),
        ("vit_base_patch16_224", 48, (None, None, None, None)),
        ("vit_so400m_patch16_siglip_gap_256", 1152, (16, "tanh", "mean", 256)),
        ("vit_so400m_patch16_siglip_gap_256", 768, (None, None, None, None)),
        ("my_weights", 768, (None, None, None, None)),
    ],
)
def test_names_of_timm_complete_a_file(name, width, expected):
    found = architectures.facts([name], width)
    keys = ("model.num_heads", "model.gelu", "model.pool", "data.image_size")
    assert tuple(found.get(key) for key in keys) == expected


def test_what_a_file_of_hugging_face_does_not_record_is_asked_for(tmp_path):
    file = copy(tmp_path, "hf_bare/model.safetensors")
    with pytest.raises(UserError) as caught:
        pretrained.convert(file, {"model.num_heads": 3})
    for option in ("gelu=erf|tanh|quick", "norm_eps=1e-12", "pooler_act=tanh", "image_size=12"):
        assert option in str(caught.value)
    config = json.loads((GOLDEN / "hf_bare" / "config.json").read_text())
    assert pretrained.convert(configured(file, **config), {}).info["num_classes"] == 0
    with pytest.raises(UserError, match="unsupported pooler_act 'gelu'"):
        pretrained.convert(configured(file, **config | {"pooler_act": "gelu"}), {})


def test_a_resnet18_is_not_taken_for_a_resnetblur18(tmp_path):
    file = copy(tmp_path, "resnet18/model.safetensors")
    with pytest.raises(UserError, match="give architecture=resnet18"):
        pretrained.convert(file, {})
    assert pretrained.convert(file, {"architecture": "resnet18"}).info["num_classes"] == 7
    named = file.rename(file.with_name("resnet18-f37072fd.safetensors"))
    assert pretrained.convert(named, {}).info["num_classes"] == 7
    with pytest.raises(UserError, match="is resnetblur18, which is not supported"):
        pretrained.convert(configured(named, architecture="resnetblur18"), {})


def test_heads_of_torchvision_are_not_guessed_for_unknown_widths(tmp_path):
    file = copy(tmp_path, "torchvision/model.safetensors")
    with pytest.raises(UserError, match="does not record its number of attention heads"):
        pretrained.convert(file, {})


# positions


@pytest.mark.parametrize("side", [2, 5])
def test_positions_of_torchvision_are_resized_by_its_rule(side):
    golden = np.load(GOLDEN / "resized.npz")
    found = resize.resize_positions(golden["table"], side**2 + 1, True, "torchvision")
    np.testing.assert_allclose(found, golden[f"torchvision_{side}"], atol=2e-6)
    weights = pretrained.convert(
        GOLDEN / "torchvision" / "model.safetensors", {"model.num_heads": 3}
    )
    assert weights.info["resize"] == "torchvision"


# ResNet18 of timm


def test_a_resnet18_of_timm_is_read_with_its_config(tmp_path):
    file = copy(tmp_path, "resnet18/model.safetensors", "timm_resnet18/config.json")
    weights = pretrained.convert(file, {})
    found, golden = weights.info["settings"], np.load(GOLDEN / "timm_resnet18" / "golden.npz")
    assert (found["model.hidden_size"], found["data.image_size"]) == (4, 224)
    assert (found["data.eval_crop"], found["data.interpolation"]) == (0.95, "bicubic")
    config = settings.with_overrides(settings.get_config(), found, "weights")
    logits = models.build(config.model, 7).apply(weights.variables, golden["images"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    content = json.loads(file.with_name("config.json").read_text())
    with pytest.raises(UserError, match="belongs to another model"):
        pretrained.convert(configured(file, **content | {"num_features": 64}), {})


# official names


def test_an_exported_npz_has_the_official_names(tmp_path):
    official = np.load(GOLDEN / "npz" / "model.npz")  # read by timm's own loader
    weights = pretrained.convert(GOLDEN / "npz" / "model.npz", {})
    pretrained.export(weights, "npz", tmp_path / "out.npz")
    written = np.load(tmp_path / "out.npz")
    assert set(written.files) == set(official.files)
    for key in official.files:
        np.testing.assert_array_equal(written[key], official[key], key)


# big_vision


def big_vision(tmp_path, **changes):
    """Write the official golden file with big_vision's names and other positions."""
    arrays = {f"params/{key}": array for key, array in np.load(GOLDEN / "npz/model.npz").items()}
    del arrays[f"params/{tables.POSITIONS}"]
    for key, array in changes.items():
        arrays[f"params/{key}"] = array
    np.savez(tmp_path / "model.npz", **arrays)
    return tmp_path / "model.npz"


def test_fixed_positions_of_big_vision(tmp_path):
    file = big_vision(tmp_path)
    with pytest.raises(UserError, match="does not record its image size: give image_size"):
        pretrained.convert(file, {})
    weights = pretrained.convert(file, {"data.image_size": [12]})  # as of --image-size=12
    found = weights.info["settings"]
    assert (found["model.pos_embed"], found["data.image_size"]) == ("sincos_2d", 12)
    table = np.pad(sincos_2d(3, 3, 48), ((1, 0), (0, 0)))[None]
    learned = pretrained.convert(big_vision(tmp_path, pos_embedding=table), {"data.image_size": 12})
    images, outputs = np.load(GOLDEN / "npz" / "golden.npz")["images"], []
    for one in (weights, learned):
        config = settings.with_overrides(settings.get_config(), one.info["settings"], "weights")
        outputs.append(models.build(config.model, 7).apply(one.variables, images))
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_positions_of_other_shapes_than_a_square(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 16, 48)).astype(np.float32)  # without the class token's
    file = big_vision(tmp_path, pos_embedding=table)
    square = pretrained.convert(file, {"data.image_size": 16})
    np.testing.assert_array_equal(square.arrays[tables.POSITIONS][:, 1:], table)
    wide = pretrained.convert(file, {"data.image_size": (8, 32)})
    assert "2x8 patches resized to 4x4" in capsys.readouterr().out
    assert wide.info["settings"]["data.image_size"] == 16
    rows, columns = (resize.resize_matrix("official", 4, n) for n in (2, 8))
    expected = np.einsum("ij,kl,jld->ikd", rows, columns, table.reshape(2, 8, 48))
    found = wide.arrays[tables.POSITIONS][0, 1:].reshape(4, 4, 48)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    timm = copy(tmp_path, "timm/model.safetensors")
    config = {"model_args": {"img_size": [4, 36]}}
    answers = {key: value for key, value in TIMM.items() if key != "data.image_size"}
    pretrained.convert(configured(timm, **config), answers)
    assert "1x9 patches resized to 3x3" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 16 positions, which are not those of 8x8 pixels"):
        pretrained.convert(file, {"data.image_size": 8})


# refusals


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("patch_embed.backbone.stem.conv.weight", "a hybrid of ResNet and ViT"),
        ("blocks.0.attn.norm.weight", "further norms in its blocks"),
        ("attn_pool.q_norm.weight", "another attention pooling than SigLIP"),
        ("rope.freqs", "relative or rotary positions"),
        ("layer1.0.conv3.weight", "such as ResNet50"),
        ("stages.0.blocks.0.conv_dw.weight", "another network"),
    ],
)
def test_other_models_are_named(tmp_path, key, what):
    file = copy(tmp_path, "timm/model.safetensors")
    change(file, **{key: np.ones(3, np.float32)})
    with pytest.raises(UserError) as caught:
        pretrained.convert(file, TIMM)
    message = str(caught.value)
    assert what in message and "use plain ViTs" in message and len(message) < 300 + len(str(file))


def test_a_type_of_transformers_a_shard_and_a_hybrid_npz_are_named(tmp_path):
    file = copy(tmp_path, "hf/model.safetensors")
    with pytest.raises(UserError, match="is of the model_type 'dinov3_vit' of transformers"):
        pretrained.convert(configured(file, model_type="dinov3_vit"), {})
    for name in ("model-00001-of-00003.safetensors", "model.safetensors.index.json"):
        shard = tmp_path / name
        shard.write_bytes(b"{}")
        with pytest.raises(UserError, match="belongs to a sharded checkpoint"):
            pretrained.convert(shard, {})
    arrays = dict(np.load(GOLDEN / "npz" / "model.npz")) | {"conv_root/kernel": np.ones(2)}
    np.savez(tmp_path / "R50+ViT-B_16.npz", **arrays)
    with pytest.raises(UserError, match="a hybrid of ResNet and ViT"):
        pretrained.convert(tmp_path / "R50+ViT-B_16.npz", {})


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_modules_are_removed(tmp_path, prefix):
    file = copy(tmp_path, "timm/model.safetensors")
    expected = pretrained.convert(file, TIMM).arrays
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({prefix + key: value for key, value in arrays.items()}, file)
    found = pretrained.convert(file, TIMM).arrays
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_refusals_list_a_few_keys_only(tmp_path):
    file = copy(tmp_path, "timm/model.safetensors")
    change(file, **{f"unknown.{i}": np.ones(1, np.float32) for i in range(500)})
    with pytest.raises(UserError, match="and 496 more") as caught:
        pretrained.convert(file, TIMM)
    assert len(str(caught.value)) < 300 + len(str(file))
    weights = pretrained.convert(GOLDEN / "timm" / "model.safetensors", TIMM)
    deeper = pretrained.shapes(weights.info["settings"] | {"model.depth": 12}, 7)
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        pretrained.fit(weights, deeper, list("abcdefg"), True)
    assert len(str(caught.value)) < 600
