"""What facts of nodes mean: each planted fault is named with its node and what to do."""

from collections.abc import Callable
from functools import partial

import pytest

from pipelines import preflight_verdicts as verdicts
from pipelines.all_reduce import SUM_BYTES, Summing
from pipelines.node_facts import Fetched, Space
from pipelines.scouts import Answer, Node, Offset
from ssl_core.errors import UserError

HERE = Node(node_id="a" * 40, address="10.0.0.1", resources={"CPU": 2})
THERE = Node(node_id="b" * 40, address="10.0.0.2", resources={"CPU": 2})
MINE = {"python": "3.11.7", "torch": "2.13.0"}


def found(name: str, here: object, there: object) -> list[tuple[Node, dict[str, Answer]]]:
    return [
        (node, {name: value if isinstance(value, Answer) else Answer(value=value)})
        for node, value in ((HERE, here), (THERE, there))
    ]


def space(free: int, needed: int = 0) -> Space:
    return Space(folder="/disk", what=("checkpoints",), needed_bytes=needed, free_bytes=free)


def gpus(node: Node, count: int, kind: str) -> Node:
    resources = {"CPU": 8, "GPU": count, f"accelerator_type:{kind}": 1}
    return Node(node_id=node.node_id, address=node.address, resources=resources)


def test_a_silent_node_is_named() -> None:
    assert verdicts.nodes_answer(found("x", 1, 2), {}).startswith("2 node(s)")
    with pytest.raises(
        UserError, match=r"node 10.0.0.2 \(bbbbbbbb\) does not answer: no answer within 180 s: is this version"
    ):
        verdicts.nodes_answer(found("x", 1, 2)[:1], {THERE: "no answer within 180 s"})


def test_another_version_is_named() -> None:
    assert verdicts.same_versions(found("versions", MINE, MINE), MINE) == "python 3.11.7, torch 2.13.0"
    with pytest.raises(UserError, match=r"node 10.0.0.2 .* has torch 2.12.0, not 2.13.0: use one image"):
        verdicts.same_versions(found("versions", MINE, {**MINE, "torch": "2.12.0"}), MINE)


def test_a_skewed_clock_is_named_unless_the_round_trip_explains_it() -> None:
    good, late = Offset(seconds=0.002, bound=0.001), Offset(seconds=-90.0, bound=0.001)
    assert verdicts.clocks_agree([(HERE, good), (THERE, Offset(seconds=3.0, bound=2.5))])
    with pytest.raises(UserError, match=r"the clock of node 10.0.0.2 .* is -90.0 s off .*NTP"):
        verdicts.clocks_agree([(HERE, good), (THERE, late)])


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("storage", verdicts.storage_is_shared),
        ("tracking", verdicts.tracking_is_reached),
        ("data", verdicts.data_is_read),
        ("checkpoints", verdicts.store_works),
        ("disk", partial(verdicts.disk_suffices, need="CPU")),
    ],
)
def test_what_a_node_could_not_do_is_said_with_its_name(name: str, judge: Callable[[verdicts.Found], str]) -> None:
    with pytest.raises(UserError, match=r"^node 10.0.0.2 \(bbbbbbbb\): it does not work$"):
        judge(found(name, GOOD.get(name), Answer(error="it does not work")))
    assert "2 node(s)" in judge(found(name, GOOD.get(name), GOOD.get(name))) or name == "disk"


@pytest.mark.parametrize(
    "judge", [verdicts.storage_is_shared, verdicts.data_is_read, partial(verdicts.disk_suffices, need="CPU")]
)
def test_nobody_is_not_everybody(judge: Callable[[verdicts.Found], str]) -> None:
    with pytest.raises(UserError, match="no node answered"):
        judge([])
    with pytest.raises(UserError, match="no node answered"):
        verdicts.clocks_agree([])


GOOD = {"data": Fetched(num_bytes=10**7, seconds=0.1), "checkpoints": 0.2, "disk": [space(10)]}


def test_many_nodes_with_one_fault_make_one_line() -> None:
    many = [(Node(node_id=f"{n:040}", address="h", resources={}), {"data": Answer(error="no")}) for n in range(10)]
    with pytest.raises(UserError, match=r"^(node h \(00000000\): no(; )?){3} \(and 7 more\)$"):
        verdicts.data_is_read(many)


