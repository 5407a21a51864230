import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chemeleon2_jax.common.json_text import MAX_NESTING, parse_json


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 101 + "]" * 101])
def test_deep_nesting_is_a_sentence(text):
    for form in (text, text.encode()):
        with pytest.raises(ValueError, match="nested in more than 100 levels"):
            parse_json(form)


def test_brackets_in_strings_and_side_by_side_do_not_count():
    for content in (["[" * 1000], ['\\"' + "{" * 1000 + "\\"], [[[]]] * 1000):
        assert parse_json(json.dumps(content)) == content
    deep = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert parse_json(deep) == json.loads(deep)


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_content_is_that_of_json(content):
    text = json.dumps([content] * 150, ensure_ascii=False)
    assert parse_json(text) == json.loads(text)


def test_no_json():
    for text in ("{", b"\xff", "[1,]"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
