"""IAM policies, evaluated against requests of S3 as AWS does: what moto does not.

Of the policy language what the files in ``cluster/permissions`` use: ``Allow``, wildcards, and
conditions on strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

PERMISSIONS = Path(__file__).parents[2] / "cluster" / "permissions"
_ARN = "arn:aws:s3:::"


@dataclass(frozen=True)
class Asked:
    """A right that a request needs.

    Attributes:
        action: as in ``s3:GetObject``.
        resource: its ARN.
        context: condition keys that the request has.
    """

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


Policy = list[dict[str, Any]]


def policy_of(who: str, bucket: str) -> Policy:
    """The statements of ``aws-WHO.json``, for a bucket of this name."""
    text = (PERMISSIONS / f"aws-{who}.json").read_text().replace("BUCKET", bucket)
    statements: Policy = json.loads(text)["Statement"]
    return statements


def without(policy: Policy, action: str) -> Policy:
    """A policy that lacks one action."""
    kept = [{**each, "Action": [a for a in _listed(each["Action"]) if a != action]}
            for each in policy]  # fmt: skip
    return [each for each in kept if each["Action"]]


def allows(policy: Policy, asked: Asked) -> bool:
    """Whether some statement allows it."""
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatchcase(asked.action, each) for each in _listed(statement["Action"]))
        and any(fnmatchcase(asked.resource, each) for each in _listed(statement["Resource"]))
        and all(
            _holds(operator, wanted, asked.context)
            for operator, wanted in statement.get("Condition", {}).items()
        )
        for statement in policy
    )


def _holds(operator: str, wanted: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    kind, if_exists = operator.removesuffix("IfExists"), operator.endswith("IfExists")
    matches = {"StringEquals": str.__eq__, "StringLike": fnmatchcase}[kind]
    return all(
        any(matches(context[key], each) for each in _listed(values))
        if key in context
        else if_exists
        for key, values in wanted.items()
    )


def rights_of(environ: Mapping[str, Any]) -> Iterator[Asked]:
    """What a request of S3, with the bucket in its path, needs to be answered with what it asks."""
    method, query = environ["REQUEST_METHOD"], parse_qs(
        environ.get("QUERY_STRING", ""), keep_blank_values=True
    )  # fmt: skip
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    if not key:
        context = {"s3:prefix": query["prefix"][0]} if "prefix" in query else {}
        action = {"PUT": "s3:CreateBucket", "DELETE": "s3:DeleteBucket"}.get(method)
        if method == "POST" and "delete" in query:
            # The keys are in the body; all that bend_ray removes is below the store.
            yield Asked("s3:DeleteObject", f"{_ARN}{bucket}/runs/*")
            return
        if "location" in query:
            action = "s3:GetBucketLocation"
        elif "uploads" in query:
            action = "s3:ListBucketMultipartUploads"
        yield Asked(action or "s3:ListBucket", f"{_ARN}{bucket}", context)
        return
    resource = f"{_ARN}{bucket}/{key}"
    if method in ("GET", "HEAD"):
        yield Asked(
            "s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject", resource
        )
    elif method == "DELETE":
        yield Asked(
            "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", resource
        )
    else:
        yield Asked("s3:PutObject", resource)
        if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
            yield Asked("s3:GetObject", f"{_ARN}{unquote(source).lstrip('/')}")


def may_know_what_is_missing(bucket: str) -> Asked:
    """The right without which S3 answers 403, and not 404, about an object that is not there.

    Such a request has no prefix: a condition on it that must hold does not.
    """
    return Asked("s3:ListBucket", f"{_ARN}{bucket}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
