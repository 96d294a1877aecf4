"""--profile=STEP:COUNT is read strictly, and leaves a trace."""

import pytest

from clip_jax.errors import UsageError
from clip_jax.training.loop import train
from clip_jax.training.profile import Profile
from clip_jax.training.writers import Outputs
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
  said = capsys.readouterr().err
  assert f'xprof --logdir={tmp_path / "run" / "profile"}' in said
  assert 'https://ui.perfetto.dev' in said


@pytest.mark.slow
def test_steps_before_those_of_a_resumed_run_are_warned_of(tmp_path, capsys):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  config.total_steps = 4
  train(config, tmp_path / 'run', Outputs())
  config.total_steps = 5
  train(config, tmp_path / 'run', Outputs(), Profile(4, 3))
  said = capsys.readouterr().err
  assert '--profile=4:3 traces nothing, as the run goes on after step 4' in said
  Profile(5, 1).warn_if_passed(4)
  assert '--profile' not in capsys.readouterr().err


def test_a_run_that_ends_early_still_says_where_the_trace_is(tmp_path, capsys):
  with Profile(3, 9) as profile:
    profile.before_step(3, tmp_path, lambda: None)
  assert f'profiled to {tmp_path / "profile"}' in capsys.readouterr().err
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
