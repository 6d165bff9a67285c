"""Tensors in files of bounded size."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from bagpiper.errors import UserError
from bagpiper.weights import safetensors as shards
from bagpiper.weights.safetensors import chunks_of, find_shards, map_tensors, plan_shards, spec_of, write_shards


def tensors():
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(33, 7),
        "half": torch.randn(5, 3).bfloat16(),
        "turned": torch.randn(6, 4).T,
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
    }


def write(folder, wanted, **options):
    specs = {name: spec_of(tensor) for name, tensor in wanted.items()}
    return write_shards(folder, "w", specs, lambda name: chunks_of([wanted[name]], specs[name].dtype), **options)


@pytest.mark.parametrize("limit", [1, 500, 1 << 30])
def test_the_library_reads_what_is_written(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 64)
    wanted = tensors()
    paths = write(tmp_path, wanted, limit=limit)
    assert (len(paths) > 1) == (limit < 1000)
    for source in ({k: v for path in paths for k, v in load_file(path).items()}, map_tensors(tmp_path, "w")):
        assert list(source) and set(source) == set(wanted)
        for name, tensor in wanted.items():
            assert source[name].dtype == tensor.dtype
            assert torch.equal(source[name], tensor), name


def test_a_file_of_the_library_is_read(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "w.safetensors")
    assert torch.equal(map_tensors(tmp_path, "w")["a"], torch.ones(3))


def test_floats_change_type_on_the_way_and_integers_do_not():
    wanted = {"float": torch.randn(9), "whole": torch.arange(3)}
    assert spec_of(wanted["float"], torch.bfloat16).dtype == torch.bfloat16
    assert spec_of(wanted["whole"], torch.bfloat16).dtype == torch.int64
    data = b"".join(chunks_of([wanted["float"]], torch.bfloat16))
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.bfloat16), wanted["float"].bfloat16())


def test_a_file_holds_the_limit_but_for_one_longer_tensor():
    specs = {
        name: spec_of(torch.zeros(count, dtype=torch.uint8)) for name, count in {"a": 4, "b": 9, "c": 3, "d": 4}.items()
    }
    assert plan_shards(specs, 7) == [["a"], ["b"], ["c", "d"]]


def test_whole_files_are_kept_and_others_written_again(tmp_path):
    wanted = tensors()
    first, second, *_ = write(tmp_path, wanted, limit=1)
    first.write_bytes(b"\1" * first.stat().st_size)  # as long as it should be
    second.write_bytes(second.read_bytes()[:-1])
    told = []
    write(tmp_path, wanted, limit=1, advance=told.append)
    assert first.read_bytes()[:1] == b"\1"
    assert torch.equal(load_file(second)["half"], wanted["half"])
    assert sum(told) == sum(spec_of(tensor).num_bytes for tensor in wanted.values())


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="w.safetensors is missing"):
        find_shards(tmp_path, "w")
    paths = write(tmp_path, tensors(), limit=1)
    paths[2].unlink()
    with pytest.raises(UserError, match="w-00003-of-00006.safetensors is missing"):
        find_shards(tmp_path, "w")
    paths = write(tmp_path, tensors(), limit=1)
    paths[0].write_bytes(paths[0].read_bytes()[:-8])
    with pytest.raises(UserError, match="w-00001-of-00006.safetensors is cut off or damaged: it should have"):
        map_tensors(tmp_path, "w")


@contextmanager
def room_for(count):
    """Files of this process get no longer: as on a full disk, a write is cut short and only the next one fails.

    For the write alone: pytest's own report may be a longer file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_at_the_last_chunk_is_noticed(tmp_path):
    (path,) = write(tmp_path / "whole", tensors())
    with pytest.raises(OSError, match="too large"), room_for(path.stat().st_size - 1):
        write(tmp_path / "cut", tensors())
    assert not list((tmp_path / "cut").iterdir())
