"""Arrays sent in PostgreSQL's binary form arrive as they were."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from twinmesh_storage.adapters.postgres.arrays import BigInts, Texts

INTS = [[], [0], [-1, 1, 2**63 - 1, -(2**63)], list(range(-500, 500))]
TEXTS = [[], [""], ["a", "b", "a", "ü€😀", "with, comma", '"{}\\'], ["t"] * 1_000]


@pytest.mark.parametrize("binary", [False, True])
def test_arrays_arrive_as_they_were(database_url: str, binary: bool) -> None:
    with psycopg.connect(database_url) as conn, conn.cursor(binary=binary) as cursor:
        for numbers in INTS:
            for sent in (BigInts(numbers), BigInts(np.array(numbers, np.int64))):
                cursor.execute("select %s::bigint[], coalesce(array_length(%s::bigint[], 1), 0)", (sent, sent))
                assert cursor.fetchone() == (numbers, len(numbers))
        for texts in TEXTS:
            sent_texts = Texts(texts)
            cursor.execute("select %s::text[], coalesce(array_length(%s::text[], 1), 0)", (sent_texts, sent_texts))
            assert cursor.fetchone() == (texts, len(texts))
        # Beside one another, as statements unnest them, and narrower where a statement says so.
        arguments = {"id": BigInts([3, 1]), "name": Texts(["c", "a"]), "small": BigInts([7, -7])}
        cursor.execute("select * from unnest(%(id)s, %(name)s, %(small)s::int[])", arguments)
        assert cursor.fetchall() == [(3, "c", 7), (1, "a", -7)]
