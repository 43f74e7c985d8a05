"""Kills one of two processes that torchrun started, and looks at what the others do, on the CPU.

    python benchmarks/elastic.py --json benchmarks/results/elastic.json

A small training on digits is run twice. Without restarts: how long after the kill the whole run has ended, and with
what words. With one restart: from which iteration it goes on, and whether it reaches its end. Keys of the JSON: commit,
seconds_to_end, words, resumed_from, finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, write_result

ITERATIONS, CHECKPOINT_PERIOD, KILLED_AT = 8, 2, 5
SETTINGS = {
    "MODEL.CONV_BACKBONE.CHANNELS": "[8, 8, 8]",
    "MODEL.DETR.HIDDEN_DIM": "16",
    "MODEL.DETR.NUM_HEADS": "2",
    "SOLVER.MAX_ITER": str(ITERATIONS),
    "SOLVER.CHECKPOINT_PERIOD": str(CHECKPOINT_PERIOD),
    "SOLVER.WARMUP_ITERS": "2",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "DATASETS.TEST": "()",
    "TEST.BEST_METRIC": "",
}
KILLER = f"""
import os, signal, time
from pathlib import Path
from detr_distill.engine.step import StepTrainer
run_step = StepTrainer.run_step
def run_or_die(trainer):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and trainer.iter == {KILLED_AT}:
        Path(__file__).with_name("killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    run_step(trainer)
StepTrainer.run_step = run_or_die
"""


def train(folder: Path, restarts: int) -> tuple[int, str, float]:
    """Exit status and output of a run that is killed, and the seconds from the kill to its end."""
    plugin = folder / "killer.py"
    plugin.write_text(KILLER)
    settings = {**SETTINGS, "PLUGINS": f"('{plugin}',)", "OUTPUT_DIR": str(folder / "run")}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(restarts), str(ROOT / "train_net.py"), "--num-gpus", "0"]
    words += ["--config-file", str(ROOT / "configs/digits/conditional_student.yaml")]
    words += [word for pair in settings.items() for word in pair]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "projects")}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout, time.time() - float((folder / "killed").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        status, output, seconds = train(Path(first), 0)
        words = re.findall(r"^(?:Ended|ConfigError:) .*$", output, re.MULTILINE)
        if not status:
            raise SystemExit(f"A run of which a process was killed ended well:\n{output}")
        status, output, _ = train(Path(second), 1)
        resumed = re.findall(r"Starting training from iteration (\d+)", output)
        result = {
            "seconds_to_end": seconds,
            "words": [line.replace(first, "") for line in words],
            "resumed_from": int(resumed[-1]),
            "finished": status == 0 and (Path(second) / "run" / "model_final.pth").is_file(),
        }
    write_result(options.json, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
