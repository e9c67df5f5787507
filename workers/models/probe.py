"""A first look at a stranger's model, in a process of its own that may die of it.

llama.cpp aborts at many damaged GGUF files, and libraries fall over odd directories in many ways. What could be read
there can be read here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hetero.placement.errors import one_line
from hetero.workers.errors import ModelError
from hetero.workers.models.confined import last_words, limit_memory
from hetero.workers.models.head import is_head, read_head
from hetero.workers.models.model import read_model

_SECONDS = 120  # a vocabulary may take to load
_MEMORY = 8 << 30  # bytes of addresses a GGUF file may take beyond its own
# Every byte of UTF-8's lower half, several scripts, digits: an odd vocabulary falls over what it lacks.
_SAMPLE = "".join(map(chr, range(1, 0x370))) + "  \n\n 1234567 \u4f60\u597d \u3053\u3093 \uac00 \U0001f44d <s></s>"


def check_readable(path: Path) -> None:
    """Raise ModelError, one line, unless a model can be read."""
    command = [sys.executable, "-P", "-m", "hetero.workers.models.probe", str(path)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # llama.cpp's own debugger hangs where it fails
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        why = f"it takes more than {_SECONDS} s to read: it is damaged, or its disk is slow"
        raise ModelError(f"{path}: {why}") from None
    said = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode == 0 and said:
        if (wrong := json.loads(said)) is not None:
            raise ModelError(wrong)
        return
    words = last_words(done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
    raise ModelError(f"{path}: the process that read it died: the file is damaged, or odd ({words})")


def objection(path: Path) -> str | None:
    """Why a model cannot be read; None: it can."""
    try:
        if is_head(path):  # whose tokens are its target's
            read_head(path)
            return None
        tokenizer = read_model(path).tokenizer
        tokenizer.encode("Hello")
    except ModelError as error:
        return str(error)
    except ModuleNotFoundError:  # of an extra: told by whoever asked, who lacks it, too
        return None
    except BaseException as error:  # libraries raise what they like, a panic of Rust's is no Exception
        return f"{path}: it cannot be read ({one_line(f'{type(error).__name__}: {error}')})"
    with suppress(BaseException):  # a vocabulary may lack characters; what kills is seen by whoever asked
        tokenizer.encode(_SAMPLE)
    return None


def main() -> None:
    """Write the objection as JSON."""
    path = Path(sys.argv[1])
    if path.is_file():  # transformers maps much
        limit_memory(_MEMORY + path.stat().st_size)  # mapped whole
    print(json.dumps(objection(path)), flush=True)


if __name__ == "__main__":
    main()
