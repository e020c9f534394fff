"""What policies answer, checked where it is used: a policy is anybody's code, and may forget a `return`.

A wrong answer is a UserError that names policy and method. What a policy raises itself is its bug, and shows
where.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from engine.core.errors import UserError
from engine.core.policies.order import Order
from engine.core.request import Request
from engine.core.view import View


def flag(policy: object, method: str, answer: object) -> bool:
    """True or False, as it is; numpy's too."""
    if answer not in (True, False):
        raise _wrong(policy, method, answer, "True or False")
    return bool(answer)


def victim(policy: object, answer: object, running: Sequence[Request]) -> Request:
    """One of the running requests."""
    if not isinstance(answer, Request) or not any(answer is request for request in running):
        raise _wrong(policy, "choose", answer, "one of the running requests")
    return answer


def num_tokens(policy: object, answer: object, at_least: int) -> int:
    """A reservation that holds what is about to be computed."""
    if type(answer) is int and answer >= at_least:  # a look that spares nearly all the check
        return answer
    if not isinstance(answer, Integral) or answer < at_least:
        raise _wrong(policy, "tokens", answer, f"a whole number of tokens, at least {at_least}")
    return int(answer)


def reason(policy: object, answer: object) -> str | None:
    """Why a request can never enter, or None."""
    if answer is not None and not isinstance(answer, str):
        raise _wrong(policy, "never", answer, "a reason in words, or None")
    return answer


def key(order: Order, request: Request, view: View) -> tuple[float | str, ...]:
    """A place in a queue that no other request can have."""
    answer = order.key(request, view)
    if not isinstance(answer, tuple) or answer[-1:] != (request.id,):
        raise _wrong(order, "key", answer, "a tuple that ends in the request id")
    return answer


def _wrong(policy: object, method: str, answer: object, wanted: str) -> UserError:
    return UserError(f"the policy {type(policy).__name__} answers {answer!r} to {method}: must be {wanted}")
