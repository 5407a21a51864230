"""Packed rows: whole crystals in rows of tokens with static shapes; all models compute on them."""
