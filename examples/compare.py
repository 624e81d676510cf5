"""Train two detectors alike and see whether their difference is more than noise.

python examples/compare.py --data path/to/data --recipe laptop

Without --data they learn generated pictures for one epoch: that takes a minute.
"""

import argparse
from pathlib import Path

from detrlab.compare import compare
from detrlab.report.page import write_page

if __name__ == "__main__":  # a comparison starts processes, which may import this file
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="by default the recipe's own")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--budget", default="epochs=1", help="such as minutes=20")
    parser.add_argument("--output", type=Path, default=Path("runs/examples/compare"))
    options = parser.parse_args()

    comparison = compare(
        ["deformable-detr", "deformable-detr-two-stage"],
        recipe=options.recipe,
        data=options.data,
        budget=options.budget,
        output=options.output,
        report=print,
    )
    for row in comparison.rows:
        print(f"{row.name}: AP {row.metrics['ap']:.3f}")
    for sentence in comparison.verdicts.sentences:
        print(sentence)
    write_page(comparison, comparison.truth, comparison.data, pictures=4)
    print(comparison.report)
