"""How a server's address is reached, through a proxy of the environment or not, and what is said where nobody is."""

import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from t2i_feedback.mllm.backends.endpoint import EndpointEntry

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def proxy(base_url: str) -> str:
    """The proxy that the environment names for an address; "" = none. There is none for this machine's own."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host in LOCAL_HOSTS or host.startswith("127.") or host.endswith(".localhost") or proxy_bypass(host):
        return ""
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all") or ""


def shown(proxy: str) -> str:
    """Without the user and the password before its last @; one without a scheme is spoken to as http."""
    return re.sub(r"\A([\w+.-]+://)?(?:.*@)?", lambda found: found[1] or "http://", proxy)


def nobody(entry: EndpointEntry, proxy: str, reason: str) -> str:
    """That nobody answers there, and what to do about it."""
    url = urlsplit(entry.base_url)
    said = f"nobody answers at {entry.base_url}"
    if proxy:
        return (
            f"{said} through the proxy {shown(proxy)} of the environment ({reason[:120]}); correct it, or put "
            f"{url.hostname} into NO_PROXY."
        )
    if url.hostname not in LOCAL_HOSTS:
        return f"{said}. Check the network (a proxy, a firewall) and the entry's base_url."
    port = url.port or (443 if url.scheme == "https" else 80)
    served, llama = f"serve {entry.model} --port {port}", "llama-server -m FILE.gguf --mmproj FILE.gguf"
    return (
        f"{said}. Start a server there, for example `vllm {served}`, `{llama} --port {port}` or `transformers "
        f"{served}`, or correct the entry's base_url."
    )
