"""One hook that rewrites the tokens a module takes or gives, whatever container they travel in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@contextmanager
def hooked(module: nn.Module, fn: Edit, *, is_input: bool = False, sequence_first: bool = False) -> Iterator[None]:
    """Pass the first tensor of a module's output, or input, through `fn` while the block lasts.

    Args:
        module: any; it may give a tensor, or a tuple or list that begins with one.
        fn: maps `[B, T, d]` to its replacement; returning its argument changes nothing, bit for bit.
        is_input: rewrite what goes in.
        sequence_first: whether the module sees `[T, B, d]`; `fn` does not.
    """

    def apply(value):
        if isinstance(value, (tuple, list)):
            return type(value)([apply(value[0]), *value[1:]])
        tokens = value.transpose(0, 1) if sequence_first else value
        changed = fn(tokens)
        if changed is tokens:
            return value
        changed = changed.to(value.dtype)
        return changed.transpose(0, 1) if sequence_first else changed

    def before(_module, args, kwargs):
        if args:
            return apply(args), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: apply(kwargs[name])}

    if is_input:
        handle = module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda _m, _args, output: apply(output), prepend=True)
    try:
        yield
    finally:
        handle.remove()
