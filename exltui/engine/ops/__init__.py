"""The op table. Importing it registers every row."""

from exltui.engine.ops import references as _references  # noqa: F401  the import is the registration
from exltui.engine.ops import sample as _sample  # noqa: F401
from exltui.engine.ops.table import OPS, OpSet, bind

__all__ = ["OPS", "OpSet", "bind"]
