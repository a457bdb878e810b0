"""The local Valkey: private, bounded, forgetful."""

import pytest
import redis

from twinmesh_local.processes import Guardian
from twinmesh_local.valkey import ValkeyServer


def test_speaks_redis_with_its_password_only(redis_url, valkey_server):
    with redis.Redis.from_url(redis_url) as client:
        assert client.set("a", b"1")
        assert client.get("a") == b"1"
    with redis.Redis(port=valkey_server.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_is_bounded_and_keeps_nothing(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        settings = client.config_get()
    assert int(settings["maxmemory"]) == 128 * 1024 * 1024
    assert (settings["maxmemory-policy"], settings["save"], settings["appendonly"]) == ("allkeys-lru", "", "no")
    assert settings["bind"] == "127.0.0.1"


def test_leaves_no_configuration_with_the_password_behind(tmp_path):
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        server = ValkeyServer(guardian, tmp_path, log_dir=tmp_path)
        server.start()
        assert list(tmp_path.glob("*.conf"))
        server.stop()
        assert not list(tmp_path.glob("*.conf"))
