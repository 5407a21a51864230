"""Rewards of generated crystals, one file a family. Host side, no JAX.

A reward is a function of a list of Structures, or a function that builds a `Component`
(`component`). Its keyword-only parameters are its options, and a line in `registry` names it: the
config block is built from the two. `evaluation` scores the crystals of a rollout while the next
ones are drawn, `combine` makes one number of several rewards.
"""
