"""Where the reasoner's endpoint is, as the settings say it."""

from __future__ import annotations

from backend.chat.address import Address, Label, make_address
from backend.errors import UsageError
from backend.settings import ReasonerSettings, env_name


def setting_label(name: str) -> Label:
    """How messages speak of the setting `reasoner.<name>`."""
    return Label(f"reasoner.{name}", f"the setting reasoner.{name}, or {env_name(f'reasoner.{name}')}")


def reasoner_address(settings: ReasonerSettings) -> Address:
    """The endpoint of the settings. Raises UsageError for one that is missing or is no web address."""
    labels = {name: setting_label(name) for name in ("base_url", "model", "timeout", "max_tokens")}
    for name in ("base_url", "model"):
        if not getattr(settings, name):
            raise UsageError(f"--reasoner api needs reasoner.{name}", hint=f"set it: {labels[name].where}")
    return make_address(
        str(settings.base_url),
        str(settings.model),
        key=settings.api_key,
        timeout=settings.timeout,
        max_tokens=settings.max_tokens,
        labels={**labels, "key": setting_label("api_key")},
    )
