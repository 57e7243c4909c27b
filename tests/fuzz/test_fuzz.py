"""The small form of ``python -m tests.fuzz``: some inputs for each parser, the same in every run."""

import pytest
from hypothesis import given, settings

from tests.fuzz.parsers import PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_input_is_read_or_refused(name):
    @settings(max_examples=40)
    @given(PARSERS[name].inputs)
    def check(given_input):
        PARSERS[name].check(given_input)

    check()
