"""Runs lmms-eval in this process, a job at a time: `evaluate.py FOLDER JOBS`.

JOBS is a JSON list of arguments of `simple_evaluate`. The results of job N are in FOLDER/N_results.json. A small server
here is the judge of video_dc499.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


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


def main(folder, jobs):
    judge = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=judge.serve_forever, daemon=True).start()
    os.environ["OPENAI_API_URL"] = f"http://127.0.0.1:{judge.server_port}/v1/chat/completions"
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(model_name="hippo")  # it reads the files of all tasks, which takes seconds
    for number, job in enumerate(jobs):
        result = simple_evaluate(model="hippo", batch_size=1, bootstrap_iters=0, task_manager=manager, **job)
        (folder / f"{number}_results.json").write_text(json.dumps(result, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
