"""How features are computed: the record against torch's own settings, the speed against a clock."""

import pytest
import torch
from pydantic import ValidationError

from policy.encoders.environment import EngineRecord, describe_engine
from policy.encoders.siglip2 import STAND_IN, load_backbone

CPU = torch.device("cpu")


def describe(**changed) -> EngineRecord:
    choice = {"attention": "sdpa", "compiled": False, "steps_per_pass": 1}
    return describe_engine(CPU, **choice | changed)


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
    assert EngineRecord.model_validate_json(record.model_dump_json()) == record
    assert record.torch_version == torch.__version__
    assert {name for name in record.hardware if "=" not in name} == {
        name for name, held in torch.cpu.get_capabilities().items() if held is True
    }
    assert not record.tf32


@pytest.mark.parametrize(
    "changed", [{"attention": "eager"}, {"compiled": True}, {"steps_per_pass": 2}]
)
def test_every_choice_makes_another_engine(changed):
    assert describe(**changed).digest() != describe().digest()


def test_another_number_of_threads_is_another_engine(restored_threads):
    record = describe()
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert describe().threads == record.threads + 1
    assert describe() != record


def test_kernels_held_back_are_another_engine(monkeypatch):
    record = describe()
    monkeypatch.setenv(
        "ONEDNN_MAX_CPU_ISA", "AVX2"
    )  # oneDNN has read it already; the record has not
    assert describe() != record


def test_shortened_float32_products_are_recorded(restored_precision):
    torch.set_float32_matmul_precision("medium")
    assert describe().tf32


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="colour"):
        EngineRecord.model_validate(describe().model_dump() | {"colour": "red"})


def test_encoder_says_how_it_computes():
    record = load_backbone(STAND_IN, compute_dtype="float32", attention="eager").engine
    assert record == describe(attention="eager")
