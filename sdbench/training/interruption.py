"""Interrupted training: the step is finished and saved first, on all processes alike."""

import os
import signal
import threading
from typing import Self

import torch
from accelerate import Accelerator

from sdbench.training.processes import rank_and_local_size

_NOTE = b"\nfinishing this step, then saving a checkpoint; interrupt again to end at once\n"


class Interruption:
    """While open, the first SIGINT or SIGTERM only leaves a mark, and a second one acts at once.

    A signal that is ignored, or left to the system, stays so.
    """

    def __enter__(self) -> Self:
        self._signal: int | None = None
        in_main_thread = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        caught = [each for each in (signal.SIGINT, signal.SIGTERM) if in_main_thread and callable(signal.getsignal(each))]
        self._handlers = {each: signal.signal(each, self._mark) for each in caught}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._restore_handlers()
        if error is None and self._signal is not None:  # it came after the last step
            self.act()

    def _restore_handlers(self) -> None:
        for each, handler in self._handlers.items():
            signal.signal(each, handler)

    def _mark(self, number: int, _: object) -> None:
        self._restore_handlers()
        self._signal = number
        if rank_and_local_size()[0] == 0:
            os.write(2, _NOTE)  # Python's own stderr may be in the middle of a line

    def is_marked(self, accelerator: Accelerator) -> bool:
        """Whether any process of the run was interrupted; all of them have to ask."""
        is_marked = self._signal is not None
        if accelerator.num_processes == 1:
            return is_marked
        return bool(accelerator.reduce(torch.tensor(float(is_marked), device=accelerator.device), "sum"))

    def act(self) -> None:
        """End this process as the signal would have ended it.

        Raises:
            KeyboardInterrupt: as the handler of the signal does, or because another process was interrupted.
        """
        if self._signal is not None:
            signal.raise_signal(self._signal)
        raise KeyboardInterrupt
