"""The SuperGLUE benchmark (Wang et al., 2019): a task file for each of its eight tasks.

The two diagnostics are extra splits of RTE. The order of labels is that of the benchmark's copy on the
hub, so that a logit means the same whichever layout the rows come from.
"""

from pathlib import Path

SUPERGLUE = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
