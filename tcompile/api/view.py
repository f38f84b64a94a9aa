"""Opening the report of an artifact: in a browser, or served on this machine alone."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tcompile.artifact.directory import PAGE, Artifact, load_artifact
from tcompile.core.cache import cache_dir, digest_of
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.model_files import file_entry
from tcompile.report.build_page import render_page
from tcompile.report.shown import Shown

#: What a browser may do with a page that is served: nothing but show it.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class View:
    """A report that can be opened.

    Attributes:
        page: its file.
        notes: what is missing in it.
    """

    page: Path
    notes: tuple[str, ...] = ()


def view(artifact: str | Path) -> View:
    """Find the report of an artifact; where it has none, write one from its manifest.

    That one has no images: it lies in the folder of caches, and says what is missing.

    Raises:
        UsageError: no artifact there.
        ModelError: its manifest is damaged, or its report was changed since it was written.
        MissingExtraError: it has no report, and jinja2 is not installed.
    """
    opened = load_artifact(artifact)
    if any(entry.path == PAGE for entry in opened.manifest.files):
        return View(_checked(opened))
    why = (
        "the artifact has no report.html (an older tcompile wrote it, or jinja2 was not "
        "installed); `tcompile maps` draws them while the dense model is there"
    )
    page = render_page(opened.manifest, Shown(why=why))
    path = cache_dir() / "reports" / f"{digest_of(opened.manifest.to_json())[:32]}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            hint="set TCOMPILE_CACHE to another folder",
        ) from error
    return View(path, (f"made from the manifest alone: {why}",))


def _checked(opened: Artifact) -> Path:
    """The report, which a browser is to run: as it was written, or not at all."""
    page = opened.directory / PAGE
    listed = next(entry for entry in opened.manifest.files if entry.path == PAGE)
    if not page.is_file() or file_entry(page, opened.directory) != listed:
        verb = "was changed since it was written" if page.is_file() else "is missing"
        raise ModelError(f"'{PAGE}' {verb}", where=str(opened.directory), hint="build it again")
    return page


def open_in_browser(address: str) -> bool:
    """Open an address in the person's browser; tells whether there is one."""
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False


def serve(page: Path, port: int, ready: Callable[[str], object]) -> None:
    """Serve a page on this machine alone, until interrupted.

    Args:
        port: 0: any that is free.
        ready: is told the address.

    Raises:
        UsageError: the port is taken.
    """
    try:
        server = server_of(page, port)
    except OSError as error:
        raise UsageError(
            f"cannot be served: {error.strerror or error}", where=f"--port {port}"
        ) from error
    with server:
        ready(address_of(server))
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


def server_of(page: Path, port: int) -> ThreadingHTTPServer:
    """A server of one page, on the loopback address."""
    body = page.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        """Gives the page, and nothing else."""

        def do_GET(self) -> None:
            """Answer a request. A page of another origin, by a name of its own, is refused."""
            host = (self.headers.get("Host") or "").partition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", _POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def address_of(server: ThreadingHTTPServer) -> str:
    """Where a server is."""
    return f"http://127.0.0.1:{server.server_address[1]}/"
