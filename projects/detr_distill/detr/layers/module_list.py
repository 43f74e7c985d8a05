"""torch's list of modules, whose entries the type checker knows: ``layers: ModuleList[Layer]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Generic, TypeVar, overload

    Entry = TypeVar("Entry", bound=nn.Module)

    class ModuleList(nn.ModuleList, Generic[Entry]):
        """What a type checker sees in place of torch's."""

        def __init__(self, modules: Iterable[Entry] = ()) -> None: ...
        def __iter__(self) -> Iterator[Entry]: ...
        @overload
        def __getitem__(self, idx: slice) -> ModuleList[Entry]: ...
        @overload
        def __getitem__(self, idx: int) -> Entry: ...
        def __getitem__(self, idx: int | slice) -> Entry | ModuleList[Entry]: ...
else:
    ModuleList = nn.ModuleList
