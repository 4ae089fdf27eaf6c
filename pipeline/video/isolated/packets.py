"""What passes between a decoding process and its parent: packets of bytes, each of which arrives
whole, and descriptors of memory without a name.

Linux has both at hand. Elsewhere (macOS) the sockets of a pair keep no borders, so each packet
begins with its length; and a file that is removed as soon as it is made takes the place of
anonymous memory.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

KINDS = {True: socket.SOCK_SEQPACKET, False: socket.SOCK_STREAM}
"""Whether the system keeps the borders of packets -> the sockets of a pair."""
KEEPS_BORDERS = sys.platform == "linux"
LENGTH, FD = struct.Struct("<I"), struct.Struct("i")
PACKET_BYTES = 1 << 16
"""The longest packet."""


class Packets:
    """One end of a channel."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._keeps_borders = channel.type == socket.SOCK_SEQPACKET

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Both ends of a new channel."""
        one, other = socket.socketpair(socket.AF_UNIX, KINDS[KEEPS_BORDERS])
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self.channel.fileno()

    def close(self) -> None:
        """Closes this end."""
        self.channel.close()

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Sends a packet, and at most one descriptor with it. Raises OSError where the other end is
        closed."""
        if not self._keeps_borders:
            self._send(LENGTH.pack(len(packet)), fds)
            self.channel.sendall(packet)
        else:
            self._send(packet, fds)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if fds:
            socket.send_fds(self.channel, [data], list(fds))
        else:
            self.channel.send(data)

    def receive(self, *, wait: bool = True) -> tuple[bytes, list[int]]:
        """The next packet and its descriptors; an empty one when the other end is closed. Raises
        BlockingIOError where there is none and it shall not `wait`."""
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0) | (0 if wait else socket.MSG_DONTWAIT)
        if self._keeps_borders:
            return self._receive(PACKET_BYTES, flags)
        head, fds = self._receive(LENGTH.size, flags)
        head += self._exactly(LENGTH.size - len(head)) if head else b""
        if len(head) < LENGTH.size:
            return b"", fds
        (length,) = LENGTH.unpack(head)
        packet = self._exactly(length)
        return packet if len(packet) == length else b"", fds

    def _receive(self, size: int, flags: int) -> tuple[bytes, list[int]]:
        # socket.recv_fds passes no flags on in Python 3.11.
        data, ancillary, _, _ = self.channel.recvmsg(size, socket.CMSG_LEN(FD.size), flags)
        fds = [
            FD.unpack(content[: FD.size])[0]
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(content) >= FD.size
        ]
        return data, fds

    def _exactly(self, size: int) -> bytes:
        """So many bytes; fewer when the other end was closed before."""
        data = b""
        while len(data) < size and (more := self.channel.recv(size - len(data))):
            data += more
        return data

    def new_memory(self, name: str, size: int) -> int:
        """The descriptor of memory that both ends may map, `size` bytes of zeros, and that is gone
        with its last descriptor and map. `name` is for those who look at the process."""
        if self._keeps_borders:
            fd = os.memfd_create(name)
        else:
            fd, path = tempfile.mkstemp(prefix=name)
            Path(path).unlink()
        os.ftruncate(fd, size)
        return fd
