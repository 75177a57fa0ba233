"""What the server may be made to read: paths, hosts, redirects, sizes and times."""

import asyncio
import gzip
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hippo.cli.demo import CLIP
from hippo.serve.errors import ApiError
from hippo.serve.media import MAX_REDIRECTS, MediaPolicy, is_public


def opened(policy, url):
    return asyncio.run(policy.opened(url))


def refused(policy, url, status=400):
    with pytest.raises(ApiError) as error:
        opened(policy, url)
    assert error.value.status == status and "\n" not in error.value.message
    return error.value.message


@pytest.fixture
def folder(tmp_path):
    """A folder that may be read, beside a secret that may not."""
    inside = tmp_path / "media"
    (inside / "deep").mkdir(parents=True)
    for path in (inside / "a b.mp4", inside / "deep" / "c.mp4", tmp_path / "secret.mp4"):
        path.write_bytes(b"x")
    (inside / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (inside / "in.mp4").symlink_to(inside / "deep" / "c.mp4")
    (tmp_path / "media-too").mkdir()
    (tmp_path / "media-too" / "d.mp4").write_bytes(b"x")
    return inside


def test_local_files_are_off_by_default_and_those_of_a_folder_may_be_read(folder):
    assert refused(MediaPolicy(), (folder / "a b.mp4").as_uri())
    policy = MediaPolicy(folder)
    assert opened(policy, (folder / "a b.mp4").as_uri()) == folder / "a b.mp4"
    assert opened(policy, f"file://localhost{folder}/deep/../deep/c.mp4") == folder / "deep" / "c.mp4"
    assert opened(policy, f"FILE://{folder}/in.mp4") == folder / "deep" / "c.mp4"


@pytest.mark.parametrize(
    "path",
    ["../secret.mp4", "%2e%2e/secret.mp4", "deep/..%2f../secret.mp4", "out.mp4", "../media-too/d.mp4", "missing.mp4",
     "deep", "", "a b.mp4%00.mp4", "%2fetc%2fpasswd", "../../../../../../../../etc/passwd"],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(folder, path):
    said = {refused(MediaPolicy(folder), f"file://{folder}/{path}")}
    assert said == {refused(MediaPolicy(folder), "file:///nowhere/at/all.mp4")}, "and none says what is there"
    assert refused(MediaPolicy(folder), f"file://elsewhere{folder}/a%20b.mp4")


def test_a_large_local_file_or_data_url_is_too_large(folder):
    policy = MediaPolicy(folder, max_bytes=0)
    refused(policy, (folder / "a b.mp4").as_uri(), 413)
    refused(policy, "data:video/mp4;base64," + "A" * 5000, 413)


@pytest.mark.parametrize("url", ["", "clip.mp4", "/etc/passwd", "ftp://a/b", "gopher://a", "javascript:1", "file"])
def test_other_kinds_of_url_are_refused(url):
    assert "named by" in refused(MediaPolicy(), url)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "fd00:ec2::254"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_addresses_that_are_public(address):
    assert is_public(address)


class Resolver:
    """Stands for name servers: a host's answers, one after another, the last again and again."""

    def __init__(self, monkeypatch, **hosts):
        self.hosts = {name.replace("_", "."): list(answers) for name, answers in hosts.items()}
        self.asked = []
        real = socket.getaddrinfo

        def getaddrinfo(host, port, *args, **kwargs):
            name = host.decode() if isinstance(host, bytes) else host
            if name not in self.hosts:
                return real(host, port, *args, **kwargs)
            self.asked.append(name)
            answers = self.hosts[name]
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
                for one in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"])
def test_a_host_is_refused_by_any_of_its_addresses(monkeypatch, address):
    Resolver(monkeypatch, evil_example=[["93.184.215.14", address]])
    said = refused(MediaPolicy(), "https://evil.example/clip.mp4")
    assert address not in said and said == refused(MediaPolicy(), "https://no.such.host.invalid/clip.mp4")
    assert said == refused(MediaPolicy(), f"http://[{address}]/" if ":" in address else f"http://{address}/")


@pytest.mark.parametrize("url", ["http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://localhost./",
                                 "http://user@127.0.0.1/", "http:///x", "http://[::1]/", "http://0/"])  # fmt: skip
def test_other_spellings_of_this_machine(url):
    refused(MediaPolicy(), url)


class Media(BaseHTTPRequestHandler):
    """A server that means no good."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        name = self.path.strip("/").partition("/")[0]
        getattr(self, f"on_{name}", self.on_clip)()

    def answer(self, status=200, content=b"", **headers):
        self.send_response(status)
        for key, value in ({"Content_Type": "video/mp4"} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def on_clip(self):
        self.answer(content=CLIP.read_bytes())

    def on_metadata(self):
        self.answer(302, Location="http://169.254.169.254/latest/meta-data/")

    def on_file(self):
        self.answer(302, Location="file:///etc/passwd")

    def on_round(self):
        self.answer(302, Location="/round")

    def on_there(self):
        self.answer(307, Location="/clip")

    def on_page(self):
        self.answer(content=b"<html>", Content_Type="text/html; charset=utf-8")

    def on_missing(self):
        self.answer(404)

    def on_bomb(self):
        self.answer(content=gzip.compress(bytes(50 << 20)), Content_Encoding="gzip")

    def on_endless(self):
        self.answer()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def on_slow(self):
        self.answer()
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass


@contextmanager
def serving():
    with ThreadingHTTPServer(("127.0.0.1", 0), Media) as server:
        server.hosts, server.daemon_threads = [], True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def media():
    """(server, its URL by a name that may be asked, a policy that names it)."""
    with serving() as server:
        policy = MediaPolicy(domains=("localhost", "media.example"), max_bytes=1 << 20)
        yield server, f"http://localhost:{server.server_port}", policy


def test_a_host_that_is_named_may_be_private_and_no_other_may_be_asked(media):
    server, url, policy = media
    assert opened(policy, f"{url}/clip") == opened(policy, f"{url}/there") == CLIP.read_bytes()
    assert server.hosts[0] == f"localhost:{server.server_port}"
    refused(policy, f"http://127.0.0.1:{server.server_port}/clip")
    refused(policy, "https://example.org/clip.mp4")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("metadata", 400, "may be asked"),
        ("file", 400, "may be asked"),
        ("round", 400, f"more than {MAX_REDIRECTS} times"),
        ("page", 400, "no video but text/html"),
        ("missing", 400, "answers 404"),
        ("bomb", 413, "more than 1 MiB"),
        ("endless", 413, "more than 1 MiB"),
        ("slow", 400, "more than 1 s"),
    ],
)
def test_what_a_server_may_try(media, path, status, words):
    policy = replace(media[2], seconds=1.0) if path == "slow" else media[2]
    assert words in refused(policy, f"{media[1]}/{path}", status)


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch, media):
    """A name server that says something else the second time leads nowhere."""
    server, _, policy = media
    names = Resolver(monkeypatch, media_example=[["127.0.0.1"], ["192.0.2.1"]])
    assert opened(policy, f"http://media.example:{server.server_port}/clip") == CLIP.read_bytes()
    assert names.asked == ["media.example"] and server.hosts == [f"media.example:{server.server_port}"]


def test_a_host_that_nobody_is_at(media):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "cannot be fetched (ConnectError)" in refused(media[2], f"http://localhost:{port}/clip")
