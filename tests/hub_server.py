"""A local stand-in of the Hugging Face Hub's API, as far as ``detrlab push`` asks it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "x" * 34


class Hub(ThreadingHTTPServer):
    """Answers what ``huggingface_hub`` asks when a folder is uploaded."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}  # name: files
        self.tokens = set()
        self.private = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        hub, body = self.server, self.rfile.read(length)
        if len(body) < length:
            return None
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.tokens.add(token)
        if token != TOKEN:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            url = {"url": f"{hub.url}/{name}", "name": name}
            if name in hub.repositories:
                return self.answer(409, {"error": "You already created this model repo", **url})
            hub.private = asked.get("private") or asked.get("visibility") == "private"
            hub.repositories[name] = {}
            return self.answer(200, url)
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if self.path.endswith("/preupload/main"):
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]
            return self.answer(200, {"files": modes})
        if self.path.endswith("/commit/main"):
            # All or nothing, as the Hub: a client that was killed leaves half a body.
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            hub.repositories[name] |= {
                value["path"]: base64.b64decode(value["content"]) for value in values
            }
            url = f"{hub.url}/{name}/commit/{'c' * 40}"
            return self.answer(200, {"commitUrl": url, "commitOid": "c" * 40, "success": True})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        name = "/".join(self.path.split("/")[3:5])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"})
        held = [{"rfilename": path} for path in self.server.repositories[name]]
        about = {"siblings": held, "sha": "c" * 40, "id": name, "private": self.server.private}
        return self.answer(200, about)

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def standing_in():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()
