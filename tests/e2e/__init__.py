"""The end-to-end scenarios."""

import pytest

pytest.register_assert_rewrite("tests.e2e.remote")
