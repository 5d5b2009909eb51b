"""The page's frame: its head, its theme, its style sheets. Nothing here is loaded from another host."""

from pathlib import Path

import gradio as gr

from infu.request import GenerationRequest
from page.texts import LANGUAGES, label

TITLE = "InfiniteYou"
PROMPT = "Portrait, 4K, high quality, cinematic"  # the released Space's
DEFAULTS = GenerationRequest(prompt=PROMPT, seed=0)
CSS = sorted(Path(__file__).parent.glob("*.css"))

# Gradio writes English into the document, whatever the language it shows: a screen reader would read German
# with an English voice.
HEAD = f"""<script>
{{
  const code = navigator.language.slice(0, 2);
  document.documentElement.lang = {[*LANGUAGES]}.includes(code) ? code : "en";
}}
</script>"""


def draw_head(notice: str) -> gr.HTML:
    """Title, and the notice under it."""
    gr.HTML(f"<h1>{TITLE}</h1><p>{label('lead')}</p>", elem_id="head")
    return gr.HTML(notice, elem_id="notice")


def make_theme() -> gr.themes.Base:
    """Quiet greys, one accent, the system's own fonts."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_600",  # 7 : 1
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",  # white on it is 5.5 : 1
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        color_accent="*primary_600",
        slider_color="*primary_600",
        block_border_width="1px",
    )
