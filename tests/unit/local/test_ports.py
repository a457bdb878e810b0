"""Port blocks: the preferred one, else the next, and never one that another mesh has claimed."""

import os
import socket

import pytest

from twinmesh_local.errors import LocalMeshError
from twinmesh_local.ports import BLOCK_STEP, PortBlock, claim_port_block, free_port, is_free, listens_on


def test_services_and_metrics_of_a_block():
    block = PortBlock(base=7400)
    assert dict(block.services) == {
        "ingestion": 7400,
        "storage": 7401,
        "statesync": 7402,
        "training": 7403,
        "inference": 7404,
    }
    assert list(block.metrics.values()) == [7410, 7411, 7412, 7413, 7414]


def test_a_claimed_block_is_left_alone_until_it_is_given_back():
    first = claim_port_block()
    second = claim_port_block()
    try:
        assert second.block.base >= first.block.base + BLOCK_STEP
        with pytest.raises(LocalMeshError, match=f"ports {first.block.base} to"):
            claim_port_block(first.block.base)
    finally:
        first.close()
        second.close()
    again = claim_port_block(first.block.base)
    again.close()


def test_one_taken_port_disqualifies_its_block():
    claim = claim_port_block()
    claim.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", claim.block.metrics["training"]))
        taken.listen()
        other = claim_port_block()
        other.close()
    assert other.block.base > claim.block.base


def test_a_free_port_is_free():
    assert is_free(free_port())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_knows_who_listens(family):
    with socket.socket(family) as server:
        server.bind(("127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1", 0))
        port = server.getsockname()[1]
        assert not listens_on(os.getpid(), port)
        server.listen()
        assert listens_on(os.getpid(), port)
        assert not is_free(port)
        assert not listens_on(os.getppid(), port)
        assert not listens_on(4194305, port)
