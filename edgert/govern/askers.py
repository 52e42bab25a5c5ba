"""Who on this device asks teachers, and what each of them may spend: equal shares of one byte budget.

The trainer keeps to what it is told. Programs of the user's need not, so what they ask is measured here, and refused
when it is over their share.
"""

from __future__ import annotations

import msgspec

from edgert import bus, wire
from edgert.errors import MessageError
from edgert.values import Answer, Budget

TRAINER = 0
"""Its number; those of programs are drawn, and never this."""
ACTIVE_S = 30.0
"""Who asks nothing for so long leaves its share to the others."""
BURST_S = 10.0
"""One question may be worth so many seconds of a share, and as much may be saved up."""
RETRY_MOST_S = 600.0
ANSWER_EXPIRY_S = 30
"""A question that waits longer for a teacher is about observations long gone."""
QUESTION_BYTES = 64 << 10
"""A question of this size is taken however small the share: a big observation must be askable, if rarely."""


class Account(msgspec.Struct, frozen=True):
    """What one asker has spent.

    Attributes:
        tokens_bytes: may still be spent; below zero is owed.
        at_s: when that was so.
        asked_s: its last admitted question, or None.
    """

    tokens_bytes: float
    at_s: float
    asked_s: float | None = None


class Askers(msgspec.Struct, frozen=True):
    """All who may ask.

    Attributes:
        accounts: number -> account; the trainer's from its first question on.
        owed_bytes, owed_s: by those who left, and when that was so. The device's whole budget pays it off, and until
            it is paid nobody asks a first question: nobody sheds a debt by coming anew.
    """

    accounts: dict[int, Account] = {}
    owed_bytes: float = 0.0
    owed_s: float = 0.0


def here(askers: Askers, numbers: tuple[int, ...], *, total_bytes_per_s: float, now_s: float) -> Askers:
    """Note which programs are connected.

    Args:
        askers: before.
        numbers: of all of them; the trainer is not one.
        total_bytes_per_s: the device's budget, both ways; 0 while there is no link.
        now_s: monotonic time.

    Returns:
        Accounts for these and the trainer only.

    Raises:
        nothing.
    Source:
        ours: the whole list each time, so that a lost word about one is mended by the next.
    """
    left = [number for number in askers.accounts if number != TRAINER and number not in numbers]
    debts = (max(0.0, -_tokens_bytes(askers, number, total_bytes_per_s, now_s)) for number in left)
    owed_bytes = _owed_bytes(askers, total_bytes_per_s, now_s) + sum(debts)
    accounts = {number: kept for number, kept in askers.accounts.items() if number not in left}
    accounts |= {number: Account(0.0, now_s) for number in numbers if number not in accounts}
    return Askers(accounts, owed_bytes, now_s)


def share_bytes_per_s(askers: Askers, number: int, total_bytes_per_s: float, now_s: float) -> float:
    """What one asker may spend while the others ask what they ask.

    Args:
        askers: all.
        number: whose share; one that is not known yet counts as about to ask.
        total_bytes_per_s: the device's.
        now_s: monotonic time.

    Returns:
        The total over the number of those who asked lately, itself included.

    Raises:
        nothing.
    Source:
        ours: max-min fairness among those who are active (Bertsekas & Gallager, Data Networks, 6.5.2), taking each to
        want all it can get.
    """
    others = (kept.asked_s for other, kept in askers.accounts.items() if other != number)
    return total_bytes_per_s / (1 + sum(asked_s is not None and now_s - asked_s < ACTIVE_S for asked_s in others))


def asked(askers: Askers, number: int, now_s: float) -> Askers:
    """Note a question of one that keeps its own account.

    Args:
        askers: before.
        number: who asks.
        now_s: monotonic time.

    Returns:
        It is active.

    Raises:
        nothing.
    Source:
        ours: the trainer is one of us.
    """
    kept = askers.accounts.get(number, Account(0.0, now_s))
    return _with(askers, number, msgspec.structs.replace(kept, asked_s=now_s))


def budgets(askers: Askers, budget: Budget, now_s: float) -> list[bus.Effect]:
    """Tell everyone what it may spend.

    Args:
        askers: all.
        budget: the device's.
        now_s: monotonic time.

    Returns:
        For each its own, the trainer's first.

    Raises:
        nothing.
    Source:
        ours: whoever knows its share asks what is worth most, where one that is only refused asks what comes first.
    """

    def cut(number: int) -> Budget:
        share = share_bytes_per_s(askers, number, budget.teacher_bytes_per_s, now_s)
        return msgspec.structs.replace(budget, teacher_bytes_per_s=share)

    programs = [number for number in askers.accounts if number != TRAINER]
    return [bus.Tell("trainer", cut(TRAINER)), *(bus.TellAsker(number, cut(number)) for number in programs)]


