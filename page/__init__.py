"""The Gradio page's looks and its files; the wiring is app.py's."""
