"""`hippo serve`: an OpenAI-compatible server for video, on `hippo.engine`."""
