"""Memory limits for tests."""

import contextlib
import pathlib
import resource


@contextlib.contextmanager
def little_memory():
    """Limit this process to half a GiB more than it uses; beyond that, MemoryError is raised."""
    pages = pathlib.Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        taken = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
