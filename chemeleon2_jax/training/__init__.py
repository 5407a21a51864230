"""Training core: one loop for every stage, exact resume, checkpoints, logging.

`loop.fit` trains any `Stage` (parameters, a pure loss, batches, a validation) with a `FitConfig`.
Import from the modules: `training.stage`, `training.config`, `training.loop`,
`training.checkpoint_reader`.
"""
