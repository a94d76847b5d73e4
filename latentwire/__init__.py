"""latentwire reads, writes and searches the continuous interface of a frozen language model.

from latentwire import Wire, ask

wire = Wire.from_pretrained("default")
(message,) = wire.send(["The lighthouse was finished in 1759 by John Smeaton."])
ask(wire, message, ["Who finished the lighthouse?"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentwire.artifact import push_to_hub
    from latentwire.lens.explain import explain_text, tokens_of
    from latentwire.lens.interventions import edited
    from latentwire.lens.lens import Lens
    from latentwire.lm import FrozenLM, Greedy, Prompt
    from latentwire.seek.rewards.base import Rating
    from latentwire.seek.rewards.self_verify import SelfVerify
    from latentwire.seek.search import Seek, SeekConfig
    from latentwire.tasks.base import Problem
    from latentwire.tasks.qa import ask
    from latentwire.wire.codes.message import CodeMessage
    from latentwire.wire.codes.wire import CodeWire
    from latentwire.wire.load import load_wire
    from latentwire.wire.message import Message
    from latentwire.wire.text_message import TextMessage
    from latentwire.wire.text_wire import TextWire
    from latentwire.wire.wire import Wire

__all__ = [
    "CodeMessage",
    "CodeWire",
    "FrozenLM",
    "Greedy",
    "Lens",
    "Message",
    "Problem",
    "Prompt",
    "Rating",
    "Seek",
    "SeekConfig",
    "SelfVerify",
    "TextMessage",
    "TextWire",
    "Wire",
    "ask",
    "edited",
    "explain_text",
    "load_wire",
    "push_to_hub",
    "tokens_of",
]
__version__ = "0.1.0"

# Imported when they are first asked for: models cost seconds, which a command's --help need not.
_HOMES = {
    "CodeMessage": "latentwire.wire.codes.message",
    "CodeWire": "latentwire.wire.codes.wire",
    "FrozenLM": "latentwire.lm",
    "Greedy": "latentwire.lm",
    "Lens": "latentwire.lens.lens",
    "Message": "latentwire.wire.message",
    "Problem": "latentwire.tasks.base",
    "Prompt": "latentwire.lm",
    "Rating": "latentwire.seek.rewards.base",
    "Seek": "latentwire.seek.search",
    "SeekConfig": "latentwire.seek.search",
    "SelfVerify": "latentwire.seek.rewards.self_verify",
    "TextMessage": "latentwire.wire.text_message",
    "TextWire": "latentwire.wire.text_wire",
    "Wire": "latentwire.wire.wire",
    "ask": "latentwire.tasks.qa",
    "edited": "latentwire.lens.interventions",
    "explain_text": "latentwire.lens.explain",
    "load_wire": "latentwire.wire.load",
    "push_to_hub": "latentwire.artifact",
    "tokens_of": "latentwire.lens.explain",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentwire' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
