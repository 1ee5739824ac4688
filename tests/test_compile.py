"""Training steps compiled ahead of time for TPUs and GPUs, and the figures read from their HLO."""

import dataclasses
import functools
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from tiny_configs import make_config

from vit_jax.cli import app
from vit_jax.data import load_data
from vit_jax.data.described import describe_data
from vit_jax.runtime import sharding, targets
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.hlo import Array, Collective, Program
from vit_jax.training import ahead
from vit_jax.training.ahead import Memory, compile_for, find_batch

ROOT = Path(__file__).resolve().parents[1]
TINY = ("digits_patch", "--variant=patch_4", "--config.model.depth=1", "--config.train.num_seeds=1")

LOOP = """HloModule jit_train_step, is_scheduled=true

%half (p.0: f32[64,8], p.1: s32[]) -> f32[8] {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %row = f32[1,8]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%row)
}

%body (state: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %state = (s32[], f32[64,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[64,8]{1,0} get-tuple-element(%state), index=1
  %slice = f32[8]{0} fusion(%x, %i), kind=kLoop, calls=%half, metadata={op_name="jit(f)/slice"}
  %y = f32[64,8]{1,0} broadcast(%slice), dimensions={1}
  ROOT %next = (s32[], f32[64,8]{1,0}) tuple(%i, %y)
}

%condition (state.1: (s32[], f32[64,8])) -> pred[] {
  %state.1 = (s32[], f32[64,8]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (a: f32[64,8]) -> (s32[], f32[64,8]) {
  %a = f32[64,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[64,8]{1,0}) tuple(%zero, %a)
  ROOT %while = (s32[], f32[64,8]{1,0}) while(%init), condition=%condition, body=%body, TRIPS
}
"""
COLLECTIVES = """HloModule jit_train_step

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%fused (p: bf16[16,128]) -> bf16[4,128] {
  %p = bf16[16,128]{1,0} parameter(0)
  ROOT %scatter = bf16[4,128]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%sum
}

ENTRY %main (a: f32[256], b: bf16[4,128], c: bf16[16,128]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %b = bf16[4,128]{1,0} parameter(1)
  %c = bf16[16,128]{1,0} parameter(2)
  %s = f32[256]{0} all-reduce-start(%a), to_apply=%sum, backend_config={"is_sync":SYNC}
  %scattered = bf16[4,128]{1,0} fusion(%c), kind=kCustom, calls=%fused
  %g = (bf16[4,128]{1,0}, bf16[16,128]{1,0}) all-gather-start(%b), dimensions={0}
  %gd = bf16[16,128]{1,0} all-gather-done(%g)
  ROOT %d = f32[256]{0} all-reduce-done(%s)
}
"""
CALLS = """HloModule jit_train_step

ENTRY %main (a: bf16[64,32], b: bf16[32,64]) -> bf16[64,64] {
  %a = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(1)
  %near = (bf16[32,64]{1,0:T(8,128)(2,1)S(1)}, bf16[32,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%b)
  %done = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %product = (bf16[64,64]{1,0}, s8[4194304]{0}) custom-call(%a, %done), \
custom_call_target="__cublas$lt$matmul", backend_config={"estimated_cycles":"700"}
  ROOT %result = bf16[64,64]{1,0} get-tuple-element(%product), index=0
}
"""


@pytest.mark.parametrize("trips", [1, 3])
def test_a_loop_counts_as_often_as_it_runs_and_a_slice_as_what_it_reads(trips):
    stated = f'backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    program = Program(LOOP.replace("TRIPS", stated if trips > 1 else "index=0"))
    assert (program.num_kernels, program.num_fusions) == (2 * trips, trips)
    row, whole = 8 * 4, 64 * 8 * 4
    assert program.bytes_moved == trips * ((row + 4 + row) + (row + whole))
    largest = program.largest_buffers(2)
    assert [(str(b.array), b.nbytes) for b in largest][0] == ("f32[64,8]", whole)
    assert largest[1].source == "jit(f)/slice"
    assert program.collectives == []


