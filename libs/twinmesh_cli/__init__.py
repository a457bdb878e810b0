"""The `twinmesh` command: everything the SDK can do, from a terminal.

Tables for people, ``--json`` for programs, errors that say what to type next. Nothing heavy is imported before the
command that needs it runs.
"""
