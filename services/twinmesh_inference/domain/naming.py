"""What a model is called in Triton: readable, safe as a directory, and never the name of another one."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from twinmesh_inference.domain.models import Endpoint, Signature

_PLAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,46}[a-z0-9])?")
_KEPT: Final = 40


def triton_name(tenant: str, model_id: str, signature: Signature) -> str:
    """Return the name under which a version with this signature is served.

    The name ends with the graph's shape because a Triton model has one set of dimensions for all its versions: two
    versions that differ in shape live side by side under two names, so that rolling between them needs no unload.
    """
    shape = f"w{signature.context_steps}x{len(signature.channels)}"
    if signature.controls:
        shape += f"-f{len(signature.controls)}"
    shape += f"-q{signature.horizon_steps}x{len(signature.quantile_levels)}"
    return f"{_slug(tenant)}--{_slug(model_id)}--{shape}"


def endpoint_of(tenant: str, model_id: str, version: int, signature: Signature, max_batch_size: int) -> Endpoint:
    """Return what a call needs to reach this version."""
    return Endpoint(
        name=triton_name(tenant, model_id, signature),
        version=version,
        inputs=signature.inputs(),
        output=signature.output(),
        max_batch_size=max_batch_size,
    )


def _slug(text: str) -> str:
    if _PLAIN.fullmatch(text) and "--" not in text and ".." not in text:
        return text
    # Ids hold no capitals, so a name with one can only be a digest: no plain id can take it.
    kept = re.sub(r"[^a-z0-9]+", "-", text)[:_KEPT].strip("-")
    return f"{kept}-H{blake2b(text.encode(), digest_size=10).hexdigest()}"