def test_a_disk_that_is_too_small_is_named_with_both_numbers() -> None:
    enough = [space(5 * 10**9, 10**9)]
    assert "1 GB, at least 5 GB are free" in verdicts.disk_suffices(found("disk", enough, enough), "CPU")
    with pytest.raises(UserError, match=r"10.0.0.2 .*: checkpoints in /disk may take 6 GB, 5 GB are free: free some"):
        verdicts.disk_suffices(found("disk", enough, [space(5 * 10**9, 6 * 10**9)]), "CPU")


def test_the_disk_of_a_node_without_workers_is_nobodys_matter() -> None:
    head = Node(node_id="c" * 40, address="10.0.0.3", resources={"CPU": 4})
    full = {"disk": Answer(value=[space(1, 10**9)])}
    enough = {"disk": Answer(value=[space(5 * 10**9, 10**9)])}
    assert verdicts.disk_suffices([(head, full), (gpus(THERE, 8, "H100"), enough)], "GPU")
    with pytest.raises(UserError, match="no node has a GPU"):
        verdicts.disk_suffices([(head, full)], "GPU")


def test_small_shared_memory_matters_between_gpus_of_a_node() -> None:
    small = space(64 << 20)
    nodes = [(gpus(HERE, 8, "H100"), {"shared memory": Answer(value=small)})]
    assert verdicts.shared_memory_suffices(nodes, "CPU")
    with pytest.raises(UserError, match=r"64 MiB free in /disk for several GPUs: give the container more"):
        verdicts.shared_memory_suffices(nodes, "GPU")
    assert verdicts.shared_memory_suffices(found("shared memory", None, None), "GPU") == "this system has no /dev/shm"


def test_gpus_that_are_missing_are_seen_before_the_run_trains_on_cpus() -> None:
    eight = [gpus(HERE, 4, "H100"), gpus(THERE, 4, "H100")]
    need, workers, said = verdicts.room_for_workers(eight, workers=(8, 8), free=lambda need: 8)
    assert (need, workers) == ("GPU", 8)
    assert "10.0.0.1 4 × H100, 10.0.0.2 4 × H100" in said
    with pytest.raises(UserError, match=r"8 GPU\(s\) for at least 16 worker\(s\) .* would train on CPUs"):
        verdicts.room_for_workers(eight, workers=(16, 16), free=lambda need: 8)
    with pytest.raises(UserError, match=r"of 8 GPU\(s\) 3 are free now"):
        verdicts.room_for_workers(eight, workers=(8, 8), free=lambda need: 3)
    mixed = [gpus(HERE, 4, "H100"), gpus(THERE, 4, "T4")]
    assert "different kinds" in verdicts.room_for_workers(mixed, workers=(8, 8), free=lambda need: 8)[2]


def test_workers_on_cpus_need_room_too() -> None:
    assert verdicts.room_for_workers([HERE, THERE], workers=(1, 8), free=lambda need: 4)[:2] == ("CPU", 4)
    with pytest.raises(UserError, match=r"the cluster has 4 CPU\(s\) for at least 5 worker\(s\): add nodes"):
        verdicts.room_for_workers([HERE, THERE], workers=(5, 5), free=lambda need: 4)


def summing(**changes: object) -> Summing:
    values: dict[str, object] = {
        "workers": 2,
        "backend": "gloo",
        "devices": ("10.0.0.1 CPU", "10.0.0.2 CPU"),
        "wrong": (),
        "latency_seconds": 0.0004,
        "seconds": SUM_BYTES / 5e8,
    }
    return Summing(**{**values, **changes})  # pyright: ignore[reportArgumentType] (made of the fields above)


def test_a_wrong_sum_is_named_with_its_device() -> None:
    said = verdicts.sums_are_right(summing(), 10**8)
    assert "right, 0.50 GB/s, 400 µs for one number; this run's gradient of 100.0 MB takes 200.0 ms" in said
    with pytest.raises(UserError, match=r"gloo gave a wrong sum on 1 of 2 workers: 1 \(10.0.0.2 CPU\): take"):
        verdicts.sums_are_right(summing(wrong=(1,)), None)
    assert "nothing to sum" in verdicts.sums_are_right(summing(workers=1), None)


def test_the_table_has_a_row_for_each_node_whatever_is_missing() -> None:
    answered = [(HERE, {"data": Answer(value=Fetched(num_bytes=10**8, seconds=1.0)), "disk": Answer(error="no")})]
    table = verdicts.node_table([*answered, (THERE, {})], [(HERE, Offset(seconds=0.001, bound=0.002))])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "+1.0 ± 2.0 ms" in lines[2]
    assert "100 MB/s" in lines[2]
    assert lines[3].startswith("| 10.0.0.2 (bbbbbbbb) | - ")
