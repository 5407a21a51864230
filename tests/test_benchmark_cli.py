"""Flags of the benchmark that are wrong."""

import pytest

from tests.tiny import ROOT, run_script


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--parts=vea", "flag --parts=['vea']: give one or more of vae,ldm,ldm_cached,sample"),
        ("--layouts=", "flag --layouts=[]: give one or more of packed,padded"),
        ("--data_name=mp_200", "no data set 'mp_200': did you mean 'mp-20'"),
    ],
)
def test_wrong_flag_is_one_line(flag, message):
    done = run_script(ROOT / "launch" / "benchmark.py", flag)
    assert done.code == 1
    assert done.output.startswith(f"error: {message}"), done.output
    assert done.output.count("\n") == 1
