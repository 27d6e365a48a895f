"""How much memory this process uses, and a limit for what it may."""

import logging
import os
import sys

logger = logging.getLogger("django_dbq")

MIB = 2**20
# Threads of each worker beside those for tasks: heart, minder, the event loop, and the one in which that uses the ORM.
OWN_THREADS = 4
THREAD_MIB = 80  # of address space for each thread: its stack, and an arena of the C library's


def used() -> float:
    """Resident memory in MiB; where only its peak can be had (macOS), that. 0 where neither can (Windows)."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def limit_address_space(mib: float, threads: int) -> None:
    """Let an allocation fail (`MemoryError`) that goes far beyond ``mib`` at once, instead of the machine.

    Address space is more than memory: what is mapped already is left out, and each thread may reserve its own.

    Args:
        threads: that run tasks; the worker's own are counted in.
    """
    try:
        import resource

        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        logger.info("No limit of address space here: the system does not tell how much is in use")
        return
    limit = mapped + int((2 * mib + THREAD_MIB * (OWN_THREADS + threads)) * MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
