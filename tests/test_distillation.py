"""Distillation: the loss, runs that learn from a finished one, and the teachers refused."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_configs import make_config

import vit_jax
from vit_jax import UserError, models, pretrained
from vit_jax.config.loading import select_variants
from vit_jax.training import optim, step
from vit_jax.training.teacher import distillation_loss

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")
RNG = np.random.default_rng(0)
FILES = ("config.json", "summary.json")
CNN = {"model.name": "resnet18", "model.hidden_size": 4}
VIT = {
    "data.mean": (0.3,),  # unlike the teacher's
    "model.patch_size": 4,
    "model.hidden_size": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 32,
}


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def run(workdir, variants, **overrides):
    config = vit_jax.get_config()
    config.data.update(name="digits", image_size=8, channels=1)
    config.augment.crop_padding = 1
    config.train.update({"epochs": 1.0} | overrides)
    config.log.update(tensorboard=False, explain_images=0)
    config.optim.learning_rate = 3e-3
    return vit_jax.train(vit_jax.Experiment("distil", config, variants), workdir)


def params(run):
    return vit_jax.load_model(run).variables["params"]


@pytest.fixture(scope="module")
def sweep(one_device, no_figures, tmp_path_factory):
    """A teacher and its students of two vectorised seeds, in one sweep."""
    student = VIT | {"train.teacher": "cnn", "train.distill_temperature": 4.0}
    workdir = tmp_path_factory.mktemp("runs") / "distil"
    return run(workdir, {"cnn": CNN, "student": student}, num_seeds=2)


def test_the_loss_is_the_divergence_of_softened_predictions():
    student, teacher = RNG.normal(size=(2, 5, 10)) * 3
    p, q = softmax(teacher / 4), softmax(student / 4)
    expected = 16 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(distillation_loss(student, teacher, 4.0), expected, rtol=1e-4)
    np.testing.assert_array_equal(distillation_loss(student, student, 4.0), 0)


def test_weight_and_temperature_decide_the_loss_of_a_step():
    config = make_config(augment__kind="none")
    config.train.update(distill_weight=0.3, distill_temperature=4.0)
    logits = RNG.normal(size=(6, 10)).astype(np.float32) * 3
    teacher = SimpleNamespace(logits=lambda variables, images: logits)
    model = models.build(config.model, 10)  # with a head of zeros
    optimizer = optim.make_optimizer(config.optim, lambda count: 0.1)
    state = step.make_init(model, optimizer, config)(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    train = step.make_train_step(model, optimizer, config, teacher=teacher)
    batch = {"image": np.zeros((6, 8, 8, 1), np.uint8), "label": np.arange(6, dtype=np.int32)}
    p = softmax(logits / 4)
    expected = 0.7 * np.log(10) + 0.3 * 16 * (p * np.log(p * 10)).sum(-1).mean()
    found = jax.jit(train)(state, jax.random.key(0), batch, {}).sums.loss.compute()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_earlier_variant_teaches_all_seeds(sweep):
    folder = sweep.workdir / "student"
    records = [json.loads((folder / f"seed_{i}" / "config.json").read_text()) for i in (0, 1)]
    teacher = sweep.workdir / "cnn" / "seed_0"
    assert {record["config"]["train.teacher"] for record in records} == {str(teacher)}
    assert len({record["data"]["teacher"]["checksum"] for record in records}) == 1


def test_vectorised_seeds_learn_what_single_ones_do(sweep, tmp_path):
    teacher = str(sweep.workdir / "cnn" / "seed_0")
    student = VIT | {"train.teacher": teacher, "train.distill_temperature": 4.0}
    alone = run(tmp_path / "alone", {"student": student}, num_seeds=2, vmap_seeds="never")
    for seed in ("seed_0", "seed_1"):
        one, other = (x.workdir / "student" / seed / "metrics.jsonl" for x in (sweep, alone))
        one, other = (json.loads(x.read_text().splitlines()[-1]) for x in (one, other))
        assert abs(one["val/loss"] - other["val/loss"]) < 1e-3


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(sweep, tmp_path, capsys):
    teacher = sweep.workdir / "student" / "seed_1"
    same = {"init_from": str(teacher), "keep_head": True, "train.teacher": str(teacher)}
    same |= {"train.distill_weight": 1.0, "optim.name": "sgd", "optim.learning_rate": 1.0}
    found = run(tmp_path / "runs", {"same": same})
    line = f"train.teacher: vit of {teacher}; weight 1, temperature 2"
    assert line in capsys.readouterr().out
    before, after = params(teacher), params(found.workdir / "same" / "seed_0")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before, after)


def test_what_the_teacher_computes_is_counted(sweep):
    student, cnn = (
        json.loads((sweep.workdir / name / "seed_0" / "summary.json").read_text())
        for name in ("student", "cnn")
    )
    plain = run(sweep.workdir.parent / "plain", {"student": VIT})
    ratio = (student["gflop_per_image"] - plain.rows[0]["gflop_per_image"]) / cnn["gflop_per_image"]
    assert 0.3 < ratio < 0.4  # forward, of forward and backward


def test_a_changed_teacher_is_refused(sweep, tmp_path):
    shutil.copytree(sweep.workdir, tmp_path / "distil")
    folder = tmp_path / "distil" / "student" / "seed_0"
    (folder / "summary.json").unlink()
    other = str(sweep.workdir / "cnn" / "seed_1")
    with pytest.raises(UserError, match="started with other weights of its teacher"):
        student = VIT | {"train.teacher": other, "train.distill_temperature": 4.0}
        run(tmp_path / "distil", {"student": student}, num_seeds=2)


def test_a_finished_run_with_another_teacher_is_refused(sweep):
    plain = run(sweep.workdir.parent / "finished", {"student": VIT}).workdir
    for name in ("cnn", "student"):
        teacher = {"train.teacher": str(sweep.workdir / name / "seed_0")}
        with pytest.raises(UserError, match=r"weights of its teacher \(no train.teacher\)"):
            run(plain, {"student": VIT | teacher})


def test_a_distilled_run_is_not_lengthened(sweep):
    student = VIT | {"train.teacher": "cnn", "train.distill_temperature": 4.0}
    with pytest.raises(UserError, match="a run with train.teacher=.* cannot be lengthened"):
        run(sweep.workdir, {"cnn": CNN, "student": student}, num_seeds=2, epochs=2.0)


def test_a_lengthened_teacher_does_not_change_under_its_students(tmp_path):
    student = VIT | {"train.teacher": "cnn", "train.distill_temperature": 4.0}
    run(tmp_path / "distil", {"cnn": CNN, "student": student})
    longer = {"cnn": CNN | {"train.epochs": 2.0}, "student": student}
    with pytest.raises(UserError, match="variant cnn, whose training would be lengthened"):
        run(tmp_path / "distil", longer)
    # As after a kill in the second stage, which the same command finishes.
    folder = tmp_path / "distil" / "cnn" / "seed_0"
    record, done = (json.loads((folder / name).read_text()) for name in FILES)
    record |= {"stages": [done], "config": record["config"] | {"train.epochs": 2.0}}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="started with other weights of its teacher"):
        run(tmp_path / "distil", longer)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2


def test_a_variant_is_loaded_with_its_teacher():
    loaded = vit_jax.load_config("digits_ladder", variant="distilled")
    assert list(loaded.variants) == ["resnet18", "distilled"]
    assert list(vit_jax.load_config("digits_ladder", variant="muon").variants) == ["muon"]


def test_selected_variants_of_a_base_with_a_teacher_and_of_a_circle():
    config = vit_jax.get_config()
    config.train.teacher = "big"
    variants = {"big": {"train.teacher": ""}, "small": {}, "other": {"train.teacher": "other"}}
    experiment = vit_jax.Experiment("distil", config, variants)
    assert list(select_variants(experiment, ["small"]).variants) == ["big", "small"]
    assert list(select_variants(experiment, ["other"]).variants) == ["other"]


def test_a_teacher_sees_the_levels_of_its_training(sweep, tmp_path, monkeypatch):
    teacher = sweep.workdir / "cnn" / "seed_0"
    weights = pretrained.load(teacher)
    monkeypatch.setitem(weights.info, "level_range", [0.0, 4095.0])
    monkeypatch.setattr(pretrained, "load_once", lambda path: weights)
    with pytest.raises(UserError, match=r"was trained with data.level_range=\(0.0, 4095.0\): set"):
        run(tmp_path / "runs", {"student": VIT | {"train.teacher": str(teacher)}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.teacher": "nowhere"}, "train.teacher=nowhere: nowhere does not exist"),
        ({"train.teacher": "student"}, "train.teacher=student of variant student must be an earl"),
        ({"train.distill_weight": 0.1}, "train.distill_weight=0.1 has no effect without"),
        ({"train.distill_weight": 1.0, "train.label_smoothing": 0.1}, "label_smoothing=0.1 has no"),
        ({"freeze": "none_trained"}, "has no effect with freeze=none_trained"),
        ({"data.image_size": 16}, "was trained with data.image_size=8, but data.image_size=16"),
        (
            {"train.teacher": "cnn", "data.image_size": 12},
            "teacher cnn has data.image_size=8",
        ),
        (
            {"train.teacher": "cnn", "data.split_seed": 5},
            "teacher cnn has data.split_seed=0: its training images may include",
        ),
        ({"data.name": "folder"}, "lacks the classes a, b"),
    ],
)
def test_unusable_teachers_are_refused(sweep, tmp_path, overrides, message):
    teacher = {"train.teacher": str(sweep.workdir / "cnn" / "seed_0")}
    if overrides.get("train.distill_weight") == 0.1:
        teacher = {}
    if "data.name" in overrides:
        for name in ("a", "b"):
            for split in ("train", "test"):
                (tmp_path / "data" / split / name).mkdir(parents=True)
                for i in range(20):
                    image = Image.new("L", (8, 8), 10 * i)
                    image.save(tmp_path / "data" / split / name / f"{i}.png")
        overrides = overrides | {"data.dir": str(tmp_path / "data"), "train.batch_size": 8}
    with pytest.raises(UserError, match=message):
        cnn = {"cnn": CNN} if overrides.get("train.teacher") == "cnn" else {}
        run(tmp_path / "runs", cnn | {"student": VIT | teacher | overrides})
