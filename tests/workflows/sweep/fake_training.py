"""What ``nnunet-kd train`` leaves behind, in a moment: ``fake_training.py BEHAVIOUR.json train ...``.

The file holds, by the fold's folder, what the run does (``finish``, ``fail``, ``hang``, ``die``, ``skip_validation``, ``linger``)
and what its distillation_settings.yaml says.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

behaviour = json.loads(pathlib.Path(sys.argv[1]).read_text())
arguments = sys.argv[2:]
fold = arguments[3]
(place,) = [
    folder
    for folder in behaviour
    if folder.startswith(os.environ["nnUNet_results"] + "/") and folder.endswith(f"fold_{fold}")
]
does, folder = behaviour[place]["does"], pathlib.Path(place)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls.txt").open("a") as file:
    file.write(" ".join(arguments) + "\n")
if "--val" not in arguments:
    (folder / "distillation_settings.yaml").write_text(json.dumps(behaviour[place]["settings"]))
    for epoch in range(2):
        lines = [f"2026-01-01 00:00:00.5: Epoch {epoch} ", f"2026-01-01 00:00:01.0: Epoch time: {epoch + 0.5} s "]
        for line in lines:
            print(line, flush=True)
        with (folder / "training_log_2026.txt").open("a") as file:
            file.write("\n".join(lines) + "\n")
        if does == "fail":
            print("RuntimeError: out of [memory]")
            sys.exit(3)
        if does in ("hang", "die"):
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
            (folder / "worker.pid").write_text(str(worker.pid))
            if does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / "hanging").touch()
            time.sleep(300)
    (folder / "checkpoint_final.pth").write_bytes(b"weights")
if does != "skip_validation":
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
if does == "linger":
    print("Validation complete", flush=True)
    time.sleep(300)
