"""Runs lmms-eval's tasks in this process, once for each set of model arguments: `evaluate.py OUT ARGS TASKS LIMIT ...`.

Writes what tests look at to OUT, as JSON. A small server here is the judge of video_dc499.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Judge(BaseHTTPRequestHandler):
    """Gives every answer the score 3."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"message": {"content": "{'score': 3}"}}
        body = json.dumps({"model": "judge", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on stderr."""


def main(out, jobs):
    judge = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=judge.serve_forever, daemon=True).start()
    os.environ["OPENAI_API_URL"] = f"http://127.0.0.1:{judge.server_port}/v1/chat/completions"
    from lmms_eval.evaluator import simple_evaluate

    found = []
    for job in jobs:
        result = simple_evaluate(model="hippo", batch_size=1, bootstrap_iters=0, **job)
        samples = {
            task: [[one["filtered_resps"], one["token_counts"]] for one in ones]
            for task, ones in result["samples"].items()
        }
        kept = {name: result.get(name) for name in ("results", "config", "throughput", "group_subtasks")}
        found.append({"answers": samples} | kept)
    with open(out, "w") as file:
        json.dump(found, file, default=str)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
