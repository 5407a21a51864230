"""What makes a generated crystal worth more: rewards, one file a family. Host side, no JAX.

`registry` knows them by name, `components` computes one as the crystals of a rollout come,
`combine` makes several into one number. A reward is added in `registry`: most are functions of a
list of Structures.
"""
