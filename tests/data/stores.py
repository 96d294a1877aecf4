"""Stores of files for tests: fsspec's memory, and an S3 server on loopback."""

import contextlib
import os
from collections.abc import Iterator

import boto3
import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[str]:
  """Runs an S3 server with one bucket; gives the address of the server."""
  server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  address = f'http://{host}:{port}'
  settings = {
    'AWS_ACCESS_KEY_ID': 'test',
    'AWS_SECRET_ACCESS_KEY': 'test',
    'AWS_DEFAULT_REGION': 'us-east-1',
    'AWS_ENDPOINT_URL': address,
    'AWS_EC2_METADATA_DISABLED': 'true',
    'FSSPEC_S3_ENDPOINT_URL': address,
  }
  before = {name: os.environ.get(name) for name in settings}
  os.environ.update(settings)
  fsspec.config.conf.setdefault('s3', {})['endpoint_url'] = address
  try:
    boto3.client('s3').create_bucket(Bucket=bucket)
    yield address
  finally:
    server.stop()
    fsspec.config.conf['s3'].pop('endpoint_url', None)
    for name, value in before.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value


def put_in_memory(name: str, content: bytes) -> str:
  """Puts a file into fsspec's memory; returns its URL."""
  url = f'memory://{name}'
  MemoryFileSystem().pipe_file(url, content)
  return url
