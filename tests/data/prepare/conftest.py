"""Tests of Beam and Ray run where these are installed."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def engines(request):
  if request.node.get_closest_marker('engines'):
    for name in ('apache_beam', 'ray'):
      if importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed')