@pytest.mark.parametrize("is_sync", [True, False])
def test_collectives_within_fusions_and_asynchronous_ones(is_sync):
    program = Program(COLLECTIVES.replace("SYNC", str(is_sync).lower()))
    assert program.collectives == [
        Collective("all-gather", "bf16", True, 1, 16 * 128 * 2),
        Collective("all-reduce", "f32", not is_sync, 1, 1024),
        Collective("reduce-scatter", "bf16", False, 1, 16 * 128 * 2),
    ]


def test_fast_memory_and_workspaces_are_no_traffic():
    program = Program(CALLS)
    assert program.bytes_moved == 2 * 32 * 64 + 2 * (64 * 32 + 64 * 64)
    assert program.library_calls == {"__cublas$lt$matmul": 1}
    assert program.estimated_cycles == 700
    assert max(b.array.dtype for b in program.largest_buffers(9)) == "bf16"


def test_arrays_are_padded_to_the_tiles_of_a_tpu():
    assert Array("bf16", (100, 2), "1,0:T(8,128)(2,1)").padded_bytes == 104 * 128 * 2
    assert Array("bf16", (100, 2), "0,1:T(2,128)(2,1)").padded_bytes == 2 * 128 * 2
    assert Array("pred", (3, 5), "1,0").padded_bytes == 15
    assert Array("s4", (8,), "0").nbytes == 4


def test_descriptions_have_the_classes_and_splits_of_the_dataset():
    """The digits are here; CIFAR-10 need not be; any other dataset is described by its size."""
    mesh, config = sharding.make_mesh(), make_config()
    real, described = load_data(config.data, mesh), describe_data(config, mesh)
    splits = ("train", "val", "test")
    assert described.class_names == real.class_names
    assert all(
        (getattr(described, s).labels == getattr(real, s).labels).all()
        and getattr(described, s).resident == getattr(real, s).resident
        for s in splits
    )
    nowhere = dict(data__dir="/nowhere", data__channels=3, data__image_size=32)
    cifar = describe_data(make_config(data__name="cifar10", **nowhere), mesh)
    assert [len(getattr(cifar, s)) for s in splits] == [45_000, 5_000, 10_000]
    assert cifar.class_names[0] == "airplane"
    other = make_config(data__name="folder", **nowhere)
    described = describe_data(other, mesh, num_classes=7, num_images=1000)
    assert len(described.class_names) == 7
    assert [len(getattr(described, s)) for s in splits] == [720, 80, 200]
    with pytest.raises(UserError, match="describe it with --num-classes and --num-images"):
        describe_data(other, mesh)
    with pytest.raises(UserError, match="give both or neither"):
        describe_data(other, mesh, num_classes=7)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("NVIDIA H100 80GB HBM3", "2 x h100"),
        ("TPU v5 lite", "2 x v5e"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
    ],
)
def test_the_step_of_this_machine_has_a_lower_bound(kind, name, monkeypatch):
    """The published figures of its devices are found by `device_kind`."""
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)] * 2)
    target = targets.this_machine()
    assert (target and target.name) == name
    if kind != "TPU v5 lite":
        return
    target = dataclasses.replace(target, devices=devices)
    config = make_config()
    found = compile_for(config, load_data(config.data, target.make_mesh()), target).report()
    assert found["fits"] and found["batch_per_device"] == config.train.batch_size // 2
    assert found["flops_seconds"] == found["flops"] / 2 / 197e12
    assert 0 < found["flops_seconds"] < found["bytes_seconds"] == found["bound_seconds"]


@dataclasses.dataclass(frozen=True)
class Step:
    """A compilation whose memory grows linearly."""

    batch: int
    memory: Memory
    fits: bool


