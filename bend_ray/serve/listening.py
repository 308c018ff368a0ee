"""Where a server listens, and that nobody from outside is let in without a token."""

from __future__ import annotations

import ipaddress
import json
import resource
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bend_ray.data.columns import iso
from bend_ray.errors import ConfigError
from bend_ray.export.card import Card, noise
from bend_ray.process.environment import variable
from bend_ray.serve.settings import TOKEN_VARIABLE


@dataclass(frozen=True)
class Listening:
    """Addresses, and a certificate chain and its key in PEM for TLS."""

    host: str
    port: int
    grpc_port: int | None = None
    certfile: str | None = None
    keyfile: str | None = None

    @property
    def url(self) -> str:
        """Where a browser of this machine finds it."""
        scheme = "http" if self.certfile is None else "https"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - shown
        return f"{scheme}://{_address(host, self.port)}"

    @property
    def grpc_address(self) -> str:
        """Where gRPC listens."""
        return _address(self.host, self.grpc_port)

    @property
    def told(self) -> str:
        """What listens where, in words."""
        also = "" if self.grpc_port is None else f", gRPC on {self.grpc_address}"
        asks = "with BEND_SERVE_TOKEN alone" if token() else "without a token"
        return f"HTTP on {self.host}:{self.port}{also}, {asks}"

    def add_to(self, server: Any) -> None:
        """Have a gRPC server listen, with TLS where there is a certificate."""
        if self.certfile is None or self.keyfile is None:
            server.add_insecure_port(self.grpc_address)
            return
        pair = (Path(self.keyfile).read_bytes(), Path(self.certfile).read_bytes())
        server.add_secure_port(self.grpc_address, grpc.ssl_server_credentials([pair]))

    def prepare(self) -> None:
        """Refuse, as ConfigError, what cannot be listened on, or should not be.

        This process, and those that it starts, may then open as many files as the system allows.
        """
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if not is_loopback(self.host) and token() is None:
            raise ConfigError(
                f"--host {self.host}: expected {TOKEN_VARIABLE} in the environment where others "
                "can reach it; set it, or listen on 127.0.0.1"
            )
        for option, port in (("--port", self.port), ("--grpc-port", self.grpc_port)):
            if port is not None:
                _check_free(self.host, option, port)
        if self.certfile is None and self.keyfile is None:
            return
        if self.certfile is None or self.keyfile is None:
            raise ConfigError("--certfile and --keyfile: expected both, or neither")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"--certfile {self.certfile} --keyfile {self.keyfile}: expected a certificate and "
                f"its key in PEM, got: {error.strerror or error}"
            ) from None


def token() -> str | None:
    """What requests must bear; None: everybody is welcome."""
    return variable(TOKEN_VARIABLE)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, option: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} {option} {port}: expected an address to listen on, got: {reason}; "
            "name another port"
        ) from None


def _address(host: str, port: int | None) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _example(card: Card) -> list[Any] | dict[str, Any]:
    """An instance of noise; of a table in the words of who has one."""
    rounded = {
        name: (np.round(v.astype(float), 3) if v.dtype.kind == "f" else v).tolist()[0]
        for name, v in noise(card, 1).items()
    }
    for name, column in card.columns.items():
        if column.kind == "boolean":
            rounded[name] = rounded[name] >= 0.5
        elif column.kind == "date":
            rounded[name] = iso(rounded[name])
    if len(rounded) > 1:
        return rounded
    (only,) = rounded.values()
    return only  # type: ignore[no-any-return]


def welcome(where: Listening, listens: str, card: Card, seconds: float) -> str:
    """What to do now: the URL, what listens where, and a command that works."""
    url = where.url
    bearer = f" -H 'Authorization: Bearer '\"${TOKEN_VARIABLE}\"" if token() else ""
    rows = json.dumps({"instances": [_example(card)]}, separators=(",", ":"))
    rows = rows.replace("'", r"\u0027")  # which the shell would take for the end
    if len(rows) > 2000 and card.decoding:
        ask = f"curl{bearer} -H 'Content-Type: image/png' --data-binary @IMAGE.png {url}/predict"
    else:
        ask = (
            f"curl{bearer} -H 'Content-Type: application/json' "
            f"-d '{rows if len(rows) <= 2000 else '@FILE.json'}' {url}/predict"
        )
    what = f"{len(card.members)} members, version {card.model_version}"
    return (
        f"{url}    {what}, up in {seconds:.1f}s\n"
        f"  {url}/      {'draw or drop an image' if card.decoding else 'the bag'}\n"
        f"  {url}/docs  the interface\n"
        f"  {listens}\n"
        f"  {ask}"
    )
