"""The linear layers of a base model under the names that PEFT uses, and the stored weight of each.

Names in the files can differ from those in the model: a model saved without its head, a multimodal wrapper, experts stored one by
one. Transformers' own renaming decides, on a model without weights, so the names are those that ``from_pretrained`` makes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.adapters.lora import Adapter
from llm_forget.errors import AdapterError, UserError
from llm_forget.utils.digests import StoredTensor, stored_tensors, weights_digest
from llm_forget.utils.pretrained import check_counts, model_shell, read_model_config
from llm_forget.utils.weight_files import CONFIG_NAME

log = logging.getLogger("llm_forget")

FLOATS = ("F64", "F32", "BF16", "F16")
# Components that torch.compile, DDP, FSDP, activation checkpointing and DeepSpeed put into names, wherever they wrap.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# First components of a model in DDP, and of the language model in a multimodal one.
_OUTER = ("module", "language_model")


@dataclass(frozen=True)
class Layer:
    """A linear layer of the base.

    Attributes:
        shape: (out, in) of its weight.
        stored: the name of its weight in the files; None if it is tied, or converted from several tensors.
        dtype: safetensors' name of the stored dtype; None if nothing is stored.
        transposed: whether the weight is stored as (in, out), as in Conv1D; None if the model is not known.
    """

    shape: tuple[int, int]
    stored: str | None
    dtype: str | None = None
    transposed: bool | None = None


@dataclass(frozen=True)
class Misfit:
    """A layer of an adapter that the base lacks or has in another shape.

    Attributes:
        module: its name in the adapter.
        wanted: the shape (out, in) that the adapter expects.
        found: the shape in the base; None if there is no such layer.
        advice: what to do.
    """

    module: str
    wanted: tuple[int, int]
    found: tuple[int, int] | None
    advice: str


@dataclass(frozen=True)
class BaseLayers:
    """The layers of a base.

    Attributes:
        folder: its folder.
        layers: by name in the model. If the model cannot be built, by name in the files.
        modules: the names of all modules of the model; empty if it cannot be built.
    """

    folder: Path
    layers: Mapping[str, Layer]
    modules: frozenset[str] = frozenset()

    def is_transposed(self, module: str, config: Mapping[str, Any]) -> bool:
        """Whether the weight of a layer is stored as (in, out). Without a model, only the adapter's config tells."""
        transposed = self.layers[module].transposed
        return bool(config.get("fan_in_fan_out")) if transposed is None else transposed

    def misfit(self, adapter: Adapter) -> Misfit | None:
        """The first layer of an adapter that does not fit; None if all do."""
        return self.misfit_of({name: factors.shape for name, factors in adapter.modules.items()}, adapter.config)

    def misfit_of(self, shapes: Mapping[str, tuple[int, int]], config: Mapping[str, Any]) -> Misfit | None:
        """The first of these layers, with their shapes (out, in), that does not fit; None if all do."""
        absent = [module for module in shapes if module not in self.layers]
        if absent:
            return Misfit(absent[0], shapes[absent[0]], None, self._advice(absent, shapes))
        for module, shape in shapes.items():
            layer = self.layers[module]
            swapped = layer.transposed is None and config.get("fan_in_fan_out")
            found = layer.shape[::-1] if swapped else layer.shape
            # packed weights have a shape of their own
            if found != shape and layer.dtype in (*FLOATS, None):
                return Misfit(module, shape, found, "give the base that it was trained on")
        return None

    def _advice(self, absent: list[str], modules: Collection[str]) -> str:
        names = self.without_wrapper(modules)
        if names is not None:
            wrapper = _dropped(absent[0], names[absent[0]])
            return (
                f"its names carry {wrapper!r} of a wrapper, so PEFT and the servers drop its factors; `llm-forget export` writes "
                "a copy with the right names"
            )
        if len(modules) == 1:
            return "give the base that it was trained on"
        count = "none" if len(absent) == len(modules) else f"{len(modules) - len(absent)}"
        return f"{count} of its {len(modules)} layers are in the base; give the base that it was trained on"

    def without_wrapper(self, modules: Collection[str]) -> dict[str, str] | None:
        """Each name without the components of known wrappers, if all are then layers of this base; else None."""
        names = {module: self._unwrapped(module) for module in modules}
        found = {module: name for module, name in names.items() if name is not None}
        return found if len(found) == len(names) == len(set(found.values())) else None

    def _unwrapped(self, module: str) -> str | None:
        parts = [part for part in module.split(".") if part not in _WRAPPERS]
        while parts:
            name = ".".join(parts)
            if name in self.layers:
                return name
            if parts[0] not in _OUTER:
                return None
            parts = parts[1:]
        return None


