"""Weights of other projects: same outputs after conversion, bit-identical after export."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_files import GIVEN, GOLDEN, HEADS, SOURCES, TIMM, assert_same, convert

from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.config.schema import SCHEMA
from vit_jax.pretrained import formats, tables
from vit_jax.pretrained.weights import KEYS
from vit_jax.runtime.errors import UserError


def model_of(weights):
    """Build the module of the weights."""
    config = settings.with_overrides(settings.get_config(), weights.info["settings"], "weights")
    return models.build(config.model, max(1, weights.info["num_classes"]))


def variables_of(weights):
    """Load variables, with an arbitrary head for a model without one."""
    variables = weights.variables
    head = {"kernel": np.zeros((48, 1), np.float32), "bias": np.zeros(1, np.float32)}
    return variables | {"params": {"head": head} | variables["params"]}


def test_every_setting_of_a_model_belongs_to_its_weights_or_to_training():
    """One that is in neither list would be lost, and the logits of loaded weights wrong."""
    training = {"size", "dropout_rate", "attention_dropout_rate", "drop_path_rate"}
    training |= {"patch_drop_rate", "init", "head_zero_init", "zero_init_residual"}
    keys = {"name", *KEYS["vit"], *KEYS["resnet18"]}
    known = {key.removeprefix("model.") for key in SCHEMA if key.startswith("model.")}
    assert keys | training == known and not keys & training


@pytest.mark.parametrize("name", SOURCES)
def test_converted_models_have_the_outputs_of_the_originals(name):
    weights, golden = convert(name), np.load(GOLDEN / name / "golden.npz")
    apply = jax.jit(model_of(weights).apply, static_argnames="capture")
    logits, inside = apply(variables_of(weights), golden["images"], capture=True)
    if name == "resnet18":
        pairs = [("block", inside["feature_maps"]["layer1_0"])]
    else:
        pairs = [("embeddings", inside["tokens"][0]), ("block", inside["tokens"][1])]
    # transformers' bare encoder ends in its pooler.
    pairs.append(("logits", inside["features"] if name == "hf_bare" else logits))
    for key, found in pairs:
        np.testing.assert_allclose(found, golden[key], rtol=0, atol=1e-5, err_msg=key)
    assert np.abs(golden["logits"]).max() > 0.1


def test_settings_come_with_the_weights():
    timm, hf, npz, torchvision = (convert(n).info for n in ("timm", "hf", "npz", "torchvision"))
    shared = dict(
        zip(("patch_size", "hidden_size", "depth", "mlp_dim"), (4, 48, 2, 96), strict=True)
    )
    for info in (timm, hf, npz, torchvision):
        assert {f"model.{key}": value for key, value in shared.items()}.items() <= info[
            "settings"
        ].items()
        assert info["num_classes"] == 7 and info["settings"]["data.image_size"] == 12
    found = [
        tuple(info["settings"][key] for key in ("model.gelu", "model.norm_eps", "data.mean"))
        for info in (timm, hf, npz, torchvision)
    ]
    imagenet = (0.485, 0.456, 0.406)
    assert found == [
        ("erf", 1e-6, (0.5,)),
        ("erf", 1e-12, (0.5,)),
        ("tanh", 1e-6, (0.5,)),
        ("erf", 1e-6, imagenet),
    ]
    assert [info["resize"] for info in (timm, hf, npz)] == ["timm", "hf", "official"]
    assert hf["class_names"] == [f"class {i}" for i in range(7)] and timm["class_names"] is None
    assert convert("hf_bare").info["settings"]["model.representation_size"] == 48
    mean = convert("timm_mean").info["settings"]
    assert (mean["model.pool"], mean["model.qkv_bias"]) == ("mean", False)


def rewritten(tmp_path, name, change):
    """Copy a golden file with changed arrays."""
    arrays = dict(np.load(GOLDEN / SOURCES["npz"])) if name == "npz" else None
    if arrays is None:
        arrays = safetensors.numpy.load_file(GOLDEN / SOURCES[name])
    path = tmp_path / pathlib.Path(SOURCES[name]).name
    arrays = change(arrays)
    if name == "npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(
            {key: np.ascontiguousarray(value) for key, value in arrays.items()}, path
        )
    return path


def linen(key):
    """Convert the name of an array of 2020 to Linen's."""
    names = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    names |= {"MlpBlock_3": "MlpBlock_0", "LayerNorm_2": "LayerNorm_1"}
    return "/".join(names.get(part, part) for part in key.split("/"))


