"""What counts as a line of code."""

from scripts.sizes import count_c_lines, count_python_lines

PYTHON = '''"""A docstring
of two lines."""

import os  # counted: 1

# a comment

LIMIT = 3
"""What it is."""


def f() -> str:
    """Another."""
    text = """a string
    that is code
    """
    return text
'''

C = """/* a comment
   of two lines */
#include <Python.h>

int one = 1;  /* counted */
// another
"""


def test_blank_lines_comments_and_docstrings_are_free() -> None:
    assert count_python_lines(PYTHON) == 7


def test_comments_in_c_are_free() -> None:
    assert count_c_lines(C) == 2
