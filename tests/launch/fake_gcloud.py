"""A stand-in for gcloud: a queued resource that lives in a JSON file.

FAKE_GCLOUD names the file: `states` are those that `list` will see, one after
the other (the last stays; none: there is no such resource); `created`, for each
`create`, the states from then on; `waits`, for each time that the log is
followed, the exit code (null: it lasts long) and the states after it;
`running`, for each time that somebody asks whether training runs, the exit
code; `fails`, commands that do, each so often as it is there. All calls are
kept in `calls`.
"""

import json
import os
import pathlib
import sys
import time


def main() -> int:
  path = pathlib.Path(os.environ['FAKE_GCLOUD'])
  cloud = json.loads(path.read_text())
  words = sys.argv[1:]
  cloud['calls'].append(words)
  path.write_text(json.dumps(cloud))
  code = _answer(cloud, words)
  path.write_text(json.dumps(cloud))
  return code


def _answer(cloud: dict, words: list[str]) -> int:
  verb = words[3]
  if verb in cloud['fails']:
    cloud['fails'].remove(verb)
    print(f'ERROR: (gcloud) {verb}: quota exceeded', file=sys.stderr)
    return 1
  if verb == 'list':
    print(*cloud['states'][:1])
    cloud['states'] = cloud['states'][1:] or cloud['states']
  elif verb == 'create':
    cloud['states'] = cloud['created'].pop(0)
  elif verb == 'delete':
    cloud['states'] = []
  elif verb == 'ssh':
    return _ssh(cloud, words)
  return 0


def _ssh(cloud: dict, words: list[str]) -> int:
  command = next(w for w in words if w.startswith('--command='))
  if command.endswith('worker.sh wait'):
    print('step 1 loss 10.4')
    code, states = cloud['waits'].pop(0)
    if code is None:
      time.sleep(60)
    cloud['states'] = states or cloud['states']
    return code
  if command.endswith('worker.sh running'):
    return cloud['running'].pop(0) if cloud['running'] else 1
  return 0


sys.exit(main())
