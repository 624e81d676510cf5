"""A local server for tests of downloads: it breaks off, answers errors, and ignores ranges."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves files by path; its attributes say how badly."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}  # path: contents
        self.tags = True
        self.ranges = True
        self.break_after = None  # bytes of every answer
        self.statuses = []  # answered, in turn, before any file
        self.page = False  # a web page instead of the file
        self.asked = []  # (path, Range header)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        server.asked.append((self.path, span))
        data = server.files.get(self.path)
        if server.statuses:
            return self.answer(server.statuses.pop(0))
        if server.page:
            return self.answer(200, {"Content-Type": "text/html"}, b"<html>quota</html>")
        if data is None:
            return self.answer(404, self.hub_error() if "/resolve/" in self.path else {})
        tag, start = f'"{hashlib.sha256(data).hexdigest()}"', 0
        headers = {"ETag": tag, "X-Repo-Commit": "c" * 40} if server.tags else {}
        if span and server.ranges and self.headers.get("If-Range") in (None, tag):
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.answer(416)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206 if start else 200, headers, data[start:])

    do_HEAD = do_GET  # noqa: N815

    def hub_error(self):
        """How the Hugging Face Hub says what is missing."""
        repository = self.path.split("/resolve/")[0]
        known = any(path.startswith(f"{repository}/resolve/") for path in self.server.files)
        code = "EntryNotFound" if known else "RepoNotFound"
        return {"X-Error-Code": code, "X-Repo-Commit": "c" * 40}

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        fields = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        for name, value in {**fields, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.server.break_after])

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()
