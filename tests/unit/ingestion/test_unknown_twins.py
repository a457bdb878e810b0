"""Rules by which unknown twins are created: read, refused, and kept to."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.ingestion.plant import PUMP, Monotonic, gauges, registry

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.value_specs import PropertySpec
from twinmesh_ingestion.adapters.memory import MemoryLog, MemoryRegistry
from twinmesh_ingestion.domain.intake import Intake
from twinmesh_ingestion.domain.unknown_twins import TwinMaker, TwinRule, parse_rules
from twinmesh_ingestion.rpc.acks import AckReceipts
from twinmesh_ingestion.settings import IngestionSettings


def test_rules_are_read_in_order():
    assert parse_rules("") == ()
    assert parse_rules(" default:pump-*=pump@2, *:m?=meter ") == (
        TwinRule(tenant="default", pattern="pump-*", twin_type_id="pump", version=2),
        TwinRule(tenant="*", pattern="m?", twin_type_id="meter"),
    )


@pytest.mark.parametrize(
    "text", ["pump-*=pump", "default:=pump", "default:x=", "default:x=Pump!", "default:a b=pump", "default:x=pump@x",
             "default:x=pump@9999999999", "a:b=c@1@2"]
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_how_one_is_written(text):
    with pytest.raises(ValueError, match="write tenant:pattern=type@version"):
        parse_rules(text)
    with pytest.raises(ValueError, match="is no rule"):
        IngestionSettings(create_twins=text)


class World:
    """A log whose created twins the registry sees after its next look."""

    def __init__(self, rules):
        self.log, self.registry = MemoryLog(), registry()
        self.taking = Intake(
            log=self.log, registry=self.registry, receipts=AckReceipts(), clock=Monotonic(), patience_s=1.0,
            remembered_series=100, maker=TwinMaker(self.log, parse_rules(rules)),
        )  # fmt: skip
        seen = MemoryRegistry.catch_up

        async def catch_up():
            for tenant, twin in self.log.created:
                if self.registry.fold.twin(tenant, twin.twin_id) is None:
                    self.registry.create(twin, tenant=tenant)
            await seen(self.registry)

        vars(self.registry)["catch_up"] = catch_up

    async def write(self, twin, tenant="default"):
        prepared = await self.taking.prepare(
            tenant, gauges("temperature", [1.0], twin=twin), content_hash=b"h" * 16, backfill=False
        )
        return await self.taking.append(tenant, prepared, request_id="")

    def made(self):
        return [twin.twin_id for _, twin in self.log.created]


async def test_a_twin_that_a_rule_covers_is_created_and_its_rows_land():
    world = World("default:pump-*=pump@1")
    assert (await world.write("pump-7")).accepted_count == 1
    assert (await world.write("pump-7")).accepted_count == 1
    assert (await world.write("fan-7")).quarantined_count == 1
    assert world.made() == ["pump-7"]
    made = world.registry.fold.twin("default", "pump-7")
    assert made is not None
    assert made.twin_type_id == PUMP.twin_type_id


async def test_rules_are_of_their_tenant():
    world = World("other:pump-*=pump")
    assert (await world.write("pump-7")).quarantined_count == 1
    assert world.made() == []


@pytest.mark.parametrize("rules", ["*:*=turbine", "*:*=pump@9", "*:*=strict"])
async def test_a_rule_that_the_registry_would_reject_creates_nothing(rules):
    world = World(rules)
    strict = TwinType(
        twin_type_id="strict",
        version=1,
        channels=PUMP.channels,
        properties=(PropertySpec(name="serial", required=True),),
    )
    world.registry.create(strict)
    assert (await world.write("pump-7")).quarantined_count == 1
    assert world.made() == []


async def test_ids_that_are_none_are_not_created():
    world = World("*:*=pump")
    assert (await world.write("no id!")).quarantined_count == 1
    assert world.made() == []


async def test_many_batches_that_create_the_same_twin_do_no_harm():
    world = World("*:*=pump")
    acks = await asyncio.gather(*(world.write("pump-7") for _ in range(20)))
    assert all(ack.accepted_count == 1 for ack in acks)
    assert set(world.made()) == {"pump-7"}


async def test_no_row_is_lost_where_a_creation_fails(monkeypatch):
    world = World("*:*=pump")

    async def fail(*_):
        raise TwinmeshError("no")

    monkeypatch.setattr(world.log, "create_twin", fail)
    with pytest.raises(TwinmeshError, match="no"):
        await world.write("pump-7")
    monkeypatch.undo()
    assert (await world.write("pump-7")).accepted_count == 1


def test_a_twin_is_what_the_rule_says():
    rule = parse_rules("default:[ab]?=pump@1")[0]
    assert [rule.fits("default", name) for name in ("a1", "b2", "c3", "a12")] == [True, True, False, False]
    assert not rule.fits("elsewhere", "a1")
    assert Twin(twin_id="a1", twin_type_id=rule.twin_type_id, twin_type_version=rule.version).twin_type_version == 1
