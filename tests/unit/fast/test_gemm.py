"""The other float32 kernel is taken where it is faster and as exact, inside a step only, and left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch

from budwood.fast import gemm
from budwood.fast.gemm import GemmRoute, route, routed
from budwood.train.precision import arithmetic
from training import job

CPU = torch.device("cpu")
FASTER = GemmRoute(name="onednn", gain=2.0, errors=(2.5e-7, 4e-7), why="oneDNN takes 50% of the default's time")


def setting() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    route.cache_clear()
    yield
    route.cache_clear()
    assert setting() == "none"


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "route", lambda: FASTER)


def pretend(monkeypatch: pytest.MonkeyPatch, *, error: float, seconds: tuple[float, float]) -> None:
    """Products that err and take as long as told, (by default, by oneDNN), on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(gemm.time, "perf_counter", lambda: now[0])
    products = gemm._products()

    def pretended(product: gemm.Product) -> gemm.Product:
        def compute(dtype: torch.dtype) -> torch.Tensor:
            found, is_other = product(dtype), setting() == "bf16"
            now[0] += seconds[is_other]
            return found * (1 + error) if is_other and dtype == torch.float32 else found

        return compute

    monkeypatch.setattr(gemm, "_products", lambda: [pretended(product) for product in products])


def test_what_this_machine_has_is_found_once_and_leaves_no_trace() -> None:
    random = torch.random.get_rng_state()
    found = route()
    assert found is route()
    assert torch.equal(random, torch.random.get_rng_state()) and setting() == "none"
    assert found.name in ("onednn", "default") and found.why
    assert 1e-8 < found.errors[0] < 1e-6
    if found.name == "onednn":
        assert found.gain >= gemm.LEAST_GAIN and found.errors[1] < 3e-6
    assert (found.errors[0] == found.errors[1]) <= (found.name == "default")


def test_a_faster_kernel_that_is_as_exact_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, error=3e-7, seconds=(2.1, 1.0))
    found = route()
    assert found.name == "onednn" and found.gain == pytest.approx(2.1)
    assert found.why == "oneDNN takes 48% of the default's time"


@pytest.mark.parametrize("error", [2e-3, 1e-5, float("nan")], ids=["bfloat16", "split", "nan"])
def test_a_kernel_that_rounds_is_not(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    pretend(monkeypatch, error=error, seconds=(9.0, 1.0))
    found = route()
    assert found.name == "default" and "oneDNN rounds on this CPU: its error is" in found.why


def test_nor_is_one_that_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, error=1e-7, seconds=(1.0, 1.0))
    found = route()
    assert (found.name, found.gain) == ("default", 1.0) and "100% of the default's time" in found.why


def test_a_torch_without_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise AttributeError("matmul")

    monkeypatch.setattr(gemm, "_setting", absent)
    assert route() == GemmRoute(
        name="default", gain=1.0, errors=(0.0, 0.0), why=f"torch {torch.__version__} has no setting for it"
    )
    with routed(CPU):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).sum() == 8


def test_a_torch_without_onednn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert route().why == "torch was built without oneDNN"


@pytest.mark.usefixtures("faster")
def test_it_holds_inside_and_is_restored_whatever_happens() -> None:
    with routed(CPU):
        with routed(CPU):
            assert setting() == "bf16"
        assert setting() == "bf16"
    assert setting() == "none"
    with pytest.raises(ZeroDivisionError), routed(CPU):
        raise ZeroDivisionError
    assert setting() == "none"


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("before", ["ieee", "tf32", "bf16"])
def test_what_a_user_set_is_restored(before: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = before
    try:
        with routed(CPU):
            assert setting() == "bf16"
        assert setting() == before
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("faster")
def test_what_follows_from_another_setting_goes_on_following_it() -> None:
    torch.backends.fp32_precision = "ieee"
    try:
        with routed(CPU):
            pass
        assert setting() == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
    assert setting() == "none"


@pytest.mark.usefixtures("faster")
def test_other_devices_are_left_alone() -> None:
    for device in ("cuda", "mps"):
        with routed(torch.device(device)):
            assert setting() == "none"


@pytest.mark.usefixtures("faster")
def test_threads_that_overlap_restore_it_once() -> None:
    inside, first_left = Barrier(2), Barrier(2)
    seen = []

    def first() -> None:
        with routed(CPU):
            inside.wait(5)
        first_left.wait(5)

    thread = Thread(target=first)
    thread.start()
    with routed(CPU):
        inside.wait(5)
        first_left.wait(5)
        seen.append(setting())
    thread.join()
    assert seen == ["bf16"] and setting() == "none"


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize(("precision", "inside"), [("exact", "bf16"), ("bf16", "none")])
def test_a_step_takes_it_forward_and_backward_where_it_computes_in_float32(precision: str, inside: str) -> None:
    run = job(budget="1steps", precision=precision)
    seen = []
    parameter = next(iter(run.prepared.parameters.values()))
    parameter.register_hook(lambda gradient: seen.append(("backward", setting())))
    run.prepared.model.register_forward_hook(lambda *_: seen.append(("forward", setting())))
    run.fit()
    assert set(seen) == {("forward", inside), ("backward", inside)}
    with arithmetic(CPU, run.prepared.compute):
        assert setting() == inside
