"""What every Twinmesh process shares: value types and pure functions over them.

The package needs numpy and the standard library only, so that the SDK, every service and every test can
import it. Nothing here knows gRPC, a database, torch or a clock of its own.
"""
