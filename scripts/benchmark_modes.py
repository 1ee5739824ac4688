"""Models and modes of `benchmark.py`."""

import json
import os
import pathlib
import subprocess
import sys
import time
import types

import numpy as np

from vit_jax import config as settings
from vit_jax.config.loading import load_config
from vit_jax.config.rules import validate
from vit_jax.runtime import processes, sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]

KEYS = ("image_size", "patch_size", "hidden_size", "depth", "num_heads", "mlp_dim", "batch_size")
MODELS = {
    "cifar_vit": (32, 4, 256, 8, 8, 512, 128),
    "small_vit": (32, 4, 128, 6, 4, 256, 128),
    "digits_vit": (8, 2, 64, 2, 4, 128, 64),
    "vit_ti": (224, 16, 192, 12, 3, 768, 16),
    "vit_b": (224, 16, 768, 12, 12, 3072, 8),
    "vit_l": (224, 16, 1024, 24, 16, 4096, 8),
    "resnet18": (32, 0, 64, 0, 0, 0, 64),
}


def make_spec(args) -> dict:
    """Build the model dimensions for `make_config` and peers.py."""
    spec = dict(zip(KEYS, MODELS[args.model], strict=True), model=args.model, num_classes=10)
    return spec | {"batch_size": args.batch_size or spec["batch_size"], "folder": args.folder}


def peers(mode, spec, args, **more) -> dict:
    """Start the peers: {name: function that runs one once and returns seconds}."""
    if not args.peer_python:
        return {}
    from vit_jax.runtime.sharding import dtype_of

    shared = {"compile": False, "head_only": False, "dtype": dtype_of(args.dtype).name}
    spec = spec | shared | more
    sides = {"torch eager": start_peer(args.peer_python, mode, spec)}
    if args.compile:
        sides["torch compiled"] = start_peer(args.peer_python, mode, spec | {"compile": True})
    return sides


