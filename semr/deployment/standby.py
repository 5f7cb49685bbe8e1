"""Gives a new RayService its first application: `python -m semr.deployment.standby`, run once by the SEMR chart.

The KubeRay operator calls a RayService ready, and gives it an address, once it runs an application. The chart itself must not
write `serveConfigV2`: deployments do, and `helm upgrade` and `helm rollback` would take their models out of service.
"""

from __future__ import annotations

import sys
import time

from semr.deployment.ray_service import Application, RayServiceApplications
from semr.deployment.target import DeploymentError
from semr.errors import SemrError
from semr.settings import get_settings

NAME = "semr-standby"
#: See `semr.inference.standby`, which imports Ray Serve; a test holds the names equal.
APPLICATION: Application = {
    "name": NAME,
    "route_prefix": f"/{NAME}",
    "import_path": "semr.inference.standby:app",
}
# Helm makes the RayService after the job that runs this.
_WAIT_SECONDS = 300.0
_POLL_SECONDS = 2.0


def put_standby(applications: RayServiceApplications, wait_seconds: float = _WAIT_SECONDS) -> None:
    """Write the application beside those that are there, waiting for a RayService that is not there yet.

    Raises:
        DeploymentError: the API refuses until the end, or there is no RayService then.
        DependencyUnavailableError: the API does not answer.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            applications.put(NAME, APPLICATION)
            return
        except DeploymentError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def main() -> int:
    """Do it for the RayService that the contract names."""
    try:
        service = get_settings().need("ray_service")
        put_standby(RayServiceApplications(service))
    except SemrError as error:
        print(f"semr: {error}", file=sys.stderr)
        return 2
    print(f"RayService {service} has the application {NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
