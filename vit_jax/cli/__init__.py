"""The `vit-jax` command: one module for each subcommand, dispatched by `app`."""
