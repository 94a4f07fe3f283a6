"""The modules of a transformer in whose place the engine runs, which must be what diffusers made them."""

from __future__ import annotations

import re
from typing import Any

from kontext_fast.errors import InvalidInput
from kontext_fast.optimizations.patching import defined_by_libraries, has_another_forward, require_undisturbed

RUN_BY_THE_ENGINE = ("time_text_embed", "pos_embed")
"""Called as they are, with whatever is on them."""

_BLOCK = re.compile(r"_blocks\.\d+")


def require_untouched(transformer: Any) -> None:
    if has_another_forward(transformer):
        require_undisturbed([("The transformer", transformer)], "the engine")
    if transformer._compiled_call_impl is not None:
        raise InvalidInput("The transformer is compiled already; load it again without torch.compile.")
    if not defined_by_libraries(type(transformer).forward):
        raise InvalidInput("The forward of the transformer's class was replaced; put back the one of diffusers.")


class ReplacedModules:
    """The modules of a transformer in whose place the engine runs."""

    def __init__(self, transformer: Any) -> None:
        import torch

        # Blocks of a kind are alike, so one of each stands for all of them.
        with torch.device("meta"):
            alike = type(transformer).from_config({**transformer.config, "num_layers": 1, "num_single_layers": 1})
        self._classes = {name: type(module) for name, module in alike.named_modules()}

    def require_undisturbed(self, transformer: Any) -> None:
        """Raise InvalidInput, with a remedy, unless every module is and runs what diffusers puts in its place."""
        from kontext_fast.engine.weights import require_known_processor

        modules = [
            (name, module)
            for name, module in transformer.named_modules()
            if name and not name.startswith(RUN_BY_THE_ENGINE)
        ]
        require_undisturbed(modules, "the engine")
        for name, module in modules:
            expected = self._classes.get(_BLOCK.sub("_blocks.0", name), type(module))
            if type(module) is not expected:
                raise InvalidInput(
                    f"{name} is a {type(module).__name__} in place of a {expected.__name__}, which the engine would "
                    "ignore; put back what was there, then accelerate again."
                )
            if name.endswith(".attn"):
                require_known_processor(module.processor)
                if not defined_by_libraries(type(module.processor).__call__):
                    raise InvalidInput(
                        "The attention of diffusers was replaced in its class, which the engine would ignore; put back "
                        "what was there, then accelerate again."
                    )
