"""Takes the student out of a distilling run's checkpoint; the result loads in the plain detector."""

from __future__ import annotations

import argparse

from ..checkpoint.class_names import names_in
from ..checkpoint.contents import say_average
from ..checkpoint.export import check_suffix, detecting_weights, detector_in, save_weights
from ..checkpoint.files import read_checkpoint
from ..checkpoint.writing import check_place
from ..engine.report import report_user_errors


def main(argv: list[str] | None = None) -> None:
    """The command; a user's error ends it with status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="checkpoint of a run, such as OUTPUT_DIR/model_final.pth")
    parser.add_argument("--output", required=True, help="file to write; its suffix decides: .pth or .safetensors")
    arguments = parser.parse_args(argv)
    with report_user_errors():
        check_place("--output", arguments.output)
        check_suffix(arguments.output)
        checkpoint = read_checkpoint(arguments.weights)
        weights = detector_in(checkpoint)
        say_average(weights, arguments.weights)
        weights = detecting_weights(weights)
        save_weights(weights, arguments.output, names_in(checkpoint))
        print(f"{arguments.output}: {len(weights)} tensors")


if __name__ == "__main__":
    main()
