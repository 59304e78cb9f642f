"""One question to a socket, one answer. Run here, or on another host: there it is sent as text to the system's Python,
so it knows nothing but the standard library (of 3.7 or later), and loads little of it.
"""
# ruff: noqa: PTH101, PTH108, PTH116, PTH119  (pathlib is slow to load)

from __future__ import annotations

import os
import socket
import stat
import sys
import time


def talk(way: str, where: str, said: bytes, timeout: float) -> bytes:
    """Send the bytes `said`, return the bytes of the answer. Raises OSError when there is none in `timeout` seconds.

    `way` and `where`: ``stream`` and ``unixgram``: path of a Unix socket; ``fifo``: path of a FIFO (``@REPLY@`` in
    `said` becomes the name of the one for the answer, in the directory /tmp); ``udp`` and ``tcp``: ``host port``,
    where ``tcp`` connects, and says nothing; ``http``: a URL, by POST.
    """
    if way == "http":
        import urllib.error  # slow to load, and mostly not needed
        import urllib.request

        request = urllib.request.Request(where, said, {"Content-Type": "application/json"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as refused:  # it says why
            return bytes(refused.read())
    if way == "fifo":
        return _fifo(where, said, timeout)
    if way == "tcp":
        host, port = where.split()
        socket.create_connection((host, int(port)), timeout).close()
        return b""
    if way == "udp":
        host, port = where.split()
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as asking:
            asking.settimeout(timeout)
            asking.connect(address)
            own = asking.getsockname()
            name = f"[{own[0]}]:{own[1]}" if ":" in own[0] else f"{own[0]}:{own[1]}"
            asking.send(said.replace(b"@HERE@", name.encode()).replace(b"@NUMBER@", b"1"))
            return asking.recv(65535)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if way == "stream" else socket.SOCK_DGRAM) as asking:
        asking.settimeout(timeout)
        if way == "unixgram":
            reply = _reply()
            asking.bind(reply)
            try:
                os.chmod(reply, 0o666)  # the one who answers is another user
                asking.sendto(said, where)
                return asking.recv(1 << 20)
            finally:
                os.unlink(reply)
        asking.connect(where)
        asking.sendall(said)
        asking.shutdown(socket.SHUT_WR)
        parts: list[bytes] = []
        while True:
            part = asking.recv(65536)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _fifo(where: str, said: bytes, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    if not stat.S_ISFIFO(os.stat(where).st_mode):
        raise OSError(f"{where} is no FIFO")
    reply = _reply()
    os.mkfifo(reply)
    try:
        os.chmod(reply, 0o622)  # the one who answers is another user
        reading = os.open(reply, os.O_RDONLY | os.O_NONBLOCK)
        try:
            asking = os.open(where, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody listens
            try:
                os.write(asking, said.replace(b"@REPLY@", os.path.basename(reply).encode()) + b"\n")
            finally:
                os.close(asking)
            answer = b""
            while time.monotonic() < deadline:
                try:
                    part = os.read(reading, 65536)
                except BlockingIOError:  # somebody has it open, and has not said all
                    part = b""
                else:
                    if not part and answer:
                        return answer
                answer += part
                if not part:
                    time.sleep(0.002)
            raise OSError(f"no answer within {timeout:g} s")
        finally:
            os.close(reading)
    finally:
        os.unlink(reply)


def _reply() -> str:
    return f"/tmp/updater-ask-{os.urandom(12).hex()}"


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(talk(sys.argv[1], sys.argv[2], sys.stdin.buffer.read(), float(sys.argv[3])))
    except OSError as error:
        sys.exit(f"{sys.argv[1]} {sys.argv[2]}: {error.strerror or error}")
