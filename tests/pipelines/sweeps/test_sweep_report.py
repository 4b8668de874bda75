"""The table, the picture and the winner's command."""

import shlex
from pathlib import Path

from PIL import Image

from pipelines.sweeps.report import draw, in_full, table
from pipelines.sweeps.space import Parameter
from tests.pipelines.sweeps.ended_trials import ended_trials

TEMPERATURE = Parameter(key="method.temperature", kind="values", values=(0.05, 0.2, 1.0))
TARGET = Parameter(key="method.target", kind="values", values=("normalised", "pixels"))


def test_a_row_a_point_and_the_winner_stands_out(tmp_path: Path) -> None:
    trials = ended_trials(
        tmp_path,
        [
            ({"method.temperature": 0.05}, (0.5, 0.52)),
            ({"method.temperature": 0.2}, (0.6, 0.61)),
            ({"method.temperature": 1.0}, (None, 0.55)),
        ],
    )
    assert table(trials, [TEMPERATURE], "knn_online").splitlines() == [
        "| method.temperature | k-NN 20, % | over seeds | runs                     | epochs |",
        "|--------------------|------------|------------|--------------------------|--------|",
        "| 0.05               | 51.00      | ± 1.41     | 2 whole                  | 16     |",
        "| 0.2                | **60.50**  | ± 0.71     | 2 whole                  | 16     |",
        "| 1                  | 55.00      |            | 1 whole, 1 stopped early | 9      |",
    ]


def test_the_winners_command_is_what_a_shell_reads(tmp_path: Path) -> None:
    trials = ended_trials(tmp_path, [({"method.temperature": 0.05}, (0.5,)), ({"method.temperature": 0.2}, (0.6,))])
    best = in_full(trials, ["data.train=[a b,c]", "train.epochs=800"], "t")
    assert best is not None
    assert best.name == "t-best-method.temperature-0.2"  # another one where an extended sweep has another winner
    assert shlex.split(best.command) == ["python", "-m", "pipelines.pretrain", *best.overrides]
    words = ["data.train=[a b,c]", "train.epochs=800", "method.temperature=0.2", f"name={best.name}"]
    assert best.overrides == words


def test_where_no_run_was_trained_to_its_end_there_is_no_winner(tmp_path: Path) -> None:
    assert in_full(ended_trials(tmp_path, [({"method.temperature": 0.2}, (None,))]), [], "x") is None


def test_the_picture_has_a_panel_for_each_key_that_varies(tmp_path: Path) -> None:
    trials = ended_trials(
        tmp_path,
        [
            ({}, (0.5, 0.52)),
            ({"method.temperature": 0.05}, (None, 0.51)),
            ({"method.target": "pixels"}, (0.4, 0.41)),
        ],
    )
    both = draw(trials, [TEMPERATURE, TARGET], "knn_online", tmp_path / "both.png")
    one = draw(trials, [TEMPERATURE], "linear", tmp_path / "one.png")
    with Image.open(both) as wide, Image.open(one) as narrow:
        assert wide.width > 1.5 * narrow.width
