"""Which version answers, and what is said when none can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.inference.fakes import transformer
from tests.unit.inference.graphs import build, dynamics_signature

from twinmesh_core.errors import InvalidArgument, NotFound, Reason, Unavailable
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.models import Deployment, DeploymentState, ModelTask, Pointer
from twinmesh_inference.domain.naming import triton_name
from twinmesh_inference.domain.rollout import deployment_of

READY = DeploymentState.READY


def deployment(
    model_id: str, version: int = 1, *, twins: tuple[str, ...] = ("T1",), state: DeploymentState = READY, time: int = 1
) -> Deployment:
    return deployment_of(build(model_id, version, twin_ids=twins).version, state, message="words", ready_time_us=time)


def catalogue(*deployments: Deployment, serving: dict[str, int] | None = None, live: bool = True) -> Catalogue:
    serving = {one.model_id: one.version for one in deployments} if serving is None else serving
    pointers = [Pointer(model_id=name, serving=version) for name, version in serving.items()]
    return Catalogue.of(deployments, pointers, server_live=live)


def choose(found: Catalogue, twin_id: str = "T1") -> str:
    return found.choose(
        transformer(twin_id), ModelTask.FORECAST, "forecasts it", lambda one: one.signature.target == "oil_temp"
    ).model_id


def test_a_model_that_learned_from_this_twin_comes_before_a_newer_one_that_did_not() -> None:
    found = catalogue(deployment("own", twins=("T1",), time=1), deployment("other", twins=("T2",), time=9))
    assert choose(found, "T1") == "own"
    assert choose(found, "T2") == "other"
    assert choose(found, "T3") == "other"


def test_the_newest_of_equals_is_chosen() -> None:
    assert choose(catalogue(deployment("a", time=5), deployment("b", time=9), deployment("c", time=7))) == "b"


def test_a_model_whose_channels_the_twin_lacks_is_not_chosen() -> None:
    twin = transformer()
    del twin.channels["load"]
    with pytest.raises(NotFound) as refused:
        catalogue(deployment("a")).choose(twin, ModelTask.FORECAST, "forecasts it", lambda one: True)
    assert refused.value.reason == Reason.MODEL_NOT_FOUND
    assert "T1" in refused.value.metadata["remedy"]


def test_zero_is_the_serving_version_and_a_number_pins() -> None:
    found = catalogue(deployment("a", 1), deployment("a", 2), serving={"a": 1})
    assert found.named("a", 0, ModelTask.FORECAST).version == 1
    assert found.named("a", 2, ModelTask.FORECAST).version == 2
    with pytest.raises(NotFound, match="there are: 1, 2"):
        found.named("a", 3, ModelTask.FORECAST)


def test_a_model_of_another_task_is_refused_by_name() -> None:
    dynamics = deployment_of(build("d", 1, signature=dynamics_signature()).version, READY)
    with pytest.raises(InvalidArgument, match="is a DYNAMICS model"):
        catalogue(dynamics).named("d", 0, ModelTask.FORECAST)


@pytest.mark.parametrize("live", [True, False])
def test_a_version_on_its_way_is_not_an_unknown_one(live: bool) -> None:
    found = catalogue(deployment("a", state=DeploymentState.LOADING), serving={}, live=live)
    for ask in (lambda: found.named("a", 0, ModelTask.FORECAST), lambda: choose(found)):
        with pytest.raises(Unavailable) as refused:
            ask()
        if live:
            assert refused.value.reason == Reason.MODEL_NOT_READY
        else:
            assert refused.value.reason == Reason.DEPENDENCY_UNAVAILABLE
            assert refused.value.metadata["dependency"] == "triton"
        assert refused.value.retry_after_s == 1.0


def test_a_failed_version_says_why() -> None:
    found = catalogue(deployment("a", 2, state=DeploymentState.FAILED), deployment("a", 1), serving={"a": 1})
    assert found.named("a", 0, ModelTask.FORECAST).version == 1
    with pytest.raises(Unavailable, match="could not be deployed: words"):
        found.named("a", 2, ModelTask.FORECAST)


def test_names_in_triton_are_safe_and_never_shared() -> None:
    signature = build("a", 1).version.signature
    assert triton_name("default", "t1-oil", signature) == "default--t1-oil--w8x2-q6x3"
    ids = ["a", "a--b", "b", "a.b", "a..b", "x" * 128, "x" * 127, "a-", "-a", "a--b--c"]
    names = {triton_name(tenant, model, signature) for tenant in ids for model in ids}
    assert len(names) == len(ids) ** 2
    assert all(len(name) < 200 and "/" not in name and ".." not in name for name in names)
    longer = replace(signature, horizon_steps=7)
    assert triton_name("a", "b", longer) != triton_name("a", "b", signature)
