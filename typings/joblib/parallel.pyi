# The backend that a caller put in force.
from typing import Any

def get_active_backend() -> tuple[Any, int]: ...
