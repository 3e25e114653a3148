"""How features are computed: the record against torch's own settings."""

import platform
import resource

import pytest
import torch
import transformers
from pydantic import ValidationError

from policy.encoders.environment import ComputeEnvironment, describe_environment
from policy.encoders.stand_in import NAME as STAND_IN
from tests.tower import load

CPU = torch.device("cpu")


def describe(**changed) -> ComputeEnvironment:
    choice = {"library": "sums 1", "compiled": False, "images_per_pass": 3, "place_matters": False}
    return describe_environment(CPU, **choice | changed)


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def restored_precision():
    yield
    torch.set_float32_matmul_precision("highest")


def test_record_is_the_same_twice_and_survives_json():
    record = describe()
    assert record == describe()
    assert record.digest() == describe().digest()
    assert ComputeEnvironment.model_validate_json(record.model_dump_json()) == record
    assert record.torch_version == torch.__version__
    assert {name for name in record.hardware if "=" not in name} == {
        name for name, held in torch.cpu.get_capabilities().items() if held is True
    }
    assert not record.tf32


@pytest.mark.parametrize(
    "changed",
    [{"library": "sums 2"}, {"compiled": True}, {"images_per_pass": 2}, {"place_matters": True}],
)
def test_every_choice_makes_another_environment(changed):
    assert describe(**changed).digest() != describe().digest()


def test_another_number_of_threads_is_another_environment(restored_threads):
    record = describe()
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert describe().threads == record.threads + 1
    assert describe() != record


def test_kernels_held_back_are_another_environment(monkeypatch):
    record = describe()
    monkeypatch.setenv(
        "ONEDNN_MAX_CPU_ISA", "AVX2"
    )  # oneDNN has read it already; the record has not
    assert describe() != record


def test_shortened_float32_products_are_recorded(restored_precision):
    torch.set_float32_matmul_precision("medium")
    assert describe().tf32


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="color"):
        ComputeEnvironment.model_validate(describe().model_dump() | {"color": "red"})


def test_an_encoder_describes_its_environment():
    record = load(STAND_IN, compute_dtype="float32").environment
    assert record == describe(library=f"transformers {transformers.__version__}, sdpa")


def test_differences_name_each_field_with_both_values():
    assert describe(images_per_pass=8).differences(describe()) == ["images_per_pass was 8, is 3"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's own memory")
def test_an_encoder_on_the_cpu_reuses_freed_memory():
    """The kernel counts the pages that it clears: 16,384 for each of these tensors without it."""
    load(STAND_IN)
    cleared = []
    for _ in range(32):  # the first few find other objects in their way
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(cleared[-8:]) < 1_000
