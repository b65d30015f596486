"""Python imports this from PYTHONPATH at each start: so a test arms a process without a word in the product."""

from tests.support.killing import arm

arm()