def stacked(arrays):
    """Convert to big_vision's layout: "params/", stacked blocks, outer positions, raw bfloat16."""
    arrays = {linen(key): value for key, value in arrays.items()}
    pairs = [k for k in arrays if "encoderblock_0" in k]
    result = {k: v for k, v in arrays.items() if "encoderblock" not in k}
    for key in pairs:
        both = [arrays[key], arrays[key.replace("encoderblock_0", "encoderblock_1")]]
        result[key.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    result["pos_embedding"] = result.pop(tables.POSITIONS)
    return {f"params/{key}": value for key, value in result.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: (
            {f"opt/target/{k}": v for k, v in arrays.items()} | {"opt/state": np.ones(1)}
        ),
        lambda arrays: {f"params/img/{linen(k)}": v for k, v in arrays.items()},
        stacked,
    ],
    ids=["opt/target", "params/img", "stacked"],
)
def test_every_naming_of_the_official_file_is_read(tmp_path, change):
    # big_vision's positions may be those of another shape than a square.
    path = rewritten(tmp_path, "npz", change)
    found = pretrained.convert(path, {"data.image_size": 12})
    expected = convert("npz")
    expected_settings = expected.info["settings"]
    if any(key.startswith("params/") for key in np.load(path).files):
        # As in big_vision's configs.
        cropped = {"data.eval_crop": 0.875, "data.resize_mode": "shorter_side"}
        expected_settings = expected_settings | cropped | {"data.interpolation": "box"}
    assert found.info["settings"] == expected_settings
    assert_same(found.arrays, expected.arrays)


def test_bfloat16_and_a_class_token_without_position(tmp_path):
    import ml_dtypes

    def change(arrays):
        table = arrays[tables.POSITIONS]
        arrays[tables.POSITIONS] = table[:, 1:]
        return {k: v.astype(ml_dtypes.bfloat16).view("V2") for k, v in arrays.items()}

    found = pretrained.convert(rewritten(tmp_path, "npz", change), {}).arrays
    table = convert("npz").arrays[tables.POSITIONS]
    np.testing.assert_array_equal(found[tables.POSITIONS][0, 0], np.zeros(48))
    np.testing.assert_allclose(found[tables.POSITIONS][:, 1:], table[:, 1:], rtol=2**-8)


def test_pre_logits_and_no_head(tmp_path):
    def change(arrays):
        layer = {"pre_logits/kernel": np.ones((48, 48)), "pre_logits/bias": np.ones(48)}
        return {k: v for k, v in arrays.items() if not k.startswith("head/")} | layer

    info = pretrained.convert(rewritten(tmp_path, "npz", change), {}).info
    assert info["num_classes"] == 0 and info["settings"]["model.representation_size"] == 48


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in ("timm", "hf", "npz", "torchvision") for k in ("timm", "hf", "npz")]
    + [("timm_mean", "timm")],
)
def test_round_trip_is_bit_identical(tmp_path, name, kind):
    weights, out = convert(name), tmp_path / ("out.npz" if kind == "npz" else "out")
    pretrained.export(weights, kind, out)
    given = {"model.norm_eps": weights.info["settings"]["model.norm_eps"]}
    if kind == "npz":
        settings_kept = ("model.gelu", "data.mean", "data.std", *settings.PREPROCESSING)
        given |= {key: weights.info["settings"][key] for key in settings_kept}
    back = pretrained.convert(out if kind == "npz" else out / "model.safetensors", given)
    assert_same(back.arrays, weights.arrays)
    expected = dict(weights.info["settings"])
    for key in ("data.mean", "data.std"):  # a single value applies to all channels
        expected[key] = tuple(np.broadcast_to(expected[key], 3))
        back.info["settings"][key] = tuple(np.broadcast_to(back.info["settings"][key], 3))
    assert back.info["settings"] == expected


def test_resnet18_round_trip():
    weights = convert("resnet18")
    theirs = formats.to_theirs("resnet18", weights.arrays)
    original = safetensors.numpy.load_file(GOLDEN / SOURCES["resnet18"])
    assert_same(theirs, {k: v for k, v in original.items() if "num_batches" not in k})


def test_a_saved_checkpoint_is_read_and_its_damage_detected(tmp_path):
    weights = convert("resnet18")
    pretrained.save(weights, tmp_path / "w")
    found = pretrained.load(tmp_path / "w")
    assert_same(found.arrays, weights.arrays)
    assert found.info["settings"] == weights.info["settings"]
    with pytest.raises(UserError, match="exists already"):
        pretrained.save(weights, tmp_path / "w")
    model = tmp_path / "w" / "model.json"
    model.write_text(model.read_text().replace('"checksum": ', '"checksum": 1'))
    with pytest.raises(UserError, match="damaged"):
        pretrained.load(tmp_path / "w")
    model.write_text("{")
    with pytest.raises(UserError, match="model.json is damaged"):
        pretrained.load(tmp_path / "w")