@pytest.mark.parametrize("limit, largest", [(1000, 900), (10_000, 9900), (150, 50)])
def test_the_largest_batch_is_found_in_few_compilations(limit, largest):
    tried, target = [], SimpleNamespace(devices=[0], chip=SimpleNamespace(usable=limit))

    def compile_one(config):
        batch = config.train.batch_size
        assert config.train.steps > config.optim.warmup_steps > config.train.epochs == 0
        memory = Memory(100, batch, 0, 0)
        return Step(batch, memory, memory.peak <= limit)

    config = make_config(optim__warmup_steps=500)  # longer than a run with large batches
    found = find_batch(config, target, 20_000, compile_one, tried.append)
    assert found.fits and largest * 0.94 <= found.batch <= largest and len(tried) <= 6
    few = find_batch(config, target, 200, compile_one, tried.append)
    assert few.batch == min(200, found.batch)
    tried.clear()
    limit = 100
    with pytest.raises(UserError) as raised:
        find_batch(config, target, 20_000, compile_one, tried.append)
    least = min(one.batch for one in tried)
    assert str(raised.value) == f"a batch of {least} image(s) does not fit: set train.remat=True"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target=v4:9"], "--target=v4:9 is unknown: use v5e:1x1"),
        (["--target=v5e:3x3"], "--target=v5e:3x3 is unknown: use v5e:1x1"),
        (["--target=h100x12"], "--target=h100x12: use up to 8 GPUs or a multiple of 8"),
        (["--target=v5e:2x2"], 'needs libtpu, but no TPU: pip install "jax[tpu]"'),
        (["--target=h100"], "needs JAX's CUDA plugin, but no GPU: pip install"),
        ([], "--target"),
        (["--target=h100", "--num-classes=-1"], "must be positive"),
    ],
)
def test_mistakes_are_single_line_errors(arguments, message, monkeypatch, capsys):
    found = importlib.util.find_spec
    wheels = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in wheels else found(name)
    )
    assert app.main(["compile", *TINY, *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.fixture
def stubbed(monkeypatch):
    """Describe an H100 by a CPU device without cuDNN, on which any batch fits."""
    target = targets.Target("h100", targets.CHIPS["h100"], jax.devices()[:1], {})
    monkeypatch.setattr(targets, "find_target", lambda name: target)

    def compile_for(config, data, target):
        def report():
            raise UserError("that is all")

        setup = SimpleNamespace(config=config)
        return SimpleNamespace(
            memory=Memory(0, config.train.batch_size, 0, 0),
            fits=True,
            batch_per_device=config.train.batch_size,
            steps=SimpleNamespace(setup=setup),
            report=report,
        )

    monkeypatch.setattr(ahead, "compile_for", compile_for)


@pytest.mark.parametrize(
    "overrides, warned", [((), True), (("--config.model.attention=lsa",), False)]
)
def test_missing_cudnn_is_a_warning_where_attention_could_be_fused(
    stubbed, capsys, overrides, warned
):
    app.main(["compile", *TINY, "--target=h100", "--config.train.dtype=bfloat16", *overrides])
    error = capsys.readouterr().err
    assert ("cuDNN was not found" in error) == warned and error.endswith("that is all\n")


def test_a_search_that_ends_at_the_training_split_reports_it(stubbed, capsys):
    app.main(["compile", *TINY, "--target=h100", "--find-batch"])
    assert "no larger batch is possible with 1,294 training images" in capsys.readouterr().out


@functools.cache
def compile_tiny(target, *overrides):
    """Compile a step in a subprocess, as the plugins change the environment; return its report."""
    wheel = "libtpu" if target.startswith("v5e") else "jax_cuda12_plugin"
    folders = [os.environ.get("ACCELERATOR_WHEELS", ""), *sys.path]
    if not importlib.machinery.PathFinder.find_spec(wheel, folders):
        pytest.skip(f"needs {wheel}")
    command = [sys.executable, "-m", "vit_jax.cli.app", "compile", *TINY, *overrides]
    done = subprocess.run(
        [*command, f"--target={target}", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), folders[0]])},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


@pytest.mark.parametrize("target", ["v5e:2x2", "h100x8"])
def test_a_step_compiles_for_devices_that_are_not_there(target):
    """It computes in bfloat16 and sums the gradients of all devices once, in float32."""
    report = compile_tiny(target)
    assert report["fits"] and report["dtype"] == "bfloat16"
    assert report["batch_per_device"] * int(report["device"].split()[0]) == 64
    sums = [one for one in report["collectives"] if "f32" in one["dtype"]]
    assert {one["kind"] for one in report["collectives"]} == {"all-reduce"}
    assert sum(one["count"] for one in sums) <= 2
    assert sum(one["nbytes"] for one in sums) == pytest.approx(4 * report["num_params"], rel=0.01)
    assert report["kernels"] > report["fusions"] > 50
    assert 0 < report["flops_seconds"] < report["bytes_seconds"] == report["bound_seconds"]
