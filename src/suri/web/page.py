"""The page: chat, training and results in a browser on this machine."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Gradio reads its variables when it is imported and launched; none may open the page or report
# on its use.
for _name in [name for name in os.environ if name.startswith("GRADIO_")]:
    del os.environ[_name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402

from suri.infer.served import Served  # noqa: E402
from suri.infer.shelf import Shelf  # noqa: E402
from suri.train.jobs import Runs  # noqa: E402
from suri.web.doors import cleaning_up_on_sigterm, same_site, unusable  # noqa: E402
from suri.web.page_chat import chat_tab  # noqa: E402
from suri.web.page_results import Results, results_tab  # noqa: E402
from suri.web.page_train import Trainer, train_tab  # noqa: E402
from suri.web.page_words import Words, line  # noqa: E402

LANGUAGES = {"English": "", "中文": "zh"}
COPIES_KEPT = (3600, 24 * 3600)
"""Seconds after which Gradio looks for its copies of figures and files, and how old they may be."""


@cleaning_up_on_sigterm()
def open_page(
    served: Served, runs: Runs, *, server_name: str, port: int, share: bool, password: str
) -> None:
    """Serve the page until interrupted; with a password only those who know it get in.

    Raises UsageError when the address cannot be used.
    """
    page = build_page(served, runs)
    try:
        _, address, public = page.launch(
            server_name=server_name, server_port=port, share=share, quiet=True,
            prevent_thread_lock=True, **_settings(password),
            # A public link is asked for by another name than the one that arrives here.
            app_kwargs={} if share else same_site(server_name, password),
        )  # fmt: skip
    except OSError as problem:
        raise unusable("page", server_name, port, problem) from None
    print(f"Suri answers at {public or address}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def mount_page(app: Any, served: Served, runs: Runs, password: str) -> Callable[[], None]:
    """Show the page at all paths that `app` has no route for; gives what ends its connections."""
    gr.mount_gradio_app(app, build_page(served, runs), "/", **_settings(password))
    return lambda: app.routes[-1].app.stop_event.set()


def _settings(password: str) -> dict[str, Any]:
    """How the page looks and who may see it; nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    asks = {
        "auth": lambda _name, given: hmac.compare_digest(given.encode(), password.encode()),
        "auth_message": "Any name will do; the password is the one given with --password.",
    }
    return {
        "theme": theme, "css_paths": Path(__file__).with_name("page.css"),
        "js": Path(__file__).with_name("page.js").read_text(encoding="utf-8"),
        "max_file_size": "100mb", "footer_links": [], "run_history": False,
        "enable_monitoring": False, "ssr_mode": False, **(asks if password else {}),
    }  # fmt: skip


def build_page(served: Served, runs: Runs) -> gr.Blocks:
    """The page in each language at an address of its own."""
    shelf = Shelf(served, runs)
    page = gr.Blocks(title="Suri", analytics_enabled=False, delete_cache=COPIES_KEPT)
    for number, (language, path) in enumerate(LANGUAGES.items()):
        with page.route(language, path) if path else page:
            gr.Navbar(main_page_name=next(iter(LANGUAGES)))
            say = Words(number)
            gr.HTML(f"<h1>Suri</h1>{line(say('about', model=served.default))}", elem_id="title")
            with gr.Tab(say("chat_tab"), elem_id="chat"):
                chat_tab(page, shelf, say)
            with gr.Tab(say("train_tab"), elem_id="train"):
                train_tab(page, Trainer(served, runs, say), say)
            with gr.Tab(say("results_tab"), elem_id="results"):
                results_tab(page, Results(runs, say), say)
    # More questions than these that wait for their turn are refused.
    page.queue(max_size=16, default_concurrency_limit=1, api_open=False)
    return page
