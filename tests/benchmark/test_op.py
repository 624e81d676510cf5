import json

from detrlab.benchmark import op
from detrlab.ops import cpu


def test_every_backend_is_verified_and_timed():
    rows = op.compare_backends(64, 96, rounds=3)
    assert {row["size"] for row in rows} == {"encoder", "decoder"}
    backends = {row["backend"] for row in rows if "problem" not in row}
    assert "reference" in backends
    assert ("cpu" in backends) == (cpu.problem() is None)
    plain = json.loads(json.dumps(rows))[0]
    assert (plain["size"], plain["backend"], plain["speedup"]) == ("encoder", "reference", 1)
    assert plain["forward_ms"]["median"] > 0
    assert len(op.table(rows)) == 2 + len(rows)


def test_wrong_backends_are_named_and_not_timed(monkeypatch):
    real = cpu.attend

    def wrong(values, *rest):
        return real(values, *rest) * 1.001

    monkeypatch.setattr(cpu, "attend", wrong)
    rows = op.compare_backends(64, 96, rounds=1)
    (row,) = [each for each in rows if each["backend"] == "cpu" and each["size"] == "encoder"]
    assert "speedup" not in row
    if "self-test" not in row["problem"] and "Error" not in row["problem"]:
        assert "output differs from the plain form" in row["problem"]
    assert any("not used" in line for line in op.table(rows))


def test_encoder_sizes_are_the_published_ones():
    encoder, decoder = op.sizes_for(800, 1066).values()
    assert encoder.shapes == ((100, 134), (50, 67), (25, 34), (13, 17))
    assert decoder.queries == 300
