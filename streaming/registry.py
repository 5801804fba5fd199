"""Registries: classes and functions by name, of this process or of installed packages (entry points).

The names and signatures are those of mosaicml-streaming's `registry_utils`. `streaming.stream.streams_registry` is the
one that the library itself looks into: `StreamingDataset(stream_name=…)` names a class in it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import contextmanager
from importlib.metadata import entry_points as installed_entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

__all__ = [
    "RegistryError",
    "TypedRegistry",
    "construct_from_registry",
    "create_registry",
    "import_file",
    "save_registry",
]

T = TypeVar("T")

# What is registered, by namespace and name: registries of one namespace are one.
_contents: dict[tuple[str, ...], dict[str, Any]] = {}


class RegistryError(ValueError):
    """A name that no registry has, or a namespace that exists already."""


class TypedRegistry(Generic[T]):
    """What is registered in a namespace.

    Args:
        namespace: The namespace, part by part.
        entry_points: Look into the entry points of installed packages first; their group is the parts of the namespace
            joined by underscores.
        description: For people.
    """

    def __init__(self, namespace: Sequence[str], entry_points: bool = False, description: str = "") -> None:
        self.namespace = tuple(namespace)
        self.entry_point_namespace = "_".join(self.namespace)
        self.entry_points = entry_points
        self.description = description

    @property
    def _own(self) -> dict[str, T]:
        return _contents.setdefault(self.namespace, {})

    def __contains__(self, name: str) -> bool:
        return name in self._own or (self.entry_points and self._entry_point(name) is not None)

    def __call__(self, name: str, func: T | None = None) -> Any:
        """`register`, for use as a decorator."""
        return self.register(name, func=func)

    def register(self, name: str, *, func: T | None = None) -> Any:
        """Register `func` under a name; without it, a decorator that does."""

        def enter(value: T) -> T:
            self._own[name] = value
            return value

        return enter if func is None else enter(func)

    def register_class(self, name: str, *, func: T | None = None) -> Any:
        """`register`, for classes."""
        return self.register(name, func=func)

    def get(self, name: str) -> T:
        """What is registered under a name. Raises RegistryError that names what there is."""
        if self.entry_points and (found := self._entry_point(name)) is not None:
            return found
        if name not in self._own:
            known = ", ".join(sorted(self.get_all())) or "none"
            raise RegistryError(
                f"Can't find '{name}' in registry {' -> '.join(self.namespace)}. Available names: {known}"
            )
        return self._own[name]

    def get_all(self) -> dict[str, T]:
        """Everything by name."""
        return {**(self.get_entry_points() if self.entry_points else {}), **self._own}

    def get_entry_point(self, name: str, default: T | None = None) -> T | None:
        """What an installed package offers under a name."""
        found = self._entry_point(name)
        return default if found is None else found

    def get_entry_points(self) -> dict[str, T]:
        """What installed packages offer."""
        return {each.name: each.load() for each in installed_entry_points(group=self.entry_point_namespace)}

    def _entry_point(self, name: str) -> T | None:
        for each in installed_entry_points(group=self.entry_point_namespace, name=name):
            found: T = each.load()
            return found
        return None


def create_registry(
    *namespace: str, generic_type: Any, entry_points: bool = False, description: str = ""
) -> TypedRegistry[Any]:
    """A new registry of things of `generic_type`. Raises RegistryError where the namespace exists."""
    if namespace in _contents:
        raise RegistryError(f"Namespace already exists: {namespace}")
    _contents[namespace] = {}
    return TypedRegistry[Any](namespace, entry_points=entry_points, description=description)


def construct_from_registry(
    name: str,
    registry: TypedRegistry[Any],
    partial_function: bool = True,
    pre_validation_function: Callable[[Any], None] | type | None = None,
    post_validation_function: Callable[[Any], None] | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """What is registered under a name, made with `kwargs`: an instance of a class, or what a function gives.

    Args:
        name: The registered name.
        registry: Where to look.
        partial_function: Give a registered function with its arguments bound, instead of calling it.
        pre_validation_function: A class that the registered class must derive from, or what is called with it.
        post_validation_function: Called with the result.
        kwargs: Keyword arguments.

    Raises:
        RegistryError: there is no such name.
        ValueError: it is neither a class nor a function, or of another class.
    """
    found = registry.get(name)
    if isinstance(pre_validation_function, type):
        if not (isinstance(found, type) and issubclass(found, pre_validation_function)):
            raise ValueError(f"Expected {name} to be of type {pre_validation_function}, but got {found!r}")
    elif pre_validation_function is not None:
        pre_validation_function(found)
    if not callable(found):
        raise ValueError(f"Expected {name} to be a class or function, but got {type(found)}")
    bound = functools.partial(found, **(kwargs or {}))
    made = bound if partial_function and not isinstance(found, type) else bound()
    if post_validation_function is not None:
        post_validation_function(made)
    return made


def import_file(loc: str | Path) -> ModuleType:
    """Run a file of Python, say one that registers streams, as a module.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: it raised; its exception is the cause.
    """
    if not os.path.exists(loc):
        raise FileNotFoundError(f"File {loc} does not exist.")
    spec = importlib.util.spec_from_file_location("python_code", str(loc))
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"File {loc} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RuntimeError(f"Error executing {loc}") from error
    return module


@contextmanager
def save_registry() -> Iterator[None]:
    """What is registered in the body of the `with` is forgotten after it."""
    saved = {namespace: dict(names) for namespace, names in _contents.items()}
    try:
        yield
    finally:
        _contents.clear()
        _contents.update(saved)
