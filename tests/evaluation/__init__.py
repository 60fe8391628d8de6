"""Tests of evaluation; a package, so that helpers can be imported from tests beside it."""