def base_layers(folder: str | Path) -> BaseLayers:
    """The linear layers of a base, from its config and file headers.

    Raises:
        UserError: it is not certain which files are its weights, one is damaged, or the config describes another model.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    check_counts(folder, len(stored))
    try:
        shell = model_shell(read_model_config(folder)) if (folder / CONFIG_NAME).is_file() else None
    except UserError:  # code of its own, or from a later version
        shell = None
    if shell is None:
        return BaseLayers(folder, _stored_layers(stored))
    return BaseLayers(folder, _model_layers(shell, stored), frozenset(name for name, _ in shell.named_modules()))


def _stored_layers(stored: Mapping[str, StoredTensor]) -> dict[str, Layer]:
    """All two-dimensional weights, by their names in the files."""
    return {
        name.removesuffix(".weight"): Layer((tensor.shape[0], tensor.shape[1]), name, tensor.dtype)
        for name, tensor in stored.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def _model_layers(shell: Any, stored: Mapping[str, StoredTensor]) -> dict[str, Layer]:
    """The linear layers of a model without weights. A layer whose weight the files lack is left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    copied, converted = _parameter_names(shell, stored)
    tied = getattr(shell, "all_tied_weights_keys", None) or {}
    packed = {name.rpartition(".")[0] for name in stored}  # quantised layers store other tensors than a weight
    found: dict[str, Layer] = {}
    for name, module in shell.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        weight, transposed = f"{name}.weight", isinstance(module, Conv1D)
        shape, source = tuple(module.weight.shape), copied.get(weight)
        dtype = None
        if source is not None:
            dtype = stored[source].dtype
            shape = stored[source].shape if dtype in FLOATS and len(stored[source].shape) == 2 else shape
        elif weight not in converted and weight not in tied and name not in packed:
            continue
        found[name] = Layer((shape[1], shape[0]) if transposed else (shape[0], shape[1]), source, dtype, transposed)
    return found


def _parameter_names(shell: Any, stored: Mapping[str, StoredTensor]) -> tuple[dict[str, str], set[str]]:
    """How loading names the tensors of the files.

    Source: transformers.core_model_loading.convert_and_load_state_dict_in_model.

    Returns:
        Parameter name → tensor name, for tensors that are copied unchanged; and the names of parameters that are converted from
        one or several tensors.
    """
    state = shell.state_dict()
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # earlier versions rename nothing
        return {name: name for name in stored if name in state}, set()
    mapping = get_model_conversion_mapping(shell, None, None)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = shell.base_model_prefix
    copied: dict[str, str] = {}
    converted: set[str] = set()
    for name in stored:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, converter = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=state)
        if converter is not None:
            targets = next(entry.target_patterns for entry in converters if converter in entry.source_patterns)
            converted |= {renamed.replace(targets[0], target) for target in targets}
        elif renamed in state:
            copied[renamed] = name
    return copied, converted


def check_fit(adapter: Adapter, base: BaseLayers) -> None:
    """Check that a base has all layers of an adapter, in its shapes.

    Raises:
        AdapterError: it does not.
    """
    misfit = base.misfit(adapter)
    if misfit is not None:
        found = "has no such layer" if misfit.found is None else f"has {misfit.found} there"
        raise AdapterError(
            f"the adapter does not fit {base.folder}: it changes {misfit.module} with shape {misfit.wanted}, but the base "
            f"{found}; {misfit.advice}"
        )


def named_as_in(folder: str | Path, adapter: Adapter) -> Adapter:
    """The adapter with the names that its layers have in the base: without the components of known wrappers.

    Raises:
        AdapterError: the adapter does not fit the base.
        UserError: as ``base_layers``.
    """
    base = base_layers(folder)
    if all(module in base.layers for module in adapter.modules):
        check_fit(adapter, base)
        return adapter
    names = base.without_wrapper(adapter.modules)
    if names is not None:
        modules = {names[module]: factors for module, factors in adapter.modules.items()}
        config = {
            **adapter.config,
            "target_modules": sorted(modules),
            "exclude_modules": None,
            "layers_to_transform": None,
        }
        adapter = replace(adapter, modules=modules, config=config)
        first = next(module for module, name in names.items() if module != name)
        log.warning("note: %r of a wrapper is removed from the adapter's layer names", _dropped(first, names[first]))
    check_fit(adapter, base)
    return adapter


def check_recorded_base(adapter: Adapter) -> None:
    """Check an adapter against the base that it records, if that is a folder on this machine and has not changed.

    Raises:
        AdapterError: a name carries a wrapper's component, or the base lacks a layer.
    """
    refuse_wrapped(adapter.modules)
    folder = Path(adapter.base.name or "")
    if not adapter.base.name or not (folder / CONFIG_NAME).is_file():
        return
    try:
        base = base_layers(folder)
        if base.misfit(adapter) is None or (adapter.base.digest and adapter.base.digest != weights_digest(folder)):
            return
    except UserError:
        return  # the folder holds something else by now
    check_fit(adapter, base)


def refuse_wrapped(modules: Iterable[str]) -> None:
    """Refuse names that carry a wrapper's component, which no model has.

    Raises:
        AdapterError: a name does.
    """
    for module in modules:
        parts = module.split(".")
        wrapper = next((part for part in parts if part in _WRAPPERS), parts[0] if parts[0] == "module" else None)
        if wrapper is not None:
            raise AdapterError(
                f"the adapter's layer names carry {wrapper + '.'!r} of a wrapper ({module}), so PEFT and the servers drop its "
                "factors; `llm-forget export` with its base writes a copy with the right names"
            )


def _dropped(name: str, kept: str) -> str:
    """The components that are in one name and not in the other, for a message."""
    left = name.split(".")
    for part in kept.split("."):
        if part in left:
            left.remove(part)
    return ".".join(left) + "."
