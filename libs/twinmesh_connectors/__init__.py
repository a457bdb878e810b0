"""Connectors: sources that become observations (files, this machine, brokers), as clients of the public API.

A connector reads one source and hands rows to a producer session; the `runner` keeps it running while its source or the
mesh comes and goes. Nothing here knows a service: what a connector can do, any program with the SDK can do.
"""
