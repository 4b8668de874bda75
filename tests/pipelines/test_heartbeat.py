"""Beats arrive with their age, a later attempt silences an earlier one, and the answer carries the driver's wish."""

import time

from pipelines.heartbeat import Answer, Beat, Board, Heart, LastWords
from ssl_core.train.context import Doing


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beat(rank: int = 0, *, attempt: int = 1, step: int = 0, doing: Doing = "stepping") -> Beat:
    return Beat(
        attempt=attempt,
        rank=rank,
        node="n",
        pid=7,
        step=step,
        doing=doing,
        step_seconds=None,
        placement_group=f"group {attempt}",
    )


def test_signs_have_the_age_of_the_last_beat_and_of_the_last_news() -> None:
    clock = Clock()
    board = Board(clock)
    board.beat(beat(1, step=4))
    for _ in range(3):
        clock.now += 1
        board.beat(beat(0, step=5))
    clock.now += 0.5
    news = board.news(1, stop=False)
    assert [sign.rank for sign in news.signs] == [0, 1]
    assert [(sign.silent_seconds, sign.still_seconds) for sign in news.signs] == [(0.5, 2.5), (3.5, 3.5)]
    board.beat(beat(0, step=5, doing="saving"))
    assert board.news(1, stop=False).signs[0].still_seconds == 0
    assert news.placement_group == "group 1"


def test_the_answer_is_the_drivers_wish() -> None:
    board = Board()
    board.news(1, stop=False)
    assert board.beat(beat()) == "go"
    board.news(1, stop=True)
    assert board.beat(beat()) == "stop"
    assert board.beat(beat(attempt=2)) == "go"  # the wish was for the attempt before


def test_a_zombie_of_an_earlier_attempt_is_sent_away() -> None:
    board = Board()
    board.beat(beat(0, attempt=1, step=9))
    board.say(LastWords(attempt=1, rank=0, kind="lost", said="x"))
    board.news(2, stop=False)
    assert board.beat(beat(0, attempt=1, step=10)) == "leave"
    board.say(LastWords(attempt=1, rank=1, kind="code", said="late"))
    news = board.news(2, stop=False)
    assert (news.signs, news.last_words) == ((), ())


def test_a_board_that_was_started_again_takes_what_it_hears() -> None:
    board = Board()
    assert board.beat(beat(1, attempt=3, step=8)) == "go"
    assert [sign.step for sign in board.news(3, stop=True).signs] == [8]


def test_a_heart_beats_and_hears() -> None:
    posted: list[Beat] = []
    answers: list[Answer | Exception] = ["go", ConnectionError("missed"), "stop"]
    left: list[bool] = []

    def post(one: Beat) -> Answer:
        posted.append(one)
        answer = answers.pop(0) if answers else "leave"
        if isinstance(answer, Exception):
            raise answer
        return answer

    heart = Heart(post, attempt=2, rank=1, node="n", leave=lambda: left.append(True), every_seconds=0.01)
    for step in range(4):
        heart.at(step, "stepping")
    heart.at(4, "saving")
    heart.start()
    end = time.monotonic() + 10
    while not left and time.monotonic() < end:
        time.sleep(0.005)
    heart.close()
    assert left
    assert posted[-1].doing == "done"
    assert (posted[0].attempt, posted[0].rank, posted[0].step, posted[0].doing) == (2, 1, 4, "saving")
    assert posted[0].step_seconds is not None


def test_only_steps_are_timed() -> None:
    posted: list[Beat] = []

    def post(one: Beat) -> Answer:
        posted.append(one)
        return "stop"

    heart = Heart(post, attempt=1, rank=0, node="n")
    heart.at(0, "starting")
    heart.at(1, "probing")
    heart.at(1, "stepping")
    heart.beat()
    assert posted[0].step_seconds is None
    assert heart.asked_to_stop
