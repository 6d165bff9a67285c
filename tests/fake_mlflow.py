"""A tracking server that speaks the few REST calls of a run, and that can be away, hang or refuse."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"


class FakeMlflow:
    """What the server knows outlives it, so that it can be away and come back.

    Attributes:
        runs: by id, as MLflow's REST API gives them.
        files: artifacts by their path.
        metrics: every one that was sent, in order.
        logins: values of the header ``Authorization``.
        hangs: whether requests are taken but not answered.
        status: answered to everything; 200 works.
        refuses: what a call must not hold, or it is refused as wrong.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.metrics: list[dict[str, Any]] = []
        self.logins: set[str | None] = set()
        self.hangs = False
        self.status = 200
        self.refuses: str | None = None
        self.free = threading.Event()
        self.port = 0
        with self._bind() as server:  # to learn of a free port
            self.port = server.server_port
        self._server: ThreadingHTTPServer | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _bind(self) -> ThreadingHTTPServer:
        return ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"fake": self}))

    def start(self) -> None:
        """Be there."""
        self._server = self._bind()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be away: nobody listens at the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    # -- what the calls do ------------------------------------------------------------------------------------------

    def steps(self, name: str) -> list[int]:
        """Steps of a metric, in the order in which they came."""
        return [int(metric["step"]) for metric in self.metrics if metric["key"] == name]

    def answer(self, path: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refuses is not None and self.refuses in json.dumps(given):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"no {self.refuses}"}
        run = self.runs.get(given.get("run_id", ""))
        if path == "experiments/get-by-name":
            return (200, {"experiment": {"experiment_id": "1", "name": "bagpiper"}}) if self.runs else _missing()
        if path == "experiments/create":
            return 200, {"experiment_id": "1"}
        if path == "runs/search":
            key = given["filter"].rpartition("= ")[2].strip("'")
            return 200, {"runs": [run for run in self.runs.values() if key in json.dumps(run)]}
        if path == "runs/create":
            return 200, {"run": self._create(given)}
        if run is None:
            return _missing()
        if path == "runs/update":
            run["info"].update({"status": given["status"]} if "status" in given else {})
            return 200, {"run_info": run["info"]}
        if path == "runs/log-batch":
            self._log(run, given)
        return 200, {"run": run}

    def _create(self, given: dict[str, Any]) -> dict[str, Any]:
        run_id = f"{len(self.runs) + 1:032x}"
        info = {"run_id": run_id, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        info["artifact_uri"] = f"mlflow-artifacts:/{run_id}"
        data: dict[str, Any] = {"metrics": [], "params": [], "tags": list(given.get("tags", []))}
        self.runs[run_id] = {"info": info, "data": data}
        return self.runs[run_id]

    def _log(self, run: dict[str, Any], given: dict[str, Any]) -> None:
        self.metrics += given.get("metrics", [])
        for kind in ("metrics", "params", "tags"):
            known = {item["key"]: item for item in run["data"][kind]}
            known.update({item["key"]: item for item in given.get(kind, [])})
            run["data"][kind] = list(known.values())

    def listing(self, folder: str) -> dict[str, Any]:
        """What is directly in a folder of artifacts."""
        found: dict[str, dict[str, Any]] = {}
        for path, data in self.files.items():
            if path.startswith(f"{folder}/"):
                name, below, _ = path.removeprefix(f"{folder}/").partition("/")
                found[name] = {"path": name, "is_dir": bool(below), "file_size": None if below else len(data)}
        return {"files": list(found.values())}


def _missing() -> tuple[int, dict[str, Any]]:
    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not here"}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeMlflow

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fake, parts = self.fake, urlsplit(self.path)
        fake.logins.add(self.headers.get("Authorization"))
        if fake.hangs:
            fake.free.wait(60)
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if fake.status != 200:
            self._reply(fake.status, {"error_code": "INTERNAL_ERROR", "message": "no"})
        elif parts.path.startswith(FILES) and self.command == "PUT":
            fake.files[unquote(parts.path.removeprefix(f"{FILES}/"))] = body
            self._reply(200, {})
        elif parts.path.startswith(FILES):
            self._reply(200, fake.listing(query["path"]))
        elif parts.path.startswith(API):
            self._reply(*fake.answer(parts.path.removeprefix(API), query | (json.loads(body) if body else {})))
        else:
            self._reply(*_missing())

    do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815 (names of the standard library)

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