def start_peer(python, mode, spec):
    """Start a process of peers.py; return a function that runs it once and returns seconds."""
    command = [python, str(ROOT / "scripts" / "peers.py"), mode, json.dumps(spec)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # The peer keeps freed memory too, as `memory.keep_freed` does.
    memory = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
    process = subprocess.Popen(command, env=os.environ | memory, **pipes)

    def read_line():
        line = process.stdout.readline()
        if not line:
            sys.exit(f"error: {python} exited; does it have torch, timm and torchvision?")
        return json.loads(line)

    print(f"torch: {mode} of {read_line()['size']:,}", flush=True)

    def run():
        process.stdin.write("\n")
        process.stdin.flush()
        return read_line()

    return run


COMPILED_BY_PEERS = ("step", "finetune", "infer", "laptop")  # modes, by torch.compile
# The methods of explanation that peers.py has.
EXPLAINED_BY_PEERS = ("rollout", "input_x_gradient", "integrated_gradients", "grad_cam")
# The trained parameters of modes whose FLOPs are counted; None: all.
TRAINED = {"step": None, "finetune": ("head/kernel", "head/bias"), "infer": ()}


def flops_per_image(mode, spec) -> int:
    """Count the FLOPs of a mode's matrix products and convolutions per image; 0 if unknown."""
    if mode not in TRAINED:
        return 0
    from vit_jax.training.flops import model_flops

    return model_flops(make_config(spec), spec["num_classes"], TRAINED[mode])


def make_config(spec, **overrides):
    """Build the resolved config of a model; data__name="folder" overrides data.name."""
    keys = {
        "data.image_size": spec["image_size"],
        "data.device_resident": "always",
        "train.steps": 100,
    }
    keys |= {"augment.kind": "none", "train.batch_size": spec["batch_size"]}
    keys |= {"optim.weight_decay": 0.05, "train.eval_batch_size": spec["batch_size"]}
    if spec["model"] == "resnet18":
        keys["model.name"] = "resnet18"
    else:
        keys |= {f"model.{key}": spec[key] for key in KEYS[1:-1]}
        keys["model.gelu"] = "erf"  # as in timm
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    config = settings.with_overrides(settings.get_config(), keys, "the benchmark")
    config = settings.resolve(config)
    validate(config)
    return config


def make_steps(config, num_seeds=1):
    """Compile a config's steps; return them, device-resident random images, and a batch of them."""
    sharding.start(False, config.sharding.cpu_devices, config.train.batch_size)
    from vit_jax.data import ResidentBatches
    from vit_jax.training.compiled import compile_steps
    from vit_jax.training.setup import make_setup

    mesh, rng, side = sharding.make_mesh(), np.random.default_rng(0), config.data.image_size
    count = max(config.train.batch_size, 2**21 // side**2)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    train = ResidentBatches(images, rng.integers(0, 10, count).astype(np.int32), mesh)
    data = types.SimpleNamespace(train=train, class_names=range(10), fingerprint={})
    batch = next(train.train(0, 0, 1, config.train.batch_size))
    return compile_steps(make_setup(config, data, mesh), num_seeds), train, batch


def first_state(steps):
    """Initialise a training state."""
    import jax

    from vit_jax.training.setup import one_image

    state = steps.init(jax.random.key(0), one_image(steps.setup.config))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = sharding.describe_devices(steps.setup.mesh)
    print(f"vit_jax: {size:,} parameters, {devices}", flush=True)
    return state


def timed(call):
    """Make a function that runs `call`, blocks on its result and returns seconds."""
    import jax

    def run():
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    return run


def timed_step(step, state, *inputs):
    """Make a function that takes a training step and returns seconds."""
    states = [state]

    def take():
        states.append(step(states.pop(), *inputs))
        return states[0]

    return timed(take)


def lower_bound(steps, num_images) -> dict:
    """Compute and print the lower bound of a step's time.

    It is that of `vit-jax compile`, of the program that XLA tuned on these devices.

    Returns:
      {"bound_seconds": s, "peak": TFLOP/s of the devices}; {} if their published figures are not
      known, or the step does not fit.
    """
    from vit_jax.runtime import targets
    from vit_jax.training.ahead import compile_step

    if (target := targets.this_machine()) is None:
        return {}
    found = compile_step(steps, num_images, target).report()
    if "bound_seconds" not in found:
        return {}
    bound, compute, traffic = (1000 * found[f"{x}_seconds"] for x in ("bound", "flops", "bytes"))
    print(
        f"lower bound on {target.name}: {bound:.2f} ms (FLOPs {compute:.2f} ms, traffic "
        f"{traffic:.2f} ms); memory {found['memory']['peak'] / 2**30:.2f} GiB"
    )
    peak = found["flops"] / found["flops_seconds"] / 1e12
    return {"bound_seconds": found["bound_seconds"], "peak": peak}


def start_step(spec, args, **overrides):
    """Prepare training steps; return the implementations and the images per run."""
    import jax

    head_only = overrides.get("freeze") == "head"
    options = dict(train__dtype=args.dtype, train__multi_step="never")
    steps, images, batch = make_steps(make_config(spec, **options, **overrides))
    spec.update(lower_bound(steps, len(images)))
    run = timed_step(steps.train, first_state(steps), jax.random.key(0), batch)
    return {"vit_jax": run} | peers("train", spec, args, head_only=head_only), spec["batch_size"]


def start_finetune(spec, args):
    """Prepare training steps of the head only."""
    return start_step(spec, args, freeze="head", train__cache_features=False)


def start_infer(spec, args):
    """Prepare evaluation steps."""
    from vit_jax.evaluation.metrics import Sums

    steps, _, batch = make_steps(make_config(spec, train__dtype=args.dtype))
    variables = first_state(steps).eval_variables
    empty = sharding.replicate(steps.setup.mesh, Sums.empty())
    run = timed(lambda: steps.eval_step(variables, empty, batch))
    return {"vit_jax": run} | peers("infer", spec, args), spec["batch_size"]


def start_explain(spec, args):
    """Prepare a method of explanation in float32."""
    import jax

    from vit_jax import models
    from vit_jax.augment import preprocess
    from vit_jax.explanation.methods import METHODS

    config, method = make_config(spec), METHODS[args.method]
    steps, _, batch = make_steps(config)
    variables = first_state(steps).eval_variables
    model = models.build(config.model, 10, np.float32)

    @jax.jit
    def explain(variables, images):
        images = preprocess(images, config)
        return method.compute(model, config, variables, images, None, **method.options)

    sides = {"vit_jax": timed(lambda: explain(variables, batch["image"]))}
    if args.method in EXPLAINED_BY_PEERS:
        options = {"method": args.method, **method.options}
        sides |= peers("explain", spec, args, dtype="float32", **options)
    return sides, spec["batch_size"]


def start_augment(spec, args):
    """Prepare augmentation."""
    import jax

    from vit_jax.augment import augment

    config = make_config(spec, augment__kind="autoaugment", augment__fill=128)
    steps, _, batch = make_steps(config)
    run = jax.jit(
        lambda key, images, labels: augment(key, images, labels, 10, config),
        out_shardings=sharding.split(steps.mesh),
    )
    key, sides = jax.random.key(0), {}
    if args.peer_python:
        cores = len(processes.usable_cores())
        if spec["batch_size"] % cores:
            sys.exit(f"error: --batch-size must be divisible by the number of cores, {cores}")
        per_core = {"batch_size": spec["batch_size"] // cores}
        sides["torchvision"] = concurrently(
            [start_peer(args.peer_python, "auto_augment", per_core) for _ in range(cores)]
        )
    return {"vit_jax": timed(lambda: run(key, batch["image"], batch["label"]))} | sides, spec[
        "batch_size"
    ]


def start_seeds(spec, args):
    """Prepare steps of one seed and of four vectorised seeds."""
    import jax

    config = make_config(spec, train__multi_step="never")
    steps, _, batch = make_steps(config)
    keys = [jax.random.key(seed) for seed in range(4)]
    one = timed_step(steps.train, first_state(steps), keys[0], batch)
    four, sharded = make_steps(config, 4)[0], sharding.seeds_sharding(steps.setup.mesh, 4)
    batches = {name: np.stack([np.asarray(value)] * 4) for name, value in batch.items()}
    batches = jax.device_put(batches, sharded.batch)
    state = four.axis.stack([first_state(steps)] * 4)
    vectorised = timed_step(four.train, state, four.axis.stack(keys), batches)
    return {"one seed": one, "four seeds": vectorised}, spec["batch_size"]


PARTS = {
    "plain": {},
    "patch dropout 0.5": {"model__patch_drop_rate": 0.5},
    "conv stem": {"model__patchify": "conv_stem"},
    "qk norm": {"model__qk_norm": True},
    "rms norm": {"model__norm": "rms"},
    "layer scale": {"model__layer_scale_init": 0.1},
    "muon": {"optim__name": "muon"},
}


def start_parts(spec, args):
    """Prepare training steps of the plain ViT, and with one part each."""
    import jax

    if spec["model"] == "resnet18":
        sys.exit("error: parts are those of a ViT")
    sides = {}
    for name, overrides in PARTS.items():
        steps, _, batch = make_steps(make_config(spec, train__multi_step="never", **overrides))
        sides[name] = timed_step(steps.train, first_state(steps), jax.random.key(0), batch)
    return sides, spec["batch_size"]


def start_laptop(spec, args):
    """Prepare training steps of configs/cifar_laptop.py on all patches, with augmentation."""
    import jax

    whole = {"model.patch_drop_rate": 0.0, "train.patch_drop_percent": 100.0}
    whole |= {"data.device_resident": "always", "train.multi_step": "never"}
    config = load_config("cifar_laptop", whole).config
    steps, _, batch = make_steps(config)
    run = timed_step(steps.train, first_state(steps), jax.random.key(0), batch)
    spec |= config.model.to_dict() | {"model": "cifar_laptop"}
    spec |= {"image_size": 32, "batch_size": config.train.batch_size}
    return {"vit_jax": run} | peers("laptop", spec, args), spec["batch_size"]


def start_calls(spec, args, count=32):
    """Prepare training steps with and without multi-step dispatch."""
    import jax

    multi, images, _ = make_steps(make_config(spec, train__multi_step="always"))
    single, _, _ = make_steps(make_config(spec, train__multi_step="never"))
    states, key, size = [first_state(single)], jax.random.key(0), spec["batch_size"]

    def multi_step():
        for _, batches in images.train_at_once(0, 0, count, size, lambda step: count):
            states.append(multi.train(states.pop(), key, batches))
        return states[0]

    def single_steps():
        for batch in images.train(0, 0, count, size):
            states.append(sharding.block_on_cpu(single.train(states.pop(), key, batch)))
        return states[0]

    return {"one call": timed(multi_step), "32 calls": timed(single_steps)}, count * size


def concurrently(runs):
    """Make a function that runs several peers concurrently and returns seconds."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(len(runs))

    def run():
        start = time.perf_counter()
        list(pool.map(lambda one: one(), runs))
        return time.perf_counter() - start

    return run


START = {
    "step": start_step,
    "finetune": start_finetune,
    "infer": start_infer,
    "explain": start_explain,
    "augment": start_augment,
    "seeds": start_seeds,
    "parts": start_parts,
    "laptop": start_laptop,
    "calls": start_calls,
}


MODES = (*START, "input", "resident", "startup")
