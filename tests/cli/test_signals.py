import signal
import threading

import pytest

from qmath.cli.signals import unwinding
from qmath.exports.output.atomic import replacing

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(params=NAMES)
def number(request):
    """A signal whose handler is not that of this process's parent."""
    found = getattr(signal, request.param)
    before = signal.signal(found, signal.SIG_DFL)
    yield found
    signal.signal(found, before)


def test_a_signal_unwinds_and_the_handlers_come_back(tmp_path, number):
    with (
        pytest.raises((SystemExit, KeyboardInterrupt)) as ended,
        unwinding(),
        replacing(tmp_path / "a", overwrite=False),
    ):
        signal.raise_signal(number)
    assert ended.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    assert ended.type is KeyboardInterrupt or ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_is_ignored_stays_so(number):
    signal.signal(number, signal.SIG_IGN)
    with unwinding():
        signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_IGN


def test_another_thread_takes_no_signals(number):
    seen = []

    def work():
        with unwinding():
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_library_call_takes_no_signals(tmp_path, number):
    with replacing(tmp_path / "a", overwrite=False):
        assert signal.getsignal(number) == signal.SIG_DFL
