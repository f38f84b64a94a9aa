"""Print docs/token-ops.md."""

from tcompile.plugins.page import page

print(page(), end="")
