"""A server on loopback, in this process."""

import base64
import threading
import time
from contextlib import closing, contextmanager

import pytest
import uvicorn
from openai import OpenAI

import hippo
from hippo.cli.demo import CLIP
from hippo.serve.app import make_app
from hippo.serve.media import MediaPolicy
from hippo.serve.service import Service

URL = f"data:video/mp4;base64,{base64.b64encode(CLIP.read_bytes()).decode()}"
QUESTION = "Describe the video in detail."


def asked(url=URL, question=QUESTION, **part):
    """Messages with one clip and a question."""
    clip = {"type": "video_url", "video_url": {"url": url} | part}
    return [{"role": "user", "content": [clip, {"type": "text", "text": question}]}]


@pytest.fixture(scope="package")
def llm():
    """A pair of its own: its engine has a thread."""
    with hippo.load("tiny", max_running=4) as loaded:
        yield loaded


@contextmanager
def serving(service, **options):
    """Yields the URL of a running server."""
    server = uvicorn.Server(uvicorn.Config(make_app(service, **options), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="package")
def service(llm):
    """Local clips of the demo's folder may be read."""
    with closing(Service(llm, "tiny", MediaPolicy(CLIP.parent))) as made:
        yield made


@pytest.fixture(scope="package")
def url(service):
    """Of a server without a key."""
    with serving(service) as address:
        yield address


@pytest.fixture(scope="package")
def locked(llm):
    """Of a server whose key is `sesame`."""
    with serving(Service(llm, "tiny", MediaPolicy()), keys=("other", "sesame")) as address:
        yield address


@pytest.fixture(scope="package")
def client(url):
    """OpenAI's own."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="package")
def expected(llm):
    """The library's answer to `asked()`."""
    return llm.generate(CLIP, QUESTION)
