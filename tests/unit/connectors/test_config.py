"""A file of connectors is read strictly: what is wrong is named, with what would be right."""

import textwrap

import pytest

from twinmesh_client import InvalidArgument
from twinmesh_connectors.config import read_config
from twinmesh_connectors.host import HostConnector


@pytest.fixture
def read(tmp_path):
    def write_and_read(text: str):
        path = tmp_path / "connectors.toml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return read_config(path)

    return write_and_read


def test_a_whole_file(read, tmp_path):
    config = read("""
        [mesh]
        target = "mesh.example:7400"
        [spool]
        directory = "spool"
        max_bytes = 5_000_000
        full = "error"
        [connectors.roof]
        kind = "host"
        producer = "roof-1"
        twin = "gateway-3"
        every = "5s"
        [connectors.cellar]
        kind = "host"
    """)
    assert (config.target, config.spool_max_bytes, config.spool_full) == ("mesh.example:7400", 5_000_000, "error")
    roof, cellar = config.entries
    assert (roof.producer_id, roof.spool) == ("roof-1", tmp_path / "spool" / "roof")
    assert isinstance(roof.connector, HostConnector)
    assert (roof.connector._twin_id, roof.connector._every_s) == ("gateway-3", 5.0)
    assert (cellar.producer_id, cellar.connector.name) == ("cellar", "cellar")


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("[connectors.a]\nkind = 'host'\nevry = '1s'", "connectors.a.evry", "did you mean every?"),
        ("[connectors.a]\nkind = 'hosts'", "connectors.a.kind", "choose from host"),
        ("[connectors.a]\nevery = '1s'", "connectors.a.kind", 'write kind = "host" under [connectors.a]'),
        ("[connectors.a]\nkind = 'host'\nevery = 'often'", "connectors.a.every", "30s, 5min"),
        ("[connectors.a]\nkind = 'host'\nevery = 5", "connectors.a.every", 'write every = "5s"'),
        ("[connectors.a]\nkind = 'host'\ntwin = 'a b'", "connectors.a.twin", "letters, digits"),
        ("[connectors.'a b']\nkind = 'host'", "connectors.a b", "letters, digits"),
        ("[mesh]\ntarget = 7400\n[connectors.a]\nkind = 'host'", "mesh.target", 'write target = "..."'),
        ("[spool]\nmax_bytes = 12\n[connectors.a]\nkind = 'host'", "spool.max_bytes", "at least 1000000"),
        ("[spool]\nmax_bytes = true\n[connectors.a]\nkind = 'host'", "spool.max_bytes", "not a whole number"),
        ("[spool]\nfull = 'drop'\n[connectors.a]\nkind = 'host'", "spool.full", "choose from wait, error"),
        ("[mesh]\n", "connectors", "[connectors.NAME]"),
        ("[mess]\n[connectors.a]\nkind = 'host'", "mess", "did you mean mesh?"),
        (
            "[connectors.a]\nkind = 'host'\n[connectors.b]\nkind = 'host'\nproducer = 'a'",
            "connectors.a.producer",
            "of its own",
        ),
        ("connectors = ", "connectors.toml", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(read, text, key, remedy):
    with pytest.raises(InvalidArgument) as caught:
        read(text)
    (violation,) = caught.value.field_violations
    assert violation.field == key
    assert remedy in violation.description


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidArgument, match="no such file"):
        read_config(tmp_path / "none.toml")