@pytest.mark.parametrize(
    ("name", "change", "messages"),
    [
        (
            "timm",
            lambda arrays: (
                {("x" if k == "norm.bias" else k): v for k, v in arrays.items()}
                | {"head.bias": np.ones(3, np.float32), "fc_norm.weight": np.ones(48, np.float32)}
            ),
            ["norm.bias is missing", "head.weight has the shape (7, 48) instead of (3, 48)"]
            + ["x is unexpected", "fc_norm.weight is unexpected"],
        ),
        (
            "npz",
            lambda arrays: arrays | {"head/bias": np.full(7, np.nan, np.float32)},
            ["NaN or infinite values in head/bias"],
        ),
        ("timm", lambda arrays: {"stem.weight": np.ones(2)}, ["no known layout", "stem.weight"]),
        (
            "npz",
            lambda arrays: {"embedding": np.array([{}], object)},
            ["damaged", "Python objects"],
        ),
    ],
    ids=["keys", "nan", "kind", "object"],
)
def test_invalid_files_are_refused_with_all_problems(tmp_path, name, change, messages):
    with pytest.raises(UserError) as caught:
        pretrained.convert(rewritten(tmp_path, name, change), GIVEN.get(name, HEADS))
    for message in messages:
        assert message in str(caught.value)


def test_files_that_are_not_weights(tmp_path):
    whole = (GOLDEN / SOURCES["timm"]).read_bytes()
    contents = {
        "cut.safetensors": (whole[: len(whole) // 2], "damaged"),
        "cut.npz": ((GOLDEN / SOURCES["npz"]).read_bytes()[:999], "damaged"),
        "model.pth": (b"PK\x03\x04" + bytes(99), "is a pickle.*safetensors.torch.save_file"),
        "model.bin": (b"\x80\x02}q\x00.", "is a pickle"),
        "renamed.safetensors": (b"PK\x03\x04" + bytes(99), "is a pickle"),
        "empty.npz": (b"", "is empty"),
        "notes.txt": (b"weights", "neither .npz nor .safetensors"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            pretrained.convert(tmp_path / name, {})
    with pytest.raises(UserError, match="give num_heads"):
        pretrained.convert(GOLDEN / SOURCES["timm"], {})
    with pytest.raises(UserError, match="is not a file"):
        pretrained.convert(tmp_path / "missing.npz", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_embed.proj.weight": np.ones((48, 48), np.float32)}, "not 4 dimensions"),
        ({"patch_embed.proj.weight": np.ones((48, 3, 4, 2), np.float32)}, "are not square"),
        ({"pos_embed": np.ones((10, 48), np.float32)}, "not 3 dimensions"),
        ({"head.bias": np.ones(7, np.complex64)}, "is not numeric"),
    ],
)
def test_arrays_of_other_models_are_errors_with_their_names(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        pretrained.convert(rewritten(tmp_path, "timm", lambda arrays: arrays | change), TIMM)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "belongs to another model: it has model.hidden_size=64"),
        ({"global_pool": "avg"}, "another model: it has model.pool=mean"),
        ({"hidden_act": "relu"}, "has the unsupported activation 'relu'"),
        ({"num_attention_heads": "3"}, "'3' attention heads do not divide"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide"),
        ({"pretrained_cfg": "x"}, "is not in the format of timm or transformers"),
        ({"id2label": {"a": "b"}}, "is not in the format of timm or transformers"),
        ("{", "cannot be read"),
    ],
)
def test_files_next_to_the_weights_are_validated(tmp_path, config, message):
    path = rewritten(tmp_path, "timm", lambda arrays: arrays)
    text = config if isinstance(config, str) else json.dumps({"num_attention_heads": 3} | config)
    path.with_name("config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        pretrained.convert(path, {})


def test_settings_given_by_the_user_are_used_or_refused(tmp_path):
    with pytest.raises(UserError, match="has 3 attention heads, not 4"):
        pretrained.convert(GOLDEN / SOURCES["npz"], {"model.num_heads": 4})
    with pytest.raises(UserError, match="model.gelu has no effect"):
        pretrained.convert(GOLDEN / SOURCES["resnet18"], {"model.gelu": "erf"})
    with pytest.raises(UserError, match="-3 attention heads"):
        pretrained.convert(GOLDEN / SOURCES["timm"], {"model.num_heads": -3})
    found = pretrained.convert(GOLDEN / SOURCES["timm"], TIMM | {"data.mean": (0.4,)})
    assert found.info["settings"]["data.mean"] == (0.4,)
    assert "data.mean" not in found.info["assumed"] and "data.std" in found.info["assumed"]
    with pytest.raises(UserError, match="must end in .npz"):
        pretrained.export(found, "npz", tmp_path / "exported")
    notes = " ".join(pretrained.export(found, "npz", tmp_path / "exported.npz"))
    assert "model.gelu=erf; the usual value is tanh" in notes and "data.mean=(0.4,)" in notes


def test_equal_class_names_are_numbered(tmp_path):
    path = rewritten(tmp_path, "timm", lambda arrays: arrays)
    labels = {str(i): "crane" if i in (1, 6) else f"bird {i}" for i in range(7)}
    config = {"num_attention_heads": 3, "id2label": labels}
    path.with_name("config.json").write_text(json.dumps(config))
    given = {key: value for key, value in TIMM.items() if key not in HEADS}
    names = pretrained.convert(path, given).info["class_names"]
    assert names[1] == "crane (1)" and names[6] == "crane (6)" and names[2] == "bird 2"
