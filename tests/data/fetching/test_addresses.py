import socket

import pytest

from clip_jax.data.fetching.addresses import (
  AddressRefusedError,
  is_public,
  public_socket,
)


@pytest.mark.parametrize(
  'address',
  [
    '127.0.0.1', '127.8.8.8', '0.0.0.0', '10.1.2.3', '172.16.0.1',
    '192.168.1.1', '169.254.169.254', '100.64.0.1', '100.100.100.200',
    '168.63.129.16', '192.0.0.192', '224.0.0.1', '240.0.0.1',
    '255.255.255.255', '198.18.0.1', '203.0.113.5', '::', '::1', 'fe80::1',
    'fe80::1%eth0', 'fc00::1', 'fd00:ec2::254', 'fec0::1', 'ff02::1',
    '::ffff:127.0.0.1', '::ffff:10.0.0.1', '::127.0.0.1', '2002:7f00:1::',
    '2002:a9fe:a9fe::1', '64:ff9b::7f00:1', '64:ff9b::a9fe:a9fe',
    '64:ff9b:1::1', '2001:db8::1', 'no address', '',
  ],
)  # fmt: skip
def test_what_is_not_of_the_public_internet(address):
  assert not is_public(address)


@pytest.mark.parametrize(
  'address',
  ['8.8.8.8', '1.1.1.1', '93.184.215.14', '2606:4700::1111',
   '::ffff:8.8.8.8', '64:ff9b::808:808', '2002:808:808::1'],
)  # fmt: skip
def test_what_is(address):
  assert is_public(address)


def test_a_socket_is_made_for_public_addresses_only():
  kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, '')
  public_socket((*kind, ('8.8.8.8', 80))).close()
  with pytest.raises(AddressRefusedError, match=r'10\.0\.0\.1 is not a public'):
    public_socket((*kind, ('10.0.0.1', 80)))
