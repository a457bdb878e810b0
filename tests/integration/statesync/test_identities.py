"""Bulk creation, conditional updates, migrations and typed commands, on the real log."""

import asyncio
from typing import Any

import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import Conflict, InvalidArgument


def spec(version: int, **more: Any) -> twin_pb2.TwinType:
    channels = [
        twin_pb2.ChannelSpec(name="temperature", kind=observation_pb2.CHANNEL_KIND_GAUGE, unit="Cel"),
        twin_pb2.ChannelSpec(name="speed", kind=observation_pb2.CHANNEL_KIND_GAUGE, max_value=100, controllable=True),
    ]
    if version == 2:
        channels[0].unit = "K"
        channels[1].max_value = 50
    return twin_pb2.TwinType(
        twin_type_id="motor",
        version=version,
        channels=channels,
        properties=[
            twin_pb2.PropertySpec(
                name="power",
                kind=twin_pb2.VALUE_KIND_NUMBER,
                unit="kW" if version == 1 else "W",
                default_value=observation_pb2.Value(double_value=1),
            )
        ],
        commands=[
            twin_pb2.CommandSpec(
                name="ramp",
                args=[twin_pb2.ArgumentSpec(name="time", kind=twin_pb2.VALUE_KIND_NUMBER, unit="s", required=True)],
            )
        ],
        **more,
    )


async def make_types(sync: StateSync, *versions: int) -> None:
    for version in versions:
        request = statesync_pb2.CreateTwinTypeRequest(twin_type=spec(version))
        await call(sync.twins.CreateTwinType, request, timeout_s=TIMEOUT_S)


async def create(sync: StateSync, *names: str, **more: Any) -> Any:
    twins = [twin_pb2.Twin(twin_id=name, twin_type_id="motor", twin_type_version=1) for name in names]
    return await call(
        sync.twins.CreateTwins, statesync_pb2.CreateTwinsRequest(twins=twins, **more), timeout_s=TIMEOUT_S
    )


async def test_many_twins_at_once_survive_a_restart_and_a_repetition_says_the_same(database_url: str) -> None:
    async with storage(database_url) as target:
        async with statesync(database_url, target) as sync:
            await make_types(sync, 1)
            first = await create(sync, *(f"m{i}" for i in range(1_500)), "-", request_id="bulk")
            assert (first.created_count, first.refused_count) == (1_500, 1)
            assert first.results[-1].outcome == statesync_pb2.TWIN_OUTCOME_REFUSED
            none = await create(sync, "n1", "m1", all_or_nothing=True)
            assert [r.outcome for r in none.results] == [
                statesync_pb2.TWIN_OUTCOME_LEFT_OUT,
                statesync_pb2.TWIN_OUTCOME_REFUSED,
            ]
        async with statesync(database_url, target) as sync:
            again = await create(sync, *(f"m{i}" for i in range(1_500)), "-", request_id="bulk")
            assert again == first
            twin = await call(sync.twins.GetTwin, statesync_pb2.GetTwinRequest(twin_id="m9"), timeout_s=TIMEOUT_S)
            assert twin.twin.properties["power"].double_value == 1


async def test_of_many_updates_on_one_revision_one_wins_and_watchers_see_it(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await make_types(sync, 1)
        await create(sync, "m1")
        before = (await call(sync.twins.GetTwin, statesync_pb2.GetTwinRequest(twin_id="m1"), timeout_s=TIMEOUT_S)).twin

        def update(site: str) -> Any:
            request = statesync_pb2.UpdateTwinRequest(
                twin=twin_pb2.Twin(twin_id="m1", attributes={"site": site}), if_revision=before.revision
            )
            request.update_mask.paths.append("attributes.site")
            return call(sync.twins.UpdateTwin, request, timeout_s=TIMEOUT_S)

        async with sync.watch(statesync_pb2.WatchRequest(twin_ids=["m1"])) as frames:
            async for frame in frames:
                if frame.synced:
                    break
            found = await asyncio.gather(*(update(f"s{i}") for i in range(8)), return_exceptions=True)
            winners = [answer for answer in found if not isinstance(answer, BaseException)]
            losers = [error for error in found if isinstance(error, Conflict)]
            assert (len(winners), len(losers)) == (1, 7)
            site = winners[0].twin.attributes["site"]
            assert all(site in error.metadata["current"] for error in losers)
            async with asyncio.timeout(TIMEOUT_S):
                async for frame in frames:
                    if frame.events:
                        assert frame.events[0].twin.attributes["site"] == site
                        break


async def test_a_migration_does_what_its_dry_run_told(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await make_types(sync, 1, 2)
        await create(sync, "m1", "m2", "m3")
        offset = await sync.observe("m1", "temperature", [1_700_000_000_000_000], [20.0])
        await sync.replica("m1", offset)
        await call(
            sync.replicas.SetDesired,
            statesync_pb2.SetDesiredRequest(twin_id="m1", values={"speed": observation_pb2.Value(double_value=80)}),
            timeout_s=TIMEOUT_S,
        )

        def migrate(**more: Any) -> Any:
            request = statesync_pb2.MigrateTwinsRequest(twin_type_id="motor", **more)
            return call(sync.twins.MigrateTwins, request, timeout_s=TIMEOUT_S)

        told = await migrate(dry_run=True)
        assert (await sync.replica("m1")).twin.twin_type_version == 1
        real = await migrate(page_size=2, request_id="m.0")
        assert real.next_after_twin_id == "m2"
        rest = await migrate(page_size=2, request_id="m.1", after_twin_id="m2")
        assert [*real.migrations, *rest.migrations] == list(told.migrations)
        assert (await migrate(page_size=2, request_id="m.0")).migrations == real.migrations
        steps = {step.part: step.effect for step in real.migrations[0].steps}
        assert steps["desired.speed"] == statesync_pb2.MIGRATION_EFFECT_DROPPED
        replica = await sync.replica("m1")
        assert replica.twin.twin_type_version == 2
        assert replica.reported.values[0].value.double_value == pytest.approx(293.15)
        assert replica.twin.properties["power"].double_value == pytest.approx(1_000)
        assert not replica.desired.values
        later = await sync.observe("m1", "temperature", [1_700_000_001_000_000], [30.0])
        assert (await sync.replica("m1", later)).reported.values[0].value.double_value == pytest.approx(303.15)


async def test_arguments_are_converted_and_held_to_the_schema(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await make_types(sync, 1)
        await create(sync, "m1")

        def send(value: float, **more: Any) -> Any:
            args = {"time": observation_pb2.Value(double_value=value)}
            request = statesync_pb2.SendCommandRequest(twin_id="m1", name="ramp", args=args, **more)
            return call(sync.commands.SendCommand, request, timeout_s=TIMEOUT_S)

        sent = await send(2, arg_units={"time": "min"})
        assert sent.command.args["time"].double_value == 120
        with pytest.raises(InvalidArgument, match="cannot be converted"):
            await send(2, arg_units={"time": "kW"})
