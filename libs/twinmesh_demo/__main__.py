"""``python -m twinmesh_demo``: the same as ``twinmesh demo``."""

from twinmesh_demo.main import main

raise SystemExit(main())
