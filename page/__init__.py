"""The Gradio page: its looks, its files, its handlers; the wiring is app.py's."""
