"""Settings of the optimizer and of the training."""

from vit_jax.config.setting import (
    BELOW_1,
    DECAY,
    DROP,
    SMALLEST,
    STEP,
    WHEN,
    Setting,
    adam,
    below_1,
    free,
    lion,
    muon,
    plateau,
    positive,
    sgd,
)

OPTIM = dict(
    name=Setting(
        "adamw",
        "optimizer; sgd: with momentum; muon: for block kernels, with AdamW for the rest; "
        "schedule_free_adamw: averages weights for evaluation instead of decaying the learning "
        "rate",
        ("adamw", "adam", "sgd", "muon", "lion", "schedule_free_adamw"),
    ),
    learning_rate=Setting(1e-3, "peak learning rate", high=100),
    schedule=Setting(
        "cosine",
        "learning rate schedule after warm-up; schedule_free_adamw needs constant",
        ("constant", "cosine", "linear", "step", "reduce_on_plateau"),
    ),
    end_learning_rate=Setting(
        0.0, "final learning rate; reduce_on_plateau: smallest", applies=DECAY
    ),
    warmup_steps=Setting(0, "linear warm-up in optimizer updates"),
    warmup_epochs=Setting(0.0, "linear warm-up in epochs"),
    warmup_percent=Setting(0.0, "linear warm-up in percent of the run"),
    decay_at_percent=Setting(
        (50.0, 75.0), "percent of the run at which the learning rate decays", applies=STEP
    ),
    decay_factor=Setting(0.1, "learning rate factor of each decay", high=1, applies=DROP),
    plateau_patience=plateau(10, "evaluations without a lower validation loss before a decay"),
    plateau_cooldown=plateau(0, "evaluations after a decay that are not counted"),
    plateau_threshold=plateau(
        1e-4, "relative decrease that counts as a lower validation loss", low=SMALLEST, high=BELOW_1
    ),
    weight_decay=Setting(
        0.0,
        "weight decay of kernels and LoRA adapters: L2 (adam, sgd) or decoupled (all others)",
        high=1000,
    ),
    b1=adam(
        0.9,
        "decay of Adam's first moment; schedule_free_adamw: fraction of the averaged weights in "
        "those of the gradient",
        high=BELOW_1,
    ),
    b2=adam(0.999, "decay of Adam's second moment", high=BELOW_1),
    eps=adam(1e-8, "epsilon of Adam", low=SMALLEST),
    lion_b1=lion(0.9, "fraction of the momentum in Lion's update", high=BELOW_1),
    lion_b2=lion(0.99, "decay of Lion's momentum", high=BELOW_1),
    muon_momentum=muon(0.95, "Nesterov momentum of Muon", high=BELOW_1),
    muon_rms=muon(
        0.2, "RMS of a Muon update before the learning rate (AdamW: about 0.2)", high=100
    ),
    muon_iterations=muon(5, "Newton-Schulz iterations that orthogonalise a Muon update", high=100),
    layer_decay=positive(
        1.0, "layer-wise decay: learning rate factor from each block to the one below", high=1
    ),
    momentum=sgd(0.9, "momentum of SGD", high=BELOW_1),
    nesterov=sgd(False, "Nesterov momentum of SGD"),
    grad_clip_norm=Setting(0.0, "largest global gradient norm; 0: no clipping"),
    ema_decay=below_1(0.0, "decay of the moving average of weights that evaluation uses; 0: off"),
)

TRAIN = dict(
    epochs=Setting(
        0.0, "length of the run in epochs; or train.steps, train.budget_pflop", resume="longer"
    ),
    steps=Setting(
        0,
        "length of the run in optimizer updates; or train.epochs, train.budget_pflop",
        resume="longer",
    ),
    budget_pflop=Setting(
        0.0,
        "length of the run in PFLOP of training (10^15 operations); or train.epochs, train.steps",
        resume="longer",
    ),
    num_seeds=free(1, "runs per variant, with consecutive seeds", low=1, high=1000),
    vmap_seeds=free("auto", "train all seeds in one vectorised program", WHEN),
    multi_step=free("auto", "multi-step dispatch: several steps per call", WHEN),
    batch_size=Setting(128, "examples per optimizer update, over all devices and processes", low=1),
    accumulation_steps=Setting(
        0,
        "micro-batches per optimizer update, each of at least 8 images for resnet18, whose "
        "BatchNorm normalises each separately; 0: the fastest number",
    ),
    label_smoothing=below_1(0.0, "fraction of the target spread evenly over all classes"),
    class_weights=Setting(
        "",
        "weight of each class in the loss; balanced: inversely proportional to its training "
        "examples; or numbers such as 1,1,5 in the order of the class names; empty: none",
    ),
    focal_gamma=Setting(
        0.0,
        "focal loss: exponent of (1 - probability of the class), which multiplies the "
        "cross-entropy; 0: cross-entropy",
        high=100,
    ),
    sampling=Setting(
        "shuffled",
        "training batches; shuffled: every example at most once per epoch, whose last, incomplete "
        "batch is dropped; balanced: each example is drawn by class, all with the same "
        "probability, then within the class",
        ("shuffled", "balanced"),
    ),
    patch_drop_percent=positive(
        100.0, "percent of the run with patch dropout; the rest sees all patches", high=100
    ),
    teacher=Setting(
        "",
        "distillation: folder of a run or of a converted checkpoint, or weight file, whose "
        "predictions are learned; or name of an earlier variant, of which the first seed teaches",
        resume="moved",
    ),
    distill_weight=positive(
        0.5, "weight of the teacher's loss; the loss of the labels has 1 minus this", high=1
    ),
    distill_temperature=positive(
        2.0, "temperature that softens both predictions of the teacher's loss", high=1000
    ),
    dtype=Setting(
        "auto",
        "compute dtype; auto: bfloat16 on GPU and TPU, float32 on CPU; products of float32 have "
        "JAX's default precision: TF32 on GPU, bfloat16 on TPU",
        ("auto", "float32", "bfloat16"),
    ),
    remat=Setting(False, "rematerialise each block in the backward pass: less memory, more time"),
    cache_features=Setting(
        True, "compute the features of a frozen trunk once, without augmentation"
    ),
    eval_every_steps=Setting(0, "optimizer updates between evaluations (each with a checkpoint)"),
    eval_every_epochs=Setting(1.0, "epochs between evaluations (each with a checkpoint)"),
    eval_every_percent=Setting(
        0.0, "percent of the run between evaluations (each with a checkpoint)"
    ),
    stop_after_evaluations=Setting(
        0,
        "early stopping: evaluations in a row without a higher validation accuracy that end the "
        "run; 0: off",
    ),
    save_every_minutes=free(10.0, "minutes between checkpoints without an evaluation; 0: off"),
    eval_batch_size=free(256, "examples per evaluation step (no effect on results)", low=1),
    select=Setting(
        "best", "checkpoint for the test: best validation accuracy, or last", ("best", "last")
    ),
)
