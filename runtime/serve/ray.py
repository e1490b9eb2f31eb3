"""The same application on several machines: `serve run xopt.runtime.serve.ray:build model=DIR`.

Each replica is a process that holds the model and shares its forwards among its requests, as
`xopt serve` does. Ray Serve spreads requests over replicas, and replaces one that dies.
"""
# Annotations are no texts here: Ray Serve reads the type of `build`'s argument.

import os

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from xopt.runtime.machine import cores
from xopt.runtime.serve.app import app
from xopt.runtime.serve.settings import Settings

__all__ = ["Options", "build"]

# The application refuses what would wait too long; Ray only has to hand it all requests.
MOST_REQUESTS = 10_000
# To write the last answers, beside the time that requests have.
WRITING_S = 10


class Options(BaseModel):
    """What `serve run` takes as NAME=VALUE.

    model: a model folder, at one path on all nodes.
    variant: one of its variants; by default the recommended one, else onnx-fp32.
    threads: cores of a replica; by default those of this machine.
    replicas: how many processes serve.
    deadline: seconds that a request may take.
    longest_wait: refuse a request if the work before it takes more seconds than this.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    variant: str | None = None
    threads: int = Field(default_factory=cores, ge=1)
    replicas: int = Field(default=1, ge=1)
    deadline: float = Field(default=60, gt=0)
    longest_wait: float = Field(default=20, gt=0)


class _Replica:
    """What Ray Serve asks of a replica beside its requests."""

    app: Starlette  # Ray Serve sets it

    def check_health(self) -> None:
        """Raise where nothing can be scored any more, so that Ray replaces the replica."""
        if not self.app.state.service.ready:
            raise RuntimeError("scoring has failed, and this replica serves nothing")


def build(options: Options) -> Application:
    """Return a Ray Serve application of the options.

    Clients need a key where the environment of the replicas has XOPT_API_KEY.
    """

    def application() -> Starlette:
        key = os.environ.get("XOPT_API_KEY")
        settings = Settings(
            api_keys=(key,) if key else (),
            deadline_s=options.deadline,
            longest_wait_s=options.longest_wait,
        )
        return app(options.model, options.variant, threads=options.threads, settings=settings)

    deployed = serve.deployment(
        name="xopt",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.threads},
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=options.deadline + WRITING_S,
    )
    return deployed(serve.ingress(application)(_Replica)).bind()
