"""Users and their secrets on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Words = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=200)]
_Quota = Annotated[int, Field(ge=0, le=1 << 62)]
_Days = Annotated[float, Field(gt=0, le=36_500)]
_Label = Annotated[
    str, Field(min_length=1, max_length=64, examples=["camera-7, March"])
]


class SecretRead(BaseModel):
    """A secret of a user: all but the secret itself, which nothing keeps."""

    id: str
    label: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_from: str | None = Field(description="An address or network.")


class SecretCreated(BaseModel):
    """A new secret, told this once."""

    id: str
    label: str
    expires_at: datetime | None
    secret: str


class UserRead(BaseModel):
    """A user: a person, a device or a program."""

    name: str
    roles: list[str]
    permissions: list[str] = Field(description="Beside those of the roles.")
    granted: list[str] = Field(description="All that the user may do.")
    created_at: datetime
    disabled_at: datetime | None
    max_versions: int | None = Field(description="Own quota; null: the gateway's.")
    max_bytes: int | None = Field(description="Likewise.")
    secrets: list[SecretRead]


class UserCreated(UserRead):
    """A new user with the first of their secrets, told this once."""

    secret: str


class UserPage(BaseModel):
    """Some of the users, by name."""

    items: list[UserRead]
    page: int
    page_size: int
    total: int


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UserCreate(_Body):
    """A user to add."""

    name: str = Field(max_length=128, examples=["camera-7"])
    roles: _Words = Field(default_factory=list, examples=[["device"]])
    permissions: _Words = Field(
        default_factory=list, examples=[["model:read:yolov11-nano"]]
    )
    max_versions: _Quota | None = None
    max_bytes: _Quota | None = None
    label: _Label = "first"
    expires_in_days: _Days | None = Field(
        default=None, description="Of the secret. Default: until it is removed."
    )


class UserChange(_Body):
    """What to change about a user; what is left out stays."""

    disabled: bool = False
    roles: _Words = Field(default_factory=list)
    permissions: _Words = Field(default_factory=list)
    max_versions: _Quota | None = None
    max_bytes: _Quota | None = None

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name at least one thing to change")
        return self


class SecretCreate(_Body):
    """A secret to add to those that a user has."""

    label: _Label
    expires_in_days: _Days | None = Field(
        default=None, description="Default: until it is removed."
    )
