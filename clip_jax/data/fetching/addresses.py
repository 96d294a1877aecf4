"""Refuses connections to addresses that are not of the public internet.

A list of URLs comes from strangers. One that names this machine, its network or
a cloud's metadata server would make us ask for what only we can reach.
"""

import ipaddress
import socket
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Servers of clouds' metadata that have addresses of the public kind.
_METADATA = (
  ipaddress.ip_network('168.63.129.16/32'),  # Azure
  ipaddress.ip_network('192.0.0.0/24'),  # Oracle: 192.0.0.192
)
# IPv6 networks that hold an IPv4 address in their last bits (RFC 6052).
_NAT64 = ipaddress.ip_network('64:ff9b::/96')
_LOCAL_NAT64 = ipaddress.ip_network('64:ff9b:1::/48')


class AddressRefusedError(OSError):
  """A connection to an address that is not public."""


def is_public(text: str) -> bool:
  """Returns whether an address is of the public internet.

  Private, loopback, link-local, shared, reserved and multicast addresses are
  not, neither are metadata servers of clouds, nor IPv6 addresses that stand for
  such an IPv4 address.
  """
  try:
    address = ipaddress.ip_address(text.partition('%')[0])
  except ValueError:
    return False
  if isinstance(address, ipaddress.IPv6Address):
    inner = _embedded(address)
    if inner is not None:
      return is_public(str(inner))
    if address in _LOCAL_NAT64 or address.is_site_local:
      return False
  if any(address in network for network in _METADATA):
    return False
  return address.is_global and not (
    address.is_multicast or address.is_reserved or address.is_unspecified
  )


def _embedded(
  address: ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | None:
  """Returns the IPv4 address that an IPv6 address stands for, or None."""
  if address.ipv4_mapped is not None:
    return address.ipv4_mapped
  if address.sixtofour is not None:
    return address.sixtofour
  if address in _NAT64 or 1 < int(address) < 2**32:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
  return None


def public_socket(info: tuple[Any, ...]) -> socket.socket:
  """Makes the socket of a connection, as aiohttp's `socket_factory`.

  It is called with the very address that is connected to, whether a name stood
  for it or not: a name that is resolved anew to another address, as in DNS
  rebinding, comes by here again.

  Args:
    info: as `socket.getaddrinfo` gives it.
  Raises:
    AddressRefusedError: the address is not public.
  """
  family, kind, protocol, _, address = info
  if not is_public(str(address[0])):
    raise AddressRefusedError(f'{address[0]} is not a public address')
  return socket.socket(family=family, type=kind, proto=protocol)
