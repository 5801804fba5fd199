"""Real storage servers for the tests, and the proxy that injects faults between them and a client."""

from tests.servers.base import StorageServer, Unavailable, clean_environment, free_port
from tests.servers.moto import MotoServer
from tests.servers.nginx import NginxServer
from tests.servers.proxy import Fault, FaultProxy
from tests.servers.radosgw import RadosGateway
from tests.servers.rclone import RcloneServer

__all__ = [
    "Fault",
    "FaultProxy",
    "MotoServer",
    "NginxServer",
    "RadosGateway",
    "RcloneServer",
    "StorageServer",
    "Unavailable",
    "clean_environment",
    "free_port",
]
