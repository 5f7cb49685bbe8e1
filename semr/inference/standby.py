"""A Serve application that answers only that it is there.

The KubeRay operator calls a RayService ready, and gives it an address, once it has a running application; models are deployed
after that. The SEMR chart starts a RayService with this one.
"""

from __future__ import annotations

from ray import serve
from starlette.responses import JSONResponse


@serve.deployment(name="Standby", ray_actor_options={"num_cpus": 0})
class Standby:
    """One replica without a model."""

    async def __call__(self) -> JSONResponse:
        """Answer any request."""
        return JSONResponse({"standby": True})


app = Standby.bind()  # type: ignore[attr-defined]
