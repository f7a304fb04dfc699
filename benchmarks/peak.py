"""Memory and processor time of a process with all its children."""

import threading
import time

import psutil


class Peak:
    """Memory and processor time of this process and its children, looked at every half second."""

    def __init__(self) -> None:
        self.most = 0
        self._used: dict[int, float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def cpu_seconds(self) -> float:
        """Processor seconds so far, of processes that have ended as of their last look."""
        self.sample()
        return sum(self._used.values())

    def sample(self) -> None:
        """Look once."""
        me, total = psutil.Process(), 0
        for process in (me, *me.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._used[process.pid] = used.user + used.system
        self.most = max(self.most, total)

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            self.sample()
