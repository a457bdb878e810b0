"""Bounds of the SDK that its users may want to know."""

from typing import Final

DEFAULT_TIMEOUT_S: Final = 30.0
"""Deadline of each call that is not told otherwise."""
PATIENCE_S: Final = 120.0
"""How long a producer session waits for a mesh that is away before it gives up."""
MAX_UNACKED_POINTS: Final = 400_000
"""Points of a producer session that may wait for their acknowledgement; `write` waits beyond it."""
MAX_UNACKED_BYTES: Final = 64 * 1024 * 1024
"""Encoded bytes of a producer session that may wait likewise: texts are larger than numbers."""
SPOOL_MAX_BYTES: Final = 1_000_000_000
"""Bound of a producer's spool on disk, where none is said."""
GATHER_ROWS: Final = 10_000
"""Rows that a writer gathers into one batch at most."""
GATHER_DELAY_S: Final = 0.05
"""How long the first of them waits for others."""
LINGER_S: Final = 5.0
"""How long leaving a session with a spool waits for acknowledgements: what is on disk is sent next time."""
