"""The page: chat, training and results in a browser on this machine."""

import hmac
import os
from pathlib import Path

# Gradio reads its variables when it is imported and launched; none may open the page or report
# on its use.
for _name in [name for name in os.environ if name.startswith("GRADIO_")]:
    del os.environ[_name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402

from suri.errors import UsageError  # noqa: E402
from suri.infer.served import Served  # noqa: E402
from suri.infer.shelf import Shelf  # noqa: E402
from suri.train.jobs import Runs  # noqa: E402
from suri.web.page_chat import chat_tab  # noqa: E402
from suri.web.page_results import results_tab  # noqa: E402
from suri.web.page_train import train_tab  # noqa: E402
from suri.web.page_words import Words, line  # noqa: E402

MOST_WAITING = 16
"""Questions that wait for their turn; further ones are refused."""
LARGEST_FILE = "100mb"
LANGUAGES = {"English": "", "中文": "zh"}
SYSTEM_FONT = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
# Who comes first gets the page in his browser's language, and later the one he chose.
LANGUAGE_JS = """() => {
  const zh = location.pathname.replace(/\\/$/, '').endsWith('/zh'), at = sessionStorage;
  if (!at.suri && !zh && navigator.language.startsWith('zh')) location.pathname += 'zh';
  at.suri = 'seen';
}"""


def open_page(
    served: Served, runs: Runs, *, server_name: str, port: int, share: bool, password: str
) -> None:
    """Serve the page until interrupted; with a password only those who know it get in.

    Raises UsageError when the address cannot be used.
    """
    page = build_page(served, runs)
    try:
        _, address, public = page.launch(
            server_name=server_name,
            server_port=port,
            share=share,
            auth=(lambda _name, given: hmac.compare_digest(given.encode(), password.encode()))
            if password
            else None,
            auth_message="Any name will do; the password is the one given with --password.",
            theme=_theme(),
            css=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
            js=LANGUAGE_JS,
            allowed_paths=[],
            max_file_size=LARGEST_FILE,
            state_session_capacity=200,
            root_path="",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as problem:
        raise UsageError(
            f"the page cannot be served on {server_name}:{port}",
            found=str(problem).splitlines()[0],
            do=f"choose another port: --port {port + 1}",
        ) from None
    print(f"Suri answers at {public or address}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build_page(served: Served, runs: Runs) -> gr.Blocks:
    """The page in each language at an address of its own; `launch` is left to the caller."""
    shelf = Shelf(served, runs)
    page = gr.Blocks(title="Suri", analytics_enabled=False)
    for number, (language, path) in enumerate(LANGUAGES.items()):
        with page.route(language, path) if path else page:
            gr.Navbar(main_page_name=next(iter(LANGUAGES)))
            say = Words(number)
            gr.HTML(f"<h1>Suri</h1>{line(say('about', model=served.default))}", elem_id="title")
            with gr.Tab(say("chat_tab"), elem_id="chat"):
                chat_tab(page, shelf, say)
            with gr.Tab(say("train_tab"), elem_id="train"):
                train_tab(page, shelf, runs, say)
            with gr.Tab(say("results_tab"), elem_id="results"):
                results_tab(page, runs, say)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own system: nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in SYSTEM_FONT],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "monospace")],
    )
    # White on the theme's own teal is hard to read.
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
    )
