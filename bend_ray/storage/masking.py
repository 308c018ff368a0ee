"""What is told to people: no credentials, and nothing that a terminal would act upon."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

_HARMLESS_PARAMETERS = frozenset(
    {
        *("region", "scheme", "endpoint_override", "anonymous", "retry_limit_seconds"),
        *("allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "project_id"),
        *("tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates", "smart_defaults"),
    }
)


def masked(text: str) -> str:
    """A URI, or a text that quotes one, with every credential replaced by ``***``.

    >>> masked("s3://KEY:SECRET@bucket/runs?region=us-east-1&session_token=SECRET")
    's3://***@bucket/runs?region=us-east-1&session_token=***'
    """
    if text.startswith("/") and ":/" not in text:
        return text  # a plain path may hold ? and =
    # An unescaped "/", "?" or "#" ends the authority, so with a password mask to the last "@".
    # A path that was taken for a URI, or the other way round, has one slash.
    text = re.sub(r"(?<=\w)(://?)[^/?#\s@]*:\S*@", r"\1***@", text)
    # Without a password, abfs names a container there and gs says "anonymous".
    text = re.sub(r"(?<!abfs)(?<!abfss)(://?)(?!anonymous@)[^/?#\s@]+@", r"\1***@", text)
    return re.sub(r"([?&])([^=&\s]+)=([^&\s'\"]*)", _masked_parameter, text)


def _masked_parameter(match: re.Match[str]) -> str:
    sign, name, value = match.groups()
    # What is escaped may hold another URI's credentials.
    harmless = name in _HARMLESS_PARAMETERS and "@" not in unquote(value).replace("://***@", "")
    return f"{sign}{name}={value if harmless else '***'}"


def masked_json(value: Any) -> Any:
    """``masked`` for every text of a JSON value, as of a config that names data sets by URI.

    >>> masked_json({"root": ["s3://KEY:SECRET@bucket"], "size": 3})
    {'root': ['s3://***@bucket'], 'size': 3}
    """
    if isinstance(value, dict):
        return {key: masked_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [masked_json(each) for each in value]
    return masked(value) if isinstance(value, str) else value


def cause(error: BaseException) -> str:
    """An error in one line without credentials, to quote in a message of ours."""
    lines = str(error).splitlines()
    return printable(masked(lines[0])) if lines else type(error).__name__


def printable(text: str) -> str:
    r"""What a file says, without what a terminal would act upon.

    >>> printable("a\x1b[2Jb é")
    'a\\x1b[2Jb é'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def utf8(text: str) -> str:
    r"""A text that came from a file's name, as UTF-8 can hold it.

    >>> utf8("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()
