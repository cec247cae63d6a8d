"""The command `teacher-server` itself, on a device that waits at a `Gate`: argv is the gate's folder, then its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from teacher_server.cli import main
from tests.integration.gate import Gate

if __name__ == "__main__":
    gate = Gate(Path(sys.argv.pop(1)))

    def hold(module: nn.Module, arguments: Any) -> None:
        if type(module).__name__ == "BertLayer":
            gate.hold(module, arguments)

    nn.modules.module.register_module_forward_pre_hook(hold)
    main()
