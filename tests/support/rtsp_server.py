"""A camera on the network: one RTSP session (RFC 2326) over TCP, with the RTP packets of a real H.264 encoder."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from fractions import Fraction

import av
import numpy as np

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track0
"""


def rtp_packets(frames: list[np.ndarray], fps: int) -> list[bytes]:
    """The packets of uint8 RGB frames (H, W, 3), as libav sends them."""
    packets: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.bind(("127.0.0.1", 0))
        inlet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        inlet.settimeout(0.2)
        address = f"rtp://127.0.0.1:{inlet.getsockname()[1]}"
        with av.open(address, "w", format="rtp") as container:
            options = {"crf": "12", "tune": "zerolatency", "preset": "veryfast"}
            stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
            with contextlib.suppress(TimeoutError):
                while True:
                    packets.append(inlet.recv(65536))
    return packets


class RtspCamera:
    """Plays its packets to everyone who connects, one after the other, and hangs up."""

    def __init__(self, packets: list[bytes]) -> None:
        self.packets, self.asked = packets, list[str]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/live"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while True:
                head = [line.decode().strip() for line in iter(lines.readline, b"\r\n") if line]
                if not head:
                    return
                method = head[0].split()[0]
                fields = dict(line.split(": ", 1) for line in head[1:])
                self.asked.append(method)
                answer, body = {"CSeq": fields["CSeq"]}, ""
                if method == "OPTIONS":
                    answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
                elif method == "DESCRIBE":
                    body = SDP.replace("\n", "\r\n")
                    answer |= {"Content-Type": "application/sdp", "Content-Length": str(len(body))}
                elif method == "SETUP":
                    answer |= {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1", "Session": "1"}
                text = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
                connection.sendall(f"RTSP/1.0 200 OK\r\n{text}\r\n{body}".encode())
                if method == "PLAY":
                    for packet in self.packets:
                        connection.sendall(b"$" + struct.pack(">BH", 0, len(packet)) + packet)
                    return
