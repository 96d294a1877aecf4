"""What a launcher can tell from the exit code of clip-jax train."""

import pytest

from clip_jax.__main__ import main
from clip_jax.training import loop

CALL = ('train', '--config=configs/emoji.py', '--workdir=unused')


@pytest.fixture
def ends(monkeypatch):
  """Makes training end at once, finished or stopped."""
  # The devices of this process have been chosen already.
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')

  def put(finished):
    outcome = loop.TrainingOutcome(
      step=7, finished=finished, metrics={}, report=None
    )
    monkeypatch.setattr(loop, 'train', lambda *arguments: outcome)

  return put


def test_a_stop_that_has_saved_is_a_success(ends, capsys):
  ends(finished=False)
  assert main(CALL) == 0
  assert 'stopped and saved at step 7' in capsys.readouterr().out


def test_unless_another_code_is_asked_for(ends):
  ends(finished=False)
  with pytest.raises(SystemExit) as end:
    main([*CALL, '--stopped_exit_code=75'])
  assert end.value.code == 75


def test_a_run_that_has_finished_is_a_success_in_any_case(ends):
  ends(finished=True)
  assert main([*CALL, '--stopped_exit_code=75']) == 0


def test_a_code_that_the_shell_keeps_for_itself_is_refused(ends, capsys):
  ends(finished=True)
  assert main([*CALL, '--stopped_exit_code=126']) == 2
  assert 'stopped_exit_code' in capsys.readouterr().err
