"""Commands that end with the process that began them: what outlived a killed study would write into the next.

Ground layer. Starts nothing itself: it gives the words of a command and the environment of a notebook.
"""

import os
import sys
from collections.abc import Sequence

# One thread per notebook: the order of a sum, and with it the last digits of a result, would otherwise
# depend on the number of cores. Jobs side by side use the cores better anyway.
ENVIRONMENT = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")},
    "VECLIB_MAXIMUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
# A module, and beside it a watch that ends it and all it began when its parent is gone.
WATCHED = """
import os, psutil, runpy, sys, threading, time
module, parent, variable = sys.argv[1], int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]
if variable:
    os.environ[variable] = str(os.getpid())
def watch():
    while os.getppid() == parent:
        time.sleep(0.2)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def watched_command(module: str, arguments: Sequence[str], variable: str = "") -> list[str]:
    """`python -m module arguments` that ends with this process.

    With `variable` the command's own number stands there for whatever it begins.
    """
    return [sys.executable, "-c", WATCHED, module, str(os.getpid()), variable, *arguments]
