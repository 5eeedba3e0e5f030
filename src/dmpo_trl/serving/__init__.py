"""An HTTP service around a recommender: `dmpo-trl serve`. Needs the extra `serve`."""

from .app import make_app
from .limits import ServiceLimits

__all__ = ["ServiceLimits", "make_app"]
