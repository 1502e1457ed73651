"""What a LoRA file says about a Lens transformer, told from its header: which tensor each key changes, by what factor.

Key families, as the published and the community's files have them:

    bare PEFT        transformer_blocks.0.attn.img_qkv.lora_A.weight      the header's lora_adapter_metadata
    diffusers, PEFT  transformer.…  base_model.model.…  .lora_A.default.  the same, or adapter_config.json beside it
    ComfyUI          diffusion_model.….lora_A.weight, .diff, .diff_b      the header's rank and alpha
    kohya            lora_unet_transformer_blocks_0_attn_to_out_0.lora_down.weight, or lora_transformer_…     .alpha
    LyCORIS          .lokr_w1, .lokr_w2_a, …  .hada_w1_a, …  .dora_scale  .alpha, or the header's rank and alpha

The last column says where each keeps its scale (`lora_scales`). Standard library only: whether a LoRA fits a model is
known before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from backend.checkpoints import detect
from backend.checkpoints.headers import FileFormat, FileHeader, TensorHeader, read_header
from backend.checkpoints.packing_plan import BLOCK_LINEAR
from backend.errors import CheckpointError
from backend.lora.scales import Scales

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # public tensor name of the network -> shape
SHOWN = 3  # names listed in one message

_DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT = re.compile(r"lora_te[0-9]*_|lora_text_encoder_|(base_model\.model\.)?(text_encoders?|text_model|te)[._0-9]")
# Stored key -> role. PEFT puts the adapter's name between lora_A and weight while it trains.
_ROLES: tuple[tuple[re.Pattern[str], Mapping[str, str]], ...] = (
    (re.compile(r"\.lora_([AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?$"), {"A": "down", "B": "up"}),
    (re.compile(r"\.lora_(down|up)(?:\.weight)?$"), {"down": "down", "up": "up"}),
    (re.compile(r"[._]lora\.(down|up)\.weight$"), {"down": "down", "up": "up"}),
    (re.compile(r"\.(lora_B)(?:\.[^.]+)?\.bias$"), {"lora_B": "up_bias"}),
    (re.compile(r"\.(lokr_w[12](?:_[ab])?)(?:\.default)?$"), {}),
    (re.compile(r"\.(hada_w[12]_[ab])(?:\.default)?$"), {}),
    (re.compile(r"\.(lora_mid|lokr_t[12]|hada_t[12])(?:\.weight)?$"), {}),
    (re.compile(r"\.(lora_magnitude_vector)(?:\.[^.]+){0,2}$"), {"lora_magnitude_vector": "magnitude"}),
    (re.compile(r"\.(dora_scale)$"), {"dora_scale": "magnitude"}),
    (re.compile(r"\.(alpha|diff|diff_b)$"), {}),
)
_TUCKER = ("lora_mid", "lokr_t1", "lokr_t2", "hada_t1", "hada_t2")


class UpdateKind(StrEnum):
    """How the change of a tensor is written down."""

    low_rank = "low-rank"  # up (O, R) @ down (R, I)
    lokr = "LoKr"  # Kronecker product of w1 and w2, each whole or a product a @ b
    loha = "LoHa"  # (w1_a @ w1_b) * (w2_a @ w2_b), element by element
    full = "full delta"  # the difference itself


@dataclass(frozen=True, kw_only=True)
class Update:
    """The change of one tensor of the network; O outputs, I inputs, R rank."""

    target: str  # public tensor name
    kind: UpdateKind
    stored: Mapping[str, str]  # role -> stored name
    factor: float  # the file's own scale: alpha / rank, or 1
    magnitude: str | None = None  # stored name of DoRA's magnitudes; None: not DoRA

    @property
    def can_be_live(self) -> bool:
        """True where it can run beside a quantised linear instead of inside it."""
        return self.kind is UpdateKind.low_rank and self.magnitude is None and self.quantisable

    @property
    def quantisable(self) -> bool:
        """True where the changed weight is one that quantisation acts on."""
        return BLOCK_LINEAR.fullmatch(self.target) is not None


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    path: Path
    updates: tuple[Update, ...]
    unmatched: tuple[str, ...]  # stored keys that mean nothing to this network
    text_encoder: tuple[str, ...]  # stored keys about a text encoder, which no LoRA changes here


def read_lora(path: Path, shapes: Shapes) -> LoraFile:
    """Every update of a file, checked against the shapes of the network it shall change.

    Raises CheckpointError: no safetensors file, no key that fits, half a pair, a shape that does not fit, a kind that
    is not supported.
    """
    header = read_header(path)
    if header.format is not FileFormat.safetensors:
        raise CheckpointError(f"{path}: a {header.format} file", hint="lens reads LoRAs from .safetensors files")
    modules, flat = _module_names(shapes)
    groups: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    text: list[str] = []
    for name in header.tensors:
        if _TEXT.match(name):
            text.append(name)
            continue
        split = _split(name)
        if split is None or _public(split[0], modules, flat) is None:
            unmatched.append(name)
            continue
        group = groups.setdefault(split[0], {})
        if split[1] in group:
            raise CheckpointError(f"{path}: {name!r} and {group[split[1]]!r} say the same thing twice")
        group[split[1]] = name
    if not groups:
        raise _nothing_fits(path, list(header.tensors), unmatched, text)
    scales = Scales(header)
    updates = [
        update
        for stored, roles in groups.items()
        for update in _updates(header, cast("str", _public(stored, modules, flat)), roles, shapes, scales)
    ]
    return LoraFile(path=path, updates=tuple(updates), unmatched=tuple(unmatched), text_encoder=tuple(text))


def listed(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")


def _nothing_fits(path: Path, names: list[str], unmatched: list[str], text: list[str]) -> CheckpointError:
    if detect.is_transformer(names):
        return CheckpointError(f"{path}: a whole Lens transformer, not a LoRA", hint="give it as the model: -m PATH")
    hint = "a LoRA of another model? Its keys name blocks such as transformer_blocks.0.attn.img_qkv"
    if text and not unmatched:
        hint = "it changes a text encoder only; lens applies LoRAs to the transformer"
    shown = listed(unmatched or text or ["it has none"])
    return CheckpointError(f"{path}: no key fits a Lens transformer: {shown}", hint=hint)


# Names ---------------------------------------------------------------------------------------------------------------


def flat_name(module: str) -> str:
    """kohya's form of a module's name: img_mod.1 -> img_mod_1."""
    return module.replace(".", "_")


def _module_names(shapes: Shapes) -> tuple[frozenset[str], dict[str, str]]:
    modules = frozenset(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
    flat = {flat_name(module): module for module in modules}
    assert len(flat) == len(modules), "two modules have the same name without dots"
    return modules, flat


def _split(name: str) -> tuple[str, str] | None:
    """(stored module, role) of a stored key; None for a key of no known family."""
    for pattern, roles in _ROLES:
        found = pattern.search(name)
        if found:
            return name[: found.start()], roles.get(found[1], found[1])
    return None


def _public(stored: str, modules: Iterable[str], flat: Mapping[str, str]) -> str | None:
    """The public name of a stored module, whatever family wrote it."""
    bare = stored
    while prefix := next((p for p in _DOTTED if bare.startswith(p)), None):
        bare = bare.removeprefix(prefix)
    if bare in modules:
        return bare
    prefix = next((p for p in _FLAT if bare.startswith(p)), None)
    return flat.get(bare.removeprefix(prefix)) if prefix else None


# Updates -------------------------------------------------------------------------------------------------------------


def _updates(
    header: FileHeader, module: str, roles: Mapping[str, str], shapes: Shapes, scales: Scales
) -> Iterable[Update]:
    """The updates that the keys of one stored module make, each checked."""
    bad = next((roles[role] for role in _TUCKER if role in roles), None)
    if bad is not None:
        raise CheckpointError(f"{header.path}: {bad!r}: a Tucker decomposition, which is for convolutions")
    parts = _Parts(header, module, roles, shapes[f"{module}.weight"])
    weight, magnitude, alpha = f"{module}.weight", roles.get("magnitude"), roles.get("alpha")
    made: list[Update] = []

    def add(kind: UpdateKind, names: Sequence[str], rank: int | None, *, scaled: bool = True) -> None:
        factor = scales.factor(module, alpha, rank) if scaled else 1.0
        stored = {role: roles[role] for role in names}
        made.append(Update(target=weight, kind=kind, stored=stored, factor=factor, magnitude=magnitude))

    if "down" in roles or "up" in roles:
        add(UpdateKind.low_rank, ("down", "up"), parts.low_rank())
    if any(role.startswith("lokr") for role in roles):
        add(UpdateKind.lokr, *parts.lokr())
    if any(role.startswith("hada") for role in roles):
        add(UpdateKind.loha, *parts.loha())
    if "diff" in roles:
        parts.expect("diff", parts.weight)
        add(UpdateKind.full, ("diff",), None, scaled=False)
    if magnitude is not None:
        parts.magnitude(len(made))
    for role in ("diff_b", "up_bias"):
        if role in roles:
            if f"{module}.bias" not in shapes:
                raise CheckpointError(f"{header.path}: {roles[role]!r} changes a bias, but {module!r} has none")
            parts.expect(role, shapes[f"{module}.bias"])
            factor = made[0].factor if role == "up_bias" and made else 1.0
            made.append(
                Update(target=f"{module}.bias", kind=UpdateKind.full, stored={"diff": roles[role]}, factor=factor)
            )
    if not made:
        raise CheckpointError(f"{header.path}: {next(iter(roles.values()))!r} stands alone: nothing it belongs to")
    return made


@dataclass(frozen=True)
class _Parts:
    """The stored tensors of one module and the checks of their shapes against its weight's."""

    header: FileHeader
    module: str
    roles: Mapping[str, str]
    weight: Shape

    def low_rank(self) -> int:
        """The rank."""
        down, up = self._matrix("down"), self._matrix("up")
        self._linear()
        if down[0] != up[1]:
            raise self._misfit(("down", "up"), "their ranks differ")
        self._product(("down", "up"), (up[0], down[1]))
        return down[0]

    def lokr(self) -> tuple[tuple[str, ...], int | None]:
        """The roles that are there, and the rank of the factorised ones; None: both matrices are whole."""
        self._linear()
        names: list[str] = []
        shapes: list[Shape] = []
        rank: int | None = None
        for which in ("lokr_w1", "lokr_w2"):
            if which in self.roles:
                names.append(which)
                shapes.append(self._matrix(which))
                continue
            a, b = self._matrix(f"{which}_a"), self._matrix(f"{which}_b")
            if a[1] != b[0]:
                raise self._misfit((f"{which}_a", f"{which}_b"), "their ranks differ")
            names += [f"{which}_a", f"{which}_b"]
            shapes.append((a[0], b[1]))
            rank = b[0]
        self._product(names, (shapes[0][0] * shapes[1][0], shapes[0][1] * shapes[1][1]))
        return tuple(names), rank

    def loha(self) -> tuple[tuple[str, ...], int]:
        """The four roles and the rank."""
        self._linear()
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        w1_a, w1_b, w2_a, w2_b = (self._matrix(name) for name in names)
        if w1_a[1] != w1_b[0] or w2_a[1] != w2_b[0]:
            raise self._misfit(names, "their ranks differ")
        self._product(names[:2], (w1_a[0], w1_b[1]))
        self._product(names[2:], (w2_a[0], w2_b[1]))
        return names, w1_b[0]

    def magnitude(self, updates: int) -> None:
        """DoRA: one magnitude an output, or, in some of LyCORIS's files, one an input."""
        name = self.roles["magnitude"]
        if updates != 1:
            raise CheckpointError(f"{self.header.path}: {name!r}: DoRA's magnitudes without the one update they scale")
        shape, (outputs, inputs) = self.header.tensors[name].shape, self.weight
        if shape not in ((outputs,), (outputs, 1), (1, inputs)):
            raise self._misfit(("magnitude",), f"expected {outputs} outputs or {inputs} inputs")

    def expect(self, role: str, shape: Shape) -> None:
        if self.header.tensors[self.roles[role]].shape != shape:
            raise self._misfit((role,), f"expected {list(shape)}")

    def _linear(self) -> None:
        if len(self.weight) != 2:
            raise CheckpointError(f"{self.header.path}: {self.module!r} is no linear layer, so it takes no LoRA")

    def _matrix(self, role: str) -> Shape:
        name = self.roles.get(role)
        if name is None:
            known = next(iter(self.roles.values()))
            raise CheckpointError(f"{self.header.path}: {known!r} is there, the {role!r} that belongs to it is not")
        tensor: TensorHeader = self.header.tensors[name]
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise self._misfit((role,), "expected a matrix")
        return tensor.shape

    def _product(self, roles: Sequence[str], shape: Shape) -> None:
        if shape != self.weight:
            raise self._misfit(
                roles, f"they make {list(shape)}, but {self.module!r} is {list(self.weight)} in this model"
            )

    def _misfit(self, roles: Sequence[str], why: str) -> CheckpointError:
        said = "; ".join(f"{self.roles[r]!r} is {list(self.header.tensors[self.roles[r]].shape)}" for r in roles)
        return CheckpointError(f"{self.header.path}: {said}: {why}", hint="a LoRA of a model of another size?")
