"""Programs that run artifacts; `tcompile init-app` copies them."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
