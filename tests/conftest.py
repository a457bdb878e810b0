"""What every test may use: the real servers as fixtures, started only when asked for."""

pytest_plugins = ("twinmesh_testing.servers",)
