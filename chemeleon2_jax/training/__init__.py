"""Training core: one loop for every stage, exact resume, checkpoints, logging.

Nothing here knows what is trained: a stage hands over a `Stage` (parameters, a pure loss, batches,
a validation function) and a `FitConfig`, and `fit` does the rest. Import from the modules:
`training.stage`, `training.config`, `training.loop`, `training.checkpoint_reader`.
"""
