"""A local S3 server and MLflow server, for demos, tests and single machines."""

from hmtl_dist.services.registry import (
    ServicesInfo,
    ServiceStatus,
    running,
    services_status,
    start_services,
    stop_services,
)

__all__ = ["ServiceStatus", "ServicesInfo", "running", "services_status", "start_services", "stop_services"]
