"""Registries, and the one that StreamingDataset looks into."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from streaming import Stream, StreamingDataset
from streaming.base.registry_utils import (
    TypedRegistry,
    construct_from_registry,
    create_registry,
    import_file,
    save_registry,
)
from streaming.base.stream import streams_registry
from streaming.registry import RegistryError
from tests.dataset.samples import ids, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Named(Stream):
    """A stream with an argument of its own."""

    def __init__(self, *, label: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.label = label


@pytest.fixture(autouse=True)
def saved() -> Iterator[None]:
    """What a test registers is gone after it."""
    with save_registry():
        yield


def test_a_registered_stream_is_used(tmp_path: Path) -> None:
    """`stream_name` names a class of the registry, `stream_config` its arguments beside the dataset's own."""
    streams_registry.register("named", func=Named)
    config = {"label": "x", "repeat": 2, "local": "overridden"}
    found = StreamingDataset(
        local=write(tmp_path / "a"), stream_name="named", stream_config=config, validate_hash=None, batch_size=1
    )
    (stream,) = found.streams
    assert isinstance(stream, Named)
    assert (stream.label, stream.choose, stream.download_retry) == ("x", 16, 2)
    assert config["local"] == "overridden"  # nobody's dictionary is written into
    assert sorted(ids(found)) == sorted([*range(8), *range(8)])


def test_an_unknown_stream(tmp_path: Path) -> None:
    """A name that nobody registered is a ValueError that lists those that are."""
    with pytest.raises(ValueError, match=r"Can't find 'mine' .* Available names: stream"):
        StreamingDataset(local=write(tmp_path / "a"), stream_name="mine")


def test_registries() -> None:
    """Entries come back by name; a namespace is created once; what `save_registry` guards is undone."""
    registry: TypedRegistry[Any] = create_registry("tests", "things", generic_type=type, description="of tests")
    with pytest.raises(RegistryError, match="already exists"):
        create_registry("tests", "things", generic_type=type)
    registry.register("int", func=int)
    with save_registry():
        registry("float")(float)
        assert registry.get_all() == {"int": int, "float": float}
    assert registry.get_all() == {"int": int}
    assert "int" in registry
    assert "float" not in registry


def test_constructing() -> None:
    """Classes are instantiated; functions called or bound; checks before and after; what is neither is refused."""
    registry: TypedRegistry[Any] = create_registry("tests", "makers", generic_type=object)
    registry.register("dict", func=dict)
    registry.register("join", func=lambda **words: "".join(words.values()))
    registry.register("seven", func=7)
    assert construct_from_registry("dict", registry, kwargs={"a": 1}) == {"a": 1}
    assert construct_from_registry("join", registry, kwargs={"a": "x"})(b="y") == "xy"
    assert construct_from_registry("join", registry, partial_function=False, kwargs={"a": "x"}) == "x"
    checked: list[Any] = []
    construct_from_registry("dict", registry, True, dict, checked.append)
    assert checked == [{}]
    with pytest.raises(ValueError, match="to be of type"):
        construct_from_registry("dict", registry, pre_validation_function=list)
    with pytest.raises(ValueError, match="class or function"):
        construct_from_registry("seven", registry)


def test_importing_a_file(tmp_path: Path) -> None:
    """A file's module is given; one that fails is a RuntimeError with the cause; none is a FileNotFoundError."""
    (tmp_path / "a.py").write_text("answer = 42\n")
    (tmp_path / "b.py").write_text("1 / 0\n")
    assert import_file(tmp_path / "a.py").answer == 42
    with pytest.raises(RuntimeError) as failed:
        import_file(tmp_path / "b.py")
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    with pytest.raises(FileNotFoundError):
        import_file(tmp_path / "c.py")


def test_on_exception(tmp_path: Path) -> None:
    """A task's exception is raised again; a task that worked raises nothing."""
    found = StreamingDataset(local=write(tmp_path / "a"))
    with ThreadPoolExecutor(1) as pool:
        found.on_exception(pool.submit(int, "1"))
        with pytest.raises(ValueError, match="invalid literal"):
            found.on_exception(pool.submit(int, "x"))
