"""What every part of the run file is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the run file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changes(self, key: str) -> bool:
        """Has `key` another value than its default? A resolved run file names the defaults too."""
        value: object = getattr(self, key)
        return bool(value != type(self).model_fields[key].default)
