"""Who reaches a server: this machine alone, or others, who then must know a password."""

import ipaddress

from suri.errors import UsageError


def is_loopback(name: str) -> bool:
    """Whether an address or name is this machine's own, for itself alone."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def refuse_open_door(what: str, server_name: str, password: str, *, share: bool = False) -> None:
    """Raise UsageError where others would reach a server that asks for no password."""
    if password or not (share or not is_loopback(server_name)):
        return
    reach = "through a public link" if share else f"on {server_name}"
    raise UsageError(
        f"the {what} would be open to everybody who reaches it {reach}",
        do="add --password WORD, or leave out --server_name" + " and --share_gradio" * share,
    )


def unusable(what: str, server_name: str, port: int, problem: Exception) -> UsageError:
    """The error for an address that cannot be listened on."""
    return UsageError(
        f"the {what} cannot be served on {server_name}:{port}",
        found=str(problem).splitlines()[0],
        do=f"choose another port: --port {port + 1}",
    )
