"""What fits on which nodes, without a cluster."""

import pytest

from bend_ray.config.resources import Resources
from bend_ray.runtime.nodes import Node, Request, counted

SPOT = Node({"CPU": 8.0, "GPU": 1.0, "accelerator_type:A10G": 1.0}, {"market": "spot"})
HEAD = Node({"CPU": 6.0, "node:10.0.0.1": 1.0}, {"ray.io/node-id": "f"})


@pytest.mark.parametrize(
    ("resources", "room"),
    [
        (Resources(), 8),
        (Resources(cpus=2.5), 3),
        (Resources(gpus=0.25), 4),
        (Resources(gpus=0.1, cpus=0.1), 10),
        (Resources(gpus=2), 0),
        (Resources(gpus=1, accelerator="A10G"), 1),
        (Resources(gpus=1, accelerator="H100"), 0),
        (Resources(labels={"market": "spot"}), 8),
        (Resources(labels={"market": "!spot"}), 0),
        (Resources(labels={"market": "in(on-demand, spot)", "pool": "!a"}), 8),
        (Resources(labels={"pool": "a"}), 0),
    ],
)
def test_room_is_what_fits_on_one_node(resources: Resources, room: int) -> None:
    assert SPOT.room(resources) == room


def test_requests_and_nodes_are_told_in_the_same_words() -> None:
    asked = Request("seeds", Resources(gpus=0.25, labels={"market": "spot"}), 2)
    assert str(asked) == "2 x (1 CPU, 0.25 GPU, market=spot)"
    told = counted([SPOT, HEAD, SPOT])
    assert told == "2 x (8 CPU, 1 GPU, A10G, market=spot), 1 x (6 CPU, 0 GPU)"
    assert counted([]) == "no nodes"
