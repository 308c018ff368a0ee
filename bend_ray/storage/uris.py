"""Where something is, by name: a local path, or a URI of a local file or an object store.

A URI is read as RFC 3986 has it: ``%20`` is a space, and ``?`` begins parameters. What cannot stand
in one, as a space, ``#`` or an umlaut, stands for itself. What nobody can mean is refused: an
object store takes an empty part for a name, and forgets a parameter without a value.
"""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, quote, unquote

from bend_ray.errors import StoreError
from bend_ray.storage.masking import masked

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss")

_EXPECTED = f"expected a path or {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
_ALLOWED = "/!&'()*+,;=:@"
"""Beside letters, digits and ``-._~``, what we write as it is in the path of a URI."""
_AUTHORITY = re.compile(r"[\w%!$&'()*+,;=:@.~-]+", re.ASCII)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What breaks a line or a terminal; the last are bytes of a name that is not UTF-8."""
_NO_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]|[{(][A-Za-z_])")


def is_local_path(uri: str) -> bool:
    """Whether a place is named by a plain path.

    >>> is_local_path("runs:2"), is_local_path("s3:/bucket")
    (True, False)
    """
    scheme, separator, _ = uri.partition(":")
    return bool(uri) and "://" not in uri and not (separator and scheme.lower() in SCHEMES)


def names_variable(text: str) -> bool:
    """Whether a text asks for a variable of the environment, as a shell would have put in.

    >>> [names_variable(text) for text in ("$HOME/runs", "${A}", "$(A)", "a$", "5$ bill")]
    [True, True, True, False, False]
    """
    return _VARIABLE.search(text) is not None


def canonical(uri: str) -> str:
    """The one name of a place: an absolute path where it is local, else a URI.

    >>> canonical("file:///a%20b/../c"), canonical("S3://bucket/a b/")
    ('/c', 's3://bucket/a%20b')

    StoreError where it means nothing, or not what whoever wrote it can have meant.
    """
    if is_local_path(uri):
        _check_text(uri)
        return os.path.abspath(os.path.expanduser(uri))
    place = _parsed(uri)
    return os.path.normpath(unquote(place.path)) if place.scheme == "file" else place.geturl()


def _parsed(uri: str) -> SplitResult:
    """A URI that means something, the same for every spelling of it; all in it is escaped."""
    _check_text(uri)
    scheme, _, rest = uri.partition(":")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise StoreError(f"{_EXPECTED}; got {masked(uri)!r}")
    if not rest.startswith("//") or (scheme == "file" and not rest.startswith("///")):
        meant = f"{scheme}://{'/' if scheme == 'file' else ''}{rest.lstrip('/')}"
        raise _refusal(uri, _EXPECTED, meant)
    location, question, query = rest.removeprefix("//").partition("?")
    authority, _, path = location.rstrip("/").partition("/")
    if scheme == "file":
        if question:
            raise _refusal(uri, "expected no ? in a file URI; write %3F for one in a name")
        return SplitResult(scheme, "", f"/{_escaped(uri, path.lstrip('/'))}", "", "")
    bucket = authority.rpartition("@")[2]
    if not bucket:
        raise StoreError(f"{masked(uri)!r} names no bucket: expected {scheme}://bucket")
    if not _AUTHORITY.fullmatch(authority):
        raise _refusal(uri, "expected a bucket's name of letters, digits, dots and hyphens")
    if ":" in bucket and not scheme.startswith("abfs"):
        raise _refusal(uri, "expected a bucket without a port; endpoint_override names a server")
    path = _escaped(uri, path)
    kept = "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
    if kept != path:
        meant = f"{scheme}://{authority}/{kept}{question}{query}"
        raise _refusal(uri, "expected no part that is empty, . or ..", meant)
    return SplitResult(scheme, authority, path and f"/{path}", _parameters(uri, query), "")


def joined(uri: str, *names: str) -> str:
    """A path or URI below another, in front of the other's parameters.

    >>> joined("s3://bucket/runs/?region=eu-west-1", "seeds", "a b")
    's3://bucket/runs/seeds/a%20b?region=eu-west-1'
    """
    if is_local_path(uri):
        return "/".join([uri.rstrip("/"), *names])
    above = _parsed(uri)
    below = [above.path.rstrip("/"), *(quote(name, safe=_ALLOWED) for name in names)]
    return above._replace(path="/".join(below)).geturl()


def _check_text(uri: str) -> None:
    if not uri.strip():
        raise StoreError(f"{_EXPECTED}; got {uri!r}")
    if _UNPRINTABLE.search(uri):
        raise StoreError(f"{_EXPECTED}, in UTF-8 and on one line; got {masked(uri)!a}")
    if names_variable(uri):
        raise _refusal(uri, "expected no variable, as they are not expanded here; write it out")


def _escaped(uri: str, path: str) -> str:
    if _NO_ESCAPE.search(path):
        raise _refusal(uri, "expected two hexadecimal digits after %; write %25 for one in a name")
    if "%2f" in path.lower():
        raise _refusal(uri, "expected no %2F, as no name holds a slash")
    try:
        readable = unquote(path, errors="strict")
    except UnicodeDecodeError:
        readable = "\0"
    if _UNPRINTABLE.search(readable):
        raise _refusal(uri, "expected escapes of UTF-8, and no ends of lines")
    return quote(readable, safe=_ALLOWED)


def _parameters(uri: str, query: str) -> str:
    pairs = [each.partition("=") for each in query.split("&")] if query else []
    names = [name for name, _, _ in pairs]
    if not all(name.isidentifier() and name.isascii() and value for name, _, value in pairs):
        raise _refusal(uri, "expected ?name=value&... after the path; write %3F for ? in a name")
    if len(set(names)) < len(names):
        raise _refusal(uri, "expected each parameter once")
    written = [f"{name}={quote(value, safe=f'{_ALLOWED}?%$')}" for name, _, value in pairs]
    return "&".join(written)


def _refusal(uri: str, expected: str, meant: str | None = None) -> StoreError:
    hint = f": did you mean {masked(meant)!r}?" if meant else ""
    return StoreError(f"{expected}; got {masked(uri)!r}{hint}")
