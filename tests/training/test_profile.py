"""--profile=STEP:COUNT is read strictly, and leaves a trace."""

import pytest

from clip_jax.errors import UsageError
from clip_jax.training.loop import train
from clip_jax.training.profile import Profile
from tests.tiny import tiny_config, write_pairs


@pytest.mark.parametrize('text', ['3', '3:', ':3', 'a:b', '0:3', '3:0', '-1:2'])
def test_a_malformed_value_is_one_line(text):
  with pytest.raises(UsageError, match='expected STEP:COUNT') as caught:
    Profile.parse(text)
  assert '\n' not in str(caught.value)
  assert text in str(caught.value)


def test_step_and_count():
  profile = Profile.parse('20:3')
  assert (profile.first, profile.count) == (20, 3)


def test_steps_that_there_are_not_are_refused(tmp_path):
  with pytest.raises(UsageError, match=r'--profile=13:2 begins after .*=12'):
    train(tiny_config(), tmp_path, profile=Profile(13, 2))


@pytest.mark.slow
def test_the_trace_is_in_the_run_directory(tmp_path, capsys):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  assert train(config, tmp_path / 'run', profile=Profile(3, 2)).finished
  traces = list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))
  assert len(traces) == 1
  assert traces[0].stat().st_size > 1000
  assert 'profiled to' in capsys.readouterr().err
