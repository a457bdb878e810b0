"""MQTT 5 (and 3.1.1) brokers: plain topics by template, and Sparkplug B."""

from twinmesh_connectors.mqtt.configuration import from_config

__all__ = ["from_config"]
