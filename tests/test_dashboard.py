"""The dashboard, as it reaches a server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

pytest.importorskip("wandb_workspaces")


class Server(BaseHTTPRequestHandler):
    """Answers W&B's GraphQL as far as saving a view asks it to, and keeps what was saved."""

    views: ClassVar[list[dict]] = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query = asked["query"]
        data = {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "upsertView" in query:
            self.views.append(asked["variables"])
            data = {"upsertView": {"view": {"id": "1", "name": "abc"}, "inserted": True}}
        if "serverInfo" in query:
            data["serverInfo"] = {"cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None}
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_the_dashboard_that_is_saved_shows_one_sweep(command):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = command(
            "dashboard",
            "sweep=table1",
            WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}",
            WANDB_API_KEY="k" * 40,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    (view,) = Server.views
    assert (view["entityName"], view["projectName"]) == ("me", "bagnet_lightning")
    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Accuracy", "Curves", "Evidence and mistakes"]
    panels = [panel["viewType"] for section in sections for panel in section["panels"]]
    assert panels.count("Run History Line Plot") == 3
    (runs,) = spec["section"]["runSets"]
    assert "table1" in json.dumps(runs["filters"])
    assert runs["runFeed"]["columnPinned"]["summary:best_val_accuracy"]
    assert "me/bagnet_lightning" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [([], {}, "sweep is needed"), (["sweep=a"], {"NETRC": "/no/netrc", "WANDB_SILENT": "true"}, "log in first")],
)
def test_what_a_dashboard_needs_is_told_in_one_line(command, arguments, environment, error):
    done = command("dashboard", *arguments, **environment)
    assert done.returncode == 1
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
