import os
import signal
import time

import pytest

from detrlab.training.signals import stop_requests


@pytest.fixture
def received():
    """The signals that reach the previous handlers."""
    names = []
    before = {
        number: signal.signal(number, lambda number, _: names.append(signal.Signals(number).name))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    yield names
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two instructions


def test_the_second_signal_goes_to_the_previous_handler(received):
    with stop_requests() as request:
        assert not request
        send(signal.SIGTERM)
        assert request.name == "SIGTERM"
        assert received == []
        send(signal.SIGINT)
        assert received == ["SIGINT"]
    send(signal.SIGTERM)
    assert received == ["SIGINT", "SIGTERM"]


def test_a_repeated_signal_of_a_launcher_is_not_a_second_one(received):
    with stop_requests(repeats=0.3) as request:
        send(signal.SIGINT)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert request.name == "SIGINT"
        assert received == []
        time.sleep(0.35)
        send(signal.SIGTERM)
        assert received == ["SIGTERM"]
