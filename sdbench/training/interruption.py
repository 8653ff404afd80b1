"""Interrupted training: the step is finished and saved first, on all processes alike."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import distributed

from sdbench.training.processes import rank_and_local_size

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interruption:
    """While open, the first Ctrl-C, SIGTERM or SIGHUP only leaves a mark, and a Ctrl-C after it acts at once.

    SIGTERM and SIGHUP may come several times: a scheduler of jobs or a closing terminal sends them to each process, and torchrun, even
    under nohup, passes on its own. A signal that is ignored, or left to the system, stays so.
    """

    def __enter__(self) -> Self:
        self._signal: int | None = None
        self._handlers: dict[int, Callable[..., Any]] = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in signal.Signals:
                if number.name in _SIGNALS and callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._mark)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is None and self._signal is not None:  # it came after the last step
            self.act()

    def _mark(self, number: int, _: object) -> None:
        if signal.SIGINT in self._handlers:
            signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])
        if self._signal is None and rank_and_local_size()[0] == 0:
            # torchrun starts each process in a session of its own, which no Ctrl-C of a terminal reaches
            insist = b"" if distributed.is_torchelastic_launched() else b"; Ctrl-C ends at once"
            with suppress(OSError):  # the same Ctrl-C may have ended a reader, such as tee
                # Python's own stderr may be in the middle of a line
                os.write(2, b"\nending after this step, with a checkpoint" + insist + b"\n")
        self._signal = self._signal or number

    def is_marked(self, accelerator: Accelerator) -> bool:
        """Whether any process of the run was interrupted; all of them have to ask."""
        is_marked = self._signal is not None
        if accelerator.num_processes == 1:
            return is_marked
        return bool(accelerator.reduce(torch.tensor(float(is_marked), device=accelerator.device), "sum"))

    def act(self) -> None:
        """End this process as its handler of the signal does, and otherwise by `KeyboardInterrupt`.

        Raises:
            KeyboardInterrupt: the handler raises it or returns, or another process was interrupted.
        """
        if self._signal is not None:
            signal.signal(self._signal, self._handlers[self._signal])
            signal.raise_signal(self._signal)
        raise KeyboardInterrupt
