"""An experiment before it runs: its parts, whether they fit together, and the key of its result."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from fnabench.attention.base import Attention
from fnabench.attention.exact import Exact
from fnabench.attention.layers import LayerSelection, select_layers
from fnabench.budget import Budget, Choice
from fnabench.contract import Task
from fnabench.cost import Probe
from fnabench.data.base import Source
from fnabench.device import choose_device, choose_dtype, choose_num_processes, default_num_workers
from fnabench.environment import device_name, library_versions
from fnabench.errors import BadInputError, one_of
from fnabench.identity import digest, digest_of_code, locations, settings
from fnabench.models.base import Blueprint, Model
from fnabench.models.weights_file import hash_file
from fnabench.token_masks import TokenMasks, read_masks

CACHES = (None, "decoded")


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """A task on a data set with a model and an attention variant."""

    task: Task
    source: Source
    model: Model
    attention: Attention
    probe: Probe
    layers: LayerSelection
    """Which blocks the variant replaces; "all" for exact attention, since there the choice changes nothing."""
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    num_workers: int
    seed: int
    names: dict[str, str]
    """The chosen name of each part, by its kind."""
    config: dict[str, Any]
    """The resolved configuration; only where things lie stands as it was written."""
    budget: Budget | None = None
    """Chooses the landmarks and the layers before the experiment runs."""
    choice: Choice | None = None
    """What the budget came to."""
    num_processes: int = 1
    """Of the loader, see Loader.through."""
    cache: str | None = None
    """One of CACHES: what is kept of images on disk; no part of the identity, since they are the same to the bit."""

    @classmethod
    def of(cls, cfg: DictConfig, choices: Mapping[str, str]) -> Experiment:
        """The experiment that a composed configuration describes; nothing is loaded yet."""
        described = deepcopy(cfg)
        with open_dict(described):
            cache = described.data.pop("cache", None)
        if cache not in CACHES:
            raise one_of("data.cache", cache, ("null", *CACHES[1:]))
        parts = {
            name: instantiate(described[name], _convert_="all")
            for name in ("task", "data", "model", "attention", "probe")
        }
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        as_written: Any = OmegaConf.to_container(cfg, resolve=False)
        for part in ("task", "data", "model"):  # a record tells no folder of the machine that the user did not type
            written = as_written[part]
            config[part] |= {name: written[name] for name in locations(parts[part]) if name in written}
        attention, device = parts["attention"], choose_device(cfg.device)
        if cfg.loader.batch_size < 1 or (cfg.loader.num_workers or 0) < 0:
            raise BadInputError(f"loader={dict(cfg.loader)}: batch_size must be at least 1 and num_workers at least 0")
        budget = instantiate(cfg.budget, _convert_="all") or None
        return cls(
            task=parts["task"],
            source=parts["data"],
            model=parts["model"],
            attention=attention,
            probe=parts["probe"],
            layers="all" if attention.is_exact or budget else config["layers"],
            device=device,
            dtype=choose_dtype(cfg.dtype),
            batch_size=cfg.loader.batch_size,
            num_workers=default_num_workers(device) if cfg.loader.num_workers is None else cfg.loader.num_workers,
            num_processes=choose_num_processes(cfg.loader.num_processes, device, cfg.loader.num_workers),
            seed=cfg.seed,
            names={kind: choices[kind] for kind in ("task", "data", "model", "attention")},
            config=config,
            budget=budget,
            cache=cache,
        )

    @classmethod
    def again(cls, config: Mapping[str, Any], names: Mapping[str, str]) -> Experiment:
        """The experiment whose record holds this configuration."""
        return cls.of(OmegaConf.create(dict(config)), names)

    @property
    def is_twin(self) -> bool:
        """Whether this is exact attention through the seam, which every other run is compared with."""
        return type(self.attention) is Exact

    @cached_property
    def twin(self) -> Experiment:
        """The same experiment with exact attention."""
        if self.is_twin:
            return self
        exact = Exact()
        config = {**self.config, "attention": {"_target_": settings(exact)["class"]}, "layers": "all", "budget": None}
        names = {**self.names, "attention": "exact"}
        return replace(self, attention=exact, layers="all", names=names, config=config, budget=None, choice=None)

    def chosen(self, choice: Choice) -> Experiment:
        """The experiment with what its budget came to."""
        attention: Any = self.attention
        return replace(
            self,
            attention=replace(attention, num_landmarks=choice.num_landmarks),
            layers=choice.layers,
            choice=choice,
        )

    def settled(self) -> Experiment:
        """The same with a variant whose blocks are numbers of this model's."""
        return replace(self, attention=self.attention.in_model(len(self.blueprint.shapes)))

    def check(self) -> None:
        """Refuse what cannot be run, before weights or images are read."""
        self.task.check(self.model, self.blueprint, self.source)
        if self.budget:
            self.budget.check(self.attention)
        for index in self.layer_indices:
            self.attention.check(self.blueprint.shapes[index])
        self.attention.check_layers(self.layer_indices)
        self.attention.check_model(self.blueprint.shapes)
        self.model.check()
        self.source.check()
        if self.is_calibrated:
            self.calibration_images.check()
        if self.masks is not None:
            self.masks.check(self.identity, self.blueprint.image_size)

    @cached_property
    def blueprint(self) -> Blueprint:
        """The sizes of the model."""
        return self.model.blueprint()

    @property
    def layer_indices(self) -> list[int]:
        """The blocks whose attention is replaced."""
        return select_layers(self.layers, *self.blueprint.depths)

    @cached_property
    def training_split(self) -> Source | None:
        """What the task fits on; None where it fits nothing."""
        return self.source.training_split() if self.task.fits(self.model) else None

    @cached_property
    def calibration_images(self) -> Source:
        """Where a variant or a budget finds images to look at: the training split, or the data itself; never at
        labels."""
        training = self.source.training_split()
        return self.source if training is None else training  # whether it is empty is not asked: that reads it

    @property
    def is_calibrated(self) -> bool:
        """Whether it looks at any."""
        return self.budget is not None or self.attention.num_calibration_images > 0

    @cached_property
    def masks(self) -> TokenMasks | None:
        """The stored masks that the variant takes; None where it takes none."""
        return read_masks(self.attention.masks_folder) if self.attention.masks_folder else None

    @cached_property
    def fit_key(self) -> str:
        """Hash of everything that changes what the task fits: the attention variant is no part of it."""
        names = ("task", "fitted_on", "model", "batch_size", "dtype", "device", "seed", "libraries", "code")
        return digest({name: self.twin.identity[name] for name in names})

    @cached_property
    def text_key(self) -> str:
        """Hash of everything but the texts themselves that changes text features: the attention variant is no part."""
        names = ("model", "dtype", "device", "libraries", "code")
        return digest({name: self.twin.identity[name] for name in names})

    @cached_property
    def transform_key(self) -> str:
        """Hash of everything that the model's transforms depend on: the attention variant is no part."""
        return digest({name: self.twin.identity[name] for name in ("model", "libraries", "code")})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the result."""
        return {
            "task": settings(self.task) | ({"weights": weights} if (weights := self.task.weights_hash()) else {}),
            "data": self.source.fingerprint(),
            "fitted_on": self.training_split.fingerprint() if self.training_split else None,
            "fitted_file": hash_file(path) if (path := self.task.fitted_file) else None,
            "calibrated_on": self.calibration_images.fingerprint() if self.is_calibrated else None,
            "model": settings(self.model) | {"weights": self.model.weights_hash()},
            "attention": settings(self.attention),
            "masks": self.masks.record.key if self.masks else None,
            "layers": self.layer_indices,
            **({"budget": settings(self.budget)} if self.budget else {}),
            **({"choice": asdict(self.choice)} if self.choice else {}),
            "probe": settings(self.probe),
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": device_name(self.device),
            "seed": self.seed,
            "libraries": library_versions(),
            "code": digest_of_code((self.task, self.source, self.model, self.attention)),
        }

    @cached_property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)