def ask(
    askers: Askers, question: bus.Asked, *, fleet: str, device: str, total_bytes_per_s: float, now_s: float
) -> tuple[Askers, bus.Publish | bus.TellAsker]:
    """Pass a program's question on, or refuse it.

    Args:
        askers: before.
        question: what, and whose.
        fleet: of this device.
        device: its name.
        total_bytes_per_s: the device's budget, both ways; 0 while there is no link.
        now_s: monotonic time.

    Returns:
        After; and what to publish, paid for, or the refusal, as a teacher would give it: `over-budget`, `too-many`,
        or `malformed-data`.

    Raises:
        nothing.
    Source:
        token bucket with debt: a question passes while nothing is owed and is then charged, so that its size is bounded
        by `BURST_S` and not by what happens to be saved; over any period an asker spends at most its share, one
        question and its answer (ours, after RFC 2697 section 3). Who comes and goes gets no credit anew, see `Askers`.
    """
    number, question_bytes = question.number, len(question.ask.payload)
    kept = askers.accounts.get(number)
    share = share_bytes_per_s(askers, number, total_bytes_per_s, now_s)
    if kept is None or not share > 0:
        return askers, _refusal(question, "over-budget", 1.0)
    most_bytes = BURST_S * share
    if question_bytes > max(QUESTION_BYTES, most_bytes):
        return askers, _refusal(question, "too-many")
    owed_bytes = _owed_bytes(askers, total_bytes_per_s, now_s)
    if kept.asked_s is None and owed_bytes > 0:
        return askers, _refusal(question, "over-budget", owed_bytes / total_bytes_per_s)
    tokens_bytes = _tokens_bytes(askers, number, total_bytes_per_s, now_s)
    if tokens_bytes < 0:
        refused = msgspec.structs.replace(kept, tokens_bytes=tokens_bytes, at_s=now_s)
        return _with(askers, number, refused), _refusal(question, "over-budget", -tokens_bytes / share)
    try:
        # Read before it is sent: what a teacher would throw away need not cross the link.
        task = wire.decode(question.ask.payload, wire.KnowAsk)[0].task
        if not wire.is_name(task):
            raise MessageError("a task is a segment of a topic")
        correlation = number.to_bytes(8, "big") + question.ask.ask_id.to_bytes(8, "big")
    except (MessageError, OverflowError):
        return askers, _refusal(question, "malformed-data")
    account = Account(tokens_bytes - question_bytes, now_s, now_s)
    return _with(askers, number, account), publish(fleet, device, task, question.ask.payload, correlation)


def publish(fleet: str, device: str, task: str, payload: bytes, correlation: bytes) -> bus.Publish:
    """A question as it goes out.

    Args:
        fleet: of this device.
        device: its name.
        task: under which teachers listen.
        payload: an encoded `wire.KnowAsk`.
        correlation: comes back with the answer: 8 bytes for the trainer's, 16 for a program's.

    Returns:
        What to publish.

    Raises:
        nothing.
    Source:
        MQTT 5.0 section 4.10 (request and response).
    """
    topic = wire.Topic(fleet, device, "know", "ask", task)
    answer_topic = str(topic._replace(type="answer"))
    return bus.Publish(
        str(topic),
        payload,
        qos=1,
        expiry_s=ANSWER_EXPIRY_S,
        correlation=correlation,
        response_topic=answer_topic,
    )


def answered(
    askers: Askers, message: bus.Received, *, total_bytes_per_s: float, now_s: float
) -> tuple[Askers, bus.Tell | bus.TellAsker | None]:
    """Pass an answer on, and charge it if a program asked.

    Args:
        askers: before.
        message: with the correlation data of its question, see `publish`.
        total_bytes_per_s: the device's budget, both ways; 0 while there is no link.
        now_s: monotonic time.

    Returns:
        After; and whom to tell, or None when that program is gone.

    Raises:
        MessageError: it has no such data.
    Source:
        ours: it was carried over the link whether or not somebody waited for it. Whose it is stands in the message, so
        that nothing need be remembered for an answer which may never come.
    """
    correlation = message.correlation or b""
    if len(correlation) not in (8, 16):
        raise MessageError("a teacher's answer without the correlation data of its question")
    number, ask_id = int.from_bytes(correlation[:-8], "big"), int.from_bytes(correlation[-8:], "big")
    if len(correlation) == 8:
        return askers, bus.Tell("trainer", Answer(ask_id, message.payload))
    if number == TRAINER:
        return askers, None
    kept = askers.accounts.get(number)
    if kept is None:
        owed_bytes = _owed_bytes(askers, total_bytes_per_s, now_s) + len(message.payload)
        return msgspec.structs.replace(askers, owed_bytes=owed_bytes, owed_s=now_s), None
    charged = msgspec.structs.replace(kept, tokens_bytes=kept.tokens_bytes - len(message.payload))
    return _with(askers, number, charged), bus.TellAsker(number, Answer(ask_id, message.payload))


def _owed_bytes(askers: Askers, total_bytes_per_s: float, now_s: float) -> float:
    # Bounded: whoever may publish could invent answers to somebody who left, and shut the door on all who come.
    most_bytes = RETRY_MOST_S * total_bytes_per_s if total_bytes_per_s > 0 else askers.owed_bytes
    return max(0.0, min(askers.owed_bytes, most_bytes) - total_bytes_per_s * max(0.0, now_s - askers.owed_s))


def _tokens_bytes(askers: Askers, number: int, total_bytes_per_s: float, now_s: float) -> float:
    kept, share = askers.accounts[number], share_bytes_per_s(askers, number, total_bytes_per_s, now_s)
    return min(BURST_S * share, kept.tokens_bytes + share * max(0.0, now_s - kept.at_s))


def _refusal(question: bus.Asked, error: str, retry_s: float = 0.0) -> bus.TellAsker:
    refusal = wire.KnowAnswer(teacher="", count=0, codec=0, data=b"", error=error, retry_s=min(retry_s, RETRY_MOST_S))
    return bus.TellAsker(question.number, Answer(question.ask.ask_id, wire.encode(refusal)))


def _with(askers: Askers, number: int, account: Account) -> Askers:
    return msgspec.structs.replace(askers, accounts={**askers.accounts, number: account})
