"""The model card that goes with an adapter: what it is for, how it was made, what it does and does not remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from llm_forget.adapters.lora import DIGEST_KEY, BaseRecord

if TYPE_CHECKING:
    from llm_forget.runfolder import RunRecord


def adapter_card(base: BaseRecord, record: RunRecord) -> str:
    """README.md of an adapter folder, with front matter that hubs read; no text of any example."""
    front = {"base_model": base.name, "library_name": "peft", "tags": ["lora", "unlearning"], DIGEST_KEY: base.digest}
    digests = "\n".join(f"| {name} data (digest of ids) | `{digest[:16]}` |" for name, digest in record.data_digests.items())
    after, before = record.after, record.before
    kept = "" if after.retain is None else f"| retain probability | {before.retain:.3f} | {after.retain:.3f} |\n"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# An unlearning adapter ({record.method})

| | |
|---|---|
| base | `{base.name}` |
| base revision | `{base.revision or "none given"}` |
| digest of the base's weights | `{base.digest or "not known"}` |
| method | `{record.method}` |
| steps, seconds | {record.steps}, {record.seconds:.0f} |
{digests}

| mean answer probability | before | after |
|---|---|---|
| forget probability | {before.forget:.3f} | {after.forget:.3f} |
{kept}
Why it ended: {record.reason}.

## What this adapter does and does not remove

With the adapter on, the model no longer gives the forgotten answers; the base weights below it still hold them, and taking the
adapter off brings them back. To put the change into the weights, merge the adapter. An adapter trained on a forget set, negated
or not, is a distilled copy of that set: keep it as you would keep the data.
"""
