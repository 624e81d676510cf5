import os
import signal
import time

import pytest

from detrlab.training.signals import listening


@pytest.fixture
def heard():
    """What arrives at the handlers that were set before."""
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


def test_the_second_signal_goes_to_whom_it_went_before(heard):
    with listening() as request:
        assert not request
        send(signal.SIGTERM)
        assert request.name == "SIGTERM"
        assert heard == []
        send(signal.SIGINT)
        assert heard == ["SIGINT"]
    send(signal.SIGTERM)
    assert heard == ["SIGINT", "SIGTERM"]


def test_what_a_launcher_passes_on_is_not_a_second_signal(heard):
    with listening(echo=0.3) as request:
        send(signal.SIGINT)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert request.name == "SIGINT"
        assert heard == []
        time.sleep(0.35)
        send(signal.SIGTERM)
        assert heard == ["SIGTERM"]
