"""A headless Chromium that shows a server's page, through a relay which keeps what the page asked for and was told."""

import json
import re
import subprocess
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Tells in the DOM which answer is drawn, counted from 1, and by how much the page is wider than the window.
MEASURE = b"""<script>new MutationObserver(() => {
  const root = document.documentElement;
  root.dataset.drawn = samples.length;
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
}).observe(document.querySelector("main"), {childList: true, subtree: true})</script></body>"""


class Relay:
    """Stands before a server: same pages, but for MEASURE at the end of `/`."""

    def __init__(self, port: int):
        self.paths: list[str] = []
        self.told: list[dict] = []  # Every status.json, in order.
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                relay.paths.append(self.path)
                try:
                    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}{self.path}")
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body, kind = answer.read(), answer.headers["Content-Type"]
                if self.path == "/status.json":
                    relay.told.append(json.loads(body))
                self.send_response(answer.status)
                self.send_header("Content-Type", kind or "text/plain")
                self.end_headers()
                self.wfile.write(body.replace(b"</body>", MEASURE))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, css_class: str = "") -> list["Element"]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                classes = child.attributes.get("class", "").split()
                if child.tag == tag and (not css_class or css_class in classes):
                    found.append(child)
                found += child.all(tag, css_class)
        return found

    def by_id(self, name: str) -> "Element":
        return next(one for tag in ("section", "span") for one in self.all(tag) if one.attributes.get("id") == name)


class _Tree(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag, attributes):
        element = Element(tag, {name: value or "" for name, value in attributes}, self.at)
        self.at.children.append(element)
        if tag not in ("meta", "link", "br"):
            self.at = element

    def handle_endtag(self, tag):
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


@dataclass
class Shown:
    dom: Element
    complaints: list[str]  # What the page's console says.
    requests: list[str]    # The addresses that the page has asked for.


def show(address: str, folder: Path, width: int, dark: bool, screenshot: Path, height: int = 1000) -> Shown:
    """The page after some seconds of its own time, which pass as fast as it is answered."""
    net_log = folder / "net.json"
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--hide-scrollbars", f"--user-data-dir={folder}/chromium",
         f"--window-size={width},{height}", *(["--force-dark-mode"] if dark else []), "--enable-logging=stderr",
         f"--log-net-log={net_log}", "--virtual-time-budget=4500", "--dump-dom", f"--screenshot={screenshot}", address],
        capture_output=True, text=True)
    if done.returncode != 0 or not screenshot.exists():
        raise RuntimeError(f"chromium ended with {done.returncode}:\n{done.stderr}")
    tree = _Tree()
    tree.feed(done.stdout)
    return Shown(tree.root, re.findall(r".*\bCONSOLE\b.*", done.stderr), page_requests(net_log, address))


def page_requests(net_log: Path, address: str) -> list[str]:
    """Those that come from the page, and the page's own; Chromium itself has others."""
    log = json.loads(net_log.read_text())
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event.get("params", {}) for event in log["events"] if event["type"] == started]
    return [one["url"] for one in asked if one.get("url") == address or one.get("initiator", "") + "/" == address]
