"""Records at an address, and tables that are read while they grow; by fsspec's folder in memory."""

import uuid

import numpy as np
import pytest
from executor_cases import Fragile, evaluate, same, vae
from test_evaluate_chunks import Host, Noisy

import probgen as pg
from probgen.engine.chain_pieces import Pieces
from probgen.errors import OtherRun, SaveError
from probgen.records import places
from probgen.records.chunks import ChunkStore

fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install 'probgen[cluster]'")


@pytest.fixture
def address():
    url = f"memory://{uuid.uuid4().hex}/scores"
    yield url
    places.remove(places.at(url.rpartition("/")[0]))


@pytest.fixture(params=["local", "address"])
def place(request, tmp_path):
    return str(tmp_path / "t") if request.param == "local" else request.getfixturevalue("address")


def listed(url):
    return places.names(places.at(url.rpartition("/")[0]))


def test_an_evaluation_goes_to_an_address_and_goes_on_there(b, address):
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, [Noisy(), Host(stop_at=8)], path=address)
    assert listed(address) == ["scores.chunks"]
    last, whole = Host(), evaluate(b, [Noisy(), Host()])
    same(evaluate(b, [Noisy(), last], path=address), whole)
    assert [ids[0] for ids in last.seen] == [8, 10]
    assert listed(address) == ["scores"]
    same(pg.Evaluation.load(address), whole)
    same(evaluate(b, [Noisy(), last], path=address), whole)
    with pytest.raises(OtherRun, match=f"^{address}: was made with another seed"):
        evaluate(b, [Noisy(), Host()], path=address, seed=1)


def test_parts_at_addresses_are_merged_there(b, address):
    parts = [f"{address}/part-{i}" for i in (1, 2)]
    for i, part in enumerate(parts):
        evaluate(b, [Noisy()], path=part, shard=f"{i + 1}/2", executor=Fragile())
    merged = pg.merge(parts, measures=[Noisy()], path=f"{address}-all")
    same(merged, evaluate(b, [Noisy()]))
    same(pg.Evaluation.load(f"{address}-all"), merged)


def test_samples_and_the_state_of_chains_go_to_an_address(b, address):
    def draw(**options):
        return pg.generate(vae(), 5, seed=0, chunk_size=3, backend=b, **options)

    for found in (draw(path=address), draw(path=address)):
        np.testing.assert_array_equal(found["x"], draw()["x"])
    begun = Pieces(ChunkStore(f"{address}-chains", {"seed": 0}))
    for i in range(2):
        begun.add({"free": {"z": np.full(3, i)}}, lambda i=i: {"0": np.full(2, i)})
    again = Pieces(ChunkStore(f"{address}-chains", {"seed": 0}))
    assert len(again.parts) == 2 and again.state["0"].tolist() == [1, 1]


class Looks(Host):
    """Reads the table that grows, before each chunk but the first."""

    def __init__(self, place):
        super().__init__()
        self.place, self.tables = place, []

    def bind_measure(self, context):
        run = super().bind_measure(context)

        def looking(rows, ids):
            if ids[0]:
                self.tables.append(pg.Evaluation.load(self.place, partial=True))
            return run(rows, ids)

        return looking


def test_a_table_is_read_while_it_grows(b, place):
    """What is there, with the numbers of its data."""
    whole, looks = evaluate(b, [Noisy(), Host()]), Looks(place)
    with pytest.raises(SaveError, match="no table and no chunk of one yet"):
        pg.Evaluation.load(place, partial=True)
    evaluate(b, [Noisy(), looks], path=place)
    assert [t.num_data for t in looks.tables] == [2, 4, 6, 8, 10]
    for table in looks.tables:
        ids = table["noisy"].datum.values
        assert table.units == whole.units and "data so far" in table.warnings["noisy"][0]
        for name in whole:
            there = table[name]["estimate"].values
            np.testing.assert_array_equal(there, whole[name]["estimate"].values[ids])
    same(pg.Evaluation.load(place, partial=True), whole)


def test_what_was_sent_in_part_is_written_again(b, address):
    """Arrays without the config that says what they are, as a killed process leaves them."""
    memory, at = fsspec.core.url_to_fs(address)
    memory.makedirs(at)
    memory.pipe_file(f"{at}/table.safetensors", b"half")
    same(evaluate(b, [Host()], path=address), evaluate(b, [Host()]))


def test_damage_and_foreign_folders_are_refused_by_address(b, address):
    memory, at = fsspec.core.url_to_fs(address)
    memory.makedirs(at)
    memory.pipe_file(f"{at}/mine.txt", b"keep me")
    with pytest.raises(SaveError, match=f"^{address}: got a place that holds something else"):
        evaluate(b, [Host()], path=address)
    evaluate(b, [Host()], path=f"{address}-2")
    memory.pipe_file(f"{at}-2/table.safetensors", b"half")
    with pytest.raises(SaveError, match=f"{address}-2/table.safetensors: .*truncated or damaged"):
        pg.Evaluation.load(f"{address}-2")


def test_an_address_that_cannot_be_opened_says_so(b):
    with pytest.raises(SaveError, match="^nothing-such://a/b: cannot be read .*is installed"):
        evaluate(b, [Host()], path="nothing-such://a/b")
