"""The page docs/replay.md: what each aten operation with a derivative is in a replay.

python tests/jacobian/replay_table.py    # writes the page anew
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchgen

from isometry.jacobian.replay.rules.registry import rule_of

PAGE = Path(__file__).parents[2] / "docs" / "replay.md"
FAMILIES = {
    "elementwise": "entry by entry", "movement": "entries moved, or added to places",
    "reductions": "reductions, running sums", "matrix_products": "matrix products", "convolutions": "convolutions",
    "normalisation": "normalisations, softmax", "resampling": "averages over windows, interpolation",
}  # fmt: skip
HEAD = """# What is replayed

A measurement records the model as linear maps ([measuring.md](measuring.md)). PyTorch {version} has a derivative of
{count} operations that a recording may see. Backward operations are left out; composite ones, such as `einsum`, `stft`
or `LSTM`, are recorded as what they are made of.

- {ruled} have a rule: their maps are applied to all probes at once. Where a rule does not fit a use of its operation (a
  kernel that depends on the input, complex numbers), the derivative is that of `torch.func`.
- {alone} have the derivative of `torch.func`, of that operation alone: slower, and `products_by` names it. Where
  one has a backward formula alone (`_pdist_forward`, `_cdist_forward`, `_embedding_bag`, `_ctc_loss`), the model has
  reverse products alone.
- {random} draw random numbers and are not recorded.

`python tests/jacobian/replay_table.py` writes this page.

| operations | in a replay |
|---|---|
"""


def operations() -> list[str]:
    """Names of the aten operations with a formula, without overload and the underscore of writing in place."""
    text = (Path(torchgen.__file__).parent / "packaged" / "autograd" / "derivatives.yaml").read_text()
    named = re.findall(r"^- name: (\w+)(?:\.\w+)?\(", text, flags=re.MULTILINE)
    plain = {name if name.startswith("__") else name.rstrip("_") for name in named}
    return sorted(name for name in plain if "backward" not in name and hasattr(torch.ops.aten, name))


def page() -> str:
    groups: dict[str, list[str]] = {family: [] for family in (*FAMILIES, "torch.func", "random")}
    for name in operations():
        packet = getattr(torch.ops.aten, name)
        overloads = [getattr(packet, overload) for overload in packet.overloads()]
        rules = [rule for rule in map(rule_of, overloads) if rule is not None]
        if any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads):
            groups["random"].append(name)
        else:
            groups[rules[0].__module__.rsplit(".", 1)[1] if rules else "torch.func"].append(name)
    alone, random = len(groups["torch.func"]), len(groups["random"])
    count = sum(map(len, groups.values()))
    head = HEAD.format(
        version=torch.__version__.split("+")[0],
        count=count,
        ruled=count - alone - random,
        alone=alone,
        random=random,
    )
    texts = {
        **FAMILIES,
        "torch.func": "by `torch.func`, of the operation alone",
        "random": "random: not recorded",
    }
    rows = [f"| {', '.join(f'`{name}`' for name in groups[key])} | {text} |" for key, text in texts.items()]
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
