"""How one machine runs the mesh, without containers: PostgreSQL, Valkey, Triton and the five services on loopback.

The package owns every process it starts. A small guardian process (`twinmesh_local.guardian`) is the parent of all of
them and watches the program that asked for them; whatever ends that program - Ctrl-C, SIGTERM, an exception, SIGKILL -
the guardian stops the rest and removes their ports, shared memory and sockets. No account is created on the machine.
"""
