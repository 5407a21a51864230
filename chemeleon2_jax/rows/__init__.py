"""Packed rows: whole crystals in rows of tokens with static shapes; all models compute on them.

`planning` chooses the shapes of a run, `packing` the place of each crystal, `filling` makes the
arrays of `rows.Rows`; `rows` also has the operations of models on them.
"""
