"""How the page's events are wired: the options that several parts of the page share."""

# Gradio's own values, not its pictures: `uploads.py` says why.
RAW = {"preprocess": False, "postprocess": False}
# One device: others queue.
ON_DEVICE = {"concurrency_id": "gpu", "concurrency_limit": 1}
# Not in the API, and without Gradio's own progress.
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
# And at once, past the queue.
QUICK = QUIET | {"queue": False}
